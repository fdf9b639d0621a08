"""What loss does to a connection of TCP, as Linux handles it. Time and randomness are passed in.

The model, which is kind to TCP where it simplifies (it was never compared with a kernel, on a line that really loses packets):

* A segment that arrives behind a gap waits in the receiver until the gap is filled.
* Each segment that arrives is acknowledged at once, with everything that the receiver has (SACK without a bound), and again by
  every segment that the receiver sends itself. Acknowledgements get lost like segments.
* RACK (RFC 8985): a segment counts as lost when one that was sent later has been acknowledged, and since it was sent a round trip
  and a quarter of the smallest one have passed; it is sent again at once. So is what was sent again and lost again.
* Tail loss probe (RFC 8985 section 7): two round trips after the last sign of life, if more than one segment is under way.
* Retransmission timeout (RFC 6298, with Linux's numbers): smoothed round trip + max(200 ms, 4 times its variation); twice that each
  time in a row.
* The congestion window begins with 10 segments, becomes 0.7 times what it was when something is lost (once in a round trip) and 1
  after a timeout, and grows as Reno's, but only while it is what holds the sender back. What waits for it leaves in full segments.
  Segments that are sent again do not wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

__all__ = ["SEGMENT", "TcpConnection"]

#: Bytes of a segment on an Ethernet, with timestamps.
SEGMENT = 1448
#: Linux's TCP_RTO_MIN and TCP_RTO_MAX, and what its probe adds, in seconds.
RTO_MIN, RTO_MAX, PROBE_MIN = 0.2, 120.0, 0.002
#: Segments of the first window and of the smallest one after a loss, and what is left of one.
FIRST_WINDOW, LEAST_WINDOW, LEFT = 10.0, 2.0, 0.7


class Segment:
    """Data on its way.

    Attributes:
        items: what was given to `send`.
        sent_at: the last time.
        came: when that copy was sent which the receiver has; None: it has none.
        is_acked: the sender knows that.
    """

    def __init__(self, number: int, items: list[Any]) -> None:
        self.number = number
        self.items = items
        self.sent_at = 0.0
        self.came: float | None = None
        self.is_acked = False


class TcpConnection:
    """Items go in on side 0 or 1 at times of the caller's, and come out on the other side in order, later."""

    def __init__(self, loss: float, delay: float, jitter: float, random: Random) -> None:
        """Take a line.

        Args:
            loss: share of what is sent in either direction that does not arrive.
            delay, jitter: seconds one way; each segment is late by another 0 to `jitter`.
        """
        self._loss, self._delay, self._jitter, self._random = loss, delay, jitter, random
        self._events: list[tuple[float, int, Callable[[float], object]]] = []
        self._count = 0
        self._ways = (Direction(self, 2 * delay + jitter), Direction(self, 2 * delay + jitter))
        self._ways[0].back, self._ways[1].back = self._ways[1], self._ways[0]

    def send(self, side: int, item: Any, size: int, now: float) -> None:
        """Send an item of so many bytes, at most those of a segment."""
        self._ways[side].send(item, size, now)

    def next_event(self) -> float | None:
        """Return when `run` has something to do; None: not before the next `send`."""
        moments = [moment for way in self._ways if (moment := way.timeout_at()) is not None]
        if self._events:
            moments.append(self._events[0][0])
        return min(moments, default=None)

    def run(self, now: float) -> list[tuple[int, Any]]:
        """Let everything happen that has happened by `now`; return (side, item) of what has come out."""
        while (moment := self.next_event()) is not None and moment <= now:
            if self._events and self._events[0][0] == moment:
                _, _, happen = heappop(self._events)
                happen(moment)
            else:
                for way in self._ways:
                    if way.timeout_at() == moment:
                        way.on_timeout(moment)
        found = []
        for side, way in ((1, self._ways[0]), (0, self._ways[1])):
            found += [(side, item) for item in way.out]
            way.out.clear()
        return found

    # What the directions call.

    def carry(self, now: float, happen: Callable[[float], object]) -> None:
        """Have something happen at the other end, unless it gets lost."""
        if self._random.random() >= self._loss:
            self.at(now + self._delay + self._random.random() * self._jitter, happen)

    def at(self, moment: float, happen: Callable[[float], object]) -> None:
        self._count += 1
        heappush(self._events, (moment, self._count, happen))


class Direction:
    """A sender and the receiver at the other end."""

    back: Direction

    def __init__(self, line: TcpConnection, round_trip: float) -> None:
        self._line = line
        # The sender.
        self._unsent: deque[tuple[Any, int]] = deque()
        self._segments: deque[Segment] = deque()  # from the first that is not acknowledged on
        self._next_number = 0
        self._window, self._threshold = FIRST_WINDOW, float("inf")
        self._recover = 0  # losses of segments before this one have made the window smaller already
        # As the opening handshake would have left them.
        self._rtt = self._srtt = self._min_rtt = round_trip
        self._variation = self._srtt / 2
        self._newest_acked = 0.0  # when that segment was sent which has been acknowledged and was sent last
        self._backoff = 1
        self._alive_at = 0.0  # when the timer of timeouts began
        self._probed = False
        # The receiver.
        self._behind_gap: dict[int, Segment] = {}
        self._next_out = 0
        self._last_came = 0.0
        self.out: list[Any] = []

    def send(self, item: Any, size: int, now: float) -> None:
        self._unsent.append((item, size))
        self._send_what_fits(now)

    # The receiver

    def _on_segment(self, segment: Segment, sent_at: float, now: float) -> None:
        if segment.came is None:
            segment.came = sent_at
            self._behind_gap[segment.number] = segment
        while (first := self._behind_gap.pop(self._next_out, None)) is not None:
            self.out += first.items
            self._next_out += 1
        self._last_came = sent_at
        acknowledge = self._acknowledgement()
        self._line.carry(now, acknowledge)

    def _acknowledgement(self) -> Callable[[float], object]:
        received, sent_at = [one for one in self._segments if one.came is not None], self._last_came
        return lambda now: self._on_ack(received, sent_at, now)

    # The sender

    def _send_what_fits(self, now: float) -> None:
        while self._unsent and self._under_way() < int(self._window):
            items, size = [], 0
            while self._unsent and size + self._unsent[0][1] <= SEGMENT:
                item, more = self._unsent.popleft()
                items.append(item)
                size += more
            if not self._segments:
                self._alive_at = now
            segment = Segment(self._next_number, items)
            self._next_number += 1
            self._segments.append(segment)
            self._transmit(segment, now)

    def _under_way(self) -> int:
        return sum(not one.is_acked for one in self._segments)

    def _transmit(self, segment: Segment, now: float) -> None:
        segment.sent_at = now
        self._probed = False
        acknowledge = self.back._acknowledgement()

        def arrive(then: float) -> None:
            acknowledge(then)
            self._on_segment(segment, now, then)

        self._line.carry(now, arrive)

    def _on_ack(self, received: list[Segment], sent_at: float, now: float) -> None:
        news = [one for one in received if not one.is_acked]
        if not news:
            return
        self._grow(len(news))
        self._rtt = now - sent_at
        self._min_rtt = min(self._min_rtt, self._rtt)
        self._variation += (abs(self._srtt - self._rtt) - self._variation) / 4
        self._srtt += (self._rtt - self._srtt) / 8
        for one in news:
            one.is_acked = True
            self._newest_acked = max(self._newest_acked, one.came or 0.0)
        before = len(self._segments)
        while self._segments and self._segments[0].is_acked:
            self._segments.popleft()
        if len(self._segments) < before:
            self._alive_at, self._backoff = now, 1
        self._find_lost(now)
        self._send_what_fits(now)

    def _grow(self, acked: int) -> None:
        recovers = bool(self._segments) and self._segments[0].number < self._recover
        if not recovers and self._under_way() >= int(self._window):
            self._window += acked if self._window < self._threshold else acked / self._window

    def _shrink(self, window: float | None = None) -> None:
        self._threshold = max(LEAST_WINDOW, self._window * LEFT)
        self._window = window or self._threshold
        self._recover = self._next_number

    def _find_lost(self, now: float) -> None:
        patience = self._rtt + self._min_rtt / 4
        for one in list(self._segments):
            if one.is_acked or one.sent_at >= self._newest_acked:
                continue
            if one.sent_at + patience > now:
                self._line.at(one.sent_at + patience, self._find_lost)
                break
            if one.number >= self._recover:
                self._shrink()
            self._transmit(one, now)

    def timeout_at(self) -> float | None:
        """Return when the probe or the retransmission is due."""
        if not self._segments:
            return None
        if self._may_probe():
            return max(self._alive_at, self._segments[-1].sent_at) + 2 * self._srtt + PROBE_MIN
        timeout = self._srtt + max(RTO_MIN, 4 * self._variation)
        return max(self._alive_at, self._segments[0].sent_at) + min(RTO_MAX, timeout * self._backoff)

    def _may_probe(self) -> bool:
        return len(self._segments) > 1 and self._backoff == 1 and not self._probed

    def on_timeout(self, now: float) -> None:
        if self._may_probe():
            self._transmit(next(one for one in reversed(self._segments) if not one.is_acked), now)
            self._probed = True
            return
        self._backoff *= 2
        self._shrink(1.0)
        self._transmit(self._segments[0], now)
