"""One message for many connections.

Belongs here: encoding a message once, handing it to each connection, telling how that went. Does not belong here: who belongs
together (rooms.py), the queue of one connection (outgoing.py).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.hub import get_hub
from greenlet import greenlet

from gws_gevent import runtime
from gws_gevent._accel import build_of
from gws_gevent.exceptions import WriteQueueFull
from gws_gevent.frames import COMPRESSED, Opcode, frame_header

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.extensions.deflate import Deflate
    from gws_gevent.payloads import encode
else:
    encode = build_of("payloads").encode

__all__ = ["Broadcaster", "PreparedMessage"]

#: Seconds that a broadcast keeps the loop before it lets everybody else run.
TURN: Final = 0.0005
#: Connections written to between two looks at the clock.
LOOK_UP: Final = 16

ConnectionCallback = Callable[["Connection", Exception | None], object]


class Outcome(IntEnum):
    """What has become of a message that was to be queued without waiting."""

    #: The transport owns all of it.
    SENT = 0
    #: It is behind other output, or on its way from another thread: the callback tells the rest.
    QUEUED = 1
    #: There is no room, and `slow_consumer="drop"` leaves it out.
    DROPPED = 2
    #: There is no room, and `slow_consumer="block"` would wait for some.
    FULL = 3


class PreparedMessage:
    """A message encoded once, to be written with `conn.write_prepared` as often as needed.

    Args:
        opcode: Opcode.TEXT or Opcode.BINARY.
        data: `str`, or UTF-8 as bytes, for TEXT; bytes for BINARY.
        compress: as for `conn.write_message`; a connection that has not negotiated compression gets it as it is.

    Attributes:
        payload: what a receiver gets, as bytes.
        frame: the whole frame as a server sends it, not compressed.

    Raises:
        ValueError, TypeError: data that doesn't fit the opcode.
    """

    __slots__ = ("_compressed", "compress", "frame", "opcode", "payload")

    def __init__(self, opcode: int, data: str | bytes | bytearray | memoryview, compress: bool | None = None) -> None:
        self.payload = bytes(encode(opcode, data))
        self.compress = compress
        self.opcode = Opcode(opcode)
        self.frame = frame_header(0x80 | opcode, len(self.payload)) + self.payload
        # Frames by the variant of compression.
        self._compressed: dict[Any, bytes] = {}

    def frame_for(self, deflate: Deflate | None) -> bytes:
        """Return the frame to send next to a connection with these negotiated parameters; compressed once for all that are alike.

        Args:
            deflate: of that connection. If it keeps a context, it forgets it: the peer has seen what is not in there.
        """
        if deflate is None or not deflate.is_wanted(len(self.payload), self.compress):
            return self.frame
        frame = self._compressed.get(deflate.variant)
        if frame is None:
            data = deflate.compress_alone(self.payload, self.compress is True)
            frame = self.frame if data is None else frame_header(0x80 | COMPRESSED | self.opcode, len(data)) + data
            self._compressed[deflate.variant] = frame
        if deflate.keeps_context and frame is not self.frame:
            deflate.forget()
        return frame


class Broadcaster:
    """Sends one message to many connections, encoded once for all of them.

    Connections of clients are the exception: each masks its frame with a key of its own (RFC 6455 section 5.3).

    Args:
        opcode, data, compress: as of a PreparedMessage.

    Attributes:
        message: the PreparedMessage.

    Raises:
        ValueError, TypeError: data that doesn't fit the opcode.
    """

    __slots__ = ("message",)

    def __init__(self, opcode: int, data: str | bytes | bytearray | memoryview, compress: bool | None = None) -> None:
        self.message = PreparedMessage(opcode, data, compress)

    def broadcast(self, conns: Iterable[Connection], callback: ConnectionCallback | None = None) -> dict[Connection, Exception]:
        """Queue the message for each connection, as `write_async` does; no connection waits for another one.

        A connection whose queue is full meets its `slow_consumer`. With `"block"` this greenlet waits for it, but only when all
        others have been written to. In the hub and from another thread nothing waits: there such a connection is one that failed.

        A large broadcast lets other greenlets run now and then. In the hub it cannot. What is thrown into this greenlet meanwhile
        goes on to its owner, and who was not reached gets nothing.

        Args:
            conns: may change meanwhile; the message goes to those that are in it now.
            callback: called once for each connection, in another greenlet, as `callback(conn, None)` when the transport owns the
                message, or with the error.

        Returns:
            the connections that did not take the message, each with its error: ConnectionClosed (also where `"close"` has just
            closed it), WriteQueueFull, MessageTooLarge. What is no connection is there with a TypeError, and no callback.

        Raises:
            TypeError: a callback that is none, or one connection in place of several.
        """
        run = Run(self.message, callback)
        run.write_to(conns)
        run.wait_for_the_slow()
        return run.failed


class Run:
    """One broadcast under way.

    Attributes:
        failed: the connections that did not take the message, and why.
    """

    __slots__ = ("_callback", "_message", "_sent", "_slow", "failed")

    def __init__(self, message: PreparedMessage, callback: ConnectionCallback | None) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: must be callable or None, not {callback!r}")
        self._message = message
        self._callback = callback
        self._sent: deque[Connection] = deque()
        self._slow: list[Connection] = []
        self.failed: dict[Connection, Exception] = {}

    def write_to(self, conns: Iterable[Connection]) -> None:
        """Write to everyone, and wait for nobody."""
        if hasattr(conns, "queue_prepared"):
            # It can be iterated over: that would receive.
            raise TypeError(f"a broadcast goes to several connections, such as a list of them, not to {conns!r}")
        message, callback = self._message, self._callback
        may_wait = runtime.may_wait()
        mark: Any = None
        began = monotonic()
        for number, conn in enumerate(list(conns), 1):
            if callback is not None:
                mark = partial(callback, conn)
            try:
                outcome = conn.queue_prepared(message, mark, False)
            except Exception as error:  # a transport of somebody else's may raise anything: the others get theirs all the same
                self._failed(conn, error)
            else:
                self._note(conn, outcome, may_wait)
            if may_wait and number % LOOK_UP == 0 and monotonic() - began > TURN:
                gevent.sleep(runtime.YIELD)
                began = monotonic()

    def wait_for_the_slow(self) -> None:
        """Write to those whose queue was full and for whom `slow_consumer` says to wait."""
        for conn in self._slow:
            mark = partial(self._callback, conn) if self._callback is not None else None
            try:
                outcome = conn.queue_prepared(self._message, mark, True)
            except Exception as error:
                self._failed(conn, error)
            else:
                self._note(conn, outcome, False)

    def _note(self, conn: Connection, outcome: Outcome, may_wait: bool) -> None:
        if outcome is Outcome.SENT:
            self._tell_sent(conn)
        elif outcome is Outcome.FULL and may_wait:
            self._slow.append(conn)
        elif outcome is Outcome.FULL or outcome is Outcome.DROPPED:
            self._failed(conn, WriteQueueFull(f"{conn.buffered_amount} bytes are unsent"))

    def _failed(self, conn: Connection, error: Exception) -> None:
        if not hasattr(conn, "queue_prepared"):
            self.failed[conn] = TypeError(f"a broadcast goes to connections, not {conn!r}")
            return
        # It may stand in the iterable twice: the first error is the one that counts.
        self.failed.setdefault(conn, error)
        if self._callback is not None:
            conn.call_in_greenlet(partial(self._callback, conn), error)

    def _tell_sent(self, conn: Connection) -> None:
        if self._callback is None:
            return
        self._sent.append(conn)
        if len(self._sent) == 1:
            hub = get_hub()
            hub.loop.run_callback(greenlet(self._run_callbacks, hub).switch)

    def _run_callbacks(self) -> None:
        """One greenlet calls back for all whose message went out at once, which is most of them."""
        while self._sent:
            try:
                self._callback(self._sent[0], None)  # type: ignore[misc]  # see _tell_sent
            except BaseException:
                get_hub().handle_error(self._callback, *sys.exc_info())
            # Not before: while one is being told, no other greenlet is started.
            self._sent.popleft()
