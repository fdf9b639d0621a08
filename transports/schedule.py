"""Deadlines and pending output of many sessions of datagram protocols: one heap, one list.

Belongs here: which session is to be asked when. Does not belong here: protocols; clocks, sockets and greenlets (datagram.py).

Time is passed in. An idle session costs one entry of the heap and nothing else.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

__all__ = ["DatagramSession", "Schedule"]

log = logging.getLogger("gws_gevent.transports")

#: Sessions that one `run` asks before others get a turn: a flush of QUIC takes about 0.1 ms.
BATCH: Final = 64
#: Entries of the heap that may be out of date beside as many as there are sessions with a deadline.
STALE_ENTRIES: Final = 64


class DatagramSession(ABC):
    """What a protocol keeps for one conversation. It is asked by the Schedule of its port, and never waits.

    Whatever changes what the session wants to send, or when, is followed by `port.touch(session)`: a datagram, a write by the
    application, data that the application has consumed, a close. Then `flush` is called: after the batch of datagrams
    that is being read, or once per turn of the loop.
    """

    __slots__ = ("_due", "_entry", "_is_dirty", "_is_forgotten")

    def __init__(self) -> None:
        self._due: float | None = None
        self._entry: tuple[float, int, DatagramSession] | None = None
        self._is_dirty = False
        self._is_forgotten = False

    @abstractmethod
    def flush(self, now: float) -> float | None:
        """Send what is to be sent, with `port.send`, and return the time of the next deadline; None: there is none."""

    @abstractmethod
    def on_deadline(self, now: float) -> None:
        """The time that `flush` returned has come. `flush` is called afterwards."""

    @abstractmethod
    def on_failure(self, error: Exception) -> None:
        """`flush` or `on_deadline` raised this. The session has to end itself; it may not raise."""


class Schedule:
    """Which sessions have to be asked now, and when the next one has to be."""

    def __init__(self, wake: Callable[[], object]) -> None:
        """Take a function.

        Args:
            wake: called when there is a first session to flush, outside `run`: `run` has to be called soon.
        """
        self._wake = wake
        self._heap: list[tuple[float, int, DatagramSession]] = []
        self._live = 0  # sessions that have an entry
        self._count = 0
        self._dirty: deque[DatagramSession] = deque()
        self._is_running = False

    def touch(self, session: DatagramSession) -> None:
        """Have `session` flushed soon."""
        if session._is_dirty or session._is_forgotten:
            return
        session._is_dirty = True
        self._dirty.append(session)
        if len(self._dirty) == 1 and not self._is_running:
            self._wake()

    def forget(self, session: DatagramSession) -> None:
        """The session has ended: it is not asked any more, and cannot come back."""
        session._is_forgotten = True
        session._due = None
        if session._entry is not None:
            session._entry = None
            self._live -= 1
            self._tidy()
        if session._is_dirty:
            session._is_dirty = False
            self._dirty.remove(session)

    def next_deadline(self) -> float | None:
        """Return the time at which `run` has something to do; None: never, unless a session is touched."""
        while self._heap and self._heap[0][2]._entry is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> bool:
        """Call `flush` of the sessions that were touched, and `on_deadline` and `flush` of those that are due.

        Returns:
            True: there is more to do at once; the rest of the program gets a turn before.
        """
        self._is_running = True
        try:
            self._expire(now)
            for _ in range(min(BATCH, len(self._dirty))):
                self._flush(self._dirty.popleft(), now)
        finally:
            self._is_running = False
        return bool(self._dirty)

    def _expire(self, now: float) -> None:
        heap = self._heap
        for _ in range(BATCH):
            if not heap or heap[0][0] > now:
                return
            entry = heappop(heap)
            session = entry[2]
            if session._entry is not entry:
                continue
            session._entry = None
            self._live -= 1
            due = session._due
            if due is None:
                continue
            if due > now:  # it was put off meanwhile
                self._push(session, due)
                continue
            session._due = None
            try:
                session.on_deadline(now)
            except Exception as error:
                self._failed(session, error)
            else:
                self.touch(session)

    def _flush(self, session: DatagramSession, now: float) -> None:
        session._is_dirty = False
        try:
            due = session.flush(now)
        except Exception as error:
            self._failed(session, error)
            return
        if session._is_forgotten:
            return
        session._due = due
        # A deadline that is put off leaves its entry where it is: most are put off again before it comes up.
        if due is not None and (session._entry is None or due < session._entry[0]):
            self._push(session, due)

    def _push(self, session: DatagramSession, due: float) -> None:
        if session._entry is None:
            self._live += 1
        self._count += 1
        session._entry = (due, self._count, session)
        heappush(self._heap, session._entry)
        self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > 2 * self._live + STALE_ENTRIES:
            self._heap[:] = [entry for entry in self._heap if entry[2]._entry is entry]  # the same list: others hold it
            heapify(self._heap)

    def _failed(self, session: DatagramSession, error: Exception) -> None:
        log.error("a session failed and was ended: %r", error, exc_info=error)
        self.forget(session)
        session.on_failure(error)
