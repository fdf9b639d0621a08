"""What may be sent to the address of a stock peer before the peer has shown that it is his.

Belongs here: that budget, the questions that may widen it, and what proves the address. Does not belong here: the session, how many
of them there may be (server.py).

Anybody can begin a session of plain KCP in the name of somebody else, who would get the answers. So an address gets AMPLIFICATION
times the bytes that have come from it (RFC 9000 section 8.1), until an acknowledgement repeats the time at which something was
sent: the session's clock begins at random, and nobody knows it but who has received it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gws_gevent.transports.kcp.core import HEADER

__all__ = ["Unproven"]

#: Bytes that go to an address for each byte from it.
AMPLIFICATION: Final = 3
#: Bytes of that which are kept for questions, and seconds until the next if none is answered: an answer allows more than it costs.
_FOR_QUESTIONS: Final = 2 * HEADER
_QUESTION_DELAY: Final = 0.1
#: Times of sending that are remembered.
_MAX_TIMES: Final = 16
_ACK: Final = 82  # IKCP_CMD_ACK
_ASK: Final = 83  # IKCP_CMD_WASK


class Unproven:
    """The budget of one session.

    Attributes:
        wants_more: there would be more to send than may be.
    """

    __slots__ = ("_asked", "_credit", "_times", "_written", "wants_more")

    def __init__(self, now: float) -> None:
        self.wants_more = False
        self._credit = 0
        self._written = 0
        self._times: list[bytes] = []
        self._asked = now

    def hears(self, packet: bytes, size: int) -> bool:
        """Count a datagram of `size` bytes; True: it proves the address."""
        self._credit += AMPLIFICATION * size
        if self.wants_more:
            self._asked = 0.0  # that was an answer: ask on
        return bool(self._times) and self._proves(packet)

    def _proves(self, packet: bytes) -> bool:
        """Whether an acknowledgement repeats a time at which we sent something. `una` proves nothing: it can be guessed."""
        at = 0
        while at + HEADER <= len(packet):
            if packet[at + 4] == _ACK and packet[at + 8 : at + 12] in self._times:
                return True
            at += HEADER + int.from_bytes(packet[at + 20 : at + 24], "little")
        return False

    def room(self) -> int:
        """Return how many bytes may be written: what is sent with them can be sent twice."""
        return max(0, (self._credit - _FOR_QUESTIONS) // AMPLIFICATION - HEADER - self._written)

    def take(self, size: int) -> int:
        """Return how many of `size` bytes may be written now, and count them."""
        taken = min(size, self.room())
        self._written += taken
        self.wants_more = self.wants_more or taken < size
        return taken

    def allowed(self, datagrams: list[bytes], time: bytes) -> Iterator[bytes]:
        """Those that may be sent now, at the core's time `time`; the rest is lost."""
        for packet in datagrams:
            if len(packet) > self._credit - (_FOR_QUESTIONS if packet[4] != _ASK else 0):
                self.wants_more = True
                return
            self._credit -= len(packet)
            if time not in self._times:
                self._times = [*self._times[1 - _MAX_TIMES :], time]
            yield packet

    def question(self, conv: bytes, window: int, now: float) -> bytes | None:
        """Return a datagram that asks for the peer's window, apart from all that the core would put into it; None: not now."""
        if self._credit < HEADER or now - self._asked < _QUESTION_DELAY:
            return None
        self._asked = now
        self._credit -= HEADER
        return conv + bytes((_ASK, 0)) + window.to_bytes(2, "little") + bytes(16)

    def next_question(self, now: float) -> float:
        """Return when the next one may be due."""
        return max(self._asked + _QUESTION_DELAY, now)
