"""Messages that are never whole in memory: one that is being written in fragments, one that is being read piece by piece.

Belongs here: what is known of them between two pieces. Does not belong here: writing (outgoing.py), reading (incoming.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from greenlet import getcurrent

from gws_gevent.exceptions import GwsError

if TYPE_CHECKING:
    from gws_gevent.broadcast import PreparedMessage
    from gws_gevent.connection import Connection
    from gws_gevent.extensions.deflate import Deflation
    from gws_gevent.frames import Opcode

__all__ = ["MessageStream", "StreamedMessage"]


class StreamedMessage:
    """Fragments of two messages may not interleave (RFC 6455 section 5.4): other messages wait for `done`.

    Attributes:
        greenlet: the one that writes the fragments.
        unfinished: a fragment has been queued, and not yet the last one.
        deflation: what compresses the fragments, or None.
        behind: each message that could not wait: opcode, payload, callback, and the PreparedMessage where it is one.
        size: bytes of those.
    """

    __slots__ = ("behind", "deflation", "done", "greenlet", "size", "unfinished")

    def __init__(self) -> None:
        self.greenlet = getcurrent()
        self.done = Event()
        self.unfinished = False
        self.deflation: Deflation | None = None
        self.behind: list[tuple[int, bytes, Callable[[Exception | None], object] | None, PreparedMessage | None]] = []
        self.size = 0

    def put_behind(
        self, opcode: int, payload: bytes, callback: Callable[[Exception | None], object] | None, prepared: PreparedMessage | None
    ) -> None:
        """Queue a whole message behind the last fragment."""
        self.behind.append((opcode, payload, callback, prepared))
        self.size += len(payload)


class MessageStream:
    """A message that is read piece by piece: iterate over it. `conn.receive_stream` makes it.

    The pieces are `str` for text, `bytes` for binary, none of them empty: each fragment as it came, or what has come of it; of a
    compressed message what that inflates to, 64 KiB at most. Nothing more is received, or inflated, while none is asked for.
    What is left when the loop is left is skipped by the next read of the connection.

    Iteration raises ConnectionClosed if the connection ends before the message does, and GwsError once the rest has been skipped.

    Attributes:
        opcode: Opcode.TEXT or Opcode.BINARY.
        max_size: bytes that the whole message may have, inflated.
        skipped: something else was read before the end of this message.
    """

    __slots__ = ("_conn", "_ended", "_whole", "max_size", "opcode", "skipped")

    opcode: Opcode

    def __init__(self, conn: Connection, max_size: int) -> None:
        self._conn = conn
        self._whole: str | bytes | None = None
        self._ended = False
        self.max_size = max_size
        self.skipped = False

    def hold(self, opcode: Opcode, data: str | bytes) -> None:
        """It had come as a whole before it was asked for in pieces."""
        self.opcode = opcode
        self._whole = data

    def __iter__(self) -> MessageStream:
        return self

    def __next__(self) -> Any:
        if self._whole is not None:
            piece, self._whole = self._whole, None
            self._ended = True
            if piece:
                return piece
        if self._ended:
            raise StopIteration
        if self.skipped and not self._conn.closed:
            raise GwsError("the rest of this message was skipped: the connection has been read since")
        found = self._conn.next_piece(self)
        if found is None:
            self._ended = True
            raise StopIteration
        return found
