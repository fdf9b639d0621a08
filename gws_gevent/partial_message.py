# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""The message that is still incomplete.

Belongs here: putting fragments and cut-off frames together under the limits, or giving them out as they come, and UTF-8. Does not
belong here: frame headers, the connection's state. An idle connection has no PartialMessage.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import Any

from gws_gevent.exceptions import ProtocolError
from gws_gevent.extensions.deflate import INPUT_SLICE, Deflate, Inflation
from gws_gevent.frames import CloseCode, Opcode

from ._masking import append_unmasked
from .message import Message, new_message

__all__ = ["PartialMessage"]

new_decoder = getincrementaldecoder("utf-8")


class PartialMessage:
    """What a connection keeps between two reads: the cut-off end of a read, and the message it has so far.

    Attributes:
        held: a cut-off frame header or control frame.
        rest: whole frames that a batch left behind, or bytes that may be read in another way.
        compressed: what is collected is still to be inflated; then UTF-8 is checked as well.
        stream: whose message this is, or the next one will be, if it is given out in pieces; see Protocol.stream_next.
        next_stream: whose the one behind it will be.
        declared: bytes that the frames so far of a message in pieces have; -1 while it is not given out.
        inflation: what inflates that message, where it is compressed and still wanted.
        inflated: bytes that it has come to.
        has_more: there is more to give out without another byte.

    Args:
        max_size: bytes of the whole message; 1009 above it.
        max_fragments: fragments of it; 1009 above it.
        check_utf8: fail on the first piece of text that is not UTF-8 (section 8.1).
    """

    __slots__ = (
        "buffer", "check_utf8", "compressed", "declared", "decoder", "fin", "fragments", "has_more", "held", "inflated",
        "inflation", "key", "max_fragments", "max_size", "next_stream", "opcode", "phase", "remaining", "rest", "stream",
    )  # fmt: skip

    def __init__(self, max_size: int, max_fragments: int, check_utf8: bool) -> None:
        self.max_size = max_size
        self.max_fragments = max_fragments
        self.check_utf8 = check_utf8
        self.held = b""
        self.rest = b""
        self.buffer = bytearray()
        self.decoder: Any = None
        self.compressed = False
        self.key = b""
        self.phase = 0
        self.opcode = 0
        self.fin = True
        self.fragments = 0
        self.remaining = 0
        self.stream: Any = None
        self.next_stream: Any = None
        self.declared = -1
        self.inflation: Inflation | None = None
        self.inflated = 0
        self.has_more = False

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self.buffer) + len(self.held) + len(self.rest)

    def is_empty(self) -> bool:
        """True when nothing is held, no message has begun, and nobody waits for one in pieces."""
        return self.stream is None and self.opcode == 0 and not self.held and not self.rest

    def is_waiting(self) -> bool:
        """True when nothing is held and no message has begun, but somebody waits for one in pieces."""
        return self.stream is not None and self.opcode == 0 and not self.held and not self.rest

    def begin_frame(self, opcode: int, fin: bool, length: int, key: bytes, compressed: bool) -> None:
        """Take the header of a data frame whose payload follows through `add`. `compressed` counts on a message's first.

        Raises:
            ProtocolError: 1009 when the message would pass a limit, before a byte of this frame's payload is taken.
        """
        # Judged before anything is changed: the same header may be read once more, for a message in pieces.
        if len(self.buffer) + length > self.max_size:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message is too big")
        if opcode:
            self.opcode = opcode
            self.fragments = 0
            self.compressed = compressed
            if opcode == 1 and self.check_utf8 and not compressed:
                self.decoder = new_decoder()
        elif self.fragments >= self.max_fragments:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message has too many fragments")
        self.fragments += 1
        self.fin = fin
        self.remaining = length
        self.key = key
        self.phase = 0

    def add(self, data: bytes | bytearray, at: int, end: int) -> int:
        """Take payload of the current frame from `data[at:end]`; return the offset behind what was taken.

        Raises:
            ProtocolError: 1007 as soon as text is not UTF-8.
        """
        before = len(self.buffer)
        at = self._collect(data, at, end)
        if self.decoder is not None:
            self._check_text(before)
        return at

    def _collect(self, data: bytes | bytearray, at: int, end: int) -> int:
        taken = end - at
        if taken > self.remaining:
            taken = self.remaining
        append_unmasked(self.buffer, data, at, taken, self.key, self.phase)
        self.phase = (self.phase + taken) & 3
        self.remaining -= taken
        return at + taken

    def is_complete(self) -> bool:
        """True when the last fragment's last byte has been added."""
        return self.opcode != 0 and self.fin and self.remaining == 0

    def take(self) -> Message:
        """Return the complete message and forget it."""
        opcode, buffer = self.opcode, self.take_buffer()
        self.opcode = 0
        self.decoder = None
        if opcode == 1:
            return new_message(Opcode.TEXT, buffer.decode("utf-8", "strict" if self.check_utf8 else "replace"))
        return new_message(Opcode.BINARY, bytes(buffer))

    def take_compressed(self) -> bytearray:
        """Return the payload of the complete message as it came, and forget it."""
        self.opcode = 0
        return self.take_buffer()

    def take_buffer(self) -> bytearray:
        """Return what was collected, and collect anew."""
        buffer = self.buffer
        self.buffer = bytearray()
        return buffer

    def _check_text(self, before: int) -> None:
        # The decoder's output is thrown away: one decode of the whole at the end is cheaper than a list of pieces.
        ends = self.fin and self.remaining == 0
        try:
            with memoryview(self.buffer) as view, view[before:] as piece:
                self.decoder.decode(piece, ends)
        except UnicodeDecodeError:
            raise ProtocolError(CloseCode.INVALID_DATA, "text is not UTF-8") from None

    # A message in pieces

    def begin_stream(self, stream: Any) -> None:
        """Give out in pieces what has come of a message and what comes of it, or the next message."""
        self.stream = stream
        self.max_size = stream.max_size
        self.declared = -1

    def take_over(self, deflate: Deflate | None) -> None:
        """Give out a message that has begun: `take_piece` has what there is of it.

        Raises:
            ProtocolError: 1009 when the message would pass the stream's limit.
        """
        if self.remaining > self.max_size - len(self.buffer):
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message is too big")
        self._begin_pieces(deflate)
        self.declared = len(self.buffer) + self.remaining
        self.has_more = True

    def begin_piece(self, opcode: int, fin: bool, length: int, key: bytes, deflate: Deflate | None) -> None:
        """`begin_frame` for a message in pieces, which may have any number of fragments.

        Args:
            deflate: with the header of a compressed message, what inflates it.

        Raises:
            ProtocolError: 1009 when the message would pass the stream's limit.
        """
        if opcode:
            self.opcode = opcode
            self.compressed = deflate is not None
            self._begin_pieces(deflate)
        if length > self.max_size - self.declared:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message is too big")
        self.declared += length
        self.fin = fin
        self.remaining = length
        self.key = key
        self.phase = 0

    def _begin_pieces(self, deflate: Deflate | None) -> None:
        self.declared = 0
        self.inflated = 0
        self.inflation = deflate.begin_inflating(self.max_size) if self.compressed and deflate is not None else None
        self.decoder = new_decoder("strict" if self.check_utf8 else "replace") if self.opcode == 1 else None

    def add_piece(self, data: bytes | bytearray, at: int, end: int) -> int:
        """Take payload of the current frame as `add` does, or pass over it where nobody wants it any more."""
        if self.inflation is not None or not self.stream.skipped:
            return self._collect(data, at, end)
        taken = min(end - at, self.remaining)
        self.remaining -= taken
        return at + taken

    def take_piece(self) -> str | bytes:
        """Give out what has come, inflated; empty where there is nothing, or the start of a character.

        Of a compressed message a slice at a time: while `has_more` is true, there is another one.

        Raises:
            ProtocolError: 1007 when it does not inflate, or text is not UTF-8; 1009 when it has come to more than the limit.
        """
        self.has_more = False
        piece = bytes(self.take_buffer()) if self.inflation is None else self._inflate_piece(self.inflation)
        if self.decoder is None or self.stream.skipped:
            return piece
        try:
            text: str = self.decoder.decode(piece, self.fin and self.remaining == 0 and not self.has_more)
        except UnicodeDecodeError:
            raise ProtocolError(CloseCode.INVALID_DATA, "text is not UTF-8") from None
        return text

    def _inflate_piece(self, inflation: Inflation) -> bytes:
        if self.stream.skipped and not inflation.is_needed:
            self.inflation = None
            self.take_buffer()
            return b""
        piece = inflation.read()
        while not piece and self.buffer:
            inflation.add(bytes(self.buffer[:INPUT_SLICE]))
            del self.buffer[:INPUT_SLICE]
            piece = inflation.read()
        if piece:
            self.has_more = True
        elif self.is_complete():
            self.inflation = None
            piece = inflation.finish()
        self.inflated = inflation.size
        return piece

    def end_stream(self) -> bool:
        """Forget the message that has ended; True if the next one is to be given out as well."""
        self.opcode = 0
        self.decoder = None
        self.inflation = None
        if self.next_stream is None:
            return False
        self.begin_stream(self.next_stream)
        self.next_stream = None
        return True
