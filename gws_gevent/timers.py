# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""One wheel for the deadlines of all connections of a hub.

Belongs here: when to look at a connection again. Does not belong here: what is due. Each connection stands on the wheel
once, at its next deadline; the wheel asks it with `on_deadline` and puts it back at the time it answers. Coarse on
purpose: deadlines are seconds, a tick is a tenth of one.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

__all__ = ["TICK", "Timed", "Wheel"]

NEVER = float("inf")

#: Seconds between two looks at the wheel.
TICK = 0.1
#: Slots of the wheel. A deadline further away than SLOTS * TICK seconds goes round more than once.
SLOTS = 512
#: Ticks owed above which the loop counts as held up.
HELD_UP = 2


class Timed:
    """Something that stands on a wheel. `_wheel_slot` is -1 while it does not."""

    __slots__ = ("_wheel_index", "_wheel_slot")

    def __init__(self) -> None:
        self._wheel_slot = -1
        self._wheel_index = 0

    def on_deadline(self, now: float) -> float:
        """Act on what is due. Runs in the hub: may not block or raise.

        Returns:
            the monotonic time to be asked again; infinity for never.
        """
        raise NotImplementedError


class Wheel:
    """A hashed timing wheel on one timer of the loop, which runs only while something stands on it.

    Attributes:
        now: monotonic seconds at the last tick, or at the last call that needed the precise time.
        held_up: something kept the loop from running before this tick, so that input may be waiting unread.
    """

    __slots__ = ("_count", "_loop", "_position", "_slots", "_timer", "held_up", "now")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._timer: Any = None
        self._slots: list[list[Timed]] = [[] for _ in range(SLOTS)]
        self._position = 0
        self._count = 0
        self.now = monotonic()
        self.held_up = False

    def __len__(self) -> int:
        return self._count

    def schedule(self, entry: Timed, when: float) -> None:
        """Ask `entry` at the monotonic time `when`, and no longer at the time it had before; infinity takes it off."""
        self._take_off(entry)
        if when == NEVER:
            if self._count == 0:
                self._stop()
            return
        if self._timer is None:
            self._start()
        # Rounded up to the next tick: a deadline is never early.
        ticks = max(int(min((when - self.now) / TICK, SLOTS - 2)) + 1, 1)
        slot = (self._position + ticks) % SLOTS
        entry._wheel_slot = slot
        entry._wheel_index = len(self._slots[slot])
        self._slots[slot].append(entry)
        self._count += 1

    def cancel(self, entry: Timed) -> None:
        """Take `entry` off the wheel, if it is on it."""
        self._take_off(entry)
        if self._count == 0:
            self._stop()

    def _take_off(self, entry: Timed) -> None:
        slot = entry._wheel_slot
        if slot < 0:
            return
        entry._wheel_slot = -1
        entries = self._slots[slot]
        last = entries.pop()
        if last is not entry:
            entries[entry._wheel_index] = last
            last._wheel_index = entry._wheel_index
        self._count -= 1

    def close(self) -> None:
        """Stop the timer for good, as after a fork, where the entries are the parent's."""
        self._stop()

    def _start(self) -> None:
        self.now = monotonic()
        # Not counted by the loop: idle connections alone do not keep a program running.
        self._timer = self._loop.timer(TICK, repeat=TICK, ref=False)
        self._timer.start(self._on_tick)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _on_tick(self) -> None:
        now = monotonic()
        # A loop that was held up owes several ticks.
        ticks = min(int((now - self.now) / TICK + 0.5), SLOTS)
        self.held_up = ticks > HELD_UP
        self.now = now
        for _ in range(max(ticks, 1)):
            self._position = (self._position + 1) % SLOTS
            if self._slots[self._position]:
                self._visit(self._position, now)

    def _visit(self, slot: int, now: float) -> None:
        due, self._slots[slot] = self._slots[slot], []
        for entry in due:
            entry._wheel_slot = -1
        self._count -= len(due)
        asked = 0
        try:
            for entry in due:
                asked += 1
                when = entry.on_deadline(now)
                # on_deadline may have scheduled the entry itself, or have ended it.
                if entry._wheel_slot < 0 and when != NEVER:
                    self.schedule(entry, when)
        except BaseException:
            # One that breaks its promise must not take the others off the wheel: they believe that they stand on it.
            for entry in due[asked:]:
                if entry._wheel_slot < 0:
                    self.schedule(entry, now)
            raise
        if self._count == 0:
            self._stop()
