"""The listener and the dialer of KCP: ports, and greenlets that begin.

Belongs here: UDP ports, starting what serves a stream, waiting for a session. Does not belong here: who may begin one (server.py,
client.py), streams.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable

from gevent.event import Event
from gevent.hub import get_hub
from gevent.pool import Pool
from greenlet import greenlet

from gws_gevent.exceptions import EndpointError, MissingExtra, TransportError
from gws_gevent.transports.accepting import resolve
from gws_gevent.transports.base import Dialer, DialSettings, Endpoint, Listener, ListenSettings, Stream, as_transport_error
from gws_gevent.transports.datagram import Address, UdpPort, connected_port, listening_port
from gws_gevent.transports.happy_eyeballs import first_to_answer, interleaved
from gws_gevent.transports.kcp.cipher import load_ciphers
from gws_gevent.transports.kcp.client import KcpClient
from gws_gevent.transports.kcp.core import MakeCore, find_core
from gws_gevent.transports.kcp.params import KcpParams, client_params, server_params
from gws_gevent.transports.kcp.server import KcpServer
from gws_gevent.transports.kcp.session import KcpSession
from gws_gevent.transports.kcp.stream import KcpStream

__all__ = ["KcpDialer", "KcpListener"]

log = logging.getLogger("gws_gevent.transports")


class KcpListener(Listener):
    """Listens on one UDP port. Sessions that exist when it is closed go on, and keep the socket until the last one has ended.

    Attributes:
        server: the sessions; None while it is not started.
    """

    def __init__(self, endpoint: Endpoint, settings: ListenSettings | None = None) -> None:
        self.endpoint = endpoint
        self.settings = settings or ListenSettings()
        self.address = str(endpoint)
        self.server: KcpServer | None = None
        self._params = server_params(endpoint)
        self._make_core = _core_of(self._params)
        self._port: UdpPort | None = None
        self._on_stream: Callable[[Stream], object] | None = None
        self._is_closed = False
        spawn = self.settings.spawn
        self._spawn = Pool(spawn) if isinstance(spawn, int) else spawn

    def start(self, on_stream: Callable[[Stream], object]) -> None:
        port = listening_port(self.endpoint)
        self._port, self._is_closed, self._on_stream = port, False, on_stream
        host, number = port.local_address[:2]
        # Without the parameters: what a client connects to has others.
        self.address = str(Endpoint("kcp", host, number))
        self.server = KcpServer(port, self._params, self._make_core, os.urandom, self._serve, self._give_port_back)
        port.start(self.server)
        if self._params.key is None and not _is_loopback(host):
            log.warning("%s: KCP without a key: everybody on the way can read and change what is sent", self.address)

    def stop_accepting(self) -> None:
        if self.server is not None:
            self.server.accepts = False

    def close(self) -> None:
        self.stop_accepting()
        self._is_closed = True
        if self._port is not None:
            self._port.share_address()
            self._give_port_back()

    def _give_port_back(self) -> None:
        if self._is_closed and self._port is not None and self.server is not None and not self.server.sessions:
            self.server.leave()
            self._port.close()
            self._port = None

    def _serve(self, session: KcpSession) -> None:
        """In the pump's greenlet: start the one that owns the new stream."""
        assert self._port is not None
        assert self._on_stream is not None
        stream = KcpStream(session, self._port.local_address)
        hub = get_hub()
        if self._spawn is None:
            prepare = getattr(self._on_stream, "prepare", None)
            if prepare is None:
                hub.loop.run_callback(greenlet(self._on_stream, hub).switch, stream)
            else:
                hub.loop.run_callback(self._prepare, prepare, stream)
        elif isinstance(self._spawn, Pool) and self._spawn.full():
            stream.abort()
        else:
            getattr(self._spawn, "spawn", self._spawn)(self._on_stream, stream)

    @staticmethod
    def _prepare(prepare: Callable[[Stream], Callable[[], object] | None], stream: KcpStream) -> None:
        """In the hub, as `Listener.start` promises."""
        run = prepare(stream)
        if run is not None:
            hub = get_hub()
            hub.loop.run_callback(greenlet(run, hub).switch)


class KcpDialer(Dialer):
    """Begins KCP sessions with one port. Each has a UDP port of its own."""

    def __init__(self, endpoint: Endpoint, settings: DialSettings | None = None) -> None:
        if not endpoint.host or not endpoint.port:
            raise EndpointError(f"{str(endpoint)!r}: to connect, a host and a port are needed")
        self.endpoint = endpoint
        self.settings = settings or DialSettings()
        self._params = client_params(endpoint)
        self._make_core = _core_of(self._params)

    def dial(self) -> KcpStream:
        """See Dialer. With `cookie=0` there is no answer to wait for: whether anybody is there is seen when something is sent."""
        try:
            choices = interleaved(resolve(self.endpoint.host, self.endpoint.port))
        except OSError as error:
            raise as_transport_error(error, f"connect to {_shown(self.endpoint)}") from error
        return first_to_answer(choices, self._dial_to, KcpStream.abort)

    def _dial_to(self, choice: tuple[int, Address]) -> KcpStream:
        port, address = connected_port(self.endpoint, choice)
        done = Event()
        # An end of the session may come before whoever waits for its beginning runs.
        client = KcpClient(port, address, self._params, self._make_core, os.urandom, done.set, lambda _: port.close())
        try:
            client.begin()
            done.wait()
            if client.session is None:
                assert client.error is not None
                raise TransportError(client.error.errno, f"connect to {_shown(self.endpoint)}: {client.error.strerror}")
        except BaseException:
            client.cancel()
            if client.session is not None:
                client.session.abort()
            port.close()
            raise
        return KcpStream(client.session, port.local_address)


def _shown(endpoint: Endpoint) -> str:
    return str(Endpoint("kcp", endpoint.host, endpoint.port))


def _core_of(params: KcpParams) -> MakeCore:
    if params.key is not None:
        load_ciphers()  # said now, and not when the first session begins
    try:
        return find_core(params.core)
    except ImportError as error:
        raise MissingExtra("the transport 'kcp'", "kcp") from error


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
