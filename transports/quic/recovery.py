"""Loss recovery that learns from probes which were sent too early.

Belongs here: what aioquic's recovery lacks. Does not belong here: the connection (core.py).

When no acknowledgement comes in time (the PTO of RFC 9002), aioquic declares the oldest packet lost and forgets when it was sent.
If the acknowledgement was only late, because one of the two processes is busy, it is no measurement of the round trip, and the next
probe is early again. Some hundred connections of a busy process can keep it busy in this way for minutes.
"""

from __future__ import annotations

from typing import Final

from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

__all__ = ["PatientRecovery"]

#: Seconds that a round trip is believed to take at most.
MOST: Final = 1.0
#: Seconds added to the time of a timer: rounded, "sent + delay" may have come when "now - delay" has not yet come to "sent".
#: Nothing would be found lost then, and the timer be due again at once.
ROUNDING: Final = 1e-6
#: Packets whose times are remembered.
_REMEMBERED: Final = 16


class PatientRecovery(QuicPacketRecovery):
    """aioquic's recovery, with the answer of RFC 4015 to a spurious timeout: a round trip takes at least what this one took."""

    _early: dict[int, float] | None = None

    @classmethod
    def teach(cls, recovery: QuicPacketRecovery) -> None:
        """Make a recovery that aioquic has made one of this class."""
        recovery.__class__ = cls

    def on_loss_detection_timeout(self, *, now: float) -> None:
        (*_, space) = self.spaces
        sent = [(number, packet.sent_time or now) for number, packet in space.sent_packets.items() if packet.is_ack_eliciting]
        super().on_loss_detection_timeout(now=now + ROUNDING)
        early = [one for one in sent[:_REMEMBERED] if one[0] not in space.sent_packets]
        if early:
            self._early = dict([*(self._early or {}).items(), *early][-_REMEMBERED:])

    def on_ack_received(self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        if self._early is not None and space is self.spaces[-1]:
            largest = ack_rangeset.bounds().stop - 1  # of others it is not known when they were acknowledged first
            when = self._early.get(largest)
            if when is not None:
                self._learn(min(now - when, MOST))
            self._early = {number: when for number, when in self._early.items() if number > largest} or None
        super().on_ack_received(ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space)

    def _learn(self, round_trip: float) -> None:
        self._rtt_smoothed = max(self._rtt_smoothed, round_trip)
        self._rtt_variance = max(self._rtt_variance, round_trip / 2)
