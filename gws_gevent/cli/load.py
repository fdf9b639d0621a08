"""Connections under load, or only held: opening them, sending on them in time, timing the replies, closing them.

Belongs here: what happens on the connections and what is counted. Does not belong here: arguments, showing anything.

The n-th reply on a connection answers its n-th message. With a rate, a message's latency counts from the moment it was due, whether
or not it could be sent then, and the messages that a stalled server kept from being sent count too: otherwise a server would
be asked least often while it is slowest, and the percentiles would not show it (coordinated omission).
"""

from __future__ import annotations

import ssl
from collections import deque
from dataclasses import dataclass, field
from math import ceil
from time import perf_counter as clock
from typing import Final

import gevent
from gevent import Greenlet
from gevent.event import Event
from gevent.pool import Pool

from gws_gevent.cli.errors import describe
from gws_gevent.cli.histogram import Histogram
from gws_gevent.client import connect
from gws_gevent.connection import Connection
from gws_gevent.exceptions import ConnectionClosed, GwsError, HandshakeRefused
from gws_gevent.frames import CloseInfo, Opcode
from gws_gevent.handler import EventHandler, Message
from gws_gevent.options import ClientOptions

__all__ = ["Counts", "Load", "Plan"]

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
#: Seconds after the end in which messages that were due before it, and are late by this program's own doing, are still sent.
LATE_LIMIT: Final = 0.25
#: Seconds between two looks whether the last replies are here.
DRAIN_STEP: Final = 0.01
#: Seconds for all closing handshakes after an interrupt.
HASTE: Final = 2.0
#: Seconds in which connections that were aborted come to their end.
ABORT_LIMIT: Final = 5.0
#: Kinds of errors that are told apart, and characters of each.
MAX_KINDS: Final = 20
MAX_KIND: Final = 200
OTHER_ERRORS: Final = "other errors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        connections: how many, opened over `ramp` seconds.
        duration: seconds, from when all are open.
        hold: send nothing.
        opcode: TEXT or BINARY; PING sends pings, and their pongs are the replies.
        depth: messages that may be unanswered on one connection.
        rate: messages a second, over all connections; None: each reply is followed by the next message at once.
        check: a reply has to be what was sent.
        timeout: seconds for the opening handshake, for a reply, and for the closing handshake.
    """

    url: str
    options: ClientOptions
    ssl_context: ssl.SSLContext | None = None
    connections: int = 1
    ramp: float = 0.0
    duration: float = 10.0
    hold: bool = False
    opcode: Opcode = Opcode.BINARY
    payload: str | bytes = b""
    depth: int = 1
    rate: float | None = None
    check: bool = False
    timeout: float = 10.0


@dataclass(slots=True)
class Counts:
    """What has happened so far.

    Attributes:
        phase: "opening", "running", "draining" (the last replies are waited for), "closing".
        tried, opened, alive: connections; `alive_at_end` those that were open when the time was over.
        opening: a Histogram of the opening handshakes that succeeded.
        seconds: how long messages were sent, or connections were held.
        answered, answered_in_time: replies, also those that came after these seconds, and those that did not.
        unanswered: messages sent without a reply. unsent: due, and not sent because `depth` were unanswered.
        unasked: messages received that are not replies.
        latency: of every message that was sent or due; what had no reply counts with the time it had waited.
        lateness: by how much this program was late to send, where nothing but itself was in the way.
        errors: how many of each kind.
    """

    phase: str = "opening"
    tried: int = 0
    opened: int = 0
    alive: int = 0
    alive_at_end: int = 0
    opening: Histogram = field(default_factory=Histogram)
    opening_took: float = 0.0
    seconds: float = 0.0
    sent: int = 0
    answered: int = 0
    answered_in_time: int = 0
    unanswered: int = 0
    unsent: int = 0
    unasked: int = 0
    latency: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    errors: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False

    def failed(self, kind: str) -> None:
        """Count an error."""
        kind = "".join(char if char.isprintable() else "?" for char in kind[:MAX_KIND])
        if kind not in self.errors and len(self.errors) >= MAX_KINDS:
            kind = OTHER_ERRORS
        self.errors[kind] = self.errors.get(kind, 0) + 1


class Line(EventHandler):
    """One connection, which sends nothing.

    Attributes:
        conn: None before it is open, and after its end.
        in_flight: messages sent and not answered.
        waiting_since: when the oldest of them began to be waited for: it was sent, or the one before it was answered.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._plan = load.plan
        self._counts = load.counts
        self.conn: Connection | None = None
        self.in_flight = 0
        self.waiting_since = 0.0
        self.closing = False
        self._failed = False

    def fail(self, kind: str) -> None:
        """Count an error, once for the connection, and drop it."""
        if not self._failed and self.conn is not None:
            self._failed = True
            self._counts.failed(kind)
            self.conn.abort()

    def settle(self, now: float) -> None:
        """Nothing more will be answered: count what was waited for with the time it has waited."""

    def begin(self, number: int, step: int) -> None:
        """Sending begins: of all messages, `number` is this connection's first one, and every `step`-th from there on is its."""

    def send(self, now: float) -> None:
        """Write one message; it never waits, because what is unanswered fits into the write queue."""
        conn = self.conn
        if conn is None:
            return
        if not self.in_flight:
            self.waiting_since = now
        self.in_flight += 1
        self._counts.sent += 1
        try:
            if self._plan.opcode is Opcode.PING:
                conn.write_ping(self._plan.payload)  # type: ignore[arg-type]  # bytes, for a ping
            else:
                conn.write_message(self._plan.opcode, self._plan.payload)
        except ConnectionClosed:
            return  # on_close says why

    def answered(self) -> None:
        """A reply is here."""
        self._counts.unasked += 1

    # Events of the connection

    def on_message(self, conn: Connection, message: Message) -> None:
        if self._plan.opcode is Opcode.PING:
            self._counts.unasked += 1
            return
        if self._plan.check and self.in_flight and message.data != self._plan.payload:
            self.fail("a reply was not what was sent")
            return
        self.answered()

    def on_pong(self, conn: Connection, payload: bytes) -> None:
        if self._plan.opcode is Opcode.PING and payload == self._plan.payload:
            self.answered()

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        counts = self._counts
        if not self._failed and not (self.closing and (info.received is not None or self._load.hasty)):
            counts.failed(_how_it_ended(info, self.closing))
        self.settle(clock())
        self.conn = None
        self._load.one_has_ended()


class EagerLine(Line):
    """A connection on which each reply is followed by the next message."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self._sent_at: deque[float] = deque()

    def send(self, now: float) -> None:
        self._sent_at.append(now)
        super().send(now)

    def answered(self) -> None:
        counts = self._counts
        if not self._sent_at:
            counts.unasked += 1
            return
        now = clock()
        counts.latency.record(now - self._sent_at.popleft())
        counts.answered += 1
        self.in_flight -= 1
        self.waiting_since = now
        if self._load.sending:
            self.send(now)

    def settle(self, now: float) -> None:
        for sent_at in self._sent_at:
            self._counts.latency.record(now - sent_at)
        self._counts.unanswered += len(self._sent_at)
        self._sent_at.clear()
        self.in_flight = 0


class PacedLine(Line):
    """A connection on which messages are due at set times. While `depth` are unanswered, those due wait for the next reply."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self._next = self._awaited = self._step = 0

    def begin(self, number: int, step: int) -> None:
        # Numbers among the messages of all connections: all times come from `Load.due`, so that they compare to the last bit.
        self._next = self._awaited = number
        self._step = step

    def come_due(self, number: int) -> None:
        """A message is due now."""
        if number == self._next and self.in_flight < self._plan.depth and self.conn is not None:
            now = clock()
            self._counts.lateness.record(now - self._load.due(number))
            self.send(now)

    def send(self, now: float) -> None:
        self._next += self._step
        super().send(now)

    def answered(self) -> None:
        counts, load = self._counts, self._load
        if not self.in_flight:
            counts.unasked += 1
            return
        now = clock()
        counts.latency.record(now - load.due(self._awaited))
        counts.answered += 1
        self._awaited += self._step
        self.in_flight -= 1
        self.waiting_since = now
        if load.sending and load.due(self._next) < load.until and load.due(self._next) <= now:
            self.send(now)

    def settle(self, now: float) -> None:
        if not self._load.begun:
            return
        interval = self._load.due(self._step) - self._load.due(0)
        first = self._load.due(self._awaited)
        # What is due at the very end belongs to no run; a millionth more or less is the arithmetic's.
        waiting = max(ceil((min(now, self._load.until) - first) / interval - 1e-6), self.in_flight)
        self._counts.latency.record_series(now - first, interval, waiting)
        self._counts.unanswered += self.in_flight
        self._counts.unsent += waiting - self.in_flight
        self._awaited = self._next = self._next + (waiting - self.in_flight) * self._step
        self.in_flight = 0


class Load:
    """Does what a Plan says.

    Attributes:
        counts: what has happened.
        begun, until: `clock()` when the first message was due, and when no more is; 0 before that.
        sending: messages may be sent.
        hasty: connections end without their closing handshakes being waited for.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counts = Counts()
        self.begun = self.until = 0.0
        self.sending = False
        self.hasty = False
        self._period = 1 / plan.rate if plan.rate is not None else 0.0
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
        return self.begun + number * self._period

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
            line.conn = connect(plan.url, line, plan.options, ssl_context=plan.ssl_context)
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
        self.until = self.begun + plan.duration
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
            if plan.rate is not None:
                gevent.joinall(workers[1:], timeout=LATE_LIMIT)
            self.sending = False
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
        lines, count, number = self._lines, len(self._lines), 0
        while self.sending:
            due = self.due(number)
            early = due - clock()
            if due >= self.until:
                return
            if early > 0:
                gevent.sleep(early - TIMER_ERROR if early > TIMER_ERROR else GIVE_WAY)
                continue
            lines[number % count].come_due(number)  # type: ignore[attr-defined]  # with a rate, they are PacedLines
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


def _how_it_ended(info: CloseInfo, closing: bool) -> str:
    if info.received is not None:
        return f"closed by the server with {info.received.code}"
    why = describe(info.error) if info.error is not None else "the server closed the stream without a close frame"
    return f"no closing handshake: {why}" if closing else f"connection lost: {why}"
