# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""What a message's payload may be given as.

Belongs here: checking it against the opcode, and making bytes of it. Does not belong here: compression, sizes, frames.
"""

from __future__ import annotations

from typing import Final

from gws_gevent.frames import Opcode

__all__ = ["Data", "encode"]

TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY

Data = str | bytes | bytearray | memoryview


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
