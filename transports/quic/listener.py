"""The server's side: from datagrams to connections, and from their streams to greenlets.

Belongs here: the table of connection IDs, accepting and stopping. Does not belong here: who is let in (admission.py), what a
connection does (session.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode, QuicHeader, QuicPacketType, pull_quic_header
from gevent.hub import get_hub
from gevent.pool import Pool
from greenlet import greenlet

from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.base import Endpoint, Listener, ListenSettings, Stream
from gws_gevent.transports.datagram import Address, DatagramPort, DatagramProtocol, listening_port
from gws_gevent.transports.newcomers import Newcomers
from gws_gevent.transports.quic.admission import CONNECTION_ID_LENGTH, Admission, Limits, Welcome
from gws_gevent.transports.quic.core import CoreConnection
from gws_gevent.transports.quic.credentials import ServerCredentials
from gws_gevent.transports.quic.goodbye import say_goodbye_at_exit
from gws_gevent.transports.quic.session import Application, QuicSession, SessionOwner

__all__ = ["Acceptor", "MakeApplication", "QuicListener", "QuicServer"]

log = logging.getLogger("gws_gevent.transports")

#: Seconds from a client's first datagram to the end of its handshake.
HANDSHAKE_LIMIT: Final = 10.0
#: The first bit of a long header, which all packets of a handshake have (RFC 9000 section 17.2).
_LONG: Final = 0x80

#: Makes what runs on a connection, from the connection, a function that takes each new stream, and one to call when one has ended.
MakeApplication = Callable[[QuicSession, Callable[[Stream], object], Callable[[], object]], Application]


class Acceptor:
    """Starts a greenlet for each stream; `prepare` and `spawn` as in the listeners over sockets."""

    def __init__(self, settings: ListenSettings, on_stream: Callable[[Stream], object]) -> None:
        spawn = settings.spawn
        self._pool = Pool(spawn) if isinstance(spawn, int) else spawn
        self._backlog = settings.backlog
        self._on_stream = on_stream
        self._waiting: deque[Stream] = deque()

    def accept(self, stream: Stream) -> None:
        """Have `on_stream(stream)` called. A full pool makes it wait; above `backlog` streams are aborted."""
        if self._pool is None:
            hub = get_hub()
            prepare = getattr(self._on_stream, "prepare", None)
            if prepare is None:
                hub.loop.run_callback(greenlet(self._on_stream, hub).switch, stream)
            elif (run := prepare(stream)) is not None:
                hub.loop.run_callback(greenlet(run, hub).switch)
        elif not isinstance(self._pool, Pool):
            self._pool(self._on_stream, stream)
        elif len(self._waiting) >= self._backlog:
            stream.abort()
        else:
            self._waiting.append(stream)
            self._start_waiting()

    def _start_waiting(self, _: object = None) -> None:
        while self._waiting:
            if self._pool.full():
                self._pool._semaphore.rawlink(self._start_waiting)
                return
            self._pool.spawn(self._on_stream, self._waiting.popleft())

    def close(self) -> None:
        """Abort what still waits."""
        while self._waiting:
            self._waiting.popleft().abort()


def _connection_id(data: bytes) -> bytes:
    """Return the destination connection ID; with damaged datagrams, anything."""
    if not data:
        return b""
    return data[6 : 6 + data[5]] if data[0] & _LONG and len(data) > 6 else data[1 : 1 + CONNECTION_ID_LENGTH]


class QuicServer(DatagramProtocol, SessionOwner):
    """Connections by their IDs.

    Attributes:
        admission: who is let in, and how many there are.
        newcomers: datagrams of those whose handshake is not complete, and of strangers.
        sessions: every connection, with its IDs.
        on_empty: called when the last connection has gone while `is_closing`.
    """

    def __init__(
        self,
        port: DatagramPort,
        configuration: QuicConfiguration,
        limits: Limits,
        make_application: Callable[[QuicSession], Application],
        *,
        streams: int,
        other_streams: int = 0,
        credentials: ServerCredentials | None = None,
        on_empty: Callable[[], object] = lambda: None,
    ) -> None:
        self.admission = Admission(limits)
        self.credentials = credentials
        self.configuration = configuration
        self.sessions: dict[QuicSession, tuple[Hashable, set[bytes]]] = {}
        self.is_accepting = True
        self.is_closing = False
        self.on_empty = on_empty
        self.newcomers = Newcomers(self._serve_newcomer, port.touch, port.now)
        self._port = port
        self._make_application = make_application
        self._streams = streams
        self._other_streams = other_streams
        self._by_id: dict[bytes, QuicSession] = {}

    def on_datagram(self, data: bytes, address: Address, now: float) -> None:
        session = self._by_id.get(_connection_id(data))
        if session is None:
            if data and data[0] & _LONG:
                self.newcomers.add(data, address)
        elif session.established:
            self.newcomers.heard_at = now
            session.receive(data, address, now)
        else:
            self.newcomers.add(data, address, has_begun=True)

    def _serve_newcomer(self, data: bytes, address: Address, now: float) -> None:
        session = self._by_id.get(_connection_id(data))
        if session is not None:
            session.receive(data, address, now)
            return
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_LENGTH)
        except ValueError:
            return
        if header.packet_type is QuicPacketType.ONE_RTT:
            return  # of a handshake that has been given up meanwhile
        verdict = self.admission.judge(header, data, address, now, is_crowded=self.newcomers.is_crowded)
        if isinstance(verdict, bytes):
            self._port.send(verdict, address)
        elif verdict is not None:
            if self.is_accepting:
                self._welcome(verdict, header, data, address, now)
            else:
                self._port.send(self.admission.refusal(header, QuicErrorCode.CONNECTION_REFUSED), address)

    def _welcome(self, verdict: Welcome, header: QuicHeader, data: bytes, address: Address, now: float) -> None:
        credentials = self.credentials
        core = CoreConnection(
            self.configuration,
            streams=self._streams,
            other_streams=self._other_streams,
            certificates_for=credentials.for_name if credentials is not None and credentials.has_names else None,
            original_destination_connection_id=verdict.original_destination_id,
            retry_source_connection_id=verdict.retry_source_id,
            session_ticket_fetcher=credentials.take_ticket if credentials is not None else None,
            session_ticket_handler=credentials.keep_ticket if credentials is not None else None,
        )
        doing = f"quic connection of {address[0]}"
        session = QuicSession(core, self._port, self, self._make_application, doing, now + HANDSHAKE_LIMIT)
        self.sessions[session] = self.admission.opened(address), set()
        for connection_id in (header.destination_cid, core.host_cid):
            self.on_connection_id(session, connection_id, is_known=True)
        session.receive(data, address, now)

    def leave(self) -> None:
        """Nobody new will come, and nobody is left."""
        self._port.forget(self.newcomers)

    # SessionOwner

    def on_connection_id(self, session: QuicSession, connection_id: bytes, *, is_known: bool) -> None:
        if session in self.sessions:
            ids = self.sessions[session][1]
            if is_known:
                ids.add(connection_id)
                self._by_id[connection_id] = session
            else:
                ids.discard(connection_id)
                self._by_id.pop(connection_id, None)

    def on_established(self, session: QuicSession) -> None:
        self.admission.established()

    def on_over(self, session: QuicSession) -> None:
        network, ids = self.sessions.pop(session)
        for connection_id in ids:
            self._by_id.pop(connection_id, None)
        self.admission.gone(network, was_established=session.established)
        if self.is_closing and not self.sessions:
            self.on_empty()

    def say_goodbye(self, now: float) -> None:
        """Close all connections at once: the process ends."""
        for session in list(self.sessions):
            session.say_goodbye(now)


class QuicListener(Listener):
    """Listens on one UDP port.

    Attributes:
        server: the connections, while it is started.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: ListenSettings,
        *,
        alpn: list[str],
        make_application: MakeApplication,
        limits: Limits,
        streams: int,
        window: int,
        idle: float,
        other_streams: int = 0,
    ) -> None:
        """Take what `listen` found in the endpoint.

        Args:
            alpn: what the connections speak, best first.
            make_application: makes what runs on a connection.
            streams: bidirectional streams that a client may have open at the same time on one connection.
            other_streams: unidirectional ones.
            window: bytes that a client may send on one stream before they are read; a connection has four times as much.
            idle: seconds of silence after which a connection is given up.
        """
        if settings.ssl_context is not None:
            raise EndpointError(f"{str(endpoint)!r}: QUIC takes certificate files (`tls`), not an ssl_context")
        if settings.tls is None:
            raise EndpointError(f"{str(endpoint)!r}: QUIC needs a certificate: `tls` in the settings, or ?cert=FILE&key=FILE")
        self.endpoint = endpoint
        self.settings = settings
        self.address = str(endpoint)
        self.server: QuicServer | None = None
        self._alpn, self._idle, self._window = alpn, idle, window
        self._limits, self._streams, self._other_streams = limits, streams, other_streams
        self._make_application = make_application
        self._credentials = self._load()
        self._acceptor: Acceptor | None = None
        self._port: DatagramPort | None = None

    def _load(self) -> ServerCredentials:
        assert self.settings.tls is not None
        return ServerCredentials(self.settings.tls, self.settings.sni)

    def _configuration(self) -> QuicConfiguration:
        configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=self._alpn,
            connection_id_length=CONNECTION_ID_LENGTH,
            idle_timeout=self._idle,
            max_data=4 * self._window,
            max_stream_data=self._window,
        )
        self._credentials.apply(configuration)
        return configuration

    def start(self, on_stream: Callable[[Stream], object]) -> None:
        port = listening_port(self.endpoint)
        self.start_on(port, on_stream)
        self.address = str(Endpoint(self.endpoint.scheme, port.local_address[0], port.local_address[1]))

    def start_on(self, port: DatagramPort, on_stream: Callable[[Stream], object]) -> None:
        """Listen on a port that is there, such as a simulated one; the listener owns it."""
        self._port = port
        self._acceptor = Acceptor(self.settings, on_stream)
        self.server = QuicServer(
            port,
            self._configuration(),
            self._limits,
            self._applied,
            streams=self._streams,
            other_streams=self._other_streams,
            credentials=self._credentials,
            on_empty=self._leave,
        )
        say_goodbye_at_exit(self.server)
        port.start(self.server)

    def _applied(self, session: QuicSession) -> Application:
        return self._make_application(session, self._accept, self._look_for_idle)

    def _accept(self, stream: Stream) -> None:
        server, acceptor = self.server, self._acceptor
        if server is None or acceptor is None or not server.is_accepting:
            stream.abort()
            return
        try:
            acceptor.accept(stream)
        except Exception as error:
            stream.abort()
            if self.settings.on_error is not None:
                self.settings.on_error(error)
            else:
                log.error("accept on %s: %r", self.address, error)

    def stop_accepting(self) -> None:
        """See Listener. A new connection is refused, a new stream is reset; HTTP/3 says so beforehand."""
        if self.server is not None and self.server.is_accepting:
            self.server.is_accepting = False
            for session in self.server.sessions:
                session.say_going_away()

    def close(self) -> None:
        """See Listener. Connections live until their streams have ended, on a socket whose address others can bind."""
        server = self.server
        if server is None or server.is_closing:
            return
        self.stop_accepting()
        server.is_closing = True
        if self._acceptor is not None:
            self._acceptor.close()
        for session in server.sessions:
            session.ends_when_left = True
            session.touch()
        self._look_for_idle()
        if self._port is not None:
            if server.sessions:
                self._port.share_address()
            else:
                self._leave()

    def _look_for_idle(self) -> None:
        """After `close`: end connections that have no stream."""
        server = self.server
        if server is not None and server.is_closing:
            for session in list(server.sessions):
                application = session.application
                if application is not None and application.is_idle:
                    session.close(TransportError("the listener was closed"))

    def _leave(self) -> None:
        port, server = self._port, self.server
        self._port = self.server = None
        if server is not None:
            server.leave()
        if port is not None:
            port.close()

    def reload(self) -> None:
        self._credentials = self._load()
        if self.server is not None:
            self.server.configuration = self._configuration()
            self.server.credentials = self._credentials
