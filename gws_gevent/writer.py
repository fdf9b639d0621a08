"""The output of one connection while it has some: order, coalescing, back-pressure.

Belongs here: bytes on their way to a stream, and who sends them. Does not belong here: frames (but for finding where one
ends), the connection's state. An idle connection has no Writer.

A stream with `try_send` is written without blocking, from any greenlet or the hub. What it does not take at once is
sent by one drain greenlet, which lives only while there is something left.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from gevent.event import Event
from greenlet import greenlet

from gws_gevent.exceptions import TransportError

if TYPE_CHECKING:
    from gws_gevent.runtime import Runtime

__all__ = ["FLUSH_SIZE", "LARGE", "Writer"]

#: Bytes of coalesced frames that are sent without waiting for more.
FLUSH_SIZE = 64 * 1024
#: Bytes from which a payload is sent from where it lies instead of being copied into the output buffer.
LARGE = 8 * 1024
#: Bytes handed to a blocking `send_all` at once, so that progress can be seen.
SLICE = 64 * 1024
#: Parts handed to one gathering send.
MAX_PARTS = 64


class Owner(Protocol):
    """What a Writer needs to know of its connection."""

    def output_failed(self, error: TransportError) -> None:
        """The stream failed while sending. Called at most once."""

    def output_changed(self, writer: Writer) -> None:
        """Bytes were left unsent, or some of those were sent, or the last of them was."""


class Writer:
    """An ordered queue of bytes and callbacks in front of a stream.

    Attributes:
        size: bytes not yet taken by the stream.
        draining: a greenlet is sending; others only append.
        progress: monotonic time when the stream last took bytes, once some were left; the write timeout counts from it.
        failed: the stream is gone; what is appended is dropped.
    """

    __slots__ = (
        "_below",
        "_offset",
        "_owner",
        "_parts",
        "_runtime",
        "_stream",
        "_try_send",
        "draining",
        "failed",
        "progress",
        "size",
    )

    def __init__(self, stream: Any, owner: Owner, runtime: Runtime) -> None:
        self._stream = stream
        self._try_send = getattr(stream, "try_send", None)
        self._owner = owner
        self._runtime = runtime
        # bytearray: frames, to which more may be appended. bytes: one frame. memoryview: the payload of the last frame's
        # header. A callable is a mark.
        self._parts: deque[Any] = deque()
        self._offset = 0
        self._below: Event | None = None
        self.size = 0
        self.draining = False
        self.progress = 0.0
        self.failed = False

    def tail(self) -> bytearray:
        """The buffer to append whole frames to. Call `appended` afterwards."""
        parts = self._parts
        if parts and type(parts[-1]) is bytearray:
            tail: bytearray = parts[-1]
            return tail
        parts.append(bytearray())
        return parts[-1]  # type: ignore[no-any-return]

    def appended(self, count: int) -> None:
        """Account for `count` bytes appended to `tail()`."""
        self.size += count

    def append_payload(self, payload: bytes) -> None:
        """Queue a payload whose header ends `tail()`, without copying it."""
        self._parts.append(memoryview(payload))
        self.size += len(payload)

    def append_frame(self, frame: bytes) -> None:
        """Queue a whole frame that many connections share, without copying it unless it is small."""
        if len(frame) >= LARGE:
            self._parts.append(frame)
        else:
            tail = self.tail()
            tail += frame
        self.size += len(frame)

    def append_mark(self, mark: Callable[[Exception | None], object]) -> None:
        """Call `mark(None)` in a greenlet once everything before it was sent, or `mark(error)` if that can't be."""
        self._parts.append(mark)

    def is_idle(self) -> bool:
        """True when nothing is left and nobody is sending."""
        return not self._parts and not self.draining

    def flush(self) -> None:
        """Send what can be sent without blocking; a drain greenlet sends the rest."""
        if self.draining or self.failed or not self._parts:
            return
        if self._try_send is None or not self._pump():
            self._start_drain()

    def wait_below(self, limit: int) -> None:
        """Block this greenlet until at most `limit` bytes are unsent, or the stream is gone."""
        while self.size > limit and not self.failed:
            self._wait()

    def wait_drained(self) -> None:
        """Block this greenlet until everything was sent, or the stream is gone."""
        while (self._parts or self.draining) and not self.failed:
            self._wait()

    def _wait(self) -> None:
        if self._below is None:
            self._below = Event()
        self._below.clear()
        self._below.wait()

    def fail(self, error: Exception) -> None:
        """The stream is gone: drop everything, wake every waiter, tell every mark. Idempotent."""
        if self.failed:
            return
        self.failed = True
        marks = [part for part in self._parts if callable(part)]
        self._forget()
        for mark in marks:
            self.run_in_greenlet(mark, error)

    def drop_all_but_the_frame_begun(self, error: Exception) -> None:
        """Forget what is queued behind the frame that has been sent in part; marks there are told `error`."""
        marks = [part for part in self._parts if callable(part)]
        begun = self._frame_begun()
        self._parts = deque(begun)
        self.size = sum(len(part) for part in begun) - self._offset
        for mark in marks:
            self.run_in_greenlet(mark, error)
        self._wake()

    def _frame_begun(self) -> list[Any]:
        """The parts that hold the frame which has been sent in part; none if the last byte sent ended a frame."""
        parts = [part for part in self._parts if not callable(part)]
        if not parts or (self._offset == 0 and type(parts[0]) is not memoryview):
            self._offset = 0
            return []
        head = parts[0]
        if type(head) is not bytearray:
            return [head]
        end = 0
        while end < self._offset:
            end += _frame_size(head, end)
        if end > len(head):
            return [head, parts[1]]
        if end == self._offset:
            self._offset = 0
            return []
        return [head[:end]]

    def _pump(self) -> bool:
        """Send without blocking; True when nothing is left."""
        stream, parts, left = self._stream, self._parts, self.size
        try:
            while parts:
                if callable(parts[0]):
                    return False
                if len(parts) == 1 and self._offset == 0:
                    sent = stream.try_send(parts[0])
                else:
                    sent = self._send_parts()
                if sent == 0:
                    return False
                self._advance(sent)
        except TransportError as error:
            self._broke(error)
        finally:
            if self.size < left:
                self.progress = monotonic()
        return True

    def _send_parts(self) -> int:
        views: list[memoryview] = []
        for part in self._parts:
            if callable(part) or len(views) == MAX_PARTS:
                break
            views.append(memoryview(part))
        views[0] = views[0][self._offset :]
        try:
            return int(self._stream.try_send_parts(views))
        finally:
            # A bytearray with a view on it cannot grow.
            for view in views:
                view.release()

    def _advance(self, sent: int) -> None:
        parts = self._parts
        self.size -= sent
        sent += self._offset
        while parts and not callable(parts[0]) and sent >= len(parts[0]):
            sent -= len(parts[0])
            parts.popleft()
        self._offset = sent

    def _start_drain(self) -> None:
        self.draining = True
        self.progress = monotonic()
        self._owner.output_changed(self)
        self._runtime.hub.loop.run_callback(greenlet(self._drain, self._runtime.hub).switch)

    def _drain(self) -> None:
        """Send everything, blocking this greenlet, and run the marks on the way."""
        try:
            while self._parts and not self.failed:
                if callable(self._parts[0]):
                    self._run_mark(self._parts.popleft(), None)
                elif self._try_send is None:
                    self._send_slice()
                elif not self._pump() and not callable(self._parts[0]):
                    self._tell()
                    self._stream.wait_writable()
        except Exception as error:  # a transport that raises anything else must not take the hub down
            self._broke(error if isinstance(error, TransportError) else TransportError(f"send: {error!r}"))
        finally:
            self.draining = False
            self._tell()

    def _send_slice(self) -> None:
        with memoryview(self._parts[0]) as view:
            piece = bytes(view[self._offset : self._offset + SLICE])
        # Counted as sent before it is: whatever asks where the frame begun ends must not cut into what is under way.
        self._advance(len(piece))
        self._stream.send_all(piece)
        self.progress = monotonic()
        self._tell()

    def _tell(self) -> None:
        self._owner.output_changed(self)
        self._wake()

    def _broke(self, error: TransportError) -> None:
        self.fail(error)
        self._owner.output_failed(error)

    def _run_mark(self, mark: Callable[[Exception | None], object], error: Exception | None) -> None:
        try:
            mark(error)
        except Exception:
            self._runtime.hub.handle_error(mark, *sys.exc_info())

    def run_in_greenlet(self, mark: Callable[[Exception | None], object], error: Exception) -> None:
        """Call `mark(error)` in a greenlet of its own."""
        self._runtime.hub.loop.run_callback(greenlet(self._run_mark, self._runtime.hub).switch, mark, error)

    def _forget(self) -> None:
        self._parts.clear()
        self._offset = 0
        self.size = 0
        self._wake()

    def _wake(self) -> None:
        if self._below is not None:
            self._below.set()


def _frame_size(data: bytearray, at: int) -> int:
    """Bytes of the frame that begins at `at`: its header is always whole in `data`."""
    length = data[at + 1] & 0x7F
    header = 2
    if length == 126:
        header, length = 4, int.from_bytes(data[at + 2 : at + 4], "big")
    elif length == 127:
        header, length = 10, int.from_bytes(data[at + 2 : at + 10], "big")
    return header + length + (4 if data[at + 1] & 0x80 else 0)
