"""TLS over TCP: its listener and its dialer.

Belongs here: which context a stream gets, and which session it resumes. Does not belong here: the stream itself
(gws_gevent/_tls_stream), contexts and certificate files (tls_contexts.py).
"""

from __future__ import annotations

import ssl
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from gws_gevent._accel import build_of
from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.accepting import SocketListener
from gws_gevent.transports.base import (
    Dialer,
    DialSettings,
    Endpoint,
    Listener,
    ListenSettings,
    PollableStream,
    TlsFiles,
    refuse_unknown_params,
)
from gws_gevent.transports.tcp import SocketStream, TcpDialer
from gws_gevent.transports.tls_contexts import client_context, server_context
from gws_gevent.transports.tls_sessions import server_key, sessions_of

if TYPE_CHECKING:
    from gws_gevent import _tls_stream

    class TlsStream(_tls_stream.TlsStream, PollableStream):
        """It is registered as one: a compiled class has no Python class above it."""

else:
    TlsStream = build_of("_tls_stream").TlsStream

__all__ = ["TlsDialer", "TlsListener", "TlsStream", "dialer", "listen"]


class TlsListener(SocketListener):
    """Listens on one TCP port and speaks TLS. The handshake is left to the connection's greenlet (`Stream.handshake`)."""

    scheme = "tls"

    def __init__(self, listener: Any, *args: Any, settings: ListenSettings | None = None, **kwargs: Any) -> None:
        """Take what SocketListener takes; `settings` must have `tls` or `ssl_context`. A TransportError if files cannot be used."""
        settings = settings or ListenSettings()
        if settings.tls is None and settings.ssl_context is None:
            raise EndpointError(f"{str(listener)!r}: TLS needs a certificate: `tls` in the settings, or ?cert=FILE&key=FILE")
        self._context = settings.ssl_context or self._load(settings)
        super().__init__(listener, *args, settings=settings, **kwargs)

    def make_stream(self, accepted: SocketStream) -> TlsStream:
        return TlsStream(accepted, self._context, server_side=True)

    def reload(self) -> None:
        if self.settings.ssl_context is None:
            self._context = self._load(self.settings)

    @staticmethod
    def _load(settings: ListenSettings) -> ssl.SSLContext:
        assert settings.tls is not None
        return server_context(settings.tls, settings.sni)


class TlsDialer(Dialer):
    """Connects to one TCP port and does the TLS handshake."""

    def __init__(self, endpoint: Endpoint, settings: DialSettings | None = None) -> None:
        self.endpoint = endpoint
        self.settings = settings or DialSettings()
        self._carrier: Dialer = self.settings.tunnel or TcpDialer(endpoint, self.settings)
        self._context = self.settings.ssl_context or _default_context()

    def dial(self) -> TlsStream:
        carrier = self._carrier.dial()
        try:
            stream = self._begin(carrier)
            stream.handshake()
            return stream
        except BaseException as error:
            carrier.close()  # and not abort: a reset could overtake the alert that tells the server why
            if isinstance(error, TransportError):
                raise TransportError(f"connect to {self.endpoint}: {error}") from error
            raise

    def _begin(self, carrier: Any) -> TlsStream:
        """Offer the session of the last connection to the same server. If it is refused, the handshake is a full one by itself."""
        name = self.settings.server_name or self.endpoint.host
        sessions, server = sessions_of(self._context), server_key(self._context, self.endpoint, name)
        make: Any = TlsStream
        if type(carrier) is not SocketStream:
            # TLS inside of TLS, behind an https proxy: the compiled one knows only sockets.
            from gws_gevent import _tls_stream as plain

            make = plain.TlsStream
        stream: TlsStream = make(
            carrier,
            self._context,
            server_side=False,
            server_hostname=name,
            session=sessions.take(server),
            keep_session=partial(sessions.keep, server),
        )
        return stream


@cache
def _default_context() -> ssl.SSLContext:
    """Made once: reading the system's authorities takes longer than ten handshakes. And sessions belong to a context."""
    return client_context()


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `tls://host:port`; its parameters cert, key and client_ca stand for `tls` in the settings."""
    refuse_unknown_params(endpoint, ("cert", "key", "client_ca"))
    params = endpoint.params
    if not params:
        return TlsListener(endpoint, settings=settings)
    if "cert" not in params:
        raise EndpointError(f"{str(endpoint)!r}: {' and '.join(sorted(params))} without cert")
    files = TlsFiles(params["cert"], params.get("key"), params.get("client_ca"))
    return TlsListener(endpoint, settings=replace(settings, tls=files, ssl_context=None))


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `tls://host:port`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return TlsDialer(endpoint, settings)
