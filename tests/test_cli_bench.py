"""`gws-gevent bench`: what it sends and counts, latencies of a server that stalls, errors by kind, output, interrupts."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import gevent.server
import gevent.socket
import pytest
import trustme

from gws_gevent import (
    ClientOptions,
    CloseInfo,
    Connection,
    EventHandler,
    Message,
    PermessageDeflate,
    Refusal,
    Request,
    Server,
    ServerOptions,
)
from gws_gevent.cli import main
from gws_gevent.cli.bench import add_arguments
from gws_gevent.cli.load import GIVE_UP_AFTER, Load
from gws_gevent.cli.load_plan import MAX_KIND, MAX_KINDS, OTHER_ERRORS, Counts, Plan
from gws_gevent.transports.base import ListenSettings, TlsFiles
from tests.pairs import serving, url_of
from tests.proxies import http_proxy, socks_proxy
from tests.support import ROOT, Finished, free_port, require_module, run_program, run_server_process, wait_until

pytestmark = pytest.mark.slow

BENCH = [sys.executable, "-m", "gws_gevent", "bench"]


class Echo(EventHandler):
    """Sends each message back and keeps a few facts."""

    def __init__(self) -> None:
        self.connected = 0
        self.received: list[str | bytes] = []
        self.pings: list[bytes] = []
        self.closed: list[CloseInfo] = []
        self.requests: list[Request | None] = []

    def on_open(self, conn: Connection) -> None:
        self.connected += 1
        self.requests.append(conn.request)

    def on_message(self, conn: Connection, message: Message) -> None:
        self.received.append(message.data)
        self.answer(conn, message)

    def answer(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)

    def on_ping(self, conn: Connection, payload: bytes) -> None:
        self.pings.append(payload)
        super().on_ping(conn, payload)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.closed.append(info)


def answering(how: Callable[[Echo, Connection, Message], object]) -> Echo:
    """An Echo that answers in another way."""
    echo = Echo()
    echo.answer = lambda conn, message: how(echo, conn, message)  # type: ignore[method-assign, assignment]
    return echo


class Bench:
    """Runs the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, url: str, *args: str) -> Finished:
        status = main(["bench", url, *args])
        output, errors = self._capsys.readouterr()
        return Finished(status, output, errors)

    def measure(self, url: str, *args: str, status: int = 0) -> dict[str, Any]:
        """Return the result as data."""
        finished = self(url, *args, "--json")
        assert finished.errors == ""
        assert finished.status == status, finished.output
        data = json.loads(finished.output)
        assert isinstance(data, dict)
        return data


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(capsys)


def above(data: dict[str, Any], seconds: float) -> int:
    """How many messages had a latency above so many seconds."""
    return sum(inside for lower, _, inside in data["latency"]["histogram"] if lower >= seconds)


# Load


def test_each_reply_is_followed_by_the_next_message(bench: Bench) -> None:
    echo = Echo()
    with serving(echo) as server:
        data = bench.measure(url_of(server), "--connections", "5", "--duration", "0.3")
        wait_until(lambda: len(echo.closed) == 5)
    messages = data["messages"]
    assert messages["sent"] == messages["answered"] == len(echo.received) == data["latency"]["count"] > 100
    assert (messages["unanswered"], messages["never_sent"], data["other_messages"]) == (0, 0, 0)
    assert set(echo.received) == {bytes(range(64))}
    assert (data["connections"]["opened"], data["connections"]["alive_at_end"], echo.connected) == (5, 5, 5)
    assert all(info.clean and info.code == 1000 for info in echo.closed)
    assert data["latency"]["since"] == "sent"
    assert 0 < data["latency"]["shortest"] <= data["latency"]["percentiles"]["50"] <= data["latency"]["longest"] < 0.3
    assert data["seconds"] == pytest.approx(0.3, abs=0.01)
    assert 0 < messages["replies_per_second"] <= messages["answered"] / data["seconds"] + 1
    assert data["errors"] == {}
    assert data["interrupted"] is False


def test_messages_are_text_of_the_size_asked_for(bench: Bench) -> None:
    echo = Echo()
    with serving(echo) as server:
        data = bench.measure(url_of(server), "--text", "--size", "1KiB", "--check", "--duration", "0.1")
    assert data["messages"]["kind"] == "text"
    assert {(type(message), len(message)) for message in echo.received} == {(str, 1024)}


def test_messages_are_compressed_if_the_server_agrees(bench: Bench) -> None:
    class Curious(Echo):
        def on_message(self, conn: Connection, message: Message) -> None:
            agreed.add(conn.extensions.partition(";")[0])
            super().on_message(conn, message)

    agreed: set[str] = set()
    for options in (ServerOptions(permessage_deflate=PermessageDeflate()), ServerOptions()):
        with serving(Curious(), options) as server:
            bench.measure(url_of(server), "--compress", "--size", "1KiB", "--check", "--duration", "0.1")
    assert agreed == {"permessage-deflate", ""}


def test_a_message_may_be_large_or_empty(bench: Bench) -> None:
    echo = Echo()
    with serving(echo) as server:
        for size in ("0", "1MiB"):
            bench.measure(url_of(server), "--size", size, "--check", "--duration", "0.1", "--connections", "1", "--depth", "3")
    assert {len(message) for message in echo.received} == {0, 1024 * 1024}


def test_depth_messages_are_under_way(bench: Bench) -> None:
    held: list[Message] = []

    def answer_eight(echo: Echo, conn: Connection, message: Message) -> None:
        held.append(message)
        if len(held) == 8:
            while held:
                conn.send(held.pop().data)

    with serving(answering(answer_eight)) as server:
        data = bench.measure(url_of(server), "--connections", "1", "--depth", "8", "--duration", "0.2")
        seven = bench.measure(
            url_of(server), "--connections", "1", "--depth", "7", "--duration", "0.2", "--timeout", "0.3", status=1
        )  # fmt: skip
    assert data["messages"]["answered"] == data["messages"]["sent"] > 100
    assert data["messages"]["sent"] % 8 == 0
    assert (seven["messages"]["sent"], seven["messages"]["answered"], seven["messages"]["unanswered"]) == (7, 0, 7)
    assert seven["errors"] == {"no reply within 0.3 seconds": 1}


def test_a_rate_is_kept(bench: Bench) -> None:
    echo = Echo()
    with serving(echo) as server:
        data = bench.measure(url_of(server), "--connections", "3", "--rate", "200", "--duration", "0.5")
    assert data["messages"]["rate"] == 200
    assert data["messages"]["sent"] == data["messages"]["answered"] == data["latency"]["count"] == len(echo.received) == 100
    assert data["latency"]["since"] == "due"
    # Those that were sent with the reply before them have none.
    assert 50 < data["lateness"]["count"] <= 100


def stall_once(echo: Echo, conn: Connection, message: Message) -> None:
    if len(echo.received) == 1:
        gevent.sleep(0.4)
    conn.send(message.data)


def test_a_stall_shows_in_every_message_that_was_due_in_it(bench: Bench) -> None:
    with serving(answering(stall_once)) as server:
        data = bench.measure(url_of(server), "--connections", "1", "--rate", "100", "--duration", "0.8")
    assert data["messages"]["answered"] == data["latency"]["count"] == 80
    assert data["latency"]["longest"] >= 0.4
    # Those due in the first 300 of the 400 ms waited for 100 ms and more.
    assert above(data, 0.1) >= 29


def test_without_a_rate_a_stall_shows_once(bench: Bench) -> None:
    with serving(answering(stall_once)) as server:
        data = bench.measure(url_of(server), "--connections", "1", "--duration", "0.8")
    assert above(data, 0.35) == 1
    assert data["latency"]["count"] > 100


def test_messages_that_a_stalled_server_kept_from_being_sent_count_as_waiting(bench: Bench) -> None:
    with serving(answering(lambda echo, conn, message: None)) as server:
        data = bench.measure(
            url_of(server), "--connections", "2", "--rate", "100", "--duration", "0.4", "--timeout", "0.6", "--depth", "3", status=1
        )
    messages = data["messages"]
    assert (messages["sent"], messages["answered"], messages["unanswered"], messages["never_sent"]) == (6, 0, 6, 34)
    assert data["latency"]["count"] == 40
    # Each waited from when it was due to the end.
    assert data["latency"]["shortest"] > 0.1
    assert data["latency"]["longest"] >= 0.6
    assert data["errors"] == {"no reply within 0.6 seconds": 2}


@pytest.mark.parametrize(("rate", "due"), [("7", 3), ("30", 9), ("333", 100), ("100000", 30_000)])
def test_so_many_messages_are_due_as_the_rate_says(bench: Bench, rate: str, due: int) -> None:
    with serving(answering(lambda echo, conn, message: None)) as server:
        args = ["--connections", "7", "--rate", rate, "--duration", "0.3", "--timeout", "0.7"]
        messages = bench.measure(url_of(server), *args, status=1)["messages"]
    assert messages["sent"] == messages["unanswered"] == min(due, 7)
    assert messages["sent"] + messages["never_sent"] == due
    with serving(Echo()) as server:
        messages = bench.measure(url_of(server), *args)["messages"]
    assert messages["sent"] + messages["never_sent"] == due
    assert messages["answered"] == messages["sent"]


def test_replies_that_come_after_the_end_count(bench: Bench) -> None:
    def answer_late(echo: Echo, conn: Connection, message: Message) -> None:
        gevent.sleep(0.4)
        conn.send(message.data)

    with serving(answering(answer_late)) as server:
        data = bench.measure(url_of(server), "--connections", "2", "--duration", "0.1")
    assert (data["messages"]["sent"], data["messages"]["answered"], data["messages"]["unanswered"]) == (2, 2, 0)
    assert data["messages"]["replies_per_second"] == 0
    assert data["latency"]["shortest"] >= 0.39


def test_messages_that_answer_nothing_are_counted_apart(bench: Bench) -> None:
    class Greeter(Echo):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            conn.send("hello")
            conn.send("and welcome")

    with serving(Greeter()) as server:
        url = url_of(server).replace("//", "//anna:secret@")
        finished = bench(url, "--connections", "3", "--hold", "--duration", "0.2", "--json")
    result = json.loads(finished.output)
    assert result["other_messages"] == 6
    # Results are shown around: without the password.
    assert result["url"] == url.replace("anna:secret", "...")


@pytest.mark.parametrize("rate", [[], ["--rate", "100"]], ids=["eager", "paced"])
def test_a_server_that_answers_twice(bench: Bench, rate: list[str]) -> None:
    def answer_twice(echo: Echo, conn: Connection, message: Message) -> None:
        if len(echo.received) == 1:
            conn.send(message.data)
            gevent.sleep(0.05)
        conn.send(message.data)

    with serving(answering(answer_twice)) as server:
        data = bench.measure(url_of(server), "--connections", "1", "--duration", "0.3", *rate)
    assert data["messages"]["answered"] == data["messages"]["sent"]
    assert data["other_messages"] <= 1


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_through_a_proxy(bench: Bench, kind: str) -> None:
    if kind != "http":
        require_module("python_socks")
    with serving(Echo()) as server, (http_proxy if kind == "http" else socks_proxy)() as between:
        args = ["--connections", "3", "--duration", "0.1", "--proxy", f"{kind}://{between.place}"]
        assert bench.measure(url_of(server), *args)["messages"]["answered"] > 0
        assert len(between.heads) == 3
        data = bench.measure(url_of(server), "--connections", "2", "--proxy", f"http://127.0.0.1:{free_port()}", status=1)
    (said,) = data["errors"]
    assert "cannot be reached" in said


def test_a_reply_is_compared_if_asked_for(bench: Bench) -> None:
    with serving(answering(lambda echo, conn, message: conn.send("something else"))) as server:
        args = ["--connections", "3", "--duration", "0.2"]
        assert bench.measure(url_of(server), *args)["messages"]["answered"] > 3
        data = bench.measure(url_of(server), *args, "--check", status=1)
    assert data["errors"] == {"a reply was not what was sent": 3}


@pytest.mark.parametrize("rate", [[], ["--rate", "50"]], ids=["eager", "paced"])
def test_pings_are_answered_by_a_server_that_does_not_echo(bench: Bench, rate: list[str]) -> None:
    silent = answering(lambda echo, conn, message: None)
    with serving(silent) as server:
        data = bench.measure(url_of(server), "--ping", "--size", "125", "--connections", "2", "--duration", "0.3", *rate)
    assert data["messages"]["kind"] == "ping"
    assert data["messages"]["answered"] == data["messages"]["sent"] == len(silent.pings) >= 15
    assert set(silent.pings) == {bytes(range(125))}
    assert silent.received == []


# Connections


def test_connections_are_opened_over_the_ramp(bench: Bench) -> None:
    with serving(Echo()) as server:
        data = bench.measure(url_of(server), "--connections", "5", "--ramp", "0.5", "--duration", "0.1")
        at_once = bench.measure(url_of(server), "--connections", "5", "--duration", "0.1")
    assert at_once["connections"]["opening_took"] < 0.4 <= data["connections"]["opening_took"]
    assert data["connections"]["opening"]["count"] == 5


def test_hold_sends_nothing_and_tells_how_many_are_alive(bench: Bench) -> None:
    echo = Echo()
    with serving(echo) as server:
        finished = bench(url_of(server), "--hold", "--connections", "300", "--duration", "0.2")
    assert finished.status == 0
    assert re.search(r"^alive +300 of 300 after 0\.2 s$", finished.output, re.MULTILINE)
    assert re.search(r"^errors +none$", finished.output, re.MULTILINE)
    assert (echo.connected, echo.received) == (300, [])


def test_thousands_of_connections_are_one_process() -> None:
    with run_server_process(["-m", "gws_gevent", "serve", "--bind", "127.0.0.1:0"]) as server:
        url = f"ws://127.0.0.1:{server.port}/echo"
        for args in (["--hold"], ["--rate", "2000", "--check"]):
            finished = run_program([*BENCH, url, "--connections", "2000", "--duration", "1", "--json", *args], timeout=60)
            data = json.loads(finished.output)
            assert (finished.status, data["errors"]) == (0, {})
            assert data["connections"]["alive_at_end"] == 2000
    assert data["messages"]["answered"] == data["messages"]["sent"] == 2000


def test_hold_counts_those_that_are_lost(bench: Bench) -> None:
    class Moody(Echo):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            if self.connected == 2:
                conn.write_close(4001, "go away")
            elif self.connected == 4:
                conn.abort()

    with serving(Moody()) as server:
        data = bench.measure(url_of(server), "--hold", "--connections", "5", "--duration", "0.3", status=1)
    assert (data["connections"]["opened"], data["connections"]["alive_at_end"]) == (5, 3)
    assert sorted(data["errors"].values()) == [1, 1]
    assert data["errors"]["closed by the server with 4001"] == 1
    assert any(kind.startswith("connection lost: ") for kind in data["errors"])


def test_it_ends_when_no_connection_is_left(bench: Bench) -> None:
    def close_third(echo: Echo, conn: Connection, message: Message) -> None:
        if len(echo.received) > 30:
            conn.write_close(1001)
        else:
            conn.send(message.data)

    with serving(answering(close_third)) as server:
        for args in ([], ["--rate", "1000"]):
            data = bench.measure(url_of(server), "--connections", "3", "--duration", "inf", *args, status=1)
            assert data["errors"] == {"closed by the server with 1001": 3}
            assert data["connections"]["alive_at_end"] == 0


def test_a_server_that_is_not_there_is_not_asked_for_ever(bench: Bench) -> None:
    data = bench.measure(f"ws://127.0.0.1:{free_port()}/", "--connections", "900", status=1)
    ((kind, count),) = data["errors"].items()
    assert "Connection refused" in kind
    assert GIVE_UP_AFTER <= count == data["connections"]["tried"] <= 2 * GIVE_UP_AFTER
    assert data["connections"]["opened"] == 0


def test_refusals_are_counted_by_status(bench: Bench) -> None:
    seen: list[Request] = []
    echo = Echo()

    def route(request: Request) -> EventHandler | None:
        seen.append(request)
        if len(seen) == 2:
            raise Refusal(401, f"You are number {len(seen)}")
        return echo if len(seen) < 5 else None

    with serving(None, on_request=route) as server:
        finished = bench(url_of(server), "--connections", "6", "--duration", "0.1")
    assert finished.status == 1
    assert re.search(r"^opened +3 of 6", finished.output, re.MULTILINE)
    assert re.search(r"^errors +2 x the server answered 404 instead of 101$", finished.output, re.MULTILINE)
    assert re.search(r"^ +1 x the server answered 401 instead of 101$", finished.output, re.MULTILINE)


def test_a_server_that_does_not_answer_the_handshake_meets_the_timeout(bench: Bench) -> None:
    with gevent.socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        data = bench.measure(f"ws://127.0.0.1:{silent.getsockname()[1]}/", "--connections", "3", "--timeout", "0.2", status=1)
    ((kind, count),) = data["errors"].items()
    assert kind.startswith("no opening handshake within 0.2 seconds; still waiting for the answer of 127.0.0.1:")
    assert count == 3


class Deaf(NamedTuple):
    """A server that opens WebSocket connections and never reads from them."""

    url: str
    sockets: list[Any]

    def has_been_sent_to(self, connections: int) -> bool:
        """Tell whether something has come on so many connections."""
        return len(select.select(self.sockets, [], [], 0)[0]) == connections


@contextmanager
def serving_deaf() -> Iterator[Deaf]:
    left: list[Any] = []

    def handle(sock: Any, address: Any) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        (key,) = re.findall(rb"(?i)sec-websocket-key: *(\S+)", head)
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        left.append(sock.dup())
        lines = [b"HTTP/1.1 101 x", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + accept]
        sock.sendall(b"\r\n".join([*lines, b"", b""]))

    server = gevent.server.StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        yield Deaf(f"ws://127.0.0.1:{server.server_port}/", left)
    finally:
        server.stop()
        for sock in left:
            sock.close()


def test_a_close_that_is_not_answered_is_an_error(bench: Bench) -> None:
    with serving_deaf() as deaf:
        data = bench.measure(deaf.url, "--connections", "3", "--hold", "--duration", "0.1", "--timeout", "0.3", status=1)
    ((kind, count),) = data["errors"].items()
    assert kind.startswith("no closing handshake: ")
    assert count == 3
    assert data["connections"]["alive_at_end"] == 3


@pytest.mark.parametrize("args", [["--rate", "100000"], []], ids=["paced", "eager"])
def test_a_server_that_never_reads_holds_nothing_up(bench: Bench, args: list[str]) -> None:
    with serving_deaf() as deaf:
        load = ["--size", "64KiB", "--depth", "200", "--connections", "2", "--duration", "0.3", "--timeout", "0.3"]
        data = bench.measure(deaf.url, *load, *args, status=1)
    assert data["messages"]["sent"] == data["messages"]["unanswered"] == 400
    assert data["seconds"] == pytest.approx(0.3, abs=0.1)
    assert data["errors"] == {"no reply within 0.3 seconds": 2}


def test_kinds_of_errors_are_bounded() -> None:
    counts = Counts()
    for number in range(100):
        counts.failed(f"error {number}\x1b[31m" + "x" * 1000)
    assert len(counts.errors) == MAX_KINDS + 1
    assert counts.errors[OTHER_ERRORS] == 100 - MAX_KINDS
    assert all(len(kind) <= MAX_KIND and kind.isprintable() for kind in counts.errors)


def test_headers_and_subprotocols_are_sent(bench: Bench) -> None:
    echo = Echo()
    with serving(echo) as server:
        args = ["--header", "X-One: 1", "--subprotocol", "chat", "--connections", "1", "--duration", "0.05"]
        assert bench(f"{url_of(server)}path?q=1", *args).status == 0
    (request,) = echo.requests
    assert request is not None
    assert request.target == "/path?q=1"
    assert request.headers.get("x-one") == "1"
    assert request.headers.elements("sec-websocket-protocol") == ["chat"]


def test_tls_and_unix_sockets_are_servers_too(bench: Bench, tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    ca, both = str(tmp_path / "ca.pem"), str(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA).private_key_and_cert_chain_pem.write_to_path(both)
    with Server(Echo()) as server:
        server.start("tls://127.0.0.1:0", f"unix:{tmp_path}/app.sock", settings=ListenSettings(tls=TlsFiles(both)))
        for url, args in ((url_of(server), ["--ca", ca]), (url_of(server, which=1), [])):
            data = bench.measure(url, "--connections", "3", "--duration", "0.1", *args)
            assert data["messages"]["answered"] > 3
        untrusted = bench.measure(url_of(server), "--connections", "3", status=1)
    ((kind, count),) = untrusted["errors"].items()
    assert "certificate" in kind
    assert count == 3


# The result


def test_the_result_for_people(bench: Bench) -> None:
    with serving(Echo()) as server:
        finished = bench(url_of(server), "--connections", "4", "--rate", "1000", "--duration", "0.5", "--text")
        url = url_of(server)
    assert finished.status == 0
    assert finished.errors == ""
    expected = [
        rf"server +{url}",
        r"opened +4 of 4 connections in [0-9.]+ s; one takes: 50 % \S+ [mu]?s, 99 % \S+ [mu]?s",
        r"load +text messages of 64 bytes, 1,000/s, depth 1, 0\.5 s",
        r"messages +500 sent, 500 answered",
        r"replies +[\d,]+/s, 0\.0\d MB/s",
        r"lateness +of this program itself: 99 % below \S+ [mu]?s, at most \S+ [mu]?s",
        r"latency +of a message since it was due: mean \S+ [mu]?s",
        r" +50 % +\S+ [mu]?s",
        r" +75 % +\S+ [mu]?s",
        r" +90 % +\S+ [mu]?s",
        r" +99 % +\S+ [mu]?s",
        r" +longest +\S+ [mu]?s",
        r"",
    ]
    lines = finished.output.splitlines()
    for line, pattern in zip(lines, expected, strict=False):
        assert re.fullmatch(pattern, line), line
    bars = [re.fullmatch(r" *(\S+) (\S+) - (\S+) (\S+) +(#*) +([\d,]+) +([\d.]+) %", line) for line in lines[len(expected) : -2]]
    assert all(bars)
    assert sum(int(bar[6].replace(",", "")) for bar in bars if bar is not None) == 500
    assert max(len(bar[5]) for bar in bars if bar is not None) == 40
    assert lines[-2:] == ["", "errors       none"]


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    require_module("matplotlib")
    with serving(Echo()) as server:
        there, nowhere = url_of(server), f"ws://127.0.0.1:{free_port()}/"
        for name, begins, url, args, status in (
            ("a.png", b"\x89PNG", there, ["--rate", "1000"], 0),
            ("b.svg", b"<?xml", there, ["--hold"], 0),
            ("c.pdf", b"%PDF", nowhere, [], 1),
        ):
            finished = run_program([*BENCH, url, "--duration", "0.1", "--plot", str(tmp_path / name), *args])
            assert (finished.status, finished.errors) == (status, ""), finished
            assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_plot_that_cannot_be_drawn_is_told_before_the_run(tmp_path: Path) -> None:
    require_module("matplotlib")
    (tmp_path / "folder.png").mkdir()
    for name, said in (
        ("a.txt", "the file's name must end in one of ."),
        ("no/a.png", f"there is no folder {tmp_path}/no\n"),
        ("folder.png", "Is a directory\n"),
    ):
        finished = run_program([*BENCH, f"ws://127.0.0.1:{free_port()}/", "--plot", f"{tmp_path}/{name}"])
        assert finished.output == ""
        assert_one_line(finished, 2, f"--plot {tmp_path}/{name}: {said}")


def test_without_matplotlib_one_sentence_tells_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('kept away by a test')\n")
    args = [*BENCH, f"ws://127.0.0.1:{free_port()}/", "--plot", "a.png"]
    finished = run_program(args, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert finished == (2, "", "gws-gevent: --plot needs an extra: pip install 'gws_gevent[plot]'\n")


def test_an_output_that_cannot_be_written_is_told_in_one_line() -> None:
    command = f'exec "$@" ws://127.0.0.1:{free_port()}/ >/dev/full'
    finished = run_program(["sh", "-c", command, "sh", *BENCH])
    assert finished == (1, "", "gws-gevent: stdout: No space left on device\n")


# Arguments


def assert_one_line(finished: Finished, status: int, *said: str) -> None:
    assert finished.status == status, finished
    assert finished.errors.startswith("gws-gevent: ")
    assert finished.errors.count("\n") == 1
    for text in said:
        assert text in finished.errors


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "the following arguments are required: URL"),
        (["http://127.0.0.1/"], "a WebSocket URL begins with ws:// or wss://"),
        (["ws+nothing://127.0.0.1/"], "no transport serves 'nothing'; known are h3, kcp, quic, tcp, tls, unix\n"),
        (["ws://127.0.0.1/", "again"], "unrecognized arguments: again (see gws-gevent bench --help)\n"),
        (["ws://127.0.0.1/", "--cert", "c.pem"], "--cert: ws://127.0.0.1/ uses no TLS"),
        (["wss://127.0.0.1/", "--key", "k.pem"], "--key: needs --cert"),
        (["ws://127.0.0.1/", "--header", "nothing"], "--header 'nothing': must be NAME: VALUE"),
        (["ws://127.0.0.1/", "--header", "Upgrade: h2c"], "--header: Upgrade belongs to the handshake"),
        (["ws://127.0.0.1/", "--header", "a: 1", "--header", "A: 2"], "--header 'A: 2': A is given twice"),
        (["ws://127.0.0.1/", "--subprotocol", "a b"], "--subprotocol: each must be an HTTP token"),
        (["ws://127.0.0.1/", "--proxy", "ftp://x"], "'ftp://x': a proxy is http://HOST:PORT, https://HOST:PORT, "),
        (["ws+unix:/x", "--proxy", "http://x"], "ws+unix does not go through proxies"),
        (["ws://127.0.0.1/", "--timeout", "never"], "argument --timeout: 'never' is not a positive number of seconds"),
        (["ws://127.0.0.1/", "--duration", "0"], "argument --duration: '0' is not a positive number of seconds"),
        (["ws://127.0.0.1/", "--ramp", "inf"], "argument --ramp: 'inf' is not a positive number of seconds"),
        (["ws://127.0.0.1/", "--connections", "0"], "argument --connections: '0' is not a whole number from 1 to 1000000"),
        (["ws://127.0.0.1/", "--connections", "many"], "argument --connections: 'many' is not a whole number"),
        (["ws://127.0.0.1/", "--depth", "1.5"], "argument --depth: '1.5' is not a whole number"),
        (["ws://127.0.0.1/", "--rate", "nan"], "argument --rate: 'nan' is not a number of messages a second from 0.001 to 1"),
        (["ws://127.0.0.1/", "--rate", "-1"], "argument --rate: '-1' is not a number of messages a second"),
        (["ws://127.0.0.1/", "--size", "1GiB"], "argument --size: '1GiB' is not a number of bytes up to 268435456"),
        (["ws://127.0.0.1/", "--size", "-1"], "argument --size: '-1' is not a number of bytes"),
        (["ws://127.0.0.1/", "--size", "big"], "argument --size: 'big' is not a number of bytes"),
        (["ws://127.0.0.1/", "--text", "--ping"], "not allowed with argument --text"),
        (["ws://127.0.0.1/", "--ping", "--size", "126"], "--size: a ping has at most 125 bytes"),
        (["ws://127.0.0.1/", "--ping", "--depth", "2"], "--depth: a server may answer several pings at once"),
        *((["ws://127.0.0.1/", "--hold", *flag], f"{flag[0]}: --hold sends nothing") for flag in (
            ["--rate", "1"], ["--size", "64"], ["--depth", "1"], ["--text"], ["--ping"], ["--check"],
        )),
    ],
)  # fmt: skip
def test_wrong_arguments_are_told_in_one_line(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    status = main(["bench", *args])
    assert_one_line(Finished(status, *capsys.readouterr()), 2, said)


def test_descriptors_are_asked_for_as_far_as_allowed() -> None:
    with serving(Echo()) as server:
        args = ["sh", *BENCH, url_of(server), "--hold", "--duration", "0.1", "--connections", "200"]
        soft = run_program(["sh", "-c", 'ulimit -S -n 150; exec "$@"', *args])
        assert soft.status == 0, soft
        assert "200 of 200 after" in soft.output
        hard = run_program(["sh", "-c", 'ulimit -n 150; exec "$@"', *args])
    assert hard == (2, "", "gws-gevent: --connections 200: this process may open no more than 150 files (ulimit -n)\n")


# Signals and the terminal


@contextmanager
def started(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*BENCH, *args], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def ended(process: subprocess.Popen[bytes]) -> Finished:
    wait_until(lambda: process.poll() is not None, 20, "bench to end")
    assert process.stdout is not None
    assert process.stderr is not None
    return Finished(process.returncode, process.stdout.read().decode(), process.stderr.read().decode())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("args", [["--hold"], [], ["--rate", "100"]], ids=["hold", "eager", "paced"])
def test_an_interrupt_prints_the_result_so_far(number: signal.Signals, args: list[str]) -> None:
    echo = Echo()
    with serving(echo) as server, started(url_of(server), "--connections", "5", "--duration", "inf", *args) as process:
        wait_until(lambda: echo.connected == 5 and (len(echo.received) > 20 or args == ["--hold"]), 20)
        process.send_signal(number)
        finished = ended(process)
        wait_until(lambda: len(echo.closed) == 5)
    assert finished.errors == ""
    assert finished.status == 0
    assert " s (interrupted)\n" in finished.output
    assert "errors       none" in finished.output
    assert all(info.clean for info in echo.closed)


def test_an_interrupt_ends_the_opening_handshakes() -> None:
    with gevent.socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with started(f"ws://127.0.0.1:{silent.getsockname()[1]}/", "--connections", "500", "--json") as process:
            with silent.accept()[0]:
                process.send_signal(signal.SIGINT)
                finished = ended(process)
    data = json.loads(finished.output)
    assert finished.status == 0, finished
    assert (data["connections"]["opened"], data["interrupted"], data["errors"]) == (0, True, {})
    assert 0 < data["connections"]["tried"] < 500


def test_an_interrupt_does_not_wait_for_replies_nor_long_for_closing() -> None:
    with serving_deaf() as deaf, started(deaf.url, "--duration", "inf", "--timeout", "600") as process:
        wait_until(lambda: deaf.has_been_sent_to(10), 20, "10 messages")
        process.send_signal(signal.SIGINT)
        finished = ended(process)
    assert finished.status == 0, finished
    assert "messages     10 sent, 0 answered, 10 not\n" in finished.output


def test_a_second_interrupt_does_not_wait_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gws_gevent.cli.load.HASTE", 600.0)
    with serving_deaf() as deaf:
        options = ClientOptions(close_timeout=600.0)
        load = Load(Plan(url=deaf.url, options=options, connections=3, duration=600.0, hold=True, timeout=600.0))
        running = gevent.spawn(load.run)
        wait_until(lambda: load.counts.phase == "running")
        load.interrupt()
        wait_until(lambda: deaf.has_been_sent_to(3), what="close frames")
        assert (load.counts.phase, load.counts.alive) == ("closing", 3)
        load.interrupt()
        running.get(timeout=10)
    assert (load.counts.alive, load.counts.alive_at_end, load.counts.errors) == (0, 3, {})


def test_a_terminal_shows_how_it_goes() -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    seen = b""

    def look(text: bytes) -> bool:
        nonlocal seen
        try:
            seen += os.read(ours, 65536)
        except (BlockingIOError, OSError):
            pass
        return text in seen

    with serving(Echo()) as server:
        process = subprocess.Popen(
            [*BENCH, url_of(server), "--connections", "3", "--duration", "inf", "--json"],
            cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        assert process.stdout is not None
        try:
            with process.stdout:
                wait_until(lambda: look(b"\r\x1b[K1 s: 3 open, "), 20, "the first line")
                wait_until(lambda: look(b" replies/s, 50 % "), 20, "its rest")
                process.send_signal(signal.SIGINT)
                wait_until(lambda: process.poll() is not None, 20)
                assert process.returncode == 0
                wait_until(lambda: look(b"\r\x1b[K") and seen.endswith(b"\r\x1b[K"), 5, "the line to be cleared")
                assert json.loads(process.stdout.read())["connections"]["alive_at_end"] == 3
        finally:
            process.kill()
            process.wait()
            os.close(ours)


# The page


def test_the_page_has_every_argument_with_its_default() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    page = (ROOT / "docs" / "command-line.md").read_text()
    table = page[page.index("\n## bench") : page.index("\nThe server has to answer")]
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert set(re.findall(r"`(--\w+)", table)) == flags
    numbers = {action.option_strings[0]: action.default for action in parser._actions if isinstance(action.default, float)}
    assert {"--duration", "--timeout"} <= numbers.keys()
    for flag, number in {**numbers, "--connections": parser.get_default("connections")}.items():
        assert re.search(rf"^\| `{flag} [A-Z]+` \| {number:g} \|", table, re.MULTILINE), flag
