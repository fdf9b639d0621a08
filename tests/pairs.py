"""Two ends of a WebSocket connection in one process, for the tests of the public API.

Belongs here: starting a server or a pair, a handler that remembers, streams that count or hold back. Does not belong here: tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.event import AsyncResult

from gws_gevent import Client, ClientOptions, CloseInfo, Connection, EventHandler, Message, Server, ServerOptions, Upgrader
from gws_gevent.transports.memory import CAPACITY, MemoryStream, memory_pair
from tests.support import wait_until

__all__ = ["CountingStream", "EchoHandler", "Pair", "Recorder", "failing_with", "paired", "serving", "url_of"]


class Recorder(EventHandler):
    """Remembers each event as a tuple of its name and what came with it.

    Attributes:
        events: ("open",), ("message", data), ("ping", payload), ("pong", payload), ("close", info).
        open: the last connection that was opened, as an AsyncResult.
    """

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.open: AsyncResult = AsyncResult()

    def on_open(self, conn: Connection) -> None:
        self.events.append(("open",))
        self.open.set(conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        self.events.append(("message", message.data))

    def on_ping(self, conn: Connection, payload: bytes) -> None:
        self.events.append(("ping", payload))
        super().on_ping(conn, payload)

    def on_pong(self, conn: Connection, payload: bytes) -> None:
        self.events.append(("pong", payload))

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.events.append(("close", info))

    @property
    def infos(self) -> list[CloseInfo]:
        """What on_close was called with, once for each call."""
        return [event[1] for event in self.events if event[0] == "close"]

    @property
    def messages(self) -> list[Any]:
        """The data of each message."""
        return [event[1] for event in self.events if event[0] == "message"]

    def wait_closed(self, timeout: float = 5.0) -> CloseInfo:
        """Wait for on_close and return what it was called with."""
        wait_until(lambda: self.infos, timeout, "on_close")
        return self.infos[0]


class EchoHandler(Recorder):
    """Sends each message back."""

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        conn.write_message(message.opcode, message.data)


def failing_with(error: BaseException, event: str = "on_message") -> Recorder:
    """Return a Recorder that raises `error` in one of its methods, after it has remembered the event."""

    class Failing(Recorder):
        pass

    remember = getattr(Recorder, event)

    def fail(self: Recorder, *args: Any) -> None:
        remember(self, *args)
        raise error

    setattr(Failing, event, fail)
    return Failing()


class CountingStream(MemoryStream):
    """Remembers what each call of `try_send` took."""

    __slots__ = ("sends",)

    def __init__(self, name: str, capacity: int) -> None:
        super().__init__(name, capacity)
        self.sends: list[bytes] = []

    def try_send(self, data: Any) -> int:
        taken = super().try_send(data)
        self.sends.append(bytes(data[:taken]))
        return taken


@dataclass
class Pair:
    """Both ends.

    Attributes:
        server, client: the connections.
        stream: the server's stream.
        greenlet: the one that serves the server's end.
    """

    server: Connection
    client: Connection
    stream: Any
    greenlet: Any


@contextmanager
def paired(
    handler: EventHandler | Callable[[Connection], object],
    options: ServerOptions | None = None,
    client_handler: EventHandler | Callable[[Connection], object] | None = None,
    client_options: ClientOptions | None = None,
    *,
    capacity: int = CAPACITY,
    make: Callable[[str, int], MemoryStream] = MemoryStream,
) -> Iterator[Pair]:
    """Serve `handler` at one end of an in-process pair and connect at the other; both are gone at the end of the block.

    Args:
        capacity: bytes that each direction holds before its writer waits.
        make: makes the server's stream.
    """
    ours, theirs = memory_pair(capacity, make=make)
    server: AsyncResult = AsyncResult()
    upgrader = Upgrader(handler, options)

    def serve() -> None:
        conn = upgrader.upgrade_stream(ours)
        server.set(conn)
        conn.read_loop()

    greenlet = gevent.spawn(serve)
    client = Client.from_stream(theirs, handler=client_handler, options=client_options)
    try:
        yield Pair(server.get(timeout=5), client, ours, greenlet)
    finally:
        client.abort()
        greenlet.join(5)
        assert greenlet.dead


@contextmanager
def serving(
    handler: EventHandler | Callable[[Connection], object] | None,
    options: ServerOptions | None = None,
    *endpoints: str,
    stop_timeout: float = 1.0,
    **more: Any,
) -> Iterator[Server]:
    """Run a server on `endpoints`, or on TCP port 0, until the end of the block."""
    server = Server(handler, options, **more)
    server.start(*(endpoints or ("127.0.0.1:0",)))
    try:
        yield server
    finally:
        server.stop(stop_timeout)
    assert not server.connections


def url_of(server: Server, target: str = "/", which: int = 0) -> str:
    """Return the URL that a client connects to."""
    address = server.addresses[which]
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        return f"ws+unix:{rest}:{target}"
    return f"{ {'tcp': 'ws', 'tls': 'wss'}[scheme] }:{rest}{target}"
