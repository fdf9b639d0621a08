"""One message for many connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gws_gevent.frames import COMPRESSED, Opcode, frame_header

if TYPE_CHECKING:
    from gws_gevent.extensions.deflate import Deflate

__all__ = ["PreparedMessage"]


class PreparedMessage:
    """A message encoded once, to be written with `conn.write_prepared` as often as needed.

    Args:
        opcode: Opcode.TEXT or Opcode.BINARY.
        data: `str` for TEXT, bytes for BINARY.

    Attributes:
        payload: what a receiver gets, as bytes.
        frame: the whole frame as a server sends it, not compressed.
    """

    __slots__ = ("_compressed", "frame", "opcode", "payload")

    def __init__(self, opcode: int, data: str | bytes) -> None:
        if opcode not in (Opcode.TEXT, Opcode.BINARY) or isinstance(data, str) != (opcode == Opcode.TEXT):
            raise ValueError("a message is TEXT with a str or BINARY with bytes")
        self.opcode = Opcode(opcode)
        self.payload = data.encode() if isinstance(data, str) else bytes(data)
        self.frame = frame_header(0x80 | opcode, len(self.payload)) + self.payload
        # Frames by the variant of compression.
        self._compressed: dict[Any, bytes] = {}

    def frame_for(self, deflate: Deflate | None) -> bytes:
        """Return the frame to send next to a connection with these negotiated parameters; compressed once for all that are alike.

        Args:
            deflate: of that connection. If it keeps a context, it forgets it: the peer has seen what is not in there.
        """
        if deflate is None or not deflate.is_wanted(len(self.payload), None):
            return self.frame
        frame = self._compressed.get(deflate.variant)
        if frame is None:
            data = deflate.compress_alone(self.payload)
            frame = self.frame if data is None else frame_header(0x80 | COMPRESSED | self.opcode, len(data)) + data
            self._compressed[deflate.variant] = frame
        if deflate.keeps_context and frame is not self.frame:
            deflate.forget()
        return frame
