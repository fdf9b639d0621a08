# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""Messages that are written without waiting: behind everything before them, from any thread.

Belongs here: the queue's bound, what `slow_consumer` says, calling back, other threads. Does not belong here: frames
(frame_output.py), writing that may wait (outgoing.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from greenlet import getcurrent, greenlet

from gws_gevent.broadcast import Outcome, PreparedMessage
from gws_gevent.exceptions import ConnectionClosed, TransportError, WriteQueueFull
from gws_gevent.frames import COMPRESSED, CloseCode
from gws_gevent.streamed import StreamedMessage

from ._fdio import thread_id
from .frame_output import FrameOutput
from .payloads import Data, encode
from .writer import Writer

__all__ = ["MessageQueue"]

#: On the opcode of a message that is to be written: compress it. On that of a frame: its payload is compressed.
RSV1: Final = COMPRESSED
#: Besides RSV1 on the opcode of a message: also if that makes it larger.
ALWAYS: Final = 0x100
SENT: Final = Outcome.SENT
QUEUED: Final = Outcome.QUEUED
DROPPED: Final = Outcome.DROPPED
FULL: Final = Outcome.FULL

Callback = Callable[[Exception | None], object]


class MessageQueue(FrameOutput):
    """The part of a connection that takes messages without waiting."""

    __slots__ = ()

    def write_async(
        self, opcode: int, data: Data, callback: Callback | None = None, compress: bool | None = None
    ) -> bool:
        """Queue one message without waiting, behind everything written before. From any thread.

        It waits for one thing only: if the message would make more than `write_queue_size` bytes unsent and `slow_consumer` is
        "block", the calling greenlet waits for room.

        Args:
            opcode, data, compress: as for `write_message`.
            callback: called once, in a greenlet of its own, unless this raises: as `callback(None)` when the transport owns the
                message; with WriteQueueFull if it was dropped, ConnectionClosed if it was unsent when the connection ended.
                Of a message from another thread it is told the errors below as well, those of the data excepted.

        Returns:
            False if `slow_consumer="drop"` dropped it; from another thread always True.

        Raises:
            MessageTooLarge: more than `write_max_payload_size` bytes.
            ConnectionClosed: the connection is closing or closed, or `slow_consumer="close"` has just closed it.
            WriteQueueFull: there is no room and nobody here can wait: in the hub, in another thread, or while this greenlet
                writes a message in fragments.
            ValueError, TypeError: data that doesn't fit the opcode, a callback that is none.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: must be callable or None, not {callback!r}")
        payload = encode(opcode, data)
        self._check_size(len(payload))
        opcode = self._to_be(opcode, len(payload), compress)
        if thread_id() != self._service.thread:
            self._queue_from_thread(opcode, payload, callback, None)
            return True
        return self._queue_or_drop(opcode, payload, callback, None)

    def writev_async(
        self, opcode: int, *parts: Data, callback: Callback | None = None, compress: bool | None = None
    ) -> bool:
        """Queue one message made of several parts; see `write_async`."""
        return self.write_async(opcode, b"".join([encode(opcode, part, whole=False) for part in parts]), callback, compress)

    def submit(self, function: Callable[[], object]) -> None:
        """Run `function()` in a greenlet when everything written before has been sent; not at all if that fails.

        It finds the caller's context variables as they are now.
        """
        if not callable(function):
            raise TypeError(f"submit takes a function, not {function!r}")
        call: Callable[[], object] = partial(copy_context().run, function)
        if thread_id() != self._service.thread:
            self._service.runtime.call_from_thread(self._submit_late, call)
            return
        self._check_open()
        writer = self._open_writer()
        writer.append_mark(lambda error: call() if error is None else None)
        writer.flush()

    def queue_prepared(self, prepared: PreparedMessage, callback: Callback | None, may_wait: bool) -> Outcome:
        """Queue a prepared message for a broadcast.

        Args:
            callback: as in `write_async`, and only for a message that is QUEUED.
            may_wait: where the queue is full and `slow_consumer` is "block", wait instead of returning FULL.

        Raises:
            ConnectionClosed, MessageTooLarge, WriteQueueFull: as `write_async`.
        """
        self._check_size(len(prepared.payload))
        opcode: int = prepared.opcode
        if self._service.is_client:
            # 5.3: a client masks each frame with a key of its own, so it encodes and compresses it anew as well.
            opcode = self._to_be(opcode, len(prepared.payload), prepared.compress)
        if thread_id() != self._service.thread:
            self._queue_from_thread(opcode, prepared.payload, callback, prepared)
            return QUEUED
        if self._streamed is not None or self._service.is_client or not self._may_send_directly():
            outcome = self._queue(opcode, prepared.payload, callback, prepared, may_wait)
            if callback is None:
                self._check_open()  # the stream may just have failed, and nobody else would be told
            return outcome
        self._check_open()
        writer = self._send_whole_frame(self._encoded(prepared))
        if writer is None:
            return SENT
        if callback is not None:
            writer.append_mark(callback)
        return QUEUED

    def call_in_greenlet(self, function: Callable[..., object], *args: object) -> None:
        """Call `function(*args)` in a greenlet of the connection's thread, from any thread; it waits for no output."""
        service = self._service
        switch = greenlet(partial(_call, service.hub, function), service.hub).switch
        if thread_id() != service.thread:
            service.runtime.call_from_thread(switch, *args)
        else:
            service.hub.loop.run_callback(switch, *args)

    # The queue

    def _to_be(self, opcode: int, size: int, compress: bool | None) -> int:
        """The opcode of a message that is to be written, with the bits that say whether it is to be compressed."""
        deflate = self._protocol.rules.deflate
        if deflate is None or not deflate.is_wanted(size, compress):
            return opcode
        return opcode | RSV1 | ALWAYS if compress else opcode | RSV1

    def _queue_or_drop(
        self, opcode: int, payload: bytes | bytearray | memoryview, callback: Callback | None, prepared: PreparedMessage | None
    ) -> bool:
        """Queue a message; False if it was dropped, as the callback is told."""
        outcome = self._queue(opcode, payload, callback, prepared, True)
        if outcome is FULL or outcome is DROPPED:
            full = WriteQueueFull(f"{self.buffered_amount} bytes are unsent")
            if outcome is FULL:
                raise full
            if callback is not None:
                self.call_in_greenlet(callback, full)
        return outcome is not DROPPED

    def _queue(
        self,
        opcode: int,
        payload: bytes | bytearray | memoryview,
        callback: Callback | None,
        prepared: PreparedMessage | None,
        may_wait: bool,
    ) -> Outcome:
        """Append without blocking, or as `slow_consumer` says. Of a prepared message the payload is given as well."""
        while True:
            # Whoever waited starts anew: the queue may be another by then, or full again.
            self._check_open()
            writer = self._open_writer()
            unsent = writer.size + (self._streamed.size if self._streamed is not None else 0)
            if not unsent or unsent + len(payload) <= self._service.write_queue_size:
                break
            outcome = self._make_room(writer, len(payload), may_wait)
            if outcome is not QUEUED:
                return outcome
        if self._streamed is not None:
            self._streamed.put_behind(opcode, bytes(payload), callback, prepared)
            self._account()
            return QUEUED
        self._append_message(writer, opcode, payload, prepared)
        if callback is not None:
            writer.append_mark(callback)
        if self._batch is None or callback is not None:
            writer.flush()
            self._release(writer)
        else:
            self._flush_deferred_later(writer)
        return QUEUED

    def _append_message(
        self, writer: Writer, opcode: int, payload: bytes | bytearray | memoryview, prepared: PreparedMessage | None
    ) -> None:
        """Append a whole message: as it was encoded already where that will do, compressed if its opcode says so."""
        if prepared is not None and not self._service.is_client:
            writer.append_frame(self._encoded(prepared))
            return
        if opcode & RSV1:
            data = self._protocol.rules.deflate.compress(payload, bool(opcode & ALWAYS))  # type: ignore[union-attr]  # see _to_be
            if data is None:
                opcode &= ~RSV1
            else:
                payload = data
        self._append(writer, opcode & ~ALWAYS, payload, True)

    def _make_room(self, writer: Writer, size: int, may_wait: bool) -> Outcome:
        """Do as `slow_consumer` says: QUEUED if there may be room now, or FULL or DROPPED."""
        policy, here, streamed = self._service.options.slow_consumer, getcurrent(), self._streamed
        if policy == "close":
            self.give_up(CloseCode.POLICY_VIOLATION, "too slow")
            raise ConnectionClosed(self._info_so_far())
        if policy == "drop":
            return DROPPED
        if not may_wait or here is self._service.hub or (streamed is not None and streamed.greenlet is here):
            return FULL
        if streamed is not None:
            streamed.done.wait()
        else:
            writer.wait_below(max(self._service.write_queue_size - size, 0))
        return QUEUED

    def _queue_behind(self, streamed: StreamedMessage) -> None:
        """Queue what came while the fragments went out; its bytes were counted then."""
        for opcode, payload, callback, prepared in streamed.behind:
            writer = self._open_writer()
            if self._is_open():
                self._append_message(writer, opcode, payload, prepared)
                if callback is not None:
                    writer.append_mark(callback)
                writer.flush()
            elif callback is not None:
                self.call_in_greenlet(callback, ConnectionClosed(self._info_so_far()))
            self._release(writer)
        if streamed.size:
            self._account()
        streamed.done.set()

    # From other threads

    def _queue_from_thread(
        self, opcode: int, payload: bytes | bytearray | memoryview, callback: Callback | None, prepared: PreparedMessage | None
    ) -> None:
        self._check_open()
        data = bytes(payload)
        self._service.runtime.reserve(self, len(data), self._service.write_queue_size)
        self._service.runtime.call_from_thread(self._queue_late, opcode, data, callback, prepared)

    def _queue_late(self, opcode: int, payload: bytes, callback: Callback | None, prepared: PreparedMessage | None) -> None:
        """In the hub, for another thread: nothing may block or raise."""
        self._service.runtime.unreserve(self, len(payload))
        try:
            self._queue_or_drop(opcode, payload, callback, prepared)
        except (ConnectionClosed, WriteQueueFull, TransportError) as error:
            if callback is not None:
                self.call_in_greenlet(callback, error)

    def _submit_late(self, function: Callable[[], object]) -> None:
        try:
            self.submit(function)
        except ConnectionClosed:
            return


def _call(hub: Any, function: Callable[..., object], *args: object) -> None:
    """The whole of a greenlet: what comes out of it goes to the hub's error handler."""
    try:
        function(*args)
    except BaseException:
        hub.handle_error(function, *sys.exc_info())
