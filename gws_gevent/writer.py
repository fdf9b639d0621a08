# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
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
from typing import Any, Final, Protocol

from gevent.event import Event
from greenlet import greenlet

from gws_gevent.exceptions import TransportError

from ._fdio import SocketStream
from ._masking import empty

__all__ = ["LARGE", "Writer"]

#: Bytes from which a payload, or a frame that many connections share, is sent from where it lies instead of being copied.
LARGE: Final = 8 * 1024
#: Bytes handed to a blocking `send_all` at once, so that progress can be seen.
SLICE: Final = 64 * 1024
#: Marks told at once. While there are more, nothing behind them is sent.
MAX_MARKS: Final = 1024
#: Parts handed to one gathering send.
MAX_PARTS: Final = 64


class Owner(Protocol):
    """What a Writer needs to know of its connection."""

    def output_failed(self, error: TransportError) -> None:
        """The stream failed while sending. Called at most once."""

    def output_changed(self, writer: Writer) -> None:
        """Bytes were left unsent, or more were queued behind those, or some of them were sent, or the last was."""


class Writer:
    """An ordered queue of bytes and callbacks in front of a stream.

    Frames are appended to the tail. Only what cannot go there (a large payload, a mark) puts parts in front of it.

    Attributes:
        size: bytes not yet taken by the stream.
        draining: a greenlet is sending; others only append.
        progress: monotonic time when the stream last took bytes, once some were left; the write timeout counts from it.
        flush_scheduled: what it holds will be sent before the loop next waits.
        failed: the stream is gone; what is appended is dropped.
    """

    __slots__ = (
        "_below", "_hub", "_marks", "_non_blocking", "_offset", "_owner", "_parts", "_socket", "_stream", "_tail",
        "draining", "failed", "flush_scheduled", "progress", "size",
    )  # fmt: skip

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._stream: Any = None
        self._socket: SocketStream | None = None
        self._non_blocking = False
        self._owner: Any = None
        self._tail = bytearray()
        # bytearray: frames. bytes: one frame. memoryview: the payload of the last frame's header. A callable is a mark.
        self._parts: deque[Any] | None = None
        # Marks that everything before them was sent: called one after the other in a greenlet of their own, which lives while
        # there are any.
        self._marks: deque[Any] | None = None
        self._offset = 0
        self._below: Event | None = None
        self.size = 0
        self.draining = False
        self.flush_scheduled = False
        self.progress = 0.0
        self.failed = False

    def attach(self, stream: Any, owner: Owner) -> None:
        """Serve one connection from here on."""
        self._stream = stream
        self._socket = stream if type(stream) is SocketStream else None
        self._non_blocking = self._socket is not None or hasattr(stream, "try_send")
        self._owner = owner

    def detach(self) -> bool:
        """Let go of the connection; True if another may have this writer."""
        if self.failed or self._below is not None or not self.is_idle():
            return False
        self._stream = self._socket = self._owner = None
        self.flush_scheduled = False
        return True

    def tail(self) -> bytearray:
        """The buffer to append whole frames to. Call `appended` afterwards."""
        return self._tail

    def appended(self, count: int) -> None:
        """Account for `count` bytes appended to `tail()`."""
        self.size += count

    def sent_all_but(self, left: int) -> None:
        """The stream has taken what was appended but for the last so many bytes, and wants no more now."""
        self._advance(self.size - left)
        self._start_drain()

    def append_payload(self, payload: bytes) -> None:
        """Queue a payload whose header ends `tail()`, without copying it."""
        self._append_part(memoryview(payload))
        self.size += len(payload)

    def append_frame(self, frame: bytes) -> None:
        """Queue a whole frame that many connections share, without copying it unless it is small."""
        if len(frame) >= LARGE:
            self._append_part(frame)
        else:
            self._tail += frame
        self.size += len(frame)

    def append_mark(self, mark: Callable[[Exception | None], object]) -> None:
        """Call `mark(None)` in a greenlet once everything before it was sent, or `mark(error)` if that can't be."""
        self._append_part(mark)

    def _append_part(self, part: Any) -> None:
        self._all_parts().append(part)

    def _all_parts(self) -> deque[Any]:
        """Everything that is queued, the tail included, in order."""
        if self._parts is None:
            self._parts = deque()
        if self._tail:
            self._parts.append(self._tail)
            self._tail = bytearray()
        return self._parts

    def is_idle(self) -> bool:
        """True when nothing is left, nobody is sending and no mark is being told."""
        return not self._tail and not self._parts and not self.draining and self._marks is None

    def flush(self) -> None:
        """Send what can be sent without blocking; a drain greenlet sends the rest."""
        if self.failed:
            return
        if self.draining:
            # Nothing is sent here, but there is more of it: the owner counts it now, for the stream may take nothing for long.
            self._owner.output_changed(self)
            return
        if not self._parts:
            if not self._tail or (self._non_blocking and self._send_tail()):
                return
        elif self._non_blocking and self._pump():
            return
        self._start_drain()

    def _send_tail(self) -> bool:
        """The usual case: nothing stands before the tail, and the stream takes all of it at once. True when nothing is left."""
        try:
            sent = self._socket.try_send(self._tail) if self._socket is not None else self._stream.try_send(self._tail)
        except TransportError as error:
            self._broke(error)
            return True
        self.size -= sent
        if self.size == 0:
            empty(self._tail)
            return True
        self._offset = sent
        self.progress = monotonic()
        self._all_parts()
        return False

    def wait_below(self, limit: int) -> None:
        """Block this greenlet until at most `limit` bytes are unsent, or the stream is gone."""
        while self.size > limit and not self.failed:
            self._wait()

    def wait_drained(self) -> None:
        """Block this greenlet until everything was sent, or the stream is gone."""
        while self.size and not self.failed:
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
        marks = [part for part in self._all_parts() if callable(part)]
        self._forget()
        for mark in marks:
            self.run_in_greenlet(mark, error)

    def drop_all_but_the_frame_begun(self, error: Exception) -> None:
        """Forget what is queued behind the frame that has been sent in part; marks there are told `error`."""
        marks = [part for part in self._all_parts() if callable(part)]
        begun = self._frame_begun()
        self._parts = deque(begun)
        self.size = sum(len(part) for part in begun) - self._offset
        for mark in marks:
            self.run_in_greenlet(mark, error)
        self._wake()

    def _frame_begun(self) -> list[Any]:
        """The parts that hold the frame which has been sent in part; none if the last byte sent ended a frame."""
        parts = [part for part in self._all_parts() if not callable(part)]
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
        stream, parts, left = self._stream, self._all_parts(), self.size
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
        for part in self._all_parts():
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
        parts = self._all_parts()
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
        self._hub.loop.run_callback(greenlet(self._drain, self._hub).switch)

    def _drain(self) -> None:
        """Send everything, blocking this greenlet, and run the marks on the way."""
        try:
            while not self.failed and (parts := self._all_parts()):
                if callable(parts[0]):
                    if not self._hand_over_mark(parts):
                        return
                elif not self._non_blocking:
                    self._send_slice(parts[0])
                elif not self._pump() and not callable(parts[0]):
                    self._tell()
                    self._stream.wait_writable()
        except Exception as error:  # a transport that raises anything else must not take the hub down
            self._broke(error if isinstance(error, TransportError) else TransportError(f"send: {error!r}"))
        finally:
            self.draining = False
            self._tell()

    def _send_slice(self, part: Any) -> None:
        with memoryview(part) as view:
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

    def _hand_over_mark(self, parts: deque[Any]) -> bool:
        """Have the first part told that all before it was sent. False: too many are being told; the last of them goes on here."""
        if self._marks is None:
            self._marks = deque()
            self._hub.loop.run_callback(greenlet(self._run_marks, self._hub).switch)
        elif len(self._marks) >= MAX_MARKS:
            return False
        self._marks.append(parts.popleft())
        return True

    def _run_marks(self) -> None:
        """Not in the greenlet that sends: a mark may write and wait for that to be sent."""
        marks = self._marks
        while marks:
            self._run_mark(marks.popleft(), None)
        self._marks = None
        if not self.failed:
            self.flush()
        if not self.draining:
            self._tell()

    def _run_mark(self, mark: Callable[[Exception | None], object], error: Exception | None) -> None:
        try:
            mark(error)
        except BaseException:
            self._hub.handle_error(mark, *sys.exc_info())

    def run_in_greenlet(self, mark: Callable[[Exception | None], object], error: Exception) -> None:
        """Call `mark(error)` in a greenlet of its own."""
        self._hub.loop.run_callback(greenlet(self._run_mark, self._hub).switch, mark, error)

    def _forget(self) -> None:
        self._parts = None
        self._tail = bytearray()
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
