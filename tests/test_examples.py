"""Each program under examples/, run as its docstring says and talked to."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trustme

from examples.game_tick.tcp_model import TcpConnection
from gws_gevent import ClientOptions, Connection, HandshakeRefused, TransportError, connect
from gws_gevent.transports.tls_contexts import client_context
from tests.pairs import Recorder
from tests.peers.programs import accepts, browser, connect_from, nginx, running
from tests.support import (
    ROOT,
    ServerProcess,
    free_port,
    require_installed,
    require_module,
    run_program,
    run_server_process,
    wait_until,
)

EXAMPLES = ROOT / "examples"
ENV = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}

pytestmark = pytest.mark.slow


@contextmanager
def example(name: str, *args: str, status: int = 0) -> Iterator[ServerProcess]:
    with run_server_process([str(EXAMPLES / name), *args], env=ENV, status=status) as server:
        yield server


def url(server: ServerProcess, target: str = "/") -> str:
    return f"ws://127.0.0.1:{server.port}{target}"


def echoes(conn: Connection) -> None:
    for message in ("text: \u00e9\u20ac", b"\x00\xff", ""):
        conn.send(message)
        assert conn.receive(timeout=10) == message


#: What can be run by itself; the apps of WSGI servers cannot, and manage.py is Django's.
PROGRAMS = [path for path in sorted(EXAMPLES.rglob("*.py")) if "__main__" in path.read_text() and path.name != "manage.py"]


def test_every_example_is_run_by_a_test() -> None:
    tested = "".join(Path(__file__).with_name(name).read_text() for name in ("test_examples.py", "test_example_chats.py"))
    missing = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", "") and path.name not in tested]
    assert not missing  # chat_static is a part of flask_chat and django_chat


@pytest.mark.parametrize("name", [str(path.relative_to(EXAMPLES)) for path in PROGRAMS])
def test_help_shows_the_docstring(name: str) -> None:
    finished = run_program([sys.executable, str(EXAMPLES / name), "--help"], env=ENV)
    assert (finished.status, finished.errors) == (0, "")
    assert finished.output.startswith(f"usage: {Path(name).name} ")
    docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text()))
    assert docstring
    assert docstring in finished.output
    wrong = run_program([sys.executable, str(EXAMPLES / name), "--nonsense"], env=ENV)
    assert (wrong.status, wrong.output) == (2, "")
    assert "Traceback" not in wrong.errors


def test_echo_with_a_handler() -> None:
    with example("echo_handler.py", "127.0.0.1:0") as server:
        with connect(url(server)) as conn:
            echoes(conn)
            conn.close(4000, "enough")
        wait_until(lambda: "1: received 4000 'enough', sent 4000\n" in server.output(), what="on_close")
        assert "1: open from ('127.0.0.1'," in server.output()


def test_an_example_that_is_told_to_stop_says_goodbye() -> None:
    with example("echo_handler.py", "127.0.0.1:0") as server:
        conn = connect(url(server))
        server.process.send_signal(signal.SIGINT)
        assert list(conn) == []
        assert conn.close_info is not None
        assert conn.close_info.code == 1001
        assert server.wait() == 0
        conn.close()


def test_echo_with_a_function(tmp_path: Path) -> None:
    port = free_port()
    args = [sys.executable, str(EXAMPLES / "echo_function.py"), f"127.0.0.1:{port}"]
    with running(args, tmp_path, lambda _: accepts(port), ENV, stop=signal.SIGINT) as program:
        with connect(f"ws://127.0.0.1:{port}/") as conn:
            echoes(conn)
        left = Recorder()
        connect(f"ws://127.0.0.1:{port}/", left)
    assert left.wait_closed().code == 1001
    assert (program.process.returncode, program.output()) == (0, ""), "Ctrl-C is no error and leaves no traceback"


def test_client() -> None:
    with example("echo_handler.py", "127.0.0.1:0") as server:
        args = [sys.executable, str(EXAMPLES / "client.py")]
        finished = run_program([*args, url(server), "one", "two \u20ac"], env={**ENV, "PYTHONIOENCODING": "utf-8"})
        assert finished == (0, "one\ntwo \u20ac\nclosed: received 1000, sent 1000\n", "")
    finished = run_program([*args, url(server), "one"], env=ENV)
    assert (finished.status, finished.output) == (1, "")
    assert re.fullmatch(r".*refused.*\n", finished.errors), finished.errors
    assert run_program(args, env=ENV).status == 2


def test_rooms() -> None:
    with example("rooms.py", "127.0.0.1:0") as server, connect(url(server, "/garden")) as ann:
        with connect(url(server, "/garden")) as bo, connect(url(server, "/house")) as cleo:
            for conn, room in ((ann, "/garden"), (bo, "/garden"), (cleo, "/house")):
                conn.send("/rooms")
                assert conn.receive(timeout=10) == room
            bo.send("hello")
            assert ann.receive(timeout=10) == "/garden 2: hello"
            cleo.send("/join garden")
            cleo.send("/rooms")
            assert cleo.receive(timeout=10) == "/garden /house"
            ann.send("all of you")
            assert [conn.receive(timeout=10) for conn in (bo, cleo)] == ["/garden 1: all of you"] * 2
            cleo.send("/leave garden")
            cleo.send("/rooms")
            assert cleo.receive(timeout=10) == "/house"
            cleo.send(b"bytes")
            assert list(cleo) == []
        assert ann.receive(timeout=10) == "/garden 2: bye"


def test_routes_authorisation_and_origins() -> None:
    with example("routing.py", "127.0.0.1:0") as server:

        def status(target: str, origin: str = "http://localhost:8000", **headers: str) -> int:
            options = ClientOptions(headers={"Origin": origin, **headers})
            try:
                connect(url(server, target), options=options).close()
            except HandshakeRefused as refused:
                return refused.status
            return 101

        assert status("/nowhere") == 404
        assert status("/health") == 200
        assert status("/private") == 401
        assert status("/private", Authorization="Bearer open") == 401
        assert status("/private", Authorization="Bearer sesame") == 101
        assert status("/echo") == 101
        assert status("/echo", origin="https://a.example.com") == 101
        assert status("/echo", origin="https://example.com.evil.example") == 403
        assert status("/private", origin="https://evil.example", Authorization="Bearer sesame") == 403
        headers = {"Origin": "http://localhost:8000"}
        with pytest.raises(HandshakeRefused) as refused:
            connect(url(server, "/echo"))
        assert refused.value.status == 403
        with connect(url(server, "/private"), options=ClientOptions(headers={**headers, "Authorization": "Bearer sesame"})) as conn:
            assert conn.receive(timeout=10) == "hello Ali"
            echoes(conn)
        with connect(url(server, "/clock/1"), options=ClientOptions(headers=headers)) as conn:
            assert [re.fullmatch(r"\d\d:\d\d:\d\d", conn.receive(timeout=10)) is not None for _ in range(2)] == [True, True]


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def issue(name: str) -> None:
        ours = authority.issue_cert(name)
        ours.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
        ours.private_key_pem.write_to_path(str(tmp_path / "key.pem"))

    def dial(name: str) -> Connection:
        context = client_context(str(tmp_path / "ca.pem"))
        return connect(f"wss://127.0.0.1:{server.port}/", ssl_context=context, server_name=name)

    issue("old.example")
    args = ["--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem"), "127.0.0.1:0"]
    with example("tls.py", *args) as server:
        assert server.address.startswith("tls://")
        old = dial("old.example")
        issue("new.example")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "certificates read again" in server.output())
        with dial("new.example") as conn:
            echoes(conn)
        with old:
            echoes(old)
        with pytest.raises(TransportError):
            dial("old.example")


def test_a_load_test_with_locust() -> None:
    require_installed("locust")
    with example("echo_handler.py", "127.0.0.1:0") as server:
        args = [sys.executable, str(EXAMPLES / "load_test.py"), "--host", url(server, "").rstrip("/"), "--users", "5"]
        finished = run_program([*args, "--seconds", "3"], env=ENV, timeout=60)
    assert finished.status == 0, finished.errors
    assert "WS CALL  hello" in finished.errors


def test_every_transport_at_once(tmp_path: Path) -> None:
    require_module("aioquic")
    require_module("kcp")
    args = [sys.executable, "-W", "error", str(EXAMPLES / "every_transport.py")]
    finished = run_program(args, env=ENV)
    assert (finished.status, finished.errors) == (0, "")
    lines = finished.output.splitlines()
    assert [line.split()[0] for line in lines] == ["tcp", "tls", "unix", "quic", "h3", "kcp"]
    assert all(f"'hello 99 over {line.split()[0]}' after " in line for line in lines)
    authority = trustme.CA()  # another authority than the server's own
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    wrong = run_program([*args, "--cert", str(tmp_path / "ca.pem")], env=ENV)
    assert (wrong.status, wrong.errors.count("\n")) == (1, 1)


def test_a_transport_that_is_not_installed_is_left_out(tmp_path: Path) -> None:
    require_module("cryptography")
    (tmp_path / "aioquic").mkdir()
    (tmp_path / "aioquic" / "__init__.py").write_text("raise ImportError('hidden by the test')")
    path = os.pathsep.join((str(tmp_path), ENV["PYTHONPATH"]))
    finished = run_program([sys.executable, str(EXAMPLES / "every_transport.py")], env={"PYTHONPATH": path})
    assert finished.status == 0, finished.errors
    left_out = [line for line in finished.output.splitlines() if "left out" in line]
    assert [line.split()[0] for line in left_out] == ["quic", "h3"]
    assert all("pip install 'gws_gevent[quic]'" in line for line in left_out)


def test_a_game_over_kcp_and_tcp(tmp_path: Path) -> None:
    require_module("kcp")
    require_module("matplotlib")
    plot = tmp_path / "latency.png"
    line = ["--seconds", "0.5", "--players", "2", "--loss", "1", "--rtt", "20", "--jitter", "2", "--plot", str(plot)]
    finished = run_program([sys.executable, str(EXAMPLES / "game_tick" / "game.py"), *line], env=ENV, timeout=60)
    assert (finished.status, finished.errors) == (0, "")
    rows = {name: [float(value) for value in values] for name, *values in map(str.split, finished.output.splitlines()[2:])}
    assert list(rows) == ["tcp", "kcp"]
    for ages in rows.values():
        assert ages == sorted(ages)
        assert ages[0] >= 10, "no tick is faster than the line"
    assert plot.read_bytes().startswith(b"\x89PNG")
    wrong = run_program([sys.executable, str(EXAMPLES / "game_tick" / "game.py"), "--loss", "51"], env=ENV)
    assert wrong.status == 2
    assert "Traceback" not in wrong.errors


class Scripted(Random):
    """Says "lost" for the packets of some numbers, in the order in which they are sent."""

    def __init__(self, *lost: int) -> None:
        super().__init__(1)
        self.count, self.lost = 0, lost

    def random(self) -> float:
        number, is_loss = divmod(self.count, 2)
        self.count += 1
        if number in self.lost and not is_loss:
            self.count += 1  # of a lost packet nobody asks how late it is
            return 0.0
        return 0.9


def arrivals(connection: TcpConnection) -> list[tuple[float, int]]:
    found = []
    while (moment := connection.next_event()) is not None and moment < 60:
        found += [(round(moment, 3), item) for _, item in connection.run(moment)]
    return found


def test_the_model_of_tcp() -> None:
    def arrive(count: int, *lost: int) -> list[tuple[float, int]]:
        connection, number = TcpConnection(0.5, 0.05, 0.0, Scripted(*lost)), 0
        found = []
        for number in range(count):
            found += [(round(at, 3), item) for at in [number / 100] for _, item in connection.run(at)]
            connection.send(0, number, 200, number / 100)
        return found + arrivals(connection)

    assert arrive(3) == [(0.05, 0), (0.06, 1), (0.07, 2)], "one way takes 50 ms"
    # Alone: sent again after a smoothed round trip (100 ms) and 4 times its variation (50 ms) or 200 ms.
    assert arrive(1, 0) == [(0.35, 0)]
    assert arrive(1, 0, 1) == [(0.95, 0)], "twice as long the next time"
    # The next one is acknowledged at 110 ms, which is too soon by a quarter of a round trip; all wait for the first.
    assert arrive(3, 0) == [(0.175, 0), (0.175, 1), (0.175, 2)]
    connection = TcpConnection(0.3, 0.03, 0.02, Random(7))
    for number in range(300):
        connection.send(0, number, 700, 0.0)
        connection.send(1, number, 100, 0.0)
    out: dict[int, list[int]] = {0: [], 1: []}
    while (moment := connection.next_event()) is not None:
        for side, item in connection.run(moment):
            out[side].append(item)
    assert out == {0: list(range(300)), 1: list(range(300))}, "all of it, in order, once"


@pytest.mark.peer
def test_a_sidecar_behind_nginx(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "sidecar" / "nginx.conf", tmp_path)
    with example("sidecar/server.py", f"unix:{tmp_path}/ws.sock?mode=600") as server, nginx(tmp_path / "nginx.conf") as port:
        assert server.address == f"unix:{tmp_path}/ws.sock"
        for headers in ({}, {"X-Forwarded-For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}):
            with connect_from("127.0.0.7", port, headers, target="/ws/") as conn:
                assert conn.receive(timeout=10) == "you are 127.0.0.7"
                echoes(conn)
                big = "\u20ac" * 350_000
                conn.send(big)
                assert conn.receive(timeout=10) == big
        with pytest.raises(HandshakeRefused) as refused:
            connect_from("127.0.0.7", port, target="/elsewhere")
        assert refused.value.status == 404
    assert not (tmp_path / "ws.sock").exists()


# The chat, in a browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


def say(driver: Any, text: str) -> None:
    driver.find_element("id", "text").send_keys(text)
    driver.find_element("css selector", "button").click()


def shown(driver: Any, window: str) -> tuple[str, list[str]]:
    driver.switch_to.window(window)
    return driver.find_element("id", "state").text, [line.text for line in driver.find_elements("css selector", "#lines li")]


@pytest.mark.peer
def test_two_pages_chat(driver: Any) -> None:
    with example("chat.py", "127.0.0.1:0") as server:
        driver.get(server.address)
        one = driver.current_window_handle
        say(driver, "Ann")
        wait_until(lambda: shown(driver, one) == ("1 here", ["Ann: has come"]), 10)
        driver.switch_to.new_window("tab")
        two = driver.current_window_handle
        driver.get(server.address)
        say(driver, "Bo")
        wait_until(lambda: shown(driver, two) == ("2 here", ["Bo: has come"]), 10)
        say(driver, "<b>hi</b> \u20ac")
        wait_until(lambda: shown(driver, one)[1][1:] == ["Bo: has come", "Bo: <b>hi</b> \u20ac"], 10)
        say(driver, "hello Bo")
        wait_until(lambda: shown(driver, two)[1][1:] == ["Bo: <b>hi</b> \u20ac", "Ann: hello Bo"], 10)
        driver.close()
        wait_until(lambda: shown(driver, one) == ("1 here", [*ANN_SAW, "Bo: has left"]), 10)
        console = driver.get_log("browser")
        server.process.terminate()
        wait_until(lambda: shown(driver, one)[0].startswith("Disconnected (1001"), 10)
        assert not console, console


ANN_SAW = ["Ann: has come", "Bo: has come", "Bo: <b>hi</b> \u20ac", "Ann: hello Bo"]


def test_chat_refuses_binary_and_serves_only_its_page() -> None:
    with example("chat.py", "127.0.0.1:0") as server:
        conn = connect(url(server, "/chat"))
        conn.send(b"\x00")
        assert list(conn) == []
        assert conn.close_info is not None
        assert (conn.close_info.code, conn.close_info.reason) == (1003, "text only")
        conn.close()
        with pytest.raises(HandshakeRefused) as refused:
            connect(url(server, "/other"))
        assert refused.value.status == 404
