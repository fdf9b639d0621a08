# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""The writing half of a connection: everything whose name begins with `write`.

Belongs here: checking what is to be written, whole or in fragments, and waiting until it can be. Does not belong here: frames
(frame_output.py), what is queued without waiting (message_queue.py), reading, the life of the connection.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Final, TextIO

from greenlet import getcurrent

from gws_gevent.broadcast import PreparedMessage
from gws_gevent.closing import close_payload
from gws_gevent.exceptions import GwsError, WriteQueueFull
from gws_gevent.frames import COMPRESSED, MAX_CONTROL_PAYLOAD, CloseCode, Opcode
from gws_gevent.streamed import StreamedMessage

from ._fdio import thread_id
from ._masking import utf8
from .message_queue import MessageQueue
from .payloads import Data, encode

if TYPE_CHECKING:
    from gws_gevent.extensions.deflate import Deflation

__all__ = ["Outgoing"]

#: Bytes of one fragment that `write_file` reads and sends at once.
FRAGMENT_SIZE: Final = 64 * 1024

#: On the opcode of a message that is to be written: compress it. On that of a frame: its payload is compressed.
RSV1: Final = COMPRESSED
TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY


class Outgoing(MessageQueue):
    """Any greenlet may write; write order is call order and frames never interleave.

    A write that has returned is sent even if its greenlet then blocks. It blocks while more than `write_high_water` bytes are
    unsent. In the hub and from another thread nothing can block: there the bound is `write_queue_size` and what does not fit raises
    WriteQueueFull. After close every write raises ConnectionClosed.
    """

    __slots__ = ()

    # Whole messages

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
        if thread_id() != self._service.thread:
            self._queue_from_thread(self._to_be(opcode, len(payload), compress), encode(opcode, data), None, None)
            return
        deflate = self._protocol.rules.deflate
        compressed = deflate is not None and deflate.is_wanted(len(payload), compress)
        while self._streamed is not None:
            self._wait_for_streamed()
        if compressed:
            self._write_compressed(opcode, encode(opcode, data), compress is True)
        else:
            self._write_frame(opcode, payload, True)

    def write_text(self, text: str, compress: bool | None = None) -> None:
        """Write a text message; see `write_message`."""
        self.write_message(Opcode.TEXT, text, compress)

    def write_binary(self, data: bytes | bytearray | memoryview, compress: bool | None = None) -> None:
        """Write a binary message; see `write_message`."""
        self.write_message(Opcode.BINARY, data, compress)

    def send(self, data: Data, compress: bool | None = None) -> None:
        """Write a `str` as a text message, bytes as a binary one; see `write_message`."""
        if isinstance(data, str):
            self.write_message(TEXT, data, compress)
        elif isinstance(data, (bytes, bytearray, memoryview)):
            self.write_message(BINARY, data, compress)
        else:
            hint = "; send its data" if hasattr(data, "data") else ""  # what on_message was given
            raise TypeError(f"a message is str or bytes, not {type(data).__name__}{hint}")

    def writev(self, opcode: int, *parts: Data, compress: bool | None = None) -> None:
        """Write one message made of several parts; see `write_message`."""
        self.write_message(opcode, b"".join([encode(opcode, part, whole=False) for part in parts]), compress)

    def write_prepared(self, frame: PreparedMessage) -> None:
        """Write a message that was encoded once for many connections. Raises as `write_message`."""
        if not isinstance(frame, PreparedMessage):
            raise TypeError(f"write_prepared takes a PreparedMessage, not {type(frame).__name__}")
        if self._service.is_client:
            # 5.3: a client masks each frame with a key of its own.
            self.write_message(frame.opcode, frame.payload, frame.compress)
            return
        self._check_size(len(frame.payload))
        if thread_id() != self._service.thread:
            self._queue_from_thread(frame.opcode, frame.payload, None, frame)
            return
        while self._streamed is not None:
            self._wait_for_streamed()
        self._check_open()
        self._write_whole_frame(self._encoded(frame))

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

    # Messages in fragments

    def write_file(
        self, opcode: int, file: BinaryIO | TextIO, fragment_size: int = FRAGMENT_SIZE, compress: bool | None = None
    ) -> None:
        """Write what a file holds from where it stands, as one message in fragments, with no more than two of them in memory.

        A file opened as text will do for TEXT. Raises as `write_stream`; BlockingIOError for a file that does not block and has
        nothing to read yet.
        """
        if not hasattr(file, "read"):
            raise TypeError(f"write_file takes an open file, not {file!r}")
        if fragment_size < 1:
            raise ValueError(f"fragment_size: must be at least 1, not {fragment_size!r}")
        self.write_stream(opcode, _pieces_of(file, fragment_size), compress)

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

    def _wait_for_streamed(self) -> None:
        streamed = self._streamed
        if streamed is None:
            return
        if streamed.greenlet is getcurrent():
            raise GwsError("this greenlet is writing a message in fragments: another one would stand in its middle")
        if getcurrent() is self._service.hub:
            raise WriteQueueFull("a message is being written in fragments and the hub cannot wait")
        streamed.done.wait()

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

    def _write_control(self, opcode: int, payload: bytes) -> None:
        if not isinstance(payload, (bytes, bytearray, memoryview)):
            raise TypeError(f"the payload of a control frame is bytes, not {type(payload).__name__}")
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise ValueError(f"a control frame holds at most {MAX_CONTROL_PAYLOAD} bytes, not {len(payload)}")
        if thread_id() != self._service.thread:
            self._queue_from_thread(opcode, bytes(payload), None, None)
            return
        self._write_frame(opcode, payload, True)


def _pieces_of(file: BinaryIO | TextIO, size: int) -> Iterator[str | bytes]:
    while True:
        piece = file.read(size)
        if piece is None:
            raise BlockingIOError("write_file: the file has nothing to read yet, and does not wait for it")
        if not piece:
            return
        yield piece
