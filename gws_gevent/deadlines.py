# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""The clocks of a connection: keepalive, timeouts, deadlines.

Belongs here: when something is overdue, and the keepalive ping. Does not belong here: the wheel (timers.py), reading, writing.

A connection stands on the wheel once, at the earliest of its deadlines. A deadline ends the stream and never throws into user
code; the reader then unwinds in its own greenlet.
"""

from __future__ import annotations

from random import random
from struct import pack
from typing import TYPE_CHECKING, Final

from gws_gevent.exceptions import ConnectionClosed, TransportError
from gws_gevent.frames import Opcode, State

from ._fdio import monotonic
from .outgoing import Outgoing
from .service import Service
from .timers import TICK
from .writer import Writer

if TYPE_CHECKING:
    from gws_gevent.transports.base import Stream

__all__ = ["Deadlines"]

CONNECTING: Final = State.CONNECTING
OPEN: Final = State.OPEN
NEVER: Final = float("inf")
#: A ping goes out between this share of `ping_interval` and the whole, so that connections made together drift apart.
JITTER: Final = 0.75
#: Seconds after which an idle connection that could not be parked, or pinged, is looked at again at the latest.
AGAIN: Final = 1.0


class Deadlines(Outgoing):
    """The half of a connection that watches the time."""

    __slots__ = (
        "_close_by",
        "_due",
        "_ended",
        "_error",
        "_heard",
        "_limits",
        "_may_park",
        "_message_since",
        "_ping_at",
        "_ping_sent",
        "_reading",
        "_round_trip",
    )  # fmt: skip

    def __init__(self, stream: Stream, service: Service) -> None:
        Outgoing.__init__(self, stream, service)
        self._protocol.state = CONNECTING
        self._error: BaseException | None = None
        self._ended = False
        self._reading = False
        self._may_park = False
        # Monotonic seconds; 0 means none.
        self._heard = 0.0
        self._round_trip = 0.0
        self._ping_at = 0.0
        self._ping_sent = 0.0
        self._message_since = 0.0
        self._limits: tuple[float, float] | None = None
        self._due = NEVER
        # The opening handshake's deadline until it is done, then the closing handshake's.
        self._close_by = monotonic() + service.options.handshake_timeout
        self._look_at(self._close_by)

    @property
    def latency(self) -> float | None:
        """Seconds of the last keepalive round trip, or None."""
        return self._round_trip or None

    def set_deadline(self, seconds: float | None) -> None:
        """Abort the connection if it is reading, or has unsent output, so many seconds from now. None takes the deadline back."""
        self.set_read_deadline(seconds)
        self.set_write_deadline(seconds)

    def set_read_deadline(self, seconds: float | None) -> None:
        """Abort the connection if it is reading so many seconds from now."""
        self._limits = (_from_now(seconds), self._limits[1] if self._limits is not None else NEVER)
        self._look_at(self._limits[0])

    def set_write_deadline(self, seconds: float | None) -> None:
        """Abort the connection if it has unsent output so many seconds from now."""
        self._limits = (self._limits[0] if self._limits is not None else NEVER, _from_now(seconds))
        self._look_at(self._limits[1])

    # What the other halves tell

    def allow(self, seconds: float | None) -> None:
        """Give the opening handshake so many seconds from now; None: as long as it takes."""
        self._close_by = _from_now(seconds)
        self._look_at(self._close_by)

    def _start_clocks(self) -> None:
        """The opening handshake is done."""
        self._close_by = 0.0
        now = self._heard = monotonic()
        interval = self._service.options.ping_interval
        if interval is not None:
            self._ping_at = now + interval * (JITTER + (1 - JITTER) * random())
        self._due = NEVER
        self._look_at(self._next_due(now))

    def _closing_has_begun(self) -> None:
        if not self._close_by:
            self._close_by = monotonic() + self._service.options.close_timeout
            self._look_at(self._close_by)

    def _message_has_begun(self, now: float) -> None:
        self._message_since = now
        if self._service.options.message_timeout is not None:
            self._look_at(now + self._service.options.message_timeout)

    def _watch_output(self, writer: Writer) -> None:
        if writer.size and self._service.options.write_timeout is not None:
            self._look_at(writer.progress + self._service.options.write_timeout)

    def _is_keepalive_pong(self, payload: bytes) -> bool:
        """Tell whether a pong answers our ping, and take the round trip."""
        if not self._ping_sent or payload != pack("!d", self._ping_sent):
            return False
        self._round_trip = monotonic() - self._ping_sent
        self._ping_sent = 0.0
        return True

    def _note(self, error: BaseException) -> None:
        """Remember the first fault: it is what ended the connection."""
        if self._error is None:
            self._error = error
            if isinstance(error, TransportError):
                # Their frames know the connection, which would know itself by them: only a collection could free it.
                for fault in (error, error.__cause__, error.__context__):
                    if fault is not None:
                        fault.__traceback__ = None

    # Inside

    def _look_at(self, when: float) -> None:
        """Have `on_deadline` called no later than `when`."""
        if when < self._due and not self._ended:
            self._due = when
            self._service.wheel.schedule(self, when)

    def on_deadline(self, now: float) -> float:
        """In the hub: abort what is overdue, send the keepalive ping."""
        self._due = NEVER
        if self._ended:
            return NEVER
        if self._protocol.state is CONNECTING:
            if now < self._close_by:
                self._due = self._close_by
                return self._due
            self._service.handshake_timed_out(self)  # type: ignore[arg-type]  # every Deadlines is a Connection
            return NEVER
        if not self._reading or self._service.wheel.held_up:
            # The clocks of reading stand still while we do not read, and while nobody could.
            self._heard = now
            if self._message_since:
                self._message_since = now
        if self._writer is not None and self._service.wheel.held_up:
            self._writer.progress = now
        overdue = self._overdue(now)
        if overdue is not None:
            self._note(TransportError(overdue))
            self._end(abort=True)
            return NEVER
        if self._ping_at and now >= self._ping_at:
            self._keepalive(now)
            if self._ended:
                return NEVER
        park_after = self._service.options.park_after
        if park_after is not None and now >= self._heard + park_after:
            self._park()
        self._due = max(self._next_due(now), now + TICK)
        return self._due

    def _overdue(self, now: float) -> str | None:
        """What ends the connection now, in words; None if nothing does."""
        options = self._service.options
        writer = self._writer
        read_by, write_by = self._limits if self._limits is not None else (NEVER, NEVER)
        if self._close_by and now >= self._close_by:
            return "the closing handshake took too long"
        if writer is not None and writer.size:
            if options.write_timeout is not None and now >= writer.progress + options.write_timeout:
                return f"the peer took no bytes for {options.write_timeout} seconds"
            if now >= write_by:
                return "the write deadline has passed"
        if self._reading and now >= read_by:
            return "the read deadline has passed"
        if options.read_timeout is not None and now >= self._heard + options.read_timeout:
            return f"nothing was received for {options.read_timeout} seconds"
        if self._message_since and options.message_timeout is not None and now >= self._message_since + options.message_timeout:
            return f"a message took more than {options.message_timeout} seconds"
        if self._ping_sent > self._heard and options.ping_timeout is not None and now >= self._ping_sent + options.ping_timeout:
            return f"a ping was not answered within {options.ping_timeout} seconds"
        return None

    def _next_due(self, now: float) -> float:
        options = self._service.options
        due = self._close_by or NEVER
        if self._limits is not None:
            due = min(due, *(limit if limit > now else now for limit in self._limits))
        if self._writer is not None and self._writer.size and options.write_timeout is not None:
            due = min(due, self._writer.progress + options.write_timeout)
        if options.read_timeout is not None:
            due = min(due, self._heard + options.read_timeout)
        if self._message_since and options.message_timeout is not None:
            due = min(due, self._message_since + options.message_timeout)
        if options.park_after is not None and self._may_park:
            due = min(due, max(self._heard + options.park_after, now + min(options.park_after, AGAIN)))
        if self._ping_at and not self._close_by:
            due = min(due, self._ping_at)
            if self._ping_sent > self._heard and options.ping_timeout is not None:
                due = min(due, self._ping_sent + options.ping_timeout)
        return due

    def _keepalive(self, now: float) -> None:
        interval = self._service.options.ping_interval
        assert interval is not None
        if self._protocol.state is not OPEN or self.buffered_amount or not self._reading:
            # Unsent output has its own deadline, and a handler at work is no silent peer.
            self._ping_at = now + min(interval, AGAIN)
            return
        if not self._service.runtime.may_ping(now):
            self._ping_at = now + min(interval, AGAIN) * random()
            return
        self._ping_at = now + interval * (JITTER + (1 - JITTER) * random())
        if self._ping_sent <= self._heard:
            self._ping_sent = now
            try:
                self._write_frame(Opcode.PING, pack("!d", now), True)
            except ConnectionClosed:
                return  # the peer is gone, as the reader has been told

    def _end(self, abort: bool) -> None:
        """End the transport."""
        raise NotImplementedError

    def _park(self) -> None:
        """Give the greenlet back, if nothing but waiting is left to do for it."""
        raise NotImplementedError


def _from_now(seconds: float | None) -> float:
    return NEVER if seconds is None else monotonic() + seconds
