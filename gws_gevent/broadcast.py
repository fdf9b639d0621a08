"""One message for many connections."""

from __future__ import annotations

from gws_gevent.frames import Opcode, frame_header

__all__ = ["PreparedMessage"]


class PreparedMessage:
    """A message encoded once, to be written with `conn.write_prepared` as often as needed.

    Args:
        opcode: Opcode.TEXT or Opcode.BINARY.
        data: `str` for TEXT, bytes for BINARY.

    Attributes:
        payload: what a receiver gets, as bytes.
        frame: the whole frame as a server sends it.
    """

    __slots__ = ("frame", "opcode", "payload")

    def __init__(self, opcode: int, data: str | bytes) -> None:
        if opcode not in (Opcode.TEXT, Opcode.BINARY) or isinstance(data, str) != (opcode == Opcode.TEXT):
            raise ValueError("a message is TEXT with a str or BINARY with bytes")
        self.opcode = Opcode(opcode)
        self.payload = data.encode() if isinstance(data, str) else bytes(data)
        self.frame = frame_header(0x80 | opcode, len(self.payload)) + self.payload
