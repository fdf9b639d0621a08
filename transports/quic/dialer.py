"""The client's side: connections to servers, each shared by many streams.

Belongs here: which connection a new stream goes on, making and ending connections. Does not belong here: what a connection does
(session.py), what is trusted (credentials.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import SessionTicket
from gevent.event import Event
from gevent.hub import get_hub

from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.accepting import resolve
from gws_gevent.transports.base import Dialer, DialSettings, Endpoint, as_transport_error
from gws_gevent.transports.datagram import Address, DatagramPort, DatagramProtocol, UdpPort, connected_port
from gws_gevent.transports.happy_eyeballs import first_to_answer, interleaved
from gws_gevent.transports.quic.core import CoreConnection
from gws_gevent.transports.quic.credentials import trust
from gws_gevent.transports.quic.goodbye import say_goodbye_at_exit
from gws_gevent.transports.quic.session import QuicSession, SessionOwner
from gws_gevent.transports.quic.stream import QuicStream, StreamTable

__all__ = ["ClientConnection", "QuicDialer"]

#: The way to the server has gone, and there may be another one.
_NO_WAY: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EINVAL}
#: Seconds between two attempts to go on over another network.
MIGRATION_PAUSE: Final = 1.0
#: Servers whose last session ticket is remembered.
MAX_TICKETS: Final = 64


class ClientConnection(DatagramProtocol, SessionOwner):
    """One connection to a server, its port, and its streams.

    Attributes:
        session: the QUIC connection.
        table: its streams.
        users: greenlets that are about to open a stream.
    """

    def __init__(
        self,
        port: DatagramPort,
        address: Address,
        configuration: QuicConfiguration,
        doing: str,
        *,
        scheme: str = "quic",
        make_table: type[StreamTable] = StreamTable,
        other_streams: int = 0,
        on_over: Callable[[ClientConnection], object] = lambda _: None,
        keep_ticket: Callable[[SessionTicket], object] | None = None,
    ) -> None:
        self.users = 0
        self._port = port
        self._address = address
        self._on_over = on_over
        self._ready = Event()  # the handshake is complete, or will never be
        self._migrated_at = 0.0
        core = CoreConnection(configuration, streams=0, other_streams=other_streams, session_ticket_handler=keep_ticket)

        def streams_of(session: QuicSession) -> StreamTable:
            self.table = make_table(session, scheme=scheme, on_change=self._on_change, on_end=lambda _: self._ready.set())
            return self.table

        self.session = QuicSession(core, port, self, streams_of, doing)
        self.session.ends_when_left = True
        port.start(self)
        core.connect(address, port.now())
        self.session.touch()
        say_goodbye_at_exit(self)

    @property
    def load(self) -> int:
        """Streams, and those to come."""
        return len(self.table) + self.users

    def is_good_for(self, streams: int) -> bool:
        """Another stream may be opened."""
        session = self.session
        if not session.established or session.error is not None or self.table.is_full or self.load >= streams:
            return False
        return session.core.may_open()

    def open(self) -> QuicStream | None:
        """Open a stream when the handshake is complete; None: the server allows no more on this connection."""
        self._ready.wait()
        if self.session.error is not None:
            raise self.session.error
        return self.table.open() if self.session.core.may_open() and not self.table.is_full else None

    def retire(self) -> None:
        """End the connection if nobody needs it."""
        if not self.load:
            self.session.close(TransportError("the connection was closed"))

    def _on_change(self) -> None:
        self.retire()

    def say_goodbye(self, now: float) -> None:
        self.session.say_goodbye(now)

    def migrate(self) -> None:
        """Go on over a new socket, from whatever address this machine has now."""
        if isinstance(self._port, UdpPort):
            port = self._port.again(self._address)
            old, self._port = self._port, port
            port.start(self)
            self.session.migrate(port)
            old.close()

    # DatagramProtocol

    def on_datagram(self, data: bytes, address: Address, now: float) -> None:
        self.session.receive(data, self._address, now)

    def on_error(self, error: OSError) -> None:
        session = self.session
        if not session.established:
            if session.error is None:
                session.drop(as_transport_error(error, session.doing))
        elif error.errno in _NO_WAY and session.error is None:
            now = self._port.now()
            if now - self._migrated_at >= MIGRATION_PAUSE:
                self._migrated_at = now
                try:
                    self.migrate()
                except OSError:
                    pass  # there is no way at all now: the idle timeout decides

    # SessionOwner

    def on_established(self, session: QuicSession) -> None:
        self._ready.set()

    def on_over(self, session: QuicSession) -> None:
        self._port.close()
        self._on_over(self)


class _Pool:
    """The connections of this hub by where they lead, and the tickets of servers.

    Attributes:
        dialing: where somebody is connecting to now. It may be to several addresses at once, of which one will be good.
    """

    def __init__(self) -> None:
        self.connections: dict[Hashable, list[ClientConnection]] = {}
        self.dialing: dict[Hashable, Event] = {}
        self.tickets: dict[Hashable, SessionTicket] = {}

    def best(self, key: Hashable, streams: int) -> ClientConnection | None:
        """Return the connection with the most streams that has room for another; None: there is none."""
        good = [one for one in self.connections.get(key, ()) if one.is_good_for(streams)]
        return max(good, key=lambda one: one.load, default=None)

    @contextmanager
    def is_dialing(self, key: Hashable) -> Iterator[None]:
        """Have others wait."""
        done = self.dialing[key] = Event()
        try:
            yield
        finally:
            del self.dialing[key]
            done.set()

    def add(self, key: Hashable, connection: ClientConnection) -> None:
        self.connections.setdefault(key, []).append(connection)

    def remove(self, key: Hashable, connection: ClientConnection) -> None:
        found = self.connections.get(key, [])
        if connection in found:
            found.remove(connection)
            if not found:
                del self.connections[key]

    def keep_ticket(self, key: Hashable, ticket: SessionTicket) -> None:
        ticket.max_early_data_size = None  # never 0-RTT
        self.tickets.pop(key, None)
        self.tickets[key] = ticket
        if len(self.tickets) > MAX_TICKETS:
            del self.tickets[next(iter(self.tickets))]


def _pool() -> _Pool:
    """The pool of this hub: it lives with the hub, like all that connections share."""
    pools: dict[int, _Pool] = get_hub().__dict__.setdefault("_gws_gevent_quic_pools", {})
    process = os.getpid()
    if process not in pools:
        pools.clear()  # a forked child: the connections are its parent's
        pools[process] = _Pool()
    return pools[process]


class QuicDialer(Dialer):
    """Opens streams to one server, on connections that it shares with other dialers to the same place."""

    #: What runs on the connections, and the unidirectional streams that the server may open on each.
    TABLE: type[StreamTable] = StreamTable
    OTHER_STREAMS = 0

    def __init__(self, endpoint: Endpoint, settings: DialSettings, *, alpn: str, window: int, idle: float) -> None:
        if not endpoint.host or not endpoint.port:
            raise EndpointError(f"{str(endpoint)!r}: to connect, a host and a port are needed")
        self.endpoint = endpoint
        self.settings = settings
        self._name = settings.server_name or endpoint.host
        self._alpn, self._window, self._idle = alpn, window, idle
        self._key: Hashable = (endpoint.host, endpoint.port, self._name, settings.ssl_context, alpn, window, idle)

    def dial(self) -> QuicStream:
        """See Dialer. A connection that is there is used if it has fewer than `streams_per_connection` streams."""
        pool, streams = _pool(), self.settings.streams_per_connection
        while True:
            connection = pool.best(self._key, streams)
            if connection is not None:
                stream = self._open_on(connection)
                if stream is not None:
                    return stream
            elif self._key in pool.dialing:
                pool.dialing[self._key].wait()  # and look again: most can share what somebody else is connecting
            else:
                with pool.is_dialing(self._key):
                    return self._dial_new(pool)

    def _open_on(self, connection: ClientConnection) -> QuicStream | None:
        connection.users += 1
        try:
            return connection.open()
        finally:
            connection.users -= 1
            connection.retire()

    def _dial_new(self, pool: _Pool) -> QuicStream:
        """Make a connection to the first address that answers."""
        doing = f"connect to {self.endpoint}"
        try:
            choices = interleaved(resolve(self.endpoint.host, self.endpoint.port))
        except OSError as error:
            raise as_transport_error(error, doing) from error

        def attempt(choice: tuple[int, Address]) -> QuicStream:
            stream = self._open_on(self._connection(pool, choice, doing))
            if stream is None:
                raise TransportError(f"{doing}: the server allows no streams")
            return stream

        return first_to_answer(choices, attempt, QuicStream.abort)

    def _connection(self, pool: _Pool, choice: tuple[int, Address], doing: str) -> ClientConnection:
        port, address = connected_port(self.endpoint, choice)
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=[self._alpn],
            idle_timeout=self._idle,
            max_data=4 * self._window,
            max_stream_data=self._window,
            server_name=self._name,
            session_ticket=pool.tickets.pop(self._key, None),
        )
        trust(configuration, self.settings.ssl_context)
        connection = ClientConnection(
            port,
            address,
            configuration,
            doing,
            scheme=self.endpoint.scheme,
            make_table=self.TABLE,
            other_streams=self.OTHER_STREAMS,
            on_over=lambda one: pool.remove(self._key, one),
            keep_ticket=lambda ticket: pool.keep_ticket(self._key, ticket),
        )
        pool.add(self._key, connection)
        return connection
