"""Many connections under load, or only held: opening them, keeping the pace, closing them.

Belongs here: what concerns all connections. Does not belong here: a single one (lines.py), arguments, showing anything.
"""

from __future__ import annotations

from time import perf_counter as clock
from typing import Final

import gevent
from gevent import Greenlet
from gevent.event import Event
from gevent.pool import Pool

from gws_gevent.cli.errors import describe
from gws_gevent.cli.lines import EagerLine, Line, PacedLine
from gws_gevent.cli.load_plan import Counts, Plan
from gws_gevent.client import connect
from gws_gevent.exceptions import GwsError, HandshakeRefused

__all__ = ["Load"]

#: Opening handshakes underway at once.
OPENING_AT_ONCE: Final = 64
#: Failures to open, without one success, after which no more is tried.
GIVE_UP_AFTER: Final = 64
#: Messages sent, or connections closed, in a row before others have their turn.
IN_A_ROW: Final = 64
#: Seconds before a message is due from which on the loop is not left to a timer: those are exact to a millisecond only.
TIMER_ERROR: Final = 0.0015
#: Seconds of the sleep that lets all others have their turn.
GIVE_WAY: Final = 0.000001
#: Seconds of a sleep where nothing is to be done in time.
NAP: Final = 0.001
#: Seconds before the end from which on a message counts as due behind it: what is due at the very end is not to hang on rounding.
ARITHMETIC: Final = 0.00000001
#: Seconds after the end in which messages that were due before it are still sent: the last ones of a server that keeps up.
LATE_LIMIT: Final = 0.25
#: Seconds between two looks whether the last replies are here.
DRAIN_STEP: Final = 0.01
#: Seconds for all closing handshakes after an interrupt.
HASTE: Final = 2.0
#: Seconds in which connections that were aborted come to their end.
ABORT_LIMIT: Final = 5.0


class Load:
    """Does what a Plan says.

    Attributes:
        counts: what has happened.
        begun, until: `clock()` when the first message was due, and from when on no more is; 0 before that.
        period: seconds from one message to the next one of any connection; 0 without a rate.
        sending: messages may be sent.
        hasty: connections end without their closing handshakes being waited for.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counts = Counts()
        self.begun = self.until = 0.0
        self.sending = False
        self.hasty = False
        self.period = 1 / plan.rate if plan.rate is not None else 0.0
        self._lines: list[Line] = []
        self._openers = Pool(OPENING_AT_ONCE)
        self._stop = Event()
        self._gone = Event()

    def run(self) -> None:
        """Open, send or hold, close; returns when all connections have ended."""
        began = clock()
        self._open_all()
        self.counts.opening_took = clock() - began
        self.counts.alive_at_end = self.counts.alive
        self._lines = [line for line in self._lines if line.conn is not None]
        if self._lines and not self._stop.is_set():
            self._go()
        self._close_all()

    def interrupt(self) -> None:
        """Come to the end at once; the second time, without closing handshakes."""
        if self.counts.interrupted or self.counts.phase == "closing":
            self._abort_all()
        self.counts.interrupted = self.hasty = True
        self._stop.set()
        self._openers.kill(block=False)

    def due(self, number: int) -> float:
        """When the message with this number is due."""
        return self.begun + number * self.period

    def one_has_ended(self) -> None:
        """A connection has."""
        self.counts.alive -= 1
        if not self.counts.alive:
            self._gone.set()
            if self.counts.phase == "running":
                self._stop.set()

    # Opening

    def _open_all(self) -> None:
        plan, counts, began = self.plan, self.counts, clock()
        for number in range(plan.connections):
            early = began + number * plan.ramp / plan.connections - clock()
            if early > 0:
                self._stop.wait(early)
            if self._stop.is_set() or (not counts.opened and sum(counts.errors.values()) >= GIVE_UP_AFTER):
                break
            self._openers.spawn(self._open_one)
        if self._stop.is_set():
            self._openers.kill()
        self._openers.join()

    def _open_one(self) -> None:
        plan, counts = self.plan, self.counts
        line = Line(self) if plan.hold else EagerLine(self) if plan.rate is None else PacedLine(self)
        counts.tried += 1
        began = clock()
        try:
            line.conn = connect(plan.url, line, plan.options, ssl_context=plan.ssl_context, proxy=plan.proxy)
        except HandshakeRefused as refused:
            counts.failed(f"the server answered {refused.status} instead of 101")
        except (GwsError, OSError) as error:
            counts.failed(describe(error))
        else:
            counts.opening.record(clock() - began)
            counts.opened += 1
            counts.alive += 1
            self._lines.append(line)

    # Sending

    def _go(self) -> None:
        plan, counts = self.plan, self.counts
        workers: list[Greenlet] = []
        self.sending = not plan.hold
        self.begun = clock()
        self.until = max(self.begun + plan.duration - ARITHMETIC, self.begun)
        counts.phase = "running"
        for number, line in enumerate(self._lines):
            line.begin(number, len(self._lines))
        if self.sending:
            workers.append(gevent.spawn(self._watch_for_silence))
            workers.append(gevent.spawn(self._pace if plan.rate is not None else self._start_all))
        try:
            self._stop.wait(max(self.until - clock(), 0) if plan.duration != float("inf") else None)
            self.until = min(self.until, clock())
            counts.seconds = self.until - self.begun
            counts.alive_at_end, counts.answered_in_time = counts.alive, counts.answered
            self._send_the_last()
            counts.phase = "draining"
            self._drain()
        finally:
            gevent.killall(workers)

    def _start_all(self) -> None:
        """The first messages of each EagerLine."""
        for line in self._lines:
            for number in range(self.plan.depth):
                if not number % IN_A_ROW:
                    gevent.sleep(GIVE_WAY)
                if not self.sending:
                    return
                line.send(clock())

    def _pace(self) -> None:
        """Tell each PacedLine when a message of its is due."""
        lines, count, number, held = self._lines, len(self._lines), 0, 0
        while self.sending and (due := self.due(number)) < self.until:
            early = due - clock()
            if early > 0:
                # While every line waits for replies, those send what is due: to watch the clock would only slow them down.
                gevent.sleep(early - TIMER_ERROR if early > TIMER_ERROR else GIVE_WAY if held < count else NAP)
                continue
            held = 0 if lines[number % count].come_due(number) else held + 1  # type: ignore[attr-defined]  # a PacedLine
            number += 1
            if not number % IN_A_ROW:
                gevent.sleep(GIVE_WAY)

    def _watch_for_silence(self) -> None:
        while True:
            gevent.sleep(min(self.plan.timeout / 4, 1.0))
            self._fail_those_silent_since(clock() - self.plan.timeout)

    def _fail_those_silent_since(self, moment: float) -> None:
        for line in self._lines:
            if line.in_flight and line.waiting_since <= moment:
                line.fail(f"no reply within {self.plan.timeout:g} seconds")

    def _send_the_last(self) -> None:
        deadline = clock() + LATE_LIMIT
        while any(line.is_behind() for line in self._lines) and clock() < deadline and not self._stop.is_set():
            gevent.sleep(DRAIN_STEP)
        self.sending = False

    def _drain(self) -> None:
        """Wait for the last replies."""
        deadline = self.until + self.plan.timeout
        while any(line.in_flight for line in self._lines) and not self._stop.is_set():
            if clock() >= deadline:
                self._fail_those_silent_since(self.until)
                break
            gevent.sleep(DRAIN_STEP)

    # Closing

    def _close_all(self) -> None:
        counts = self.counts
        counts.phase = "closing"
        self._gone.clear()
        now = clock()
        for number, line in enumerate(self._lines):
            line.settle(now)
            line.closing = True
            if line.conn is not None:
                line.conn.write_close()
            if not number % IN_A_ROW:
                gevent.sleep(GIVE_WAY)
        if counts.alive:
            # Where --timeout is over each connection ends by itself; the second more lets it do so.
            self._gone.wait(HASTE if self.hasty else self.plan.timeout + 1.0)
        if counts.alive:
            self._abort_all()
            self._gone.wait(ABORT_LIMIT)

    def _abort_all(self) -> None:
        self.hasty = True
        for line in self._lines:
            if line.conn is not None:
                line.closing = True
                line.conn.abort()
