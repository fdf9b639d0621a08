# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""One frame on its way out of a connection.

Belongs here: putting frames in order into the Writer, deciding when to flush and when to wait, our close frame. Does not belong
here: messages (outgoing.py, message_queue.py), reading, the life of the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from greenlet import getcurrent

from gws_gevent.exceptions import ConnectionClosed, MessageTooLarge, TransportError, WriteQueueFull
from gws_gevent.frames import State, frame_header
from gws_gevent.streamed import StreamedMessage

from ._fdio import SocketStream
from .protocol import Protocol
from .service import Service
from .timers import Timed
from .writer import LARGE, Writer

if TYPE_CHECKING:
    from gws_gevent.broadcast import PreparedMessage
    from gws_gevent.frames import CloseInfo
    from gws_gevent.message import Message
    from gws_gevent.transports.base import Stream

__all__ = ["FrameOutput"]

#: Bytes of coalesced frames that are sent without waiting for more.
FLUSH_SIZE: Final = 64 * 1024
#: Writers kept for the next connection that has something to send.
SPARE_WRITERS: Final = 64

#: This bit is set in the opcodes of control frames (RFC 6455 section 5.5).
CONTROL: Final = 8
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING


class FrameOutput(Timed):
    """The part of a connection that frames leave by. Only in the connection's own thread."""

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

    @property
    def buffered_amount(self) -> int:
        """Bytes written and not yet taken by the transport."""
        unsent = self._writer.size if self._writer is not None else 0
        return unsent if self._streamed is None else unsent + self._streamed.size

    # Writing

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

    # Flushing and waiting

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

    def _flush_deferred_later(self, writer: Writer) -> None:
        if not writer.flush_scheduled:
            writer.flush_scheduled = True
            self._service.flush_later(self)

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

    # Checks

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

    # Our close frame

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

    # What the other parts of the connection provide

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
