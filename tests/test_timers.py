"""The wheel, on a clock and a loop that the test moves by hand."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from gws_gevent import timers
from gws_gevent.timers import SLOTS, TICK, Timed, Wheel

NEVER = float("inf")
#: The wheel looks every TICK seconds, so an entry is asked up to two ticks after its time.
LATE = 2 * TICK + 1e-6


class FakeTimer:
    """A loop's repeating timer; the clock calls it."""

    def __init__(self, loop: FakeLoop, repeat: float, ref: bool) -> None:
        self.loop, self.repeat, self.ref = loop, repeat, ref
        self.callback: Callable[[], None] | None = None
        self.closed = False

    def start(self, callback: Callable[[], None]) -> None:
        assert not self.closed
        self.callback = callback
        self.loop.running.append(self)

    def stop(self) -> None:
        if self in self.loop.running:
            self.loop.running.remove(self)

    def close(self) -> None:
        assert self not in self.loop.running
        self.closed = True


class FakeLoop:
    """Makes timers, and moves the time.

    Attributes:
        now: monotonic seconds.
        made: every timer so far.
        running: those that are started.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.made: list[FakeTimer] = []
        self.running: list[FakeTimer] = []

    def timer(self, after: float, repeat: float, ref: bool) -> FakeTimer:
        assert after == repeat
        self.made.append(FakeTimer(self, repeat, ref))
        return self.made[-1]

    def pass_seconds(self, seconds: float) -> None:
        """Let the time pass in ticks, as a loop does that is never held up."""
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.tick()

    def tick(self) -> None:
        for timer in list(self.running):
            assert timer.callback is not None
            timer.callback()


class Entry(Timed):
    """Writes down when it was asked; `answers` says what it answers each time, at last NEVER."""

    def __init__(self, loop: FakeLoop, *answers: float, then: Callable[[], None] | None = None) -> None:
        Timed.__init__(self)
        self.loop, self.answers, self.then = loop, list(answers), then
        self.asked: list[float] = []

    def on_deadline(self, now: float) -> float:
        assert now == self.loop.now
        self.asked.append(now)
        if self.then is not None:
            self.then()
        return self.answers.pop(0) if self.answers else NEVER


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    loop = FakeLoop()
    monkeypatch.setattr(timers, "monotonic", lambda: loop.now)
    return loop


@pytest.fixture
def wheel(loop: FakeLoop) -> Wheel:
    return Wheel(loop)


@pytest.mark.parametrize("delay", [TICK / 10, TICK, 1.0, 1.01, 4.99, 30.0, SLOTS * TICK - 2 * TICK])
def test_an_entry_is_asked_at_its_time_and_never_early(loop: FakeLoop, wheel: Wheel, delay: float) -> None:
    when = loop.now + delay
    entry = Entry(loop)
    wheel.schedule(entry, when)
    loop.pass_seconds(delay + 1)
    (asked,) = entry.asked
    assert when <= asked + 1e-6
    assert asked <= when + LATE
    assert len(wheel) == 0


def test_an_entry_whose_time_has_passed_is_asked_at_the_next_tick(loop: FakeLoop, wheel: Wheel) -> None:
    entry = Entry(loop)
    wheel.schedule(entry, loop.now - 100)
    assert entry.asked == []
    loop.pass_seconds(TICK)
    assert entry.asked == [loop.now]


def test_a_time_further_away_than_the_wheel_reaches_is_asked_about_and_put_back(loop: FakeLoop, wheel: Wheel) -> None:
    when = loop.now + 3 * SLOTS * TICK
    asked: list[float] = []

    class Patient(Timed):
        def on_deadline(self, now: float) -> float:
            asked.append(now)
            return when if now < when else NEVER

    wheel.schedule(Patient(), when)
    loop.pass_seconds(3 * SLOTS * TICK + 1)
    assert when <= asked[-1] <= when + LATE
    # Each time round, no more.
    assert len(asked) <= 5
    assert len(wheel) == 0


@pytest.mark.parametrize("when", [1e9, 1e300, 1.7e308])
def test_a_time_however_far_away_is_a_time(loop: FakeLoop, wheel: Wheel, when: float) -> None:
    entry = Entry(loop, when)
    wheel.schedule(entry, when)
    loop.pass_seconds(SLOTS * TICK)
    assert len(entry.asked) == 1
    assert len(wheel) == 1


def test_an_entry_stands_on_the_wheel_once(loop: FakeLoop, wheel: Wheel) -> None:
    entry = Entry(loop)
    wheel.schedule(entry, loop.now + 1)
    wheel.schedule(entry, loop.now + 5)
    assert len(wheel) == 1
    loop.pass_seconds(3)
    assert entry.asked == []
    wheel.schedule(entry, loop.now + 0.5)
    assert len(wheel) == 1
    loop.pass_seconds(10)
    assert len(entry.asked) == 1


def test_the_answer_is_the_next_time(loop: FakeLoop, wheel: Wheel) -> None:
    start = loop.now
    entry = Entry(loop, start + 2, start + 5)
    wheel.schedule(entry, start + 1)
    loop.pass_seconds(10)
    assert [round(asked - start) for asked in entry.asked] == [1, 2, 5]


def test_infinity_takes_it_off(loop: FakeLoop, wheel: Wheel) -> None:
    entry = Entry(loop)
    wheel.schedule(entry, NEVER)
    assert (len(wheel), loop.running) == (0, [])
    wheel.schedule(entry, loop.now + 1)
    wheel.schedule(entry, NEVER)
    assert (len(wheel), loop.running) == (0, [])
    loop.pass_seconds(3)
    assert entry.asked == []


def test_cancel(loop: FakeLoop, wheel: Wheel) -> None:
    entry, other = Entry(loop), Entry(loop)
    wheel.schedule(entry, loop.now + 1)
    wheel.schedule(other, loop.now + 1)
    wheel.cancel(entry)
    wheel.cancel(entry)
    assert len(wheel) == 1
    loop.pass_seconds(3)
    assert (len(entry.asked), len(other.asked)) == (0, 1)


@pytest.mark.parametrize("gone", range(5))
def test_one_of_many_with_the_same_time_is_cancelled(loop: FakeLoop, wheel: Wheel, gone: int) -> None:
    entries = [Entry(loop) for _ in range(5)]
    for entry in entries:
        wheel.schedule(entry, loop.now + 1)
    wheel.cancel(entries[gone])
    wheel.schedule(entries[(gone + 1) % 5], loop.now + 4)
    loop.pass_seconds(2)
    assert [len(entry.asked) for entry in entries] == [int(i not in (gone, (gone + 1) % 5)) for i in range(5)]
    loop.pass_seconds(3)
    assert [len(entry.asked) for entry in entries] == [int(i != gone) for i in range(5)]


def test_the_timer_runs_only_while_something_stands_on_the_wheel(loop: FakeLoop, wheel: Wheel) -> None:
    assert loop.made == []
    entry = Entry(loop)
    wheel.schedule(entry, loop.now + 1)
    (timer,) = loop.running
    assert timer.repeat == TICK
    assert not timer.ref, "idle connections would keep a program running"
    wheel.cancel(entry)
    assert loop.running == []
    assert timer.closed
    wheel.schedule(entry, loop.now + 1)
    assert len(loop.running) == 1
    loop.pass_seconds(2)
    assert loop.running == []
    assert len(entry.asked) == 1
    assert all(timer.closed for timer in loop.made)


def test_after_a_pause_the_time_is_taken_anew(loop: FakeLoop, wheel: Wheel) -> None:
    loop.now += 500
    entry = Entry(loop)
    wheel.schedule(entry, loop.now + 1)
    assert wheel.now == loop.now
    start = loop.now
    loop.pass_seconds(2)
    assert start + 1 <= entry.asked[0] + 1e-6 <= start + 1 + LATE


@pytest.mark.parametrize("held_up", [0.35, 2.0, 40.0, 4 * SLOTS * TICK])
def test_a_loop_that_was_held_up_catches_up_in_one_tick(loop: FakeLoop, wheel: Wheel, held_up: float) -> None:
    delays = [delay for delay in (0.1, 0.3, 1.0, 1.9, 10.0, 39.0, 51.0) if delay + 2 * TICK <= held_up]
    entries = [Entry(loop) for _ in delays]
    for entry, delay in zip(entries, delays, strict=True):
        wheel.schedule(entry, loop.now + delay)
    later = Entry(loop)
    wheel.schedule(later, loop.now + 45.0)
    loop.now += held_up
    loop.tick()
    assert [entry.asked for entry in entries] == [[loop.now]] * len(entries)
    assert len(later.asked) == (held_up > 45)


def test_the_wheel_tells_when_the_loop_was_held_up(loop: FakeLoop, wheel: Wheel) -> None:
    seen: list[bool] = []
    entry = Entry(loop, *[loop.now + 1 + i for i in range(20)], then=lambda: seen.append(wheel.held_up))
    wheel.schedule(entry, loop.now + 0.5)
    loop.pass_seconds(2)
    assert seen == [False] * len(seen)
    assert seen
    loop.now += 3
    loop.tick()
    assert seen[-1]
    loop.pass_seconds(2)
    assert not seen[-1]


def test_what_is_scheduled_by_on_deadline_is_not_asked_in_the_same_tick(loop: FakeLoop, wheel: Wheel) -> None:
    other = Entry(loop)
    entry = Entry(loop, then=lambda: wheel.schedule(other, loop.now))
    wheel.schedule(entry, loop.now + 1)
    loop.pass_seconds(2)
    assert len(entry.asked) == len(other.asked) == 1
    assert other.asked[0] > entry.asked[0]


def test_an_entry_may_schedule_itself(loop: FakeLoop, wheel: Wheel) -> None:
    start = loop.now
    entry = Entry(loop, start + 9)
    entry.then = lambda: wheel.schedule(entry, start + 3) if len(entry.asked) == 1 else None
    wheel.schedule(entry, start + 1)
    loop.pass_seconds(12)
    # Its own word counts, not the answer.
    assert [round(asked - start) for asked in entry.asked] == [1, 3]


def test_an_entry_may_cancel_another_that_is_due_in_the_same_tick(loop: FakeLoop, wheel: Wheel) -> None:
    other = Entry(loop)
    entry = Entry(loop, then=lambda: wheel.cancel(other))
    wheel.schedule(entry, loop.now + 1)
    wheel.schedule(other, loop.now + 1)
    loop.pass_seconds(2)
    assert len(entry.asked) == 1
    # Both had been taken off together: the other is asked once, and the count stays right.
    assert len(other.asked) == 1
    assert len(wheel) == 0
    assert loop.running == []


def test_an_entry_that_raises_leaves_the_others_on_the_wheel(loop: FakeLoop, wheel: Wheel) -> None:
    def fail() -> None:
        raise RuntimeError("an entry that breaks its promise")

    first, last = Entry(loop), Entry(loop)
    wheel.schedule(first, loop.now + 1.0)
    wheel.schedule(Entry(loop, then=fail), loop.now + 1.0)
    wheel.schedule(last, loop.now + 1.0)
    with pytest.raises(RuntimeError, match="promise"):
        loop.pass_seconds(2.0)
    assert len(wheel) == 1
    loop.pass_seconds(2 * TICK)
    assert (len(first.asked), len(last.asked), len(wheel)) == (1, 1, 0)


def test_close_stops_the_timer(loop: FakeLoop, wheel: Wheel) -> None:
    entry = Entry(loop)
    wheel.schedule(entry, loop.now + 1)
    wheel.close()
    assert loop.running == []
    assert loop.made[0].closed


@pytest.mark.parametrize("seed", range(5))
def test_many_entries_moved_about_are_each_asked_at_the_time_they_had_last(loop: FakeLoop, wheel: Wheel, seed: int) -> None:
    random = Random(seed)
    entries = [Entry(loop) for _ in range(100)]
    due: dict[Entry, float] = {}
    for _ in range(200):
        entry = random.choice(entries)
        if random.random() < 0.2:
            wheel.cancel(entry)
            due.pop(entry, None)
        elif not entry.asked:
            due[entry] = loop.now + random.uniform(0, 40)
            wheel.schedule(entry, due[entry])
        if random.random() < 0.3:
            loop.pass_seconds(TICK)
    loop.pass_seconds(45)
    for entry in entries:
        if entry in due:
            (asked,) = entry.asked
            assert due[entry] <= asked + 1e-6 <= due[entry] + LATE + 1e-6
    assert len(wheel) == 0
    assert loop.running == []


def test_a_timed_that_does_nothing_is_a_mistake() -> None:
    with pytest.raises(NotImplementedError):
        Timed().on_deadline(0.0)
