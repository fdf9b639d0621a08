# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""The message that is still incomplete.

Belongs here: putting fragments and cut-off frames together under the limits, and UTF-8. Does not belong here: frame headers,
the connection's state. An idle connection has no PartialMessage.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import Any

from gws_gevent.exceptions import ProtocolError
from gws_gevent.frames import CloseCode, Opcode

from ._masking import append_unmasked
from .message import Message, new_message

__all__ = ["PartialMessage"]

new_decoder = getincrementaldecoder("utf-8")


class PartialMessage:
    """What a connection keeps between two reads: the cut-off end of a read, and the message it has so far.

    Attributes:
        held: a cut-off frame header or control frame.
        rest: whole frames that a batch left behind.
        compressed: what is collected is still to be inflated; then UTF-8 is checked as well.

    Args:
        max_size: bytes of the whole message; 1009 above it.
        max_fragments: fragments of it; 1009 above it.
        check_utf8: fail on the first piece of text that is not UTF-8 (section 8.1).
    """

    __slots__ = (
        "buffer", "check_utf8", "compressed", "decoder", "fin", "fragments", "held", "key", "max_fragments", "max_size", "opcode",
        "phase", "remaining", "rest",
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

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self.buffer) + len(self.held) + len(self.rest)

    def is_empty(self) -> bool:
        """True when nothing is held and no message has begun."""
        return self.opcode == 0 and not self.held and not self.rest

    def begin_frame(self, opcode: int, fin: bool, length: int, key: bytes, compressed: bool) -> None:
        """Take the header of a data frame whose payload follows through `add`. `compressed` counts on a message's first.

        Raises:
            ProtocolError: 1009 when the message would pass a limit, before a byte of this frame's payload is taken.
        """
        if opcode:
            self.opcode = opcode
            self.fragments = 0
            self.compressed = compressed
            if opcode == 1 and self.check_utf8 and not compressed:
                self.decoder = new_decoder()
        self.fragments += 1
        if len(self.buffer) + length > self.max_size:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message is too big")
        if self.fragments > self.max_fragments:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message has too many fragments")
        self.fin = fin
        self.remaining = length
        self.key = key
        self.phase = 0

    def add(self, data: bytes | bytearray, at: int, end: int) -> int:
        """Take payload of the current frame from `data[at:end]`; return the offset behind what was taken.

        Raises:
            ProtocolError: 1007 as soon as text is not UTF-8.
        """
        taken = end - at
        if taken > self.remaining:
            taken = self.remaining
        before = len(self.buffer)
        append_unmasked(self.buffer, data, at, taken, self.key, self.phase)
        self.phase = (self.phase + taken) & 3
        self.remaining -= taken
        if self.decoder is not None:
            self._check_text(before)
        return at + taken

    def is_complete(self) -> bool:
        """True when the last fragment's last byte has been added."""
        return self.opcode != 0 and self.fin and self.remaining == 0

    def take(self) -> Message:
        """Return the complete message and forget it."""
        opcode, buffer = self.opcode, self.buffer
        self.opcode = 0
        self.buffer = bytearray()
        self.decoder = None
        if opcode == 1:
            return new_message(Opcode.TEXT, buffer.decode("utf-8", "strict" if self.check_utf8 else "replace"))
        return new_message(Opcode.BINARY, bytes(buffer))

    def take_compressed(self) -> bytearray:
        """Return the payload of the complete message as it came, and forget it."""
        buffer = self.buffer
        self.opcode = 0
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
