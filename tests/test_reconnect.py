"""Reconnect: both faces, the pauses, what it gives up for, and a server that is killed again and again."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import gevent
import gevent.socket
import pytest

from gws_gevent import (
    ClientOptions,
    CloseInfo,
    Connection,
    ConnectionClosed,
    EndpointError,
    EventHandler,
    GwsError,
    HandshakeRefused,
    Headers,
    Message,
    MissingExtra,
    ProxyError,
    Reconnect,
    ReconnectFailed,
    Refusal,
    Request,
    Server,
    TransportError,
    reconnect,
    runtime,
)
from tests.pairs import EchoHandler, Recorder, serving, url_of
from tests.proxies import http_proxy, silent_server
from tests.support import ROOT, free_port, wait_until

#: So that no test waits: pauses below a hundredth of a second.
FAST: dict[str, Any] = {"first_delay": 0.005, "max_delay": 0.01}


class Pauses:
    """Stands in for `random`: every pause is as long as it says, and its bound is kept."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.bounds: list[float] = []

    def uniform(self, low: float, high: float) -> float:
        assert low == 0
        self.bounds.append(high)
        return self.seconds


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    found = Pauses(0.0)
    monkeypatch.setattr(reconnect, "random", found)
    return found


class Doorman(EventHandler):
    """Refuses as its list says, one after the other, then lets everybody in, and echoes."""

    def __init__(self, *refusals: Refusal) -> None:
        self.refusals = list(refusals)
        self.requests = 0

    def route(self, request: Request) -> EventHandler:
        self.requests += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return self

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.data == "abort":
            conn.abort()
        elif message.data == "close":
            conn.write_close(1001, "restart")
        else:
            conn.send(message.data)


@contextmanager
def at_the_door(*refusals: Refusal) -> Iterator[tuple[str, Doorman]]:
    doorman = Doorman(*refusals)
    with Server(on_request=doorman.route) as server:
        server.start("127.0.0.1:0")
        yield url_of(server), doorman


def opened(again: Reconnect) -> Connection:
    """Wait until there is a connection."""
    found = wait_until(lambda: again.connection)
    assert found is not None
    return found


# The iterator


def test_one_connection_after_the_other() -> None:
    with at_the_door() as (url, _):
        seen: list[Connection] = []
        again = Reconnect(url, **FAST)
        for conn in again:
            assert again.connection is conn
            seen.append(conn)
            conn.send(f"number {len(seen)}")
            assert conn.receive(timeout=5) == f"number {len(seen)}"
            if len(seen) == 1:
                conn.send("abort")
                assert list(conn) == []
            elif len(seen) == 2:
                conn.send("close")
                with pytest.raises(ConnectionClosed):
                    conn.receive(timeout=5)
            elif len(seen) == 4:
                break
            # The third is still open when the next is asked for.
        assert len(set(seen)) == 4
        assert [conn.closed for conn in seen] == [True, True, True, False]
        assert seen[2].close_info is not None
        assert seen[2].close_info.clean
        again.stop()
        assert seen[3].closed
        assert list(again) == []


def test_a_with_block_closes_the_last() -> None:
    with at_the_door() as (url, _):
        with Reconnect(url, **FAST) as connections:
            conn = next(connections)
            assert not conn.closed
        assert conn.closed
        assert conn.close_info is not None
        assert conn.close_info.clean


def test_stop_ends_a_wait_for_the_next(pauses: Pauses) -> None:
    pauses.seconds = 20.0
    again = Reconnect(f"ws://127.0.0.1:{free_port()}/")
    waiting = gevent.spawn(list, again)
    wait_until(lambda: pauses.bounds)
    again.stop()
    assert waiting.get(timeout=5) == []


def test_stop_ends_an_attempt_that_hangs() -> None:
    with silent_server() as place:
        again = Reconnect(f"ws://{place}/")
        waiting = gevent.spawn(list, again)
        wait_until(lambda: again._attempting is not None)
        again.stop()
        assert waiting.get(timeout=2) == []
        assert again.wait(0)


def test_stop_lets_a_reader_go_on_to_its_end() -> None:
    with at_the_door() as (url, _):
        again = Reconnect(url)
        read = gevent.spawn(lambda: [list(conn) for conn in again])
        wait_until(lambda: again.connection)
        again.stop()
        assert read.get(timeout=5) == [[]]


def test_a_timeout_of_the_callers_own_goes_through() -> None:
    with silent_server() as place:
        again = Reconnect(f"ws://{place}/")
        with pytest.raises(gevent.Timeout) as raised, gevent.Timeout(0.05) as own:
            next(again)
        assert raised.value is own
        assert again._attempting is None


# With a handler


def test_on_open_again_for_each_connection() -> None:
    client = Recorder()
    with at_the_door() as (url, doorman):
        again = Reconnect(url, client, **FAST)
        again.start()
        for number, word in enumerate(("abort", "close", "abort")):
            conn = opened(again)
            conn.send(f"{number}")
            wait_until(lambda number=number: client.messages[-1:] == [f"{number}"])
            conn.send(word)
            wait_until(lambda conn=conn: again.connection not in (None, conn))
        again.stop()
        assert again.wait(0)
        wait_until(lambda: len(client.infos) == 4)
        assert doorman.requests == 4
    assert [event[0] for event in client.events] == ["open", "message", "close"] * 3 + ["open", "close"]
    assert client.messages == ["0", "1", "2"]
    assert [info.clean for info in client.infos] == [False, True, False, True]


def test_a_function_as_handler_runs_again() -> None:
    said: list[Any] = []

    def talk(conn: Connection) -> None:
        conn.send(str(len(said)))
        said.append(conn.receive(timeout=5))

    with at_the_door() as (url, _):
        again = Reconnect(url, talk, **FAST)
        with again:
            wait_until(lambda: len(said) >= 3)
    assert said[:3] == ["0", "1", "2"]


def test_stop_from_the_handler() -> None:
    class Once(Recorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            again.stop()

    client = Once()
    with at_the_door() as (url, doorman):
        again = Reconnect(url, client, **FAST)
        again.start()
        assert again.wait(5)
        assert client.wait_closed().clean
        assert doorman.requests == 1
        again.stop()


def test_stop_while_it_connects() -> None:
    client = Recorder()
    with silent_server() as place:
        again = Reconnect(f"ws://{place}/", client)
        again.start()
        wait_until(lambda: again._attempting is not None)
        again.stop()
        assert again.wait(0)
        wait_until(lambda: again._attempting is None)
    assert client.events == []


def test_wait_has_a_timeout() -> None:
    with at_the_door() as (url, _), Reconnect(url, Recorder(), **FAST) as again:
        wait_until(lambda: again.connection)
        assert not again.wait(0.01)


def test_the_faces_are_not_mixed() -> None:
    with pytest.raises(TypeError, match="is iterated over"):
        Reconnect("ws://127.0.0.1:1/").start()
    again = Reconnect("ws://127.0.0.1:1/", Recorder())
    with pytest.raises(TypeError, match="is started"):
        iter(again)
    again.start()
    with pytest.raises(GwsError, match="started before"):
        again.start()
    again.stop()


def test_nothing_is_kept_between_connections() -> None:
    options = ClientOptions()
    with at_the_door() as (url, _), Reconnect(url, Recorder(), options, **FAST) as again:
        wait_until(lambda: again.connection)
        assert id(options) in runtime.current().clients
    wait_until(lambda: id(options) not in runtime.current().clients)


# Pauses


def test_pauses_double_up_to_their_bound(pauses: Pauses) -> None:
    again = Reconnect(f"ws://127.0.0.1:{free_port()}/", max_attempts=10)
    with pytest.raises(ReconnectFailed):
        next(again)
    assert pauses.bounds == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_connection_that_is_lost_at_once_is_no_success(pauses: Pauses) -> None:
    with at_the_door() as (url, _):
        again = Reconnect(url, first_delay=0.5, max_delay=3)
        for _ in range(6):
            next(again).abort()
        assert pauses.bounds == [0.5, 1, 2, 3, 3]


def test_a_healthy_minute_makes_pauses_short_again(pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(reconnect, "monotonic", lambda: now)
    with at_the_door() as (url, _):
        again = Reconnect(url)
        for seconds in (0, 0, 59.9, 60, 0):
            next(again)
            now += seconds
        next(again)
        again.stop()
        assert pauses.bounds == [1, 2, 4, 1, 2]


def test_pauses_are_anywhere_below_the_bound() -> None:
    again = Reconnect("ws://127.0.0.1:1/", first_delay=1, max_delay=1)
    found = set()
    for _ in range(200):
        again._wait_longer()
        found.add(int(again._pause * 10))
    assert found == set(range(10))


def test_the_millionth_pause() -> None:
    again = Reconnect("ws://127.0.0.1:1/")
    for _ in range(2000):
        again._wait_longer()
    assert 0 <= again._pause <= 60


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("7", 7), ("0", 0), ("86400", 300), ("soon", 0), ("-5", 0), ("", 0), ("1e3", 0), ("9" * 400, 300)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
    ],
)
def test_retry_after_is_waited_for(value: str, seconds: float, pauses: Pauses) -> None:
    pauses.seconds = 0.25
    again = Reconnect("ws://127.0.0.1:1/")
    again._failed(HandshakeRefused(503, waiting(value)))
    assert again._pause == seconds + 0.25


def test_retry_after_may_be_a_date() -> None:
    again = Reconnect("ws://127.0.0.1:1/", first_delay=0.001)
    again._failed(HandshakeRefused(429, waiting(formatdate(time.time() + 100, usegmt=True))))
    assert 95 < again._pause < 101


def waiting(value: str) -> Headers:
    return Headers([("Retry-After", value)])


# Giving up


def test_it_gives_up_after_so_many_attempts_and_says_why(pauses: Pauses) -> None:
    port = free_port()
    again = Reconnect(f"ws://anna:secret@127.0.0.1:{port}/x", max_attempts=3)
    with pytest.raises(ReconnectFailed, match=rf"^gave up on ws://127\.0\.0\.1:{port}, tried 3 times: .*refused$") as failed:
        next(again)
    assert failed.value.attempts == 3
    assert isinstance(failed.value.__cause__, TransportError)
    assert again.failure is failed.value
    for face in (lambda: next(again), again.wait):
        with pytest.raises(ReconnectFailed):
            face()


def test_attempts_are_counted_since_the_last_connection(pauses: Pauses) -> None:
    refusals = [Refusal(503), Refusal(503)]
    with at_the_door(*refusals) as (url, doorman):
        again = Reconnect(url, max_attempts=3)
        next(again)
        doorman.refusals = list(refusals)
        next(again)
        doorman.refusals = [*refusals, Refusal(503)]
        with pytest.raises(ReconnectFailed, match="tried 3 times: the server answered 503"):
            next(again)
    assert doorman.requests == 9


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 426])
def test_a_refusal_that_will_not_change_is_final(status: int) -> None:
    with at_the_door(Refusal(status, "Who are you?")) as (url, doorman):
        with pytest.raises(ReconnectFailed, match=f"tried once: the server answered {status} .*: Who are you") as failed:
            next(Reconnect(url))
        assert isinstance(failed.value.__cause__, HandshakeRefused)
        assert doorman.requests == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_refusal_that_may_change_is_not(status: int, pauses: Pauses) -> None:
    with at_the_door(Refusal(status)) as (url, doorman):
        next(Reconnect(url)).close()
        assert doorman.requests == 2


def test_a_proxy_that_wants_a_password_is_final(pauses: Pauses) -> None:
    with http_proxy(login="Basic x") as between:
        with pytest.raises(ReconnectFailed, match=r"tried once: the proxy .* answered 407") as failed:
            next(Reconnect("ws://chat.example/", proxy=between.place))
    assert isinstance(failed.value.__cause__, ProxyError)


def test_a_proxy_that_fails_is_not(pauses: Pauses) -> None:
    with pytest.raises(ReconnectFailed, match=r"tried 4 times: the proxy .* cannot be reached"):
        next(Reconnect("ws://chat.example/", proxy=f"127.0.0.1:{free_port()}", max_attempts=4))


def test_a_handler_is_told(pauses: Pauses, caplog: pytest.LogCaptureFixture) -> None:
    client = Recorder()
    told: list[ReconnectFailed] = []
    with at_the_door() as (url, doorman):
        again = Reconnect(url, client, on_give_up=told.append)
        again.start()
        conn = opened(again)
        doorman.refusals = [Refusal(503), Refusal(404, "gone")]
        with caplog.at_level(logging.INFO, "gws_gevent"):
            conn.send("abort")
            wait_until(lambda: told)
        with pytest.raises(ReconnectFailed, match="tried 2 times: the server answered 404 instead of 101: gone"):
            again.wait(5)
    assert told == [again.failure]
    assert again.connection is None
    assert [event[0] for event in client.events] == ["open", "close"]
    lost, refused = [record.getMessage() for record in caplog.records if "ws://127.0.0.1" in record.getMessage()]
    assert "connection lost" in lost
    assert "503" in refused


def test_where_nobody_is_told_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with at_the_door(Refusal(404)) as (url, _), pytest.raises(ReconnectFailed):
        again = Reconnect(url, Recorder())
        again.start()
        again.wait(5)
    wait_until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == str(again.failure)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"url": 5}, TypeError, "a URL is a text"),
        ({"url": "http://x/"}, EndpointError, "begins with ws://"),
        ({"url": "ws+nothing://x/"}, EndpointError, "no transport serves"),
        ({"proxy": "ftp://x"}, EndpointError, "a proxy is"),
        ({"proxy": 5}, TypeError, "a proxy is"),
        ({"handler": 5}, TypeError, "a handler is"),
        ({"options": {}}, TypeError, "options are"),
        ({"options": ClientOptions(park_after=1)}, ValueError, "park_after"),
        ({"first_delay": 0}, ValueError, "first_delay: must be a positive number"),
        ({"max_delay": float("inf")}, ValueError, "max_delay: must be"),
        ({"healthy_after": "1"}, ValueError, "healthy_after: must be"),
        ({"max_attempts": 0}, ValueError, "max_attempts: must be"),
        ({"max_attempts": True}, ValueError, "max_attempts: must be"),
    ],
)
def test_wrong_arguments_are_told_at_once(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Reconnect(**{"url": "ws://127.0.0.1:1/", **arguments})


def test_a_missing_extra_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(MissingExtra):
        Reconnect("ws://127.0.0.1:1/", proxy="socks5://127.0.0.1:1")


# A server that is killed again and again


CLIENTS = 100
ROUNDS = 10


class Talker(EventHandler):
    """Says a new number as soon as the last came back, and keeps account of all of them."""

    def __init__(self, name: int, answered: Counter[str]) -> None:
        self.name = name
        self.answered = answered
        self.said = self.opened = 0

    def on_open(self, conn: Connection) -> None:
        self.opened += 1
        self.say(conn)

    def say(self, conn: Connection) -> None:
        self.said += 1
        conn.send(f"{self.name}:{self.said}")

    def on_message(self, conn: Connection, message: Message) -> None:
        self.answered[message.data] += 1
        self.say(conn)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        assert info.error is not None or info.received is not None


def start_server(port: int) -> subprocess.Popen[bytes]:
    program = str(ROOT / "examples" / "echo_function.py")
    process = subprocess.Popen([sys.executable, program, f"127.0.0.1:{port}"], stdout=subprocess.DEVNULL)
    wait_until(lambda: accepts(port), 20, "the server to listen")
    return process


def accepts(port: int) -> bool:
    try:
        gevent.socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_server_killed_and_restarted_ten_times_under_load() -> None:
    port, answered, failures = free_port(), Counter[str](), Counter[str]()
    logger = logging.getLogger("tests.reconnect")
    logger.addFilter(lambda record: failures.update(["attempt"]) is not None if "refused" in record.getMessage() else False)
    logger.setLevel(logging.INFO)
    options = ClientOptions(logger=logger)
    talkers = [Talker(name, answered) for name in range(CLIENTS)]
    without_server = 0.0
    process = start_server(port)
    url = f"ws://127.0.0.1:{port}/"
    crowd = [Reconnect(url, talker, options, first_delay=0.1, max_delay=0.4, healthy_after=60) for talker in talkers]
    try:
        for one in crowd:
            one.start()
        for number in range(ROUNDS + 1):
            wait_until(lambda number=number: all(talker.opened == number + 1 for talker in talkers), 30, "every client to be back")
            before = [talker.said for talker in talkers]
            wait_until(lambda before=before: all(t.said > said + 3 for t, said in zip(talkers, before, strict=True)), 30, "talk")
            if number < ROUNDS:
                began = time.monotonic()
                process.kill()
                process.wait()
                wait_until(lambda: all(one.connection is None for one in crowd), 10, "every client to notice")
                gevent.sleep(0.2)
                process = start_server(port)
                without_server += time.monotonic() - began
        for one in crowd:
            one.stop()
    finally:
        process.kill()
        process.wait()
    # Nothing came twice, and what did not come was on its way when a server was killed: one message a client and round.
    assert set(answered.values()) == {1}
    assert sum(talker.said for talker in talkers) - len(answered) <= CLIENTS * (ROUNDS + 1)
    # Nobody hammers: pauses are 0.2 s in the middle once they have grown, which takes two attempts. Twice that many are too many.
    assert failures["attempt"] < 2 * CLIENTS * (without_server / 0.2 + 2 * ROUNDS)


def test_a_server_that_drops_everybody_at_once() -> None:
    server_side, clients = EchoHandler(), [Recorder() for _ in range(20)]
    with serving(server_side) as server:
        crowd = [Reconnect(url_of(server), client, **FAST) for client in clients]
        for one in crowd:
            one.start()
        for number in range(1, 4):
            wait_until(lambda number=number: all(client.events.count(("open",)) == number for client in clients))
            wait_until(lambda: len(server.connections) == 20)
            for conn in list(server.connections):
                conn.abort()
        wait_until(lambda: all(client.events.count(("open",)) == 4 for client in clients))
        for one in crowd:
            one.stop()


