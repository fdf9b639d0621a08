# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""The writing half of a connection: everything whose name begins with `write`.

Belongs here: checking what is to be written, putting frames in order into the Writer, deciding when to flush and when to
wait. Does not belong here: reading, the life of the connection.
"""

from __future__ import annotations

import sys
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from greenlet import getcurrent, greenlet

from gws_gevent.broadcast import Outcome, PreparedMessage
from gws_gevent.exceptions import ConnectionClosed, GwsError, MessageTooLarge, TransportError, WriteQueueFull
from gws_gevent.frames import COMPRESSED, MAX_CONTROL_PAYLOAD, CloseCode, Opcode, State, frame_header
from gws_gevent.streamed import StreamedMessage

from ._fdio import SocketStream, thread_id
from ._masking import utf8
from .protocol import Protocol, close_payload
from .service import Service
from .timers import Timed
from .writer import LARGE, Writer

if TYPE_CHECKING:
    from gws_gevent.extensions.deflate import Deflation
    from gws_gevent.frames import CloseInfo
    from gws_gevent.message import Message
    from gws_gevent.transports.base import Stream

__all__ = ["Outgoing"]

#: Bytes of coalesced frames that are sent without waiting for more.
FLUSH_SIZE: Final = 64 * 1024
#: Writers kept for the next connection that has something to send.
SPARE_WRITERS: Final = 64

#: Bytes of one fragment that `write_file` reads and sends at once.
FRAGMENT_SIZE: Final = 64 * 1024

#: This bit is set in the opcodes of control frames (RFC 6455 section 5.5).
CONTROL: Final = 8
#: On the opcode of a message that is to be written: compress it. On that of a frame: its payload is compressed.
RSV1: Final = COMPRESSED
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING
TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY
SENT: Final = Outcome.SENT
QUEUED: Final = Outcome.QUEUED
DROPPED: Final = Outcome.DROPPED
FULL: Final = Outcome.FULL

Data = str | bytes | bytearray | memoryview
Callback = Callable[[Exception | None], object]


class Outgoing(Timed):
    """Any greenlet may write; write order is call order and frames never interleave.

    A write that has returned is sent even if its greenlet then blocks. It blocks while more than `write_high_water` bytes are
    unsent. In the hub and from another thread nothing can block: there the bound is `write_queue_size` and what does not fit raises
    WriteQueueFull. After close every write raises ConnectionClosed.
    """

    __slots__ = ("_accounted", "_batch", "_protocol", "_service", "_socket", "_streamed", "_writer", "stream")

    stream: Stream
    _batch: list[Message] | None

    def __init__(self, stream: Stream, service: Service) -> None:
        Timed.__init__(self)
        self.stream = stream
        self._service = service
        self._protocol = Protocol(service.rules)
        self._writer: Writer | None = None
        self._streamed: StreamedMessage | None = None
        self._batch = None
        # What is waited on. It is also what is read and written, unless it only carries the stream.
        self._socket: SocketStream | None = stream if type(stream) is SocketStream else None
        self._accounted = 0

    # Messages

    def write_message(self, opcode: int, data: Data, compress: bool | None = None) -> None:
        """Write one message.

        Args:
            opcode: Opcode.TEXT or Opcode.BINARY.
            data: `str`, or UTF-8 as bytes, for TEXT; bytes for BINARY.
            compress: True or False instead of what the `threshold` of permessage-deflate says. Without effect where compression was
                not negotiated.

        Raises:
            MessageTooLarge: more than `write_max_payload_size` bytes.
            ConnectionClosed: the connection is closing or closed.
            ValueError, TypeError: data that doesn't fit the opcode. Nothing is sent.
        """
        # `utf8` saves a copy of most text; the exact type is asked for because a subclass could be anything.
        payload = utf8(data) if opcode is TEXT and type(data) is str else encode(opcode, data)
        self._check_size(len(payload))
        deflate = self._protocol.rules.deflate
        compressed = deflate is not None and deflate.is_wanted(len(payload), compress)
        if thread_id() != self._service.thread:
            self._queue_from_thread(opcode | RSV1 if compressed else opcode, encode(opcode, data), None, None)
            return
        while self._streamed is not None:
            self._wait_for_streamed()
        if compressed:
            self._write_compressed(opcode, encode(opcode, data), compress is True)
        else:
            self._write_frame(opcode, payload, True)

    def write_text(self, text: str) -> None:
        """Write a text message; see `write_message`."""
        self.write_message(Opcode.TEXT, text)

    def write_binary(self, data: bytes | bytearray | memoryview) -> None:
        """Write a binary message; see `write_message`."""
        self.write_message(Opcode.BINARY, data)

    def send(self, data: Data) -> None:
        """Write a `str` as a text message, bytes as a binary one; see `write_message`."""
        self.write_message(Opcode.TEXT if isinstance(data, str) else Opcode.BINARY, data)

    def writev(self, opcode: int, *parts: Data) -> None:
        """Write one message made of several parts."""
        self.write_message(opcode, b"".join([encode(opcode, part, whole=False) for part in parts]))

    def write_async(self, opcode: int, data: Data, callback: Callback | None = None) -> bool:
        """Queue one message without waiting, behind everything written before.

        Args:
            callback: called in a greenlet of its own as `callback(None)` once the transport owns the message, or with the error.

        Returns:
            False if `slow_consumer="drop"` dropped it (the callback is told WriteQueueFull).
        """
        payload = encode(opcode, data)
        self._check_size(len(payload))
        deflate = self._protocol.rules.deflate
        if deflate is not None and deflate.is_wanted(len(payload), None):
            opcode = opcode | RSV1
        if thread_id() != self._service.thread:
            self._queue_from_thread(opcode, payload, callback, None)
            return True
        return self._queue_or_drop(opcode, payload, callback, None)

    def writev_async(self, opcode: int, *parts: Data, callback: Callback | None = None) -> bool:
        """Queue one message made of several parts; see `write_async`."""
        return self.write_async(opcode, b"".join([encode(opcode, part, whole=False) for part in parts]), callback)

    def submit(self, function: Callable[[], object]) -> None:
        """Run `function()` in a greenlet when everything written before has been sent; not at all if that fails.

        It finds the caller's context variables as they are now.
        """
        call: Callable[[], object] = partial(copy_context().run, function)
        if thread_id() != self._service.thread:
            self._service.runtime.call_from_thread(self._submit_late, call)
            return
        self._check_open()
        writer = self._open_writer()
        writer.append_mark(lambda error: call() if error is None else None)
        writer.flush()

    def write_prepared(self, frame: PreparedMessage) -> None:
        """Write a message that was encoded once for many connections."""
        if self._service.is_client:
            # 5.3: a client masks each frame with a key of its own.
            self.write_message(frame.opcode, frame.payload)
            return
        self._check_size(len(frame.payload))
        if thread_id() != self._service.thread:
            self._queue_from_thread(frame.opcode, frame.payload, None, frame)
            return
        while self._streamed is not None:
            self._wait_for_streamed()
        self._check_open()
        self._write_whole_frame(self._encoded(frame))

    def queue_prepared(self, prepared: PreparedMessage, callback: Callback | None, may_wait: bool) -> Outcome:
        """Queue a prepared message for a broadcast.

        Args:
            callback: as in `write_async`, and only for a message that is QUEUED.
            may_wait: where the queue is full and `slow_consumer` is "block", wait instead of returning FULL.

        Raises:
            ConnectionClosed, MessageTooLarge, WriteQueueFull: as `write_async`.
        """
        self._check_size(len(prepared.payload))
        if thread_id() != self._service.thread:
            self._queue_from_thread(prepared.opcode, prepared.payload, callback, prepared)
            return QUEUED
        if self._streamed is not None or self._service.is_client or not self._may_send_directly():
            outcome = self._queue(prepared.opcode, prepared.payload, callback, prepared, may_wait)
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

    def write_file(self, opcode: int, file: BinaryIO, fragment_size: int = FRAGMENT_SIZE, compress: bool | None = None) -> None:
        """Write what a binary file holds as one message in fragments, with no more than two of them in memory."""
        if fragment_size < 1:
            raise ValueError(f"fragment_size: must be at least 1, not {fragment_size!r}")
        self.write_stream(opcode, iter(lambda: file.read(fragment_size), b""), compress)

    def write_stream(self, opcode: int, pieces: Iterable[Data], compress: bool | None = None) -> None:
        """Write one message of unknown length, a fragment for each piece. Other messages wait; control frames do not.

        Only in the connection's own thread. Compressed where that was negotiated, unless `compress` is False.

        An exception out of `pieces`, or text that is not UTF-8, after the first fragment was sent leaves a message that
        can't be ended: the connection is closed with 1011 and the exception goes on to the caller.
        """
        encode(opcode, b"")
        if thread_id() != self._service.thread:
            raise GwsError("a message in fragments is written from the connection's own thread; other threads write whole messages")
        while self._streamed is not None:
            self._wait_for_streamed()
        self._check_open()
        streamed = self._streamed = StreamedMessage()
        deflate = self._protocol.rules.deflate
        if deflate is not None and deflate.is_wanted(FRAGMENT_SIZE, compress):
            streamed.deflation = deflate.begin()
        try:
            decoder = getincrementaldecoder("utf-8")() if opcode == Opcode.TEXT else None
            held: bytes | None = None
            for piece in pieces:
                if held is not None:
                    self._write_fragment(streamed, opcode, held, False)
                held = bytes(encode(opcode, piece, whole=False))
                self._check_size(len(held))
                if decoder is not None:
                    decoder.decode(held)
            if decoder is not None:
                decoder.decode(b"", True)
            self._write_fragment(streamed, opcode, held or b"", True)
        except BaseException:
            if deflate is not None and streamed.deflation is not None:
                deflate.forget()
            if streamed.unfinished:
                self._close_from_here(CloseCode.INTERNAL_ERROR)
            raise
        finally:
            self._streamed = None
            self._queue_behind(streamed)

    def _write_fragment(self, streamed: StreamedMessage, opcode: int, piece: bytes, fin: bool) -> None:
        first = Opcode.CONTINUATION if streamed.unfinished else opcode
        deflation: Deflation | None = streamed.deflation
        if deflation is not None:
            piece = deflation.end(piece) if fin else deflation.add(piece)
            if not streamed.unfinished:
                first = opcode | RSV1
        self._write_frame(first, piece, fin)

    # Control frames

    def write_ping(self, payload: bytes = b"") -> None:
        """Write a ping of at most 125 bytes (RFC 6455 section 5.5.2)."""
        self._write_control(Opcode.PING, payload)

    def write_pong(self, payload: bytes = b"") -> None:
        """Write a pong of at most 125 bytes (section 5.5.3)."""
        self._write_control(Opcode.PONG, payload)

    def write_close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Write a close frame and return; the read loop finishes the closing handshake. A no-op once closing has begun.

        Raises:
            ValueError: a code that may not be sent, or a reason of more than 123 bytes; nothing is sent.
        """
        close_payload(code, reason)
        if thread_id() != self._service.thread:
            self._service.runtime.call_from_thread(self._close_from_here, code, reason)
            return
        self._close_from_here(code, reason)

    @property
    def buffered_amount(self) -> int:
        """Bytes written and not yet taken by the transport."""
        unsent = self._writer.size if self._writer is not None else 0
        return unsent if self._streamed is None else unsent + self._streamed.size

    # Inside

    def _write_control(self, opcode: int, payload: bytes) -> None:
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise ValueError(f"a control frame holds at most {MAX_CONTROL_PAYLOAD} bytes, not {len(payload)}")
        if thread_id() != self._service.thread:
            self._queue_from_thread(opcode, bytes(payload), None, None)
            return
        self._write_frame(opcode, payload, True)

    def _write_compressed(self, opcode: int, payload: bytes | bytearray | memoryview, always: bool) -> None:
        """Compress a message and write it: the order of the two is the same for all messages."""
        self._check_open()
        deflate = self._protocol.rules.deflate
        data = deflate.compress(payload, always)  # type: ignore[union-attr]  # see write_message
        if data is None:
            self._write_frame(opcode, payload, True)
            return
        try:
            self._write_frame(opcode | RSV1, data, True)
        except WriteQueueFull:
            # It is not sent: what comes next may not refer to it.
            deflate.forget()  # type: ignore[union-attr]
            raise

    def _write_frame(self, opcode: int, payload: bytes | bytearray | memoryview, fin: bool) -> None:
        self._check_open()
        if self._may_send_directly() and not self._service.is_client and self._streamed is None:
            # The usual case: the socket takes all of it, and there is no Writer.
            try:
                left = self._socket.try_send_frame(0x80 | opcode if fin else opcode, payload)  # type: ignore[union-attr]
            except TransportError as error:
                raise self._lost(error) from None
            if left:
                writer = self._open_writer()
                self._append(writer, opcode, payload, fin)
                writer.sent_all_but(left)
                self._wait_below_high_water(writer)
            return
        writer = self._open_writer()
        self._check_room(writer, len(payload))
        self._append(writer, opcode, payload, fin)
        if self._streamed is not None and not opcode & CONTROL:
            # Before anything waits, or is interrupted: from here on the message has to be ended.
            self._streamed.unfinished = not fin
        self._flush(writer)

    def _may_send_directly(self) -> bool:
        """Nothing is queued, nothing follows at once, and the stream is a socket."""
        return self._writer is None and self._batch is None and self._socket is self.stream

    def _write_whole_frame(self, frame: bytes) -> None:
        """Write a frame that is encoded already, without copying it where it can go out as it is."""
        if self._may_send_directly():
            writer = self._send_whole_frame(frame)
            if writer is not None:
                self._wait_below_high_water(writer)
            return
        writer = self._open_writer()
        self._check_room(writer, len(frame))
        writer.append_frame(frame)
        self._flush(writer)

    def _send_whole_frame(self, frame: bytes) -> Writer | None:
        """Send a frame directly; return the Writer with what the socket did not take, or None."""
        try:
            left = len(frame) - self._socket.try_send(frame)  # type: ignore[union-attr]  # see _may_send_directly
        except TransportError as error:
            raise self._lost(error) from None
        if left == 0:
            return None
        writer = self._open_writer()
        writer.append_frame(frame)
        writer.sent_all_but(left)
        return writer

    def _encoded(self, prepared: PreparedMessage) -> bytes:
        """The frame of a prepared message for this connection."""
        deflate = self._protocol.rules.deflate
        return prepared.frame if deflate is None else prepared.frame_for(deflate)

    def _lost(self, error: TransportError) -> ConnectionClosed:
        """The socket failed: end the connection. Returns what the caller is told."""
        self.output_failed(error)
        return ConnectionClosed(self._info_so_far())

    def _append(self, writer: Writer, opcode: int, payload: bytes | bytearray | memoryview, fin: bool) -> None:
        out = writer.tail()
        before = len(out)
        if len(payload) >= LARGE and type(payload) is bytes and not self._service.is_client:
            out += frame_header(0x80 | opcode if fin else opcode, len(payload))
            writer.appended(len(out) - before)
            writer.append_payload(payload)
        else:
            self._protocol.append_frame(out, opcode, payload, fin)
            writer.appended(len(out) - before)

    def _flush(self, writer: Writer) -> None:
        """Send, unless more replies to the same read will follow; wait while too much is unsent."""
        if self._batch is not None and writer.size < FLUSH_SIZE:
            self._flush_deferred_later(writer)
            return
        writer.flush()
        if writer.failed:
            raise ConnectionClosed(self._info_so_far())
        if writer.size == 0:
            self._release(writer)
        else:
            self._wait_below_high_water(writer)

    def _wait_below_high_water(self, writer: Writer) -> None:
        if writer.size > self._service.write_high_water and getcurrent() is not self._service.hub:
            writer.wait_below(self._service.write_high_water)
            if writer.failed:
                raise ConnectionClosed(self._info_so_far())

    def flush_deferred(self) -> None:
        """In the hub: what a handler wrote before it blocked goes out now."""
        writer = self._writer
        if writer is not None:
            writer.flush_scheduled = False
            writer.flush()
            self._release(writer)

    def _open_writer(self) -> Writer:
        writer = self._writer
        if writer is None:
            spare = self._service.spare_writers
            writer = self._writer = spare.pop() if spare else Writer(self._service.hub)
            writer.attach(self.stream, self)
        return writer

    def _release(self, writer: Writer) -> None:
        if self._writer is writer and writer.is_idle():
            self._writer = None
            spare = self._service.spare_writers
            if len(spare) < SPARE_WRITERS and writer.detach():
                spare.append(writer)

    def _check_open(self) -> None:
        if self._protocol.state is not OPEN and not self._is_open():
            raise ConnectionClosed(self._info_so_far())

    def _is_open(self) -> bool:
        """True while messages and writes are in order: also when the peer's close frame was read, but what came before it is not
        handled yet."""
        protocol = self._protocol
        if self._batch is None or protocol.info is None or protocol.state is not CLOSING:
            return protocol.state is OPEN
        return protocol.info.sent is None

    def _check_size(self, size: int) -> None:
        limit = self._service.write_max_payload_size
        if size > limit:
            raise MessageTooLarge(f"a message of {size} bytes is above write_max_payload_size ({limit})")

    def _check_room(self, writer: Writer, size: int) -> None:
        """In the hub nobody can wait, so what does not fit is refused."""
        if writer.size + size > self._service.write_queue_size and writer.size and getcurrent() is self._service.hub:
            raise WriteQueueFull(f"{writer.size} bytes are unsent and the hub cannot wait")

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
            data = self._protocol.rules.deflate.compress(payload)  # type: ignore[union-attr]  # see write_message
            if data is None:
                opcode &= ~RSV1
            else:
                payload = data
        self._append(writer, opcode, payload, True)

    def _flush_deferred_later(self, writer: Writer) -> None:
        if not writer.flush_scheduled:
            writer.flush_scheduled = True
            self._service.flush_later(self)

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

    def _wait_for_streamed(self) -> None:
        streamed = self._streamed
        if streamed is None:
            return
        if streamed.greenlet is getcurrent():
            raise GwsError("this greenlet is writing a message in fragments: another one would stand in its middle")
        if getcurrent() is self._service.hub:
            raise WriteQueueFull("a message is being written in fragments and the hub cannot wait")
        streamed.done.wait()

    def _close_from_here(self, code: int, reason: str = "") -> None:
        """Queue our close frame behind everything written before. Never blocks or raises."""
        if not self._is_open():
            return
        self._send_close(code, reason)

    def _send_close(self, code: int, reason: str) -> None:
        writer = self._open_writer()
        out = writer.tail()
        before = len(out)
        self._protocol.begin_close(out, code, reason)
        writer.appended(len(out) - before)
        self._batch = None
        self._closing_has_begun()
        writer.flush()
        self._release(writer)

    # What the other half provides

    def give_up(self, code: int, reason: str) -> None:
        """Close without sending what is queued: it has come to too much."""
        raise NotImplementedError

    def output_failed(self, error: TransportError) -> None:
        """The Writer's stream has failed."""
        raise NotImplementedError

    def output_changed(self, writer: Writer) -> None:
        """The Writer has more, or less, to send."""
        raise NotImplementedError

    def _account(self) -> None:
        """Bytes held have changed."""
        raise NotImplementedError

    def _closing_has_begun(self) -> None:
        raise NotImplementedError

    def _info_so_far(self) -> CloseInfo:
        raise NotImplementedError


def _call(hub: Any, function: Callable[..., object], *args: object) -> None:
    """The whole of a greenlet: what comes out of it goes to the hub's error handler."""
    try:
        function(*args)
    except BaseException:
        hub.handle_error(function, *sys.exc_info())


def encode(opcode: int, data: Data, whole: bool = True) -> bytes | bytearray | memoryview:
    """Return the payload of a TEXT or BINARY message.

    Args:
        whole: check that TEXT given as bytes is UTF-8; a piece of it may end inside a character.
    """
    if opcode is BINARY and type(data) is bytes:
        return data
    if opcode == TEXT:
        if isinstance(data, str):
            return data.encode()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"a TEXT message is str or UTF-8 in bytes, not {type(data).__name__}")
        payload = bytes(data)
        if whole:
            payload.decode()
        return payload
    if opcode != BINARY:
        raise ValueError(f"opcode: a message is TEXT or BINARY, not {opcode!r}")
    if isinstance(data, str):
        raise TypeError("a BINARY message is bytes, not str")
    if isinstance(data, memoryview):
        return bytes(data)
    if not isinstance(data, bytes | bytearray):
        raise TypeError(f"a BINARY message is bytes, not {type(data).__name__}")
    return data
