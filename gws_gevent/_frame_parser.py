# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""Judging a frame header (RFC 6455 section 5.2) over a buffer with offsets.

Belongs here: everything that can be decided on the at most 14 bytes of a header, before a byte of payload is waited for.
Does not belong here: payloads, messages, state of a connection. The result of the last header stays in the attributes, so
that one parser serves all connections with the same rules, as long as nothing switches between a header and its use.
"""

from __future__ import annotations

from gws_gevent.exceptions import ProtocolError
from gws_gevent.frames import CloseCode

__all__ = ["FrameParser"]


class FrameParser:
    """Reads frame headers for one side of a connection under one set of limits.

    Args:
        expect_masked: True on a server: clients mask every frame, servers none (section 5.1).
        max_payload: bytes a data frame may declare; 1009 above it.
        allow_compressed: permessage-deflate was negotiated.

    Attributes:
        at: where the last header began that was looked at.
    """

    __slots__ = ("allow_compressed", "at", "compressed", "expect_masked", "fin", "length", "max_payload", "opcode")

    def __init__(self, expect_masked: bool, max_payload: int, allow_compressed: bool = False) -> None:
        self.expect_masked = expect_masked
        self.max_payload = max_payload
        self.allow_compressed = allow_compressed
        self.compressed = False
        self.at = 0
        self.fin = True
        self.opcode = 0
        self.length = 0

    def read_header(self, data: bytes | bytearray, at: int, end: int, fragmented: bool) -> int:
        """Read the header at `at` and leave it in `fin`, `compressed`, `opcode` and `length`.

        Args:
            data: the buffer; only `data[at:end]` is looked at.
            fragmented: a fragmented message has begun and not ended.

        Returns:
            bytes of the header, masking key included; 0 if more are needed to judge it.

        Raises:
            ProtocolError: the header breaks a rule; the rest of the frame need not be waited for.
        """
        self.at = at
        available = end - at
        if available < 2:
            return 0
        first = data[at]
        second = data[at + 1]
        opcode = first & 0x0F
        length = second & 0x7F
        # 5.2: a reserved bit means what a negotiated extension says. RFC 7692 section 6: RSV1 stands on a message's first frame.
        if first & 0x70 and (first & 0x30 or not self.allow_compressed or opcode == 0 or opcode >= 8):
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "reserved bits are set")
        # 5.1: a client masks, a server does not.
        if (second >= 0x80) != self.expect_masked:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "frame is not masked" if self.expect_masked else "frame is masked")
        if opcode >= 8:
            # 5.5: control frames carry at most 125 bytes and are never fragmented.
            if opcode > 0xA:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "reserved opcode")
            if length > 125 or first < 0x80:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "control frame is too long or fragmented")
        elif opcode > 2:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "reserved opcode")
        # 5.4: a continuation continues something, and nothing else begins before it ends.
        elif (opcode == 0) != fragmented:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "fragments out of order")
        size = 2
        if length == 126:
            size = 4
            if available < 4:
                return 0
            length = (data[at + 2] << 8) | data[at + 3]
            if length < 126:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "length is not in its shortest form")
        elif length == 127:
            size = 10
            if available < 10:
                return 0
            # 5.2: the most significant bit must be 0. Judged first: in C the sum below would turn negative.
            if data[at + 2] >= 0x80:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "length has its top bit set")
            length = 0
            for i in range(2, 10):
                length = (length << 8) | data[at + i]
            if length < 65536:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "length is not in its shortest form")
        if length > self.max_payload and opcode < 8:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message is too big")
        if self.expect_masked:
            size += 4
            if available < size:
                return 0
        self.fin = first >= 0x80
        self.compressed = (first & 0x40) != 0
        self.opcode = opcode
        self.length = length
        return size
