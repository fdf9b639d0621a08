"""Bytes from one stream to another, both ways.

Belongs here: the two directions of a connection that a bridge carries, their deadlines, how an end is passed on, and what
bridges of both kinds say about a target. Does not belong here: how the streams came to be, what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import gevent

from gws_gevent import runtime
from gws_gevent._accel import build_of
from gws_gevent.exceptions import Refusal, TransportError
from gws_gevent.transports.base import NonBlockingStream, Stream

if TYPE_CHECKING:
    from gws_gevent.timers import Timed
else:
    Timed = build_of("timers").Timed

__all__ = ["Link", "LinkLimits", "Turns", "bad_gateway", "gateway_timeout", "send_watched", "within", "words_of"]

#: Seconds after which a direction that never had to wait gives way to everybody else.
TURN = 0.0005

class LinkLimits:
    """Seconds: see BridgeOptions."""

    __slots__ = ("close", "idle", "write")

    def __init__(self, idle: float | None, write: float | None, close: float) -> None:
        self.idle = idle if idle is not None else float("inf")
        self.write = write if write is not None else float("inf")
        self.close = close

class Turns:
    """Lets everybody else run now and then while there is always something to carry."""

    __slots__ = ("_began",)

    def __init__(self) -> None:
        self._began = monotonic()

    def carried(self, before: float) -> None:
        """Something has been carried, and the wait for it, if there was one, began at the monotonic time `before`."""
        now = monotonic()
        if now - before > TURN:
            self._began = now  # it has waited, mostly
        elif now - self._began > TURN:
            gevent.sleep(runtime.YIELD)
            self._began = monotonic()


class Link(Timed):
    """Two streams that are carried into each other. `carry` returns when both are closed.

    Attributes:
        near: the stream of the client.
        far: the stream to the target.
        why: what ended the link before its time, in words; "" for nothing.
        carried: bytes, from near to far and from far to near.
    """

    __slots__ = ("_blocked", "_ended", "_limits", "_runtime", "_touched", "carried", "far", "near", "why")

    def __init__(self, near: Stream, far: Stream, limits: LinkLimits) -> None:
        super().__init__()
        self.near = near
        self.far = far
        self.why = ""
        self.carried = [0, 0]
        self._limits = limits
        self._runtime = runtime.current()
        self._touched = 0.0
        # When each direction began to wait for its sink; 0.0: it does not.
        self._blocked = [0.0, 0.0]
        self._ended = 0

    def carry(self) -> None:
        """Carry until both directions have ended, then close both streams. What is thrown in aborts them and goes on."""
        self._touched = monotonic()
        self._runtime.wheel.schedule(self, self._next_deadline())
        backwards = gevent.spawn(self._pump, 1, self.far, self.near)
        try:
            self._pump(0, self.near, self.far)
            backwards.join()
            self.near.close()
            self.far.close()
        except BaseException:
            self.abort()
            backwards.join()
            raise
        finally:
            self._runtime.wheel.cancel(self)

    def abort(self) -> None:
        """Drop both streams. Never blocks."""
        self.near.abort()
        self.far.abort()

    def _pump(self, direction: int, source: Stream, sink: Stream) -> None:
        try:
            self._carry_one_way(direction, source, sink)
        except TransportError:
            # The sink takes no more. What it still has to say, such as a close frame, comes the other way.
            pass
        self._ended += 1
        self._blocked[direction] = 0.0
        self._touched = monotonic()
        self._runtime.wheel.schedule(self, self._next_deadline())

    def _carry_one_way(self, direction: int, source: Stream, sink: Stream) -> None:
        buffer = self._runtime.buffer
        waits = partial(self._waits, direction)
        turns = Turns()
        while True:
            before = monotonic()
            try:
                count = source.recv_into(buffer)
            except TransportError:
                # It has failed for both directions. A sink without half-close would not hear of it otherwise.
                sink.close()
                return
            if count == 0:
                sink.shutdown_write()
                return
            self._touched = monotonic()
            self.carried[direction] += count
            with memoryview(buffer)[:count] as piece:
                send_watched(sink, piece, waits)
            if self._blocked[direction]:
                self._touched, self._blocked[direction] = monotonic(), 0.0
            turns.carried(before)

    def _waits(self, direction: int) -> None:
        """The sink takes no more for now."""
        self._touched = self._blocked[direction] = monotonic()
        self._runtime.wheel.schedule(self, self._next_deadline())

    def _next_deadline(self) -> float:
        idle = min(self._limits.idle, self._limits.close) if self._ended else self._limits.idle
        return min(self._touched + idle, *(since + self._limits.write for since in self._blocked if since), float("inf"))

    def on_deadline(self, now: float) -> float:
        """In the hub: end the link if something is due."""
        due = self._next_deadline()
        if due > now:
            return due
        late = next((side for side, since in (("target", 0), ("client", 1)) if self._is_late(since, now)), None)
        if late is not None:
            self.why = f"the {late} took no bytes for {self._limits.write:g} s"
        elif self._ended:
            self.why = f"nothing came for {self._limits.close:g} s after one side had ended"
        else:
            self.why = f"idle for {self._limits.idle:g} s"
        self.abort()
        return float("inf")

    def _is_late(self, direction: int, now: float) -> bool:
        since = self._blocked[direction]
        return bool(since) and now - since >= self._limits.write

def send_watched(sink: Stream, data: memoryview, waits: Callable[[], object]) -> None:
    """`send_all`, with `waits()` called before each wait: so a sink that takes some bytes now and then is told from a stuck one.

    Args:
        data: may be the shared buffer: what is not sent at once is copied.
    """
    if not isinstance(sink, NonBlockingStream):
        rest = bytes(data)
        waits()
        sink.send_all(rest)
        return
    sent = sink.try_send(data)
    if sent == len(data):
        return
    with memoryview(bytes(data[sent:])) as rest_view:
        sent = 0
        while sent < len(rest_view):
            waits()
            sink.wait_writable()
            sent += sink.try_send(rest_view[sent:])


def bad_gateway() -> Refusal:
    """Return the 502 for a target that cannot be reached, or does not speak HTTP."""
    return Refusal(502, "The server behind this bridge cannot be reached.\n")


def gateway_timeout() -> Refusal:
    """Return the 504 for a target that does not answer."""
    return Refusal(504, "The server behind this bridge does not answer.\n")


@contextmanager
def within(seconds: float, error: Exception) -> Iterator[None]:
    """Raise `error` if the block takes longer."""
    timer = gevent.Timeout.start_new(seconds)
    try:
        yield
    except gevent.Timeout as raised:
        if raised is not timer:
            raise
        raise error from None
    finally:
        timer.close()


def words_of(error: Exception) -> str:
    """What an error says, without an errno in front."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
