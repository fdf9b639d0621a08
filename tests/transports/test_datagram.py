"""Ports, the schedule of sessions, the fine timer, and the simulated network."""

from __future__ import annotations

import errno
import logging
import socket
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.hub import get_hub

from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.base import Endpoint
from gws_gevent.transports.datagram import BATCH, DatagramPort, DatagramProtocol, connected_port, listening_port
from gws_gevent.transports.fine_timer import FineTimer
from gws_gevent.transports.schedule import FEW, PATIENCE, STALE_ENTRIES, DatagramSession, Schedule
from gws_gevent.transports.simulated import Impairment, SimulatedNetwork
from tests.support import run_program, wait_until

HERE = Endpoint.parse("quic://127.0.0.1:0")


class Session(DatagramSession):
    """Notes when it was asked what, and answers with the deadline it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[float] = []
        self.expired: list[float] = []
        self.errors: list[Exception] = []
        self.due: float | None = None
        self.raises: Exception | None = None

    def flush(self, now: float) -> float | None:
        self.flushed.append(now)
        if self.raises is not None:
            raise self.raises
        return self.due

    def on_deadline(self, now: float) -> None:
        self.expired.append(now)
        self.due = None

    def on_failure(self, error: Exception) -> None:
        self.errors.append(error)


class Echo(DatagramProtocol):
    """One session for all that comes; it sends everything back when it is flushed."""

    def __init__(self, port: DatagramPort) -> None:
        self.port = port
        self.came: list[bytes] = []
        self.errors: list[int | None] = []
        outer = self

        class Answers(Session):
            def flush(self, now: float) -> float | None:
                self.flushed.append(now)
                for data, address in outer.waiting:
                    port.send(data, address)
                outer.waiting.clear()
                return None

        self.session = Answers()
        self.waiting: list[tuple[bytes, Any]] = []

    def on_datagram(self, data: bytes, address: Any, now: float) -> None:
        if data == b"bad":
            raise ValueError("a bad datagram")
        self.came.append(data)
        self.waiting.append((data, address))
        self.port.touch(self.session)

    def on_error(self, error: OSError) -> None:
        self.errors.append(error.errno)


class Silent(Echo):
    def on_datagram(self, data: bytes, address: Any, now: float) -> None:
        self.came.append(data)


# --- The schedule ---------------------------------------------------------------------------------------------------------------


def test_a_session_is_flushed_once_however_often_it_was_touched() -> None:
    woken: list[int] = []
    schedule, session = Schedule(lambda: woken.append(1)), Session()
    for _ in range(5):
        schedule.touch(session)
    assert woken == [1]
    assert not schedule.run(1.0)
    assert session.flushed == [1.0]
    schedule.run(2.0)
    assert session.flushed == [1.0]


def test_a_deadline_that_is_put_off_is_kept_late_and_one_that_comes_sooner_in_time() -> None:
    schedule, session = Schedule(lambda: None), Session()

    def due(when: float) -> None:
        session.due = when
        schedule.touch(session)
        schedule.run(0.0)

    due(10.0)
    due(20.0)
    schedule.run(15.0)
    assert session.expired == []
    assert schedule.next_deadline() == 20.0
    due(16.0)
    schedule.run(16.0)
    assert session.expired == [16.0]
    assert schedule.next_deadline() is None


def test_the_heap_stays_as_small_as_the_number_of_sessions() -> None:
    schedule, session = Schedule(lambda: None), Session()
    for turn in range(10_000):
        session.due = 30.0 + turn if turn % 2 else turn + 0.001
        schedule.touch(session)
        schedule.run(float(turn))
    assert len(schedule._heap) <= 2 + STALE_ENTRIES


def test_many_sessions_do_not_take_more_than_their_turn() -> None:
    schedule = Schedule(lambda: None)
    sessions = [Session() for _ in range(BATCH + 1)]
    for session in sessions:
        schedule.touch(session)
    assert schedule.run(1.0)
    assert not schedule.run(1.0)
    assert all(session.flushed for session in sessions)


def test_deadlines_wait_while_there_is_more_to_read() -> None:
    schedule = Schedule(lambda: None)
    sessions = [Session() for _ in range(20)]
    for session in sessions:
        session.due = 1.0
        schedule.touch(session)
    schedule.run(0.0)
    schedule.run(1.0 + PATIENCE / 2, is_behind=True)
    assert not any(session.expired for session in sessions)
    schedule.run(1.0 + PATIENCE, is_behind=True)
    assert sum(bool(session.expired) for session in sessions) == FEW
    schedule.run(1.0 + PATIENCE)
    assert all(session.expired for session in sessions)


def test_a_session_that_fails_is_ended_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    schedule, bad, good = Schedule(lambda: None), Session(), Session()
    bad.raises = RuntimeError("broken")
    schedule.touch(bad)
    schedule.touch(good)
    with caplog.at_level(logging.ERROR, "gws_gevent.transports"):
        schedule.run(1.0)
    assert bad.errors == [bad.raises]
    assert good.flushed == [1.0]
    assert "a session failed and was ended: RuntimeError('broken')" in caplog.text


def test_a_forgotten_session_is_not_asked() -> None:
    schedule, session = Schedule(lambda: None), Session()
    session.due = 5.0
    schedule.touch(session)
    schedule.run(1.0)
    schedule.touch(session)
    schedule.forget(session)
    schedule.run(10.0)
    assert session.flushed == [1.0]
    assert session.expired == []
    assert schedule.next_deadline() is None


def test_a_session_that_ends_itself_when_it_is_asked_is_not_asked_again() -> None:
    schedule = Schedule(lambda: None)

    class Last(Session):
        def on_deadline(self, now: float) -> None:
            super().on_deadline(now)
            schedule.forget(self)

        def flush(self, now: float) -> float | None:
            if self.flushed and not self.expired:
                schedule.forget(self)
            return super().flush(now)

    for turn in range(2):
        session = Last()
        session.due = 5.0
        for _ in range(2 - turn):
            schedule.touch(session)
            schedule.run(1.0)
        schedule.touch(session)
        schedule.run(10.0)
        assert schedule.next_deadline() is None
        assert (len(session.flushed), len(session.expired)) == ((2, 0) if turn == 0 else (1, 1))


# --- The fine timer -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fine", [True, False])
def test_the_timer_calls_in_the_hub_not_before_its_time(fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fine:
        monkeypatch.setattr("gws_gevent.transports.fine_timer._create", lambda: -1)
    called: list[tuple[float, bool]] = []
    timer = FineTimer(get_hub().loop, lambda: called.append((time.monotonic(), gevent.getcurrent() is get_hub())))
    try:
        assert timer.is_fine == fine or fine
        begun = time.monotonic()
        timer.set(begun + 10)
        timer.set(begun + 0.01)
        wait_until(lambda: called)
        assert called[0][0] >= begun + (0.01 if timer.is_fine else 0.009)
        assert called[0][1]
        timer.set(time.monotonic() + 0.005)
        timer.set(None)
        gevent.sleep(0.02)
        assert len(called) == 1
        timer.set(begun)  # in the past: at once
        wait_until(lambda: len(called) == 2)
    finally:
        timer.close()


# --- Ports ----------------------------------------------------------------------------------------------------------------------


def test_datagrams_go_both_ways_and_a_batch_is_flushed_once() -> None:
    server = listening_port(HERE)
    echo = Echo(server)
    client, address = connected_port(Endpoint("quic", *server.local_address))
    silent = Silent(client)
    try:
        for number in range(10):
            client.send(b"%d" % number, address)
        server.start(echo)
        client.start(silent)
        wait_until(lambda: len(silent.came) == 10)
        assert silent.came == [b"%d" % number for number in range(10)]
        assert len(echo.session.flushed) == 1
    finally:
        client.close()
        server.close()
        server.close()


def test_a_bad_datagram_does_not_end_the_reader(caplog: pytest.LogCaptureFixture) -> None:
    server = listening_port(HERE)
    echo = Echo(server)
    server.start(echo)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.connect(server.local_address)
        try:
            with caplog.at_level(logging.ERROR, "gws_gevent.transports"):
                for data in (b"bad", b"", b"x" * 65507, b"good"):
                    peer.send(data)
                wait_until(lambda: b"good" in echo.came)
            assert echo.came == [b"", b"x" * 65507, b"good"]
            assert "was dropped: ValueError('a bad datagram')" in caplog.text
        finally:
            server.close()


def test_writes_of_one_turn_of_the_loop_are_flushed_together_and_deadlines_are_kept() -> None:
    port = listening_port(HERE)
    session = Session()
    port.start(Silent(port))
    try:
        gevent.sleep(0)
        for _ in range(3):
            port.touch(session)
        assert session.flushed == []
        wait_until(lambda: session.flushed)
        assert len(session.flushed) == 1
        session.due = port.now() + 0.01
        port.touch(session)
        wait_until(lambda: session.expired)
        assert session.expired[0] >= session.flushed[1] + 0.009
        port.forget(session)
    finally:
        port.close()


def test_a_send_never_raises_and_never_waits() -> None:
    port, address = connected_port(Endpoint("quic", "127.0.0.1", 9))
    try:
        port.send(b"x" * 70_000, address)  # EMSGSIZE
        assert port.lost == 1
    finally:
        port.close()
    port.send(b"after close", address)


def test_a_client_is_told_that_nobody_listens() -> None:
    server = listening_port(HERE)
    endpoint = Endpoint("quic", *server.local_address)
    server.close()
    port, address = connected_port(endpoint)
    protocol = Echo(port)
    port.start(protocol)
    try:
        port.send(b"hello", address)
        wait_until(lambda: protocol.errors)
        assert protocol.errors == [errno.ECONNREFUSED]
    finally:
        port.close()


def test_a_busy_port_is_refused_and_one_whose_owner_leaves_is_not() -> None:
    port = listening_port(HERE)
    endpoint = Endpoint("quic", *port.local_address)
    try:
        with pytest.raises(TransportError, match=f"listen on quic://127.0.0.1:{endpoint.port}: Address already in use"):
            listening_port(endpoint)
        port.share_address()
        again = listening_port(endpoint)
        try:
            with pytest.raises(TransportError):
                listening_port(endpoint)
        finally:
            again.close()
    finally:
        port.close()


def test_a_client_needs_host_and_port() -> None:
    with pytest.raises(EndpointError, match="a host and a port are needed"):
        connected_port(Endpoint("quic", "", 4433))
    with pytest.raises(TransportError, match=r"connect to quic://no-such-host\.invalid:4433"):
        connected_port(Endpoint("quic", "no-such-host.invalid", 4433))


# --- The simulated network ------------------------------------------------------------------------------------------------------


def _sent_through(impairment: Impairment, seed: int) -> tuple[list[bytes], float]:
    network = SimulatedNetwork(impairment, seed=seed)
    begun = network.now()
    here, there = network.port("here"), network.port("there")
    silent = Silent(there)
    there.start(silent)
    for number in range(1000):
        here.send(number.to_bytes(2, "big"), "there")
    network.run(seconds=10)
    assert network.sent == 1000
    assert network.delivered == len(silent.came)
    return silent.came, network.now() - begun


def test_a_network_without_faults_delivers_everything_in_order() -> None:
    came, took = _sent_through(Impairment(delay=0.02), 1)
    assert came == [number.to_bytes(2, "big") for number in range(1000)]
    assert took == 10


def test_faults_happen_as_often_as_asked_for_and_again_with_the_same_seed() -> None:
    impairment = Impairment(loss=0.2, duplicate=0.1, flip=0.1, jitter=0.05)
    came, _ = _sent_through(impairment, 1)
    assert came == _sent_through(impairment, 1)[0] != _sent_through(impairment, 2)[0]
    numbers = [int.from_bytes(data, "big") for data in came]
    assert 800 < len(numbers) < 960  # 1000 * 1.1 * 0.8 = 880
    assert numbers != sorted(numbers)
    assert 40 < sum(numbers.count(number) > 1 for number in set(numbers)) < 160


def test_a_session_lives_in_simulated_time() -> None:
    network = SimulatedNetwork()
    port, session = network.port("here"), Session()
    session.due = network.now() + 3600
    port.touch(session)
    assert network.run(lambda: session.expired, seconds=7200)
    assert session.expired == [network.now()] == [session.flushed[0] + 3600]


# --- Ports that are not for everybody ---------------------------------------------------------------------------------------------

UNPRIVILEGED = """
import os, sys
from gws_gevent import ListenSettings, TlsFiles
from gws_gevent.exceptions import TransportError
from gws_gevent.transports import registry

settings = ListenSettings(tls=TlsFiles(sys.argv[2], sys.argv[3]))
first = registry.listen(sys.argv[1] + "0", settings)
first.start(print)  # imports what it takes, while that can be read
first.close()
listener = registry.listen(sys.argv[1] + "1", settings)
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    listener.start(print)
except TransportError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["quic", "h3", "kcp"])
def test_a_privileged_port_is_told_in_one_line(scheme: str, certificates: Any) -> None:
    if not sys.platform.startswith("linux") or int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 2:
        pytest.skip("every port is for everybody here")
    ended = run_program([sys.executable, "-c", UNPRIVILEGED, f"{scheme}://127.0.0.1:", certificates.cert, certificates.key])
    assert (ended.output, ended.errors) == (f"[Errno 13] listen on {scheme}://127.0.0.1:1: Permission denied\n", "")
