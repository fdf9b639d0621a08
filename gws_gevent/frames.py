"""The vocabulary of RFC 6455: opcodes, close codes, the states of a connection, frame headers.

Belongs here: constants and pure functions on them. Does not belong here: state, buffers, parsing of a byte stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import pack
from typing import NamedTuple

__all__ = ["Close", "CloseCode", "CloseInfo", "Opcode", "State"]


class Opcode(IntEnum):
    """Frame opcodes (RFC 6455 section 5.2)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """Close codes (RFC 6455 section 7.4.1 and the IANA registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


class Side(IntEnum):
    """Which end of the connection this is."""

    SERVER = 0
    CLIENT = 1


class State(IntEnum):
    """State of a connection (RFC 6455 sections 4.1, 7.1)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


class Step(IntEnum):
    """What moves a connection from one state to the next."""

    ACCEPTED = 0
    CLOSE_SENT = 1
    CLOSE_RECEIVED = 2
    STREAM_ENDED = 3


#: RSV1 on the first frame of a message: it is compressed (RFC 7692 section 6).
COMPRESSED = 0x40
#: Bytes of payload a control frame may carry (section 5.5).
MAX_CONTROL_PAYLOAD = 125
#: Bytes of the longest frame header: 2, an 8-byte length and a masking key (section 5.2).
MAX_FRAME_HEADER = 14


def is_sendable_close_code(code: int) -> bool:
    """Tell whether a close code may stand in a close frame (section 7.4): 1005, 1006 and 1015 may not."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


class Close(NamedTuple):
    """What one close frame said. An empty frame is ``Close(1005, "")``: 1005 is never on the wire."""

    code: int
    reason: str = ""


@dataclass(slots=True)
class CloseInfo:
    """How a connection ended: both sides of the story.

    Attributes:
        received: the peer's close frame, or None if none came.
        sent: ours, or None if none was sent.
        error: what ended the connection if it was not a closing handshake, else None.
        clean: both close frames were exchanged and nothing went wrong.
    """

    received: Close | None = None
    sent: Close | None = None
    error: BaseException | None = None
    clean: bool = False

    @property
    def code(self) -> int:
        """The code the peer sent; 1006 if it sent no close frame (section 7.1.5)."""
        return self.received.code if self.received is not None else CloseCode.ABNORMAL

    @property
    def reason(self) -> str:
        """The reason the peer sent, or ``""``."""
        return self.received.reason if self.received is not None else ""

    def __str__(self) -> str:
        said = f"received {_describe(self.received)}, sent {_describe(self.sent)}"
        return f"{said}: {self.error}" if self.error is not None else said


def _describe(close: Close | None) -> str:
    if close is None:
        return "no close frame"
    return f"{close.code} {close.reason!r}" if close.reason else str(close.code)


def frame_header(first_byte: int, length: int, masking_key: bytes = b"") -> bytes:
    """Encode a frame header with the shortest length form (section 5.2).

    Args:
        first_byte: FIN, RSV and opcode bits.
        length: bytes of payload.
        masking_key: 4 bytes from a client, empty from a server (section 5.1).
    """
    mask_bit = 0x80 if masking_key else 0
    if length < 126:
        return bytes((first_byte, mask_bit | length)) + masking_key
    if length < 65536:
        return pack("!BBH", first_byte, mask_bit | 126, length) + masking_key
    return pack("!BBQ", first_byte, mask_bit | 127, length) + masking_key
