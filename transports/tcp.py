"""TCP: its listener and its dialer, and the stream that it shares with Unix sockets.

Belongs here: TCP's own options. Does not belong here: the stream itself (gws_gevent/_fdio), the accept loop (accepting.py), which
address is connected to (happy_eyeballs.py), TLS.
"""

from __future__ import annotations

import _socket
from typing import TYPE_CHECKING

from gws_gevent._accel import build_of
from gws_gevent.exceptions import EndpointError
from gws_gevent.transports.accepting import SocketListener, resolve
from gws_gevent.transports.base import (
    Dialer,
    DialSettings,
    Endpoint,
    Listener,
    ListenSettings,
    Stream,
    as_transport_error,
    refuse_unknown_params,
)
from gws_gevent.transports.happy_eyeballs import connect_to_first, interleaved

if TYPE_CHECKING:
    from gws_gevent._fdio import SocketStream
else:
    SocketStream = build_of("_fdio").SocketStream

__all__ = ["SocketStream", "TcpDialer", "TcpListener", "dialer", "listen"]


class TcpListener(SocketListener):
    """Listens on one TCP port."""

    scheme = "tcp"

    def make_stream(self, accepted: SocketStream) -> Stream:
        return accepted


class TcpDialer(Dialer):
    """Connects to one TCP port."""

    def __init__(self, endpoint: Endpoint, settings: DialSettings | None = None) -> None:
        if not endpoint.host or not endpoint.port:
            raise EndpointError(f"{str(endpoint)!r}: to connect, a host and a port are needed")
        self.endpoint = endpoint
        self.settings = settings or DialSettings()

    def dial(self) -> SocketStream:
        """See Dialer. A name that has several addresses is connected by RFC 8305."""
        try:
            sock = connect_to_first(interleaved(resolve(self.endpoint.host, self.endpoint.port)))
            try:
                if self.settings.no_delay:
                    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
                return SocketStream.adopt(sock)
            finally:
                sock.close()
        except OSError as error:
            raise as_transport_error(error, f"connect to {self.endpoint}") from error


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `tcp://host:port`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return TcpListener(endpoint, settings=settings)


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `tcp://host:port`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return TcpDialer(endpoint, settings)
