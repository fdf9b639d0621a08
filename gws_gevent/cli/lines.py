"""The connections of a load: what each sends when, and how its replies are timed.

Belongs here: one connection at a time. Does not belong here: opening and closing them, the pace of all of them (load.py).

The n-th reply on a connection answers its n-th message. With a rate, a message's latency counts from the moment it was due, whether
or not it could be sent then, and the messages that a stalled server kept from being sent count too: otherwise a server would
be asked least often while it is slowest, and the percentiles would not show it (coordinated omission).
"""

from __future__ import annotations

from collections import deque
from math import ceil
from time import perf_counter as clock
from typing import TYPE_CHECKING

from gws_gevent.cli.errors import describe
from gws_gevent.connection import Connection
from gws_gevent.exceptions import ConnectionClosed
from gws_gevent.frames import CloseInfo, Opcode
from gws_gevent.handler import EventHandler, Message

if TYPE_CHECKING:
    from gws_gevent.cli.load import Load

__all__ = ["EagerLine", "Line", "PacedLine"]


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

    def is_behind(self) -> bool:
        """Tell whether a message that was due has yet to be sent."""
        return False

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
        if self.conn is not None:
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

    def come_due(self, number: int) -> bool:
        """Send the message with this number, which is due now. False: it waits for a reply, or was sent with one already."""
        if number != self._next or self.in_flight >= self._plan.depth or self.conn is None:
            return False
        now = clock()
        self._counts.lateness.record(now - self._load.due(number))
        self.send(now)
        return True

    def is_behind(self) -> bool:
        return self.conn is not None and self._load.due(self._next) < self._load.until

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
        interval = self._load.period * self._step
        first = self._load.due(self._awaited)
        waiting = max(ceil((min(now, self._load.until) - first) / interval), self.in_flight)
        self._counts.latency.record_series(now - first, interval, waiting)
        self._counts.unanswered += self.in_flight
        self._counts.unsent += waiting - self.in_flight
        self._awaited = self._next = self._next + (waiting - self.in_flight) * self._step
        self.in_flight = 0


def _how_it_ended(info: CloseInfo, closing: bool) -> str:
    if info.received is not None:
        return f"closed by the server with {info.received.code}"
    why = describe(info.error) if info.error is not None else "the server closed the stream without a close frame"
    return f"no closing handshake: {why}" if closing else f"connection lost: {why}"
