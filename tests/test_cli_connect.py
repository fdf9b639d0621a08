"""`gws-gevent connect` as a process: pipes, files, a terminal, and exit statuses."""

from __future__ import annotations

import argparse
import os
import pty
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gevent
import gevent.socket
import gevent.ssl
import pytest
import trustme

from gws_gevent import (
    CloseInfo,
    Connection,
    EventHandler,
    Message,
    PermessageDeflate,
    Refusal,
    Request,
    Response,
    Server,
    ServerOptions,
)
from gws_gevent.cli.connect import add_arguments
from gws_gevent.transports.base import ListenSettings, TlsFiles
from tests.proxies import http_proxy, socks_proxy
from tests.support import ROOT, Finished, free_port, run_program, wait_until

pytestmark = pytest.mark.slow

CONNECT = [sys.executable, "-m", "gws_gevent", "connect"]


def close_at_once(how: list[str], conn: Connection) -> None:
    if how:
        conn.close(int(how[0]), unquote(how[1]) if how[1:] else "")
    else:
        conn.stream.send_all(b"\x88\x00")
        conn.close()


class Recorder(EventHandler):
    """Echoes, does what some messages ask for, and keeps what it saw."""

    def __init__(self) -> None:
        self.requests: list[Request | None] = []
        self.received: list[Any] = []
        self.closed: list[CloseInfo] = []

    def on_open(self, conn: Connection) -> None:
        self.requests.append(conn.request)

    def on_message(self, conn: Connection, message: Message) -> None:
        self.received.append(message.data)
        if message.data == "abort":
            conn.abort()
        elif message.data == "close":
            conn.write_close(4001, "go away")
        elif message.data == "close behind":
            conn.send("bye")
            conn.write_close(4001)
        elif message.data == "binary":
            conn.send(b"\x00\xff")
        elif message.data == "ping":
            conn.write_ping(b"abc")
            conn.write_pong()
            conn.send("pinged")
        elif message.data == "colours":
            conn.send("\x1b[31mred\x07")
        elif message.data == "twice":
            conn.send("first")
            conn.send("second")
        elif message.data != "silence":
            conn.send(message.data)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.closed.append(info)

    def route(self, request: Request) -> EventHandler | Callable[[Connection], object] | Response | None:
        if request.path == "/secret":
            raise Refusal(401, "Who are you?\n")
        if request.path.startswith("/close"):
            return partial(close_at_once, request.path.split("/")[2:])
        if request.path == "/page":
            return Response(200, "<!DOCTYPE html>\n")
        return self


class Running:
    """A server in this process."""

    def __init__(self, server: Server, seen: Recorder) -> None:
        self.server = server
        self.seen = seen
        self.url = server.address.replace("tcp:", "ws:").replace("tls:", "wss:")


@contextmanager
def run_server(*endpoints: str, settings: ListenSettings | None = None, options: ServerOptions | None = None) -> Iterator[Running]:
    seen = Recorder()
    server = Server(options=options or ServerOptions(subprotocols=("chat",)), on_request=seen.route)
    server.start(*endpoints or ("127.0.0.1:0",), settings=settings)
    try:
        yield Running(server, seen)
    finally:
        server.stop()


@pytest.fixture
def running() -> Iterator[Running]:
    with run_server() as running:
        yield running


def run_connect(*args: str, stdin: str | bytes = b"") -> Finished:
    return run_program([*CONNECT, *args], stdin=stdin)


def run_piped(*args: str, stdin: bytes) -> Finished:
    """As run_connect, with stdin and stdout that are pipes; `stdin` has to fit into one."""
    process = subprocess.Popen([*CONNECT, *args], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(stdin)
        process.stdin.close()
        wait_until(lambda: process.poll() is not None, 20, "connect to end")
        assert process.stdout is not None
        assert process.stderr is not None
        return Finished(process.returncode, process.stdout.read().decode(), process.stderr.read().decode())
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def assert_one_line(finished: Finished, status: int, *said: str) -> None:
    assert finished.status == status, finished
    assert finished.errors.startswith("gws-gevent: ")
    assert finished.errors.count("\n") == 1
    for text in said:
        assert text in finished.errors


# Pipes and files


@pytest.mark.parametrize("run", [run_connect, run_piped], ids=["file", "pipe"])
def test_once_sends_all_prints_one_message_and_closes(running: Running, run: Callable[..., Finished]) -> None:
    assert run(f"{running.url}/echo", "--once", stdin=b"hi\nthere\n") == (0, "hi\n", "")
    wait_until(lambda: running.seen.closed)
    assert running.seen.received == ["hi", "there"]
    assert running.seen.closed[0].code == 1000
    assert running.seen.closed[0].clean


@pytest.mark.parametrize("run", [run_connect, run_piped], ids=["file", "pipe"])
def test_every_answer_is_printed_before_the_end(running: Running, run: Callable[..., Finished]) -> None:
    # --wait 0: the answer to the ping behind the last line is all that is waited for.
    lines = [f"line {number} {'x' * 50}" for number in range(500)]
    finished = run(running.url, "--wait", "0", stdin="\n".join(lines).encode())
    assert finished == (0, "\n".join(lines) + "\n", "")


def test_line_ends_are_not_part_of_messages(running: Running) -> None:
    assert run_connect(running.url, "--wait", "0", stdin=b"a\r\n\nb\rc\nlast").status == 0
    assert running.seen.received == ["a", "", "b\rc", "last"]


def test_binary_is_printed_in_hexadecimal_and_text_as_it_is(running: Running) -> None:
    finished = run_connect(running.url, "--wait", "0", stdin="binary\nping\ncolours\ngrüße\n")
    assert finished == (0, "0x00ff\npinged\n\x1b[31mred\x07\ngrüße\n", "")


def test_without_input_it_waits_and_closes(running: Running) -> None:
    assert run_connect(running.url, "--wait", "0.1") == (0, "", "")
    with open(os.devnull, "rb") as nothing:
        process = subprocess.Popen([*CONNECT, running.url, "--wait", "0"], cwd=ROOT, stdin=nothing)
        assert wait_for_end(process) == 0


def test_a_closed_stdin_is_an_input_without_lines(running: Running) -> None:
    command = 'exec "$@" <&-'
    assert run_program(["sh", "-c", command, "sh", *CONNECT, running.url, "--wait", "0"]) == (0, "", "")


def test_wait_inf_stays_until_the_server_closes(running: Running) -> None:
    process = subprocess.Popen([*CONNECT, running.url, "--wait", "inf"], cwd=ROOT, stdin=subprocess.DEVNULL)
    wait_until(lambda: running.seen.requests, 20)
    gevent.spawn(running.server.stop).join()
    assert wait_for_end(process) == 0
    assert running.seen.closed[0].clean


def test_once_without_a_message_is_a_failure(running: Running) -> None:
    finished = run_connect(running.url, "--once", "--timeout", "1", stdin="silence\n")
    assert_one_line(finished, 1, f"{running.url}: no message within 1 seconds (--timeout)\n")
    wait_until(lambda: running.seen.closed)
    assert running.seen.closed[0].code == 1000


def test_once_with_a_server_that_closes_instead_is_a_failure(running: Running) -> None:
    finished = run_connect(running.url, "--once", stdin="close\n")
    assert_one_line(finished, 1, f"{running.url}: the server closed with 4001 go away before a message came\n")


def test_an_output_that_cannot_be_written_ends_the_connection(running: Running) -> None:
    command = 'exec "$@" >/dev/full'
    finished = run_program(["sh", "-c", command, "sh", *CONNECT, running.url, "--wait", "inf"], stdin="hello\n")
    assert finished == (1, "", "gws-gevent: stdout: No space left on device\n")
    wait_until(lambda: running.seen.closed)
    assert running.seen.closed[0].clean


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/close/1000", 0, "the server closed with 1000\n"),
        ("/close/1001/going", 0, "the server closed with 1001 going\n"),
        ("/close", 0, "the server closed with no code\n"),
        ("/close/1011", 1, "the server closed with 1011\n"),
        ("/close/4001/go%1b[31m", 1, "the server closed with 4001 go\\x1b[31m\n"),
    ],
)
def test_how_the_server_closed_is_told_and_what_was_in_order_is_success(
    running: Running, path: str, status: int, said: str
) -> None:
    url = running.url + path
    assert_one_line(run_connect(url, "--wait", "inf"), status, f"gws-gevent: {url}: {said}")
    assert_one_line(run_connect(url, "--once"), 1, said.replace("\n", " before a message came\n"))


@pytest.mark.parametrize("first", [b"", b"a line\n"])
def test_a_server_that_closes_before_the_end_of_the_input_is_a_failure(running: Running, first: bytes) -> None:
    process = subprocess.Popen(
        [*CONNECT, running.url], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        process.stdin.write(first)
        process.stdin.flush()
        wait_until(lambda: running.seen.received if first else running.seen.requests, 20)
        gevent.spawn(running.server.stop).join()
        assert wait_for_end(process) == 1
        said = f"gws-gevent: {running.url}: the server closed with 1001 before the end of the input\n"
        assert process.stderr.read().decode() == said
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stderr.close()


def test_a_server_that_closes_behind_the_one_message_does_no_harm(running: Running) -> None:
    assert run_connect(running.url, "--once", stdin="close behind\n") == (0, "bye\n", "")


def test_another_end_is_a_failure(running: Running) -> None:
    finished = run_connect(running.url, "--wait", "inf", stdin="abort\n")
    assert finished.output == ""
    assert_one_line(finished, 1, f"{running.url}: connection lost: ")


def test_output_that_nobody_reads_ends_the_connection(running: Running) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [*CONNECT, running.url, "--wait", "inf"], cwd=ROOT, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert process.stdin is not None
    assert process.stderr is not None
    with process.stdin, process.stderr:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert wait_for_end(process) == 1
        assert process.stderr.read() == b""
    wait_until(lambda: running.seen.closed)
    assert running.seen.closed[0].clean


def test_input_that_is_not_utf8_is_told_in_one_line(running: Running) -> None:
    finished = run_connect(running.url, "--wait", "0", stdin=b"fine\nbad \xff\nnever sent\n")
    assert_one_line(finished, 2, "line 2 of the input is not UTF-8")
    wait_until(lambda: running.seen.closed)
    assert running.seen.received == ["fine"]
    assert running.seen.closed[0].clean


def test_a_line_without_end_is_bounded(running: Running, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    with endless.open("wb") as file:
        file.truncate(20 * 1024 * 1024)
    with endless.open("rb") as source:
        process = subprocess.Popen([*CONNECT, running.url], cwd=ROOT, stdin=source, stderr=subprocess.PIPE)
        assert process.stderr is not None
        with process.stderr:
            assert wait_for_end(process) == 2
            assert process.stderr.read() == b"gws-gevent: line 1 of the input has more than 16777216 bytes\n"


def wait_for_end(process: subprocess.Popen[bytes]) -> int:
    try:
        wait_until(lambda: process.poll() is not None, 20, "connect to end")
    finally:
        process.kill()
        process.wait()
    return process.returncode


# Arguments


def test_headers_and_subprotocols_are_sent(running: Running) -> None:
    finished = run_connect(
        f"{running.url}/path?q=1", "--wait", "0", "--header", "X-One: 1", "--header", "Cookie:a=b; c=d",
        "--subprotocol", "other", "--subprotocol", "chat",
    )  # fmt: skip
    assert finished.status == 0
    request = running.seen.requests[0]
    assert request is not None
    assert request.target == "/path?q=1"
    assert request.headers.get("x-one") == "1"
    assert request.headers.get("cookie") == "a=b; c=d"
    assert request.headers.elements("sec-websocket-protocol") == ["other", "chat"]


def test_compression_is_offered_when_asked_for() -> None:
    with run_server(options=ServerOptions(permessage_deflate=PermessageDeflate())) as running:
        for args in ((), ("--compress",)):
            assert run_connect(running.url, "--once", *args, stdin="long " * 1000) == (0, "long " * 1000 + "\n", "")
            request = running.seen.requests[-1]
            assert request is not None
            assert ("sec-websocket-extensions" in request.headers) is bool(args)


def test_a_unix_socket_is_a_server_too(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with run_server(f"unix:{path}") as running:
        assert run_connect(f"ws+unix:{path}:/echo", "--once", stdin="hi\n") == (0, "hi\n", "")
        request = running.seen.requests[0]
        assert request is not None
        assert request.target == "/echo"


def test_a_certificate_is_verified_unless_told_otherwise(tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    ca, both = str(tmp_path / "ca.pem"), str(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA).private_key_and_cert_chain_pem.write_to_path(both)
    with run_server("tls://127.0.0.1:0", settings=ListenSettings(tls=TlsFiles(both))) as running:
        assert_one_line(run_connect(running.url, "--once", stdin="hi\n"), 2, running.url, "certificate")
        assert run_connect(running.url, "--once", "--ca", ca, stdin="hi\n") == (0, "hi\n", "")
        assert run_connect(running.url, "--once", "--insecure", stdin="hi\n") == (0, "hi\n", "")


def test_a_client_shows_its_certificate(tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    ca, both, cert, key = (str(tmp_path / name) for name in ("ca.pem", "both.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA).private_key_and_cert_chain_pem.write_to_path(both)
    ours = authority.issue_cert("client.example", key_type=trustme.KeyType.ECDSA)
    ours.cert_chain_pems[0].write_to_path(cert)
    ours.private_key_pem.write_to_path(key)
    with run_server("tls://127.0.0.1:0", settings=ListenSettings(tls=TlsFiles(both, None, ca))) as running:
        once = [running.url, "--once", "--ca", ca]
        assert run_connect(*once, "--cert", cert, "--key", key, stdin="hi\n") == (0, "hi\n", "")
        assert run_connect(*once, "--cert", both, stdin="hi\n") == (0, "hi\n", "")
        assert run_connect(*once, stdin="hi\n").status != 0
    assert_one_line(run_connect(*once, "--cert", cert), 2, f"{cert}: no private key")
    assert_one_line(run_connect(*once, "--cert", both, "--key", key), 2, f"{key}: this key does not belong to the certificate in ")
    assert_one_line(run_connect(*once, "--cert", f"{tmp_path}/none.pem"), 2, f"{tmp_path}/none.pem: No such file or directory")


def test_a_page_is_no_websocket_endpoint(running: Running) -> None:
    assert_one_line(run_connect(f"{running.url}/page"), 2, "/page: the server answered 200 instead of 101 (there is a page at ")


def test_a_refusal_is_told_with_its_text(running: Running) -> None:
    assert_one_line(run_connect(f"{running.url}/secret"), 2, "/secret: the server answered 401 instead of 101: Who are you?\n")


def test_a_login_is_not_shown(running: Running) -> None:
    url = running.url.replace("//", "//anna:secret@")
    for finished in (run_connect(f"{url}/secret"), run_connect(f"{url}/close/4000"), run_connect(url, "--insecure")):
        assert "secret@" not in finished.errors
        assert "//...@127.0.0.1" in finished.errors


def test_a_server_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    assert_one_line(run_connect(f"ws://127.0.0.1:{free_port()}/"), 2, "Connection refused")
    assert_one_line(run_connect(f"ws+unix:{tmp_path}/none.sock:/"), 2, "No such file or directory")


def test_a_server_that_does_not_answer_meets_the_timeout(tmp_path: Path) -> None:
    with gevent.socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        finished = run_connect(f"ws://127.0.0.1:{silent.getsockname()[1]}/", "--timeout", "0.2")
    assert_one_line(finished, 2, "no opening handshake within 0.2 seconds")


def test_an_interrupt_ends_the_opening_handshake() -> None:
    with gevent.socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        process = subprocess.Popen(
            [*CONNECT, f"ws://127.0.0.1:{silent.getsockname()[1]}/"], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        with process.stderr, silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            assert wait_for_end(process) == 130
            assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "the following arguments are required: URL"),
        (["http://127.0.0.1/"], "a WebSocket URL begins with ws:// or wss://"),
        (["ws://127.0.0.1:99999/"], "a port is 1 to 65535"),
        (["ws+nothing://a/"], "ws+nothing://a/: no transport serves 'nothing'; known are h3, kcp, quic, tcp, tls, unix\n"),
        (["ws+memory://name/"], "ws+memory://name/: memory stays inside of one process"),
        (["ws://127.0.0.1/", "again"], "unrecognized arguments: again (see gws-gevent connect --help)\n"),
        (["ws://127.0.0.1/", "--cert", "c.pem"], "--cert: ws://127.0.0.1/ uses no TLS"),
        (["ws://127.0.0.1/", "--key", "k.pem"], "--key: ws://127.0.0.1/ uses no TLS"),
        (["wss://127.0.0.1/", "--key", "k.pem"], "--key: needs --cert"),
        (["ws://127.0.0.1/", "--header", "nothing"], "--header 'nothing': must be NAME: VALUE"),
        (["ws://127.0.0.1/", "--header", "Upgrade: h2c"], "--header: Upgrade belongs to the handshake"),
        (["ws://127.0.0.1/", "--header", "a: 1", "--header", "A: 2"], "--header 'A: 2': A is given twice"),
        (["ws://127.0.0.1/", "--subprotocol", "a b"], "--subprotocol: each must be an HTTP token"),
        (["ws://127.0.0.1/", "--timeout", "never"], "argument --timeout: 'never' is not a positive number of seconds"),
        (["ws://127.0.0.1/", "--wait", "-1"], "argument --wait: '-1' is not a number of seconds, nor inf"),
        (["ws://127.0.0.1/", "--insecure"], "--insecure: ws://127.0.0.1/ uses no TLS"),
        (["wss://127.0.0.1/", "--ca", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["ws://127.0.0.1/", "--proxy", "ftp://x"], "a proxy is http://HOST:PORT, https://HOST:PORT, socks5"),
        (["ws://127.0.0.1/", "--proxy", "socks4://x"], "socks5h://HOST:PORT, not socks4"),
        (["ws+unix:/x", "--proxy", "http://x"], "ws+unix does not go through proxies"),
        (["ws://127.0.0.1/", "--proxy", "ftp://x", "--reconnect"], "a proxy is http://HOST:PORT"),
        (["wss://127.0.0.1/", "--ca", "x", "--insecure"], "--insecure and --ca exclude each other"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(args: list[str], said: str) -> None:
    assert_one_line(run_connect(*args), 2, said)


# Proxies


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_through_a_proxy(running: Running, kind: str) -> None:
    with (http_proxy if kind == "http" else socks_proxy)() as between:
        assert run_connect(running.url, "--once", "--proxy", f"{kind}://{between.place}", stdin="hi\n") == (0, "hi\n", "")
        assert len(between.heads) == 1


def test_through_a_proxy_inside_of_tls(running: Running, tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    with http_proxy(ssl_context=context) as between:
        args = (running.url, "--once", "--proxy", f"https://{between.place}")
        assert run_connect(*args, "--ca", str(tmp_path / "ca.pem"), stdin="hi\n") == (0, "hi\n", "")
        assert_one_line(run_connect(*args), 2, f"the proxy https://{between.place} cannot be reached: ", "certificate")


def test_the_environments_proxy_and_none(running: Running) -> None:
    place = running.url.partition("//")[2]
    with http_proxy() as between:
        env = {"http_proxy": f"http://{between.place}"}
        name = f"ws://{place.replace('127.0.0.1', 'chat.invalid')}"
        finished = run_program([*CONNECT, name, "--once"], env=env)
        assert_one_line(finished, 2, f"the proxy http://{between.place} gave no answer to CONNECT chat.invalid:")
        assert len(between.heads) == 1
        finished = run_program([*CONNECT, name, "--once", "--proxy", "none"], env=env)
        assert_one_line(finished, 2, "chat.invalid")
        assert len(between.heads) == 1


def test_a_proxy_that_refuses_is_told_in_one_line(running: Running) -> None:
    with http_proxy(login="Basic x") as between:
        finished = run_connect(running.url, "--proxy", between.place)
    assert_one_line(finished, 2, f"the proxy http://{between.place} answered 407 to CONNECT", "user name and a password")


# Coming back


def test_reconnect_gives_up_where_it_is_of_no_use(running: Running) -> None:
    finished = run_connect(f"{running.url}/secret", "--reconnect", stdin="hi\n")
    assert_one_line(finished, 2, f"gave up on {running.url}, tried once: the server answered 401 instead of 101: Who are you?")


def test_reconnect_ends_with_the_input(running: Running) -> None:
    assert run_connect(running.url, "--reconnect", "--wait", "0", stdin="hi\nthere\n") == (0, "hi\nthere\n", "")
    assert run_connect(running.url, "--reconnect", "--once", stdin="hi\nthere\n") == (0, "hi\n", "")


def test_a_line_waits_for_the_server() -> None:
    port = free_port()
    process = subprocess.Popen(
        [*CONNECT, f"ws://127.0.0.1:{port}/", "--reconnect", "--once"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdin, process.stdout, process.stderr:
        process.stdin.write(b"hi\n")
        process.stdin.close()
        os.set_blocking(process.stderr.fileno(), False)
        told = rb"ws://127\.0\.0\.1:\d+: connect to tcp:\S+: Connection refused; next attempt in"
        wait_until(lambda: re.search(told, process.stderr.read() or b""), 20)  # type: ignore[union-attr]
        with run_server(f"127.0.0.1:{port}"):
            assert wait_for_end(process) == 0
            assert process.stdout.read() == b"hi\n"


# A terminal


class Terminal:
    """A person at a terminal that runs connect."""

    def __init__(self, *args: str) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._seen = b""
        self.process = subprocess.Popen(
            [*CONNECT, *args], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until the screen shows a text, behind what was waited for before."""
        try:
            wait_until(lambda: self._look(text), 20, f"{text!r} on the screen")
        except AssertionError as error:
            error.add_note(f"it shows {self._seen!r}")
            raise
        self._seen = self._seen.partition(text.encode())[2]

    def _look(self, text: str) -> bool:
        try:
            self._seen += os.read(self._ours, 65536)
        except (BlockingIOError, OSError):
            pass  # nothing new, or (EIO) the program has ended
        return text.encode() in self._seen

    def end(self) -> int:
        return wait_for_end(self.process)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(*args: str) -> Iterator[Terminal]:
    person = Terminal(*args)
    try:
        yield person
    finally:
        person.close()


def test_a_person_sees_messages_pings_and_the_close(running: Running) -> None:
    with terminal(running.url, "--subprotocol", "chat") as person:
        person.wait_for(f"connected to {running.url}, subprotocol chat; Ctrl-D or Ctrl-C closes")
        person.type("hello\n")
        person.wait_for("< hello\r\n")
        person.type("binary\n")
        person.wait_for("< 0x00ff\r\n")
        person.type("ping\n")
        person.wait_for("< ping 0x616263\r\n")
        person.wait_for("< pong\r\n")
        person.wait_for("< pinged\r\n")
        person.type("colours\n")
        person.wait_for("< \\x1b[31mred\\x07\r\n")
        person.type("close\n")
        person.wait_for("closed: server said 4001 go away\r\n")
        assert person.end() == 1


def test_end_of_file_on_a_terminal_closes_at_once(running: Running) -> None:
    with terminal(running.url, "--wait", "inf") as person:
        person.wait_for("connected")
        person.type("\x04")
        person.wait_for("closed: server said 1000\r\n")
        assert person.end() == 0
        assert running.seen.closed[0].code == 1000


def test_an_interrupt_closes_cleanly(running: Running) -> None:
    with terminal(running.url) as person:
        person.wait_for("connected")
        person.process.send_signal(signal.SIGINT)
        person.wait_for("closed: server said 1000\r\n")
        assert person.end() == 0


def test_once_on_a_terminal_does_not_wait_for_its_end(running: Running) -> None:
    with terminal(running.url, "--once") as person:
        person.wait_for("connected")
        person.type("twice\n")
        person.wait_for("< first\r\n")
        person.wait_for("closed: server said 1000\r\n")
        assert person.end() == 0


def test_a_person_is_told_of_a_lost_connection(running: Running) -> None:
    with terminal(running.url) as person:
        person.wait_for("connected")
        person.type("abort\n")
        person.wait_for("closed: ")
        assert person.end() == 1


def test_a_person_is_connected_again(running: Running) -> None:
    with terminal(running.url, "--reconnect") as person:
        person.wait_for("connected")
        person.type("abort\n")
        person.wait_for("connection lost (")
        person.type("hello\n")
        person.wait_for("connected")
        person.wait_for("< hello\r\n")
        person.type("close\n")
        person.wait_for("connection lost (received 4001 'go away'")
        person.wait_for("connected")
        person.type("\x04")
        person.wait_for("closed: server said 1000\r\n")
        assert person.end() == 0


def test_an_interrupt_ends_a_pause(running: Running) -> None:
    with terminal(running.url, "--reconnect") as person:
        person.wait_for("connected")
        running.server.stop(0)
        person.wait_for("connection lost (")
        person.wait_for("refused")
        person.process.send_signal(signal.SIGINT)
        person.wait_for("closed: ")
        assert person.end() in (0, 1)


# The page


def test_the_page_has_every_argument_with_its_default() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    page = (ROOT / "docs" / "command-line.md").read_text()
    table = page[page.index("\n## connect") : page.index("| exit status |")]
    assert set(re.findall(r"`(--\w+)", table)) == {flag for action in parser._actions for flag in action.option_strings}
    for flag in ("wait", "timeout"):
        assert f"| `--{flag} SECONDS` | {parser.get_default(flag):g} |" in table
