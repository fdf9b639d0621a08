"""Newcomers: whose turn it is, how long, and what is lost. The clock stands still unless something takes time."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from benchmarks.flooding import whole_initial
from gws_gevent.transports.newcomers import BUSY, COURTESY, MOST, MOST_BYTES, TURN, Newcomers
from gws_gevent.transports.schedule import Schedule
from tests.quic_world import SERVER, Transfer, World


class Line:
    """A queue whose every datagram takes some time."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now = 100.0
        self.cost = cost
        self.served: list[bytes] = []
        self.schedule = Schedule(lambda: None)
        self.newcomers = Newcomers(self._serve, self.schedule.touch, lambda: self.now)

    def _serve(self, data: bytes, address: Any, now: float) -> None:
        self.now += self.cost
        self.served.append(data)
        if data == b"bad":
            raise ValueError("bad")

    def turn(self) -> int:
        """One turn of the pump; return how many were served in it."""
        before = len(self.served)
        self.schedule.run(self.now)
        return len(self.served) - before


def test_one_turn_takes_as_long_as_it_may_and_serves_one_at_least() -> None:
    for cost, number in ((TURN / 4.5, 5), (5 * TURN, 1)):
        line = Line(cost)
        for _ in range(12):
            line.newcomers.add(b"x", "anybody")
        assert [line.turn(), line.turn()] == [number, number], "at once, while nobody else is there"


def test_while_sessions_are_busy_newcomers_get_two_thirds_of_the_time() -> None:
    line = Line(0.004)
    for _ in range(5):
        line.newcomers.add(b"x", "anybody")
    begun = line.now
    while len(line.newcomers):
        line.newcomers.heard_at = line.now
        line.turn()
        due = line.schedule.next_deadline()
        line.now = line.now if due is None else max(line.now, due)
    assert line.now - begun == pytest.approx(5 * 0.004 + 4 * 0.002 + COURTESY, abs=5 * COURTESY)
    line.newcomers.add(b"x", "anybody")
    line.now += BUSY + 0.004
    assert line.turn() == 1


def test_who_has_just_been_heard_may_answer_first_but_not_for_ever() -> None:
    line = Line()
    line.newcomers.add(b"x", "anybody")
    line.newcomers.heard_at = line.now
    assert line.turn() == 0
    assert line.schedule.next_deadline() == pytest.approx(line.now + COURTESY)
    line.now += COURTESY + 1e-6
    line.newcomers.heard_at = line.now
    assert line.turn() == 1


def test_what_does_not_fit_is_lost_and_strangers_take_no_place_from_those_who_have_begun() -> None:
    line = Line(TURN)
    for number in range(MOST + 10):
        line.newcomers.add(b"stranger %d" % number, "anybody")
    assert (len(line.newcomers), line.newcomers.lost) == (MOST, 10)
    for number in range(3):
        line.newcomers.add(b"begun %d" % number, "somebody", has_begun=True)
    for _ in range(5):
        assert line.turn() == 1
    assert line.served == [b"begun 0", b"stranger 0", b"begun 1", b"stranger 1", b"begun 2"]
    large = Line()
    for _ in range(20):
        large.newcomers.add(bytes(60_000), "anybody")
    assert len(large.newcomers) == MOST_BYTES // 60_000


def test_one_that_cannot_be_served_costs_itself_alone(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    for data in (b"a", b"bad", b"b"):
        line.newcomers.add(data, "somewhere")
    line.turn()
    assert line.served == [b"a", b"bad", b"b"]
    assert "a datagram from somewhere was dropped: ValueError('bad')" in caplog.text
    line.newcomers.add(b"c", "somewhere")
    assert line.turn() == 1


class SlowWorld(World):
    """A server to whom a newcomer's datagram takes 5 ms."""

    COST = 0.005

    def __init__(self, cert: str) -> None:
        super().__init__(cert)
        serve = self.server.newcomers._serve

        def slowly(data: bytes, address: Any, now: float) -> None:
            self.network._now += self.COST
            serve(data, address, now)

        self.server.newcomers._serve = slowly


def test_an_established_connection_waits_for_one_handshake_at_most(certificates: Any) -> None:
    """1,000 whole Initials a second: 5 ms of work each, five times what there is time for."""
    world = SlowWorld(certificates.both)
    client, _ = world.connect()
    stream = client.open()
    assert stream is not None
    initials = [whole_initial("ws") for _ in range(20)]
    random, sent = Random(1), 0
    taken: list[float] = []
    for number in range(200):
        until = world.network.now() + 0.01
        stream.try_send(b"ping")
        begun = world.network.now()
        while world.network.now() < until or len(taken) == number:
            if sent < (number + 1) * 10:
                world.network.carry(random.choice(initials), ("203.0.113.1", 1024 + sent), SERVER)
                sent += 1
            world.run(lambda: stream.inbox is not None, seconds=0.001)
            if len(taken) == number and stream.inbox is not None:
                stream.try_recv_into(bytearray(100))
                taken.append(world.network.now() - begun)
    taken.sort()
    assert taken[-1] <= 2 * world.COST + 0.005, "milliseconds where the queue has a second's work"
    assert world.server.newcomers.lost > 100
    other, _ = world.connect()  # and nobody is shut out
    transfer = Transfer(other.open(), b"hello")  # type: ignore[arg-type]
    assert world.run(lambda: transfer.step() or transfer.done)
