"""A message, or a control frame.

Plain twin of `_compiled/message.pyx`.
"""

from __future__ import annotations

from typing import Any

from gws_gevent.frames import Opcode

__all__ = ["Message", "new_message"]


class Message:
    """A complete message or control frame.

    Attributes:
        opcode: an Opcode; TEXT or BINARY where a handler's `on_message` gets it.
        data: `str` for TEXT, `bytes` for everything else.
    """

    __slots__ = ("data", "opcode")

    def __init__(self, opcode: Opcode, data: Any) -> None:
        self.opcode = opcode
        self.data = data

    def __repr__(self) -> str:
        shown = repr(self.data)
        return f"Message({self.opcode.name}, {shown if len(shown) <= 80 else shown[:76] + '...'})"


def new_message(opcode: Opcode, data: Any) -> Message:
    """`Message(opcode, data)`. The compiled twin does it without calling `__init__`, which costs as much as all the rest."""
    return Message(opcode, data)
