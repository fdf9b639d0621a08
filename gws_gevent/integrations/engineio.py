"""python-engineio, python-socketio and Flask-SocketIO on our connections.

Belongs here: what Engine.IO takes for a WebSocket and for a queue. Does not belong here: its protocol, which stays theirs.

Only the server that `install` is given changes: nothing is patched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from time import monotonic
from typing import Any, NamedTuple

import gevent
from gevent.event import Event
from gevent.queue import Empty, JoinableQueue

from gws_gevent.exceptions import ConnectionClosed, MessageTooLarge, MissingExtra, Refusal
from gws_gevent.frames import CloseCode
from gws_gevent.options import MiB, ServerOptions, options_or_default
from gws_gevent.takeover import Answer
from gws_gevent.upgrader import Upgrader

try:
    import engineio
except ImportError as error:
    raise MissingExtra("Engine.IO", "engineio") from error

__all__ = ["PacketQueue", "QueueRules", "WebSocket", "install"]

logger = logging.getLogger("gws_gevent")

#: Bytes that a packet is counted for besides its data.
OVERHEAD = 64
#: Bytes after which Engine.IO's writer, which takes all that is there, is told that there is no more: what it has is not counted.
BATCH = 256 * 1024
#: What ends a client that is too slow.
TOO_SLOW = "too slow"


def install(server: Any, options: ServerOptions | None = None, *, queue_size: int = 8 * MiB) -> None:
    """Let an Engine.IO server take our connections as its WebSocket, and bound what waits for each of its clients.

    Sessions that exist already are left as they are. Works with and without gevent-websocket in the process.

    Args:
        server: an `engineio.Server`, a `socketio.Server`, or a Flask-SocketIO `SocketIO` that has its app.
        options: of the connections. Engine.IO's own `max_http_buffer_size` lowers `read_max_payload_size`; its pings stand in for
            `ping_interval` and `read_timeout`; it looks at origins itself (`cors_allowed_origins`), and `origins` besides.
        queue_size: bytes that may wait for one client, by polling too. Above it its writer gets a turn; if that was not enough,
            `slow_consumer` decides: "close" ends it, "block" has `emit` wait up to `write_timeout` first. One packet of any size
            goes into an empty queue.

    Raises:
        TypeError: `server` is something else, or asyncio's.
        ValueError: a server that does not run on gevent; a Flask-SocketIO without an app; `slow_consumer="drop"`, which would tear
            packets apart; a wrong option.
    """
    eio = _engine(server)
    if eio.async_mode != "gevent":
        raise ValueError(f'async_mode: must be "gevent", not {eio.async_mode!r}: make the server with async_mode="gevent"')
    if isinstance(queue_size, bool) or not isinstance(queue_size, int) or queue_size < 1:
        raise ValueError(f"queue_size: must be a whole number of at least 1, not {queue_size!r}")
    options = options_or_default(options, ServerOptions)
    if options.slow_consumer == "drop":
        raise ValueError("slow_consumer: 'drop' would tear Socket.IO's packets apart; 'close' or 'block'")
    options = replace(
        options,
        read_max_payload_size=min(options.read_max_payload_size, eio.max_http_buffer_size),
        ping_interval=None,
        read_timeout=eio.ping_interval + eio.ping_timeout,
    )
    upgrader = Upgrader(options=options)

    def make_websocket(handler: Callable[[WebSocket], list[bytes]], _: Any) -> WebSocket:
        return WebSocket(handler, upgrader)

    rules = QueueRules(
        queue_size,
        patience=(options.write_timeout or inf) if options.slow_consumer == "block" else None,
        attachments=eio is not server and _socketio_of(server).packet_class.uses_binary_events,
    )

    def make_queue(*_: Any, **__: Any) -> PacketQueue:
        return PacketQueue(eio, rules)

    # A copy: the driver's own is every server's.
    eio._async = {**eio._async, "websocket": make_websocket, "queue": make_queue}


def _engine(server: Any) -> Any:
    """The engineio.Server in what was given."""
    inner = _socketio_of(server)
    if inner is None and server is not None:
        raise ValueError("this SocketIO has no app yet: call init_app(app) first")
    eio = getattr(inner, "eio", inner)
    if not isinstance(eio, engineio.Server) or eio.is_asyncio_based():
        raise TypeError(f"an engineio.Server, a socketio.Server or a Flask-SocketIO SocketIO is needed, not {server!r}")
    return eio


def _socketio_of(server: Any) -> Any:
    """The socketio.Server of a Flask-SocketIO, or None if it has none yet; anything else as it is."""
    return server.server if hasattr(server, "init_app") and hasattr(server, "server") else server


class QueueRules(NamedTuple):
    """What the queues of one server have in common.

    Attributes:
        size: bytes that may wait.
        patience: seconds that `put` waits for room; None: not at all.
        attachments: binary packets belong to the text packet before them.
    """

    size: int
    patience: float | None
    attachments: bool


class WebSocket:
    """One connection, as Engine.IO wants it: called with a WSGI request, it runs Engine.IO's handler in that greenlet."""

    __slots__ = ("_conn", "_handler", "_upgrader")

    def __init__(self, handler: Callable[[WebSocket], list[bytes]], upgrader: Upgrader) -> None:
        self._handler = handler
        self._upgrader = upgrader
        self._conn: Any = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer 101 and run the handler until it is done with the connection."""
        try:
            self._conn = self._upgrader.accept(environ, start_response)
        except Refusal as refusal:
            return iter(Answer.of(refusal))  # start_response has been called; a list would be taken for packets
        queue = getattr(getattr(self._handler, "__self__", None), "queue", None)
        if isinstance(queue, PacketQueue):
            queue.on_overflow = self._give_up
        with self._conn:
            return self._handler(self)

    def wait(self) -> str | bytes | None:
        """Return the next message, or None once the connection has ended."""
        try:
            return self._conn.receive()  # type: ignore[no-any-return]  # text or bytes
        except ConnectionClosed:
            return None

    def send(self, message: str | bytes) -> None:
        """Send one packet; waits while the client takes nothing."""
        try:
            self._conn.send(message)
        except MessageTooLarge as error:
            logger.error("a Socket.IO client is dropped: %s", error)  # Engine.IO itself says nothing
            raise

    def close(self) -> None:
        """Do the closing handshake."""
        self._conn.close()

    def _give_up(self) -> None:
        self._conn.give_up(CloseCode.POLICY_VIOLATION, TOO_SLOW)


class PacketQueue(JoinableQueue):  # type: ignore[misc]  # gevent's, without types
    """What waits to be sent to one client, bounded in bytes.

    Attributes:
        waiting: bytes.
        on_overflow: ends the client's WebSocket, if it has one.
    """

    __slots__ = ("_batch", "_over", "_rules", "_server", "_taken", "on_overflow", "waiting")

    def __init__(self, server: engineio.Server, rules: QueueRules) -> None:
        super().__init__()
        self.waiting = 0
        # Bytes that have been taken since somebody was ready to wait for a packet.
        self._batch = 0
        self.on_overflow: Callable[[], object] | None = None
        self._server = server
        self._rules = rules
        self._over = False
        self._taken: Event | None = None

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add a packet, or None for the end. What comes after the queue has overflowed goes nowhere."""
        size = _size_of(item)
        # Between the packets of one message nobody else may get a turn: theirs would come in between.
        if not self._fits(size) and not (self._rules.attachments and item.binary):
            self._make_room(size)
        if self._over and item is not None:
            return
        self.waiting += size
        super().put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take a packet, as from a queue of gevent's. Who does not wait gets a BATCH at most."""
        if block:
            self._batch = 0
        elif self._batch >= BATCH:
            raise Empty
        item = super().get(block, timeout)
        size = _size_of(item)
        self.waiting -= size
        self._batch += size
        if self._taken is not None:
            self._taken.set()
        return item

    def _fits(self, size: int) -> bool:
        return not size or not self.waiting or self.waiting + size <= self._rules.size or self._over

    def _make_room(self, size: int) -> None:
        """Let the writer take what there is; end the client if it cannot."""
        if gevent.getcurrent() is not gevent.get_hub():
            gevent.sleep(0)
            if self._rules.patience is not None:
                self._wait_for_room(size, self._rules.patience)
        if not self._fits(size):
            self._overflow()

    def _wait_for_room(self, size: int, seconds: float) -> None:
        deadline = monotonic() + seconds
        self._taken = self._taken or Event()
        while not self._fits(size):
            self._taken.clear()
            if not self._taken.wait(max(deadline - monotonic(), 0)):
                return

    def _overflow(self) -> None:
        self._over = True
        while not self.empty():
            self.get()
            self.task_done()
        # In a greenlet of its own: a `disconnect` handler is user code, and may emit again.
        gevent.spawn(self._end_client)

    def _end_client(self) -> None:
        if self.on_overflow is not None:
            self.on_overflow()
        for socket in list(self._server.sockets.values()):
            if socket.queue is self:
                self._server.logger.warning("%s: %s, over %d bytes waited for it", socket.sid, TOO_SLOW, self._rules.size)
                socket.close(wait=False, abort=True, reason=self._server.reason.TRANSPORT_ERROR)


def _size_of(packet: Any) -> int:
    """Bytes, or characters, that a packet holds; 0 for None, which ends the queue."""
    if packet is None:
        return 0
    data = packet.data
    if data is not None and not isinstance(data, str | bytes | bytearray):
        data = packet.encode()  # kept by the packet for its writer
    return OVERHEAD + len(data or "")
