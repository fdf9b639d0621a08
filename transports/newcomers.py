"""Datagrams that would begin something wait here for their turn, so that conversations that are under way do not wait for them.

Belongs here: the queue and whose turn it is. Does not belong here: what is done with a datagram, and which ones are a newcomer's
(the protocols).

A first packet of QUIC costs a server some milliseconds, and whoever sends it nothing. So a port serves its sessions at once, and
newcomers for TURN seconds, one of them at least; then the loop looks whether anything has come for the sessions. While they are
busy newcomers get two thirds of the time. What does not fit into the queue is lost, as datagrams are.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gws_gevent.transports.schedule import DatagramSession

__all__ = ["Newcomers"]

log = logging.getLogger("gws_gevent.transports")

#: Seconds for newcomers before the loop looks around.
TURN: Final = 0.001
#: Datagrams, and bytes of them, that wait; once for those who have begun, and once for strangers.
MOST: Final = 256
MOST_BYTES: Final = 512 * 1024
#: Seconds for which the sessions count as busy after something has come for one of them.
BUSY: Final = 0.05
#: Seconds until newcomers are served when something has just come for a session: its application is about to answer.
COURTESY: Final = 0.0003


class _Queue:
    __slots__ = ("bytes", "datagrams")

    def __init__(self) -> None:
        self.datagrams: deque[tuple[bytes, Any]] = deque()
        self.bytes = 0


class Newcomers(DatagramSession):
    """The queue of one port. It is a session to the schedule, and ends with `port.forget`.

    Attributes:
        heard_at: when something has come for a session; whoever knows sets it.
        lost: datagrams that did not fit.
    """

    __slots__ = (
        "_begun", "_clock", "_from", "_is_courteous", "_is_turn_of_begun", "_serve", "_strangers", "_touch", "heard_at", "lost",
    )  # fmt: skip

    def __init__(
        self,
        serve: Callable[[bytes, Any, float], object],
        touch: Callable[[DatagramSession], object],
        clock: Callable[[], float],
    ) -> None:
        """Take functions.

        Args:
            serve: called with a datagram, its address and the time, when its turn has come.
            touch: the port's.
            clock: the port's `now`.
        """
        super().__init__()
        self._serve = serve
        self._touch = touch
        self._clock = clock
        self._begun = _Queue()
        self._strangers = _Queue()
        self._is_turn_of_begun = False
        self._from = 0.0
        self._is_courteous = False
        self.heard_at = -1.0
        self.lost = 0

    def __len__(self) -> int:
        """Datagrams that wait."""
        return len(self._begun.datagrams) + len(self._strangers.datagrams)

    @property
    def is_crowded(self) -> bool:
        """Half of the places for strangers are taken."""
        return len(self._strangers.datagrams) > MOST // 2

    def add(self, data: bytes, address: Any, *, has_begun: bool = False) -> None:
        """Have a datagram served in its turn.

        Args:
            has_begun: it is for somebody who has been let in. These and strangers are served in turn, however many there are.
        """
        queue = self._begun if has_begun else self._strangers
        if len(queue.datagrams) >= MOST or queue.bytes + len(data) > MOST_BYTES:
            self.lost += 1
            return
        queue.datagrams.append((data, address))
        queue.bytes += len(data)
        self._touch(self)

    def flush(self, now: float) -> float | None:
        """See DatagramSession."""
        if not len(self):
            return None
        if now < self._from:
            return self._from
        if now - self.heard_at < COURTESY and not self._is_courteous:
            self._is_courteous = True
            return now + COURTESY
        self._is_courteous = False
        begun = ended = self._clock()
        while len(self) and ended - begun < TURN:
            self._serve_one(now)
            ended = self._clock()
        self._from = ended + ((ended - begun) / 2 if ended - self.heard_at < BUSY else 0.0)
        return self._from if len(self) else None

    def _serve_one(self, now: float) -> None:
        self._is_turn_of_begun = not self._is_turn_of_begun
        first, second = (self._begun, self._strangers) if self._is_turn_of_begun else (self._strangers, self._begun)
        queue = first if first.datagrams else second
        data, address = queue.datagrams.popleft()
        queue.bytes -= len(data)
        try:
            self._serve(data, address, now)
        except Exception as error:
            log.error("a datagram from %s was dropped: %r", address, error, exc_info=error)

    def on_deadline(self, now: float) -> None:
        """See DatagramSession: `flush` does it."""

    def on_failure(self, error: Exception) -> None:
        """See DatagramSession: nothing of this raises."""
