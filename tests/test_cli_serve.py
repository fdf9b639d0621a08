"""`gws-gevent serve` as a process: addresses, handlers, signals, certificates, and errors in one line."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from gws_gevent import (
    ClientOptions,
    CloseCode,
    Connection,
    ConnectionClosed,
    HandshakeRefused,
    PermessageDeflate,
    __version__,
    connect,
)
from gws_gevent.transports.tls_contexts import client_context
from tests.support import Finished, ServerProcess, require_module, run_program, run_server_process, wait_until

pytestmark = pytest.mark.slow

SERVE = ["-m", "gws_gevent", "serve"]
ANY_PORT = "127.0.0.1:0"


def run_serve(*args: str, cwd: Path | None = None) -> Finished:
    command = [sys.executable, *SERVE, *args]
    return run_program(command) if cwd is None else run_program(command, cwd=cwd, env={"PYTHONPATH": str(Path.cwd())})


def assert_one_line(finished: Finished, *said: str) -> None:
    assert finished.status == 2, finished
    assert finished.output == ""
    assert finished.errors.startswith("gws-gevent: ")
    assert finished.errors.count("\n") == 1
    assert finished.errors.endswith("\n")
    for text in said:
        assert text in finished.errors


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    with run_server_process([*SERVE, "--bind", ANY_PORT]) as server:
        yield server


def ws(server: ServerProcess, target: str) -> str:
    return server.address.replace("tcp:", "ws:") + target


def ask(server: ServerProcess, request: str) -> tuple[str, str]:
    """Head and body of the answer to a plain request."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(f"{request}\r\nHost: localhost\r\n\r\n".encode())
        with sock.makefile("rb") as file:
            head, _, body = file.read().decode().partition("\r\n\r\n")
    return head, body


def test_compression_is_agreed_on_when_asked_for() -> None:
    options = ClientOptions(permessage_deflate=PermessageDeflate(server_context_takeover=True))
    for args, agreed in (
        ([], ""),
        (["--compress"], "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
        (
            ["--compress", "--option", "permessage_deflate=server_context_takeover=true"],
            "permessage-deflate; client_no_context_takeover",
        ),
    ):
        with (
            run_server_process([*SERVE, "--bind", ANY_PORT, *args]) as server,
            connect(ws(server, "/echo"), options=options) as conn,
        ):
            assert conn.extensions.partition("; server_max")[0] == agreed
            conn.send("echo " * 1000)
            assert conn.receive(timeout=5) == "echo " * 1000


# Addresses and signals


def test_every_address_is_printed_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with run_server_process([*SERVE, "--bind", ANY_PORT, f"unix:{path}", "--bind", "tcp://127.0.0.1:0"]) as server:
        line = server.output().partition("\n")[0]
        said, _, addresses = line.partition("serving on ")
        first, second, third = addresses.split(" ")
        assert said == ""
        assert server.addresses[:3] == [first, second, third]
        assert second == f"unix:{path}"
        assert len({first, third, "tcp://127.0.0.1:0"}) == 3
        for url in (first.replace("tcp:", "ws:") + "/echo", f"ws+unix:{path}:/echo", third.replace("tcp:", "ws:") + "/echo"):
            with connect(url) as conn:
                conn.send("over here")
                assert conn.receive(timeout=5) == "over here"
    assert not path.exists()


def test_one_app_on_every_transport_at_once_which_all_say_1001_at_the_end(tls_files: Files, tmp_path: Path) -> None:
    require_module("aioquic")
    require_module("kcp")
    binds = ["quic://127.0.0.1:0", "--bind", "h3://127.0.0.1:0", f"unix:{tmp_path}/s", "--bind", ANY_PORT, "tcp://127.0.0.1:0"]
    binds.append("kcp://127.0.0.1:0?mode=fast3")
    context = client_context(tls_files.ca)
    with run_server_process([*SERVE, "--cert", tls_files.cert, "--key", tls_files.key, "--bind", *binds]) as server:
        quic, h3, unix, tls, tcp, kcp = server.addresses[:6]
        places = [quic.replace("quic", "ws+quic"), h3.replace("h3", "wss+h3"), f"ws+{unix}:", tls.replace("tls", "wss")]
        conns = [connect(f"{place}/chat", ssl_context=context if "unix" not in place else None) for place in places]
        conns.append(connect(tcp.replace("tcp", "ws") + "/chat"))
        conns.append(connect(f"ws+{kcp}/chat", options=ClientOptions(transport_params={"mode": "fast3"})))
        for conn in conns:
            wait_until(lambda conn=conn: "6 here" in conn.receive(timeout=5))
        conns[0].send("hello all")
        for conn in conns:
            assert str(conn.receive(timeout=5)).endswith(": hello all")
        # Whoever came by TLS is told of HTTP/3.
        with pytest.raises(HandshakeRefused) as caught:
            connect(tls.replace("tls", "wss") + "/", ssl_context=context)
        assert caught.value.headers.get("alt-svc") == f'h3=":{h3.rpartition(":")[2]}"; ma=86400'
        server.process.terminate()
        for conn in conns:
            with pytest.raises(ConnectionClosed) as ended:
                conn.receive(timeout=5)
            assert ended.value.info.code == 1001, conn.stream.info("scheme")
        assert server.wait(5) == 0


@pytest.mark.parametrize(
    ("bind", "place"),
    [("127.0.0.1:0", "http://127.0.0.1:"), (":0", "http://localhost:"), ("[::1]:0", "http://[::1]:")],
)
def test_the_demonstration_says_where_its_page_is(bind: str, place: str, tmp_path: Path) -> None:
    with run_server_process([*SERVE, "--bind", f"unix:{tmp_path}/s", bind]) as server:
        wait_until(lambda: "browser\n" in server.output())
        assert server.output().split("\n", 1)[1] == f"open {place}{server.addresses[1].rpartition(':')[2]}/ in a browser\n"


def test_nobody_is_sent_to_a_page_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    env = {"PYTHONPATH": str(Path.cwd())}
    for args, cwd in ((["--bind", f"unix:{tmp_path}/s"], None), (["--bind", ANY_PORT, "--handler", "app:reverse"], tmp_path)):
        with run_server_process([*SERVE, *args], cwd=cwd or Path.cwd(), env=env) as server:
            server.process.terminate()
            assert server.wait() == 0
            assert "browser" not in server.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_closes_connections_with_1001_and_ends_with_0(number: signal.Signals) -> None:
    with run_server_process([*SERVE, "--bind", ANY_PORT]) as server:
        conn = connect(ws(server, "/echo"))
        server.process.send_signal(number)
        with pytest.raises(ConnectionClosed) as caught:
            conn.receive(timeout=10)
        assert caught.value.info.code == CloseCode.GOING_AWAY
        assert caught.value.info.clean
        assert server.wait() == 0
        assert "Traceback" not in server.output()


def test_a_second_signal_does_not_wait_for_connections() -> None:
    with run_server_process([*SERVE, "--bind", ANY_PORT, "--stop-timeout", "600"], status=None) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            # A client that never answers the close frame.
            sock.sendall(
                b"GET /echo HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += sock.recv(1)
            server.process.send_signal(signal.SIGINT)
            assert sock.recv(2) == b"\x88\x02"
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGINT)
            assert server.wait() == -signal.SIGINT


# What runs without a handler


def test_the_echo_keeps_text_and_binary(demo: ServerProcess) -> None:
    with connect(ws(demo, "/echo")) as conn:
        conn.send("grüße")
        conn.send(b"\x00\xff")
        assert conn.receive(timeout=5) == "grüße"
        assert conn.receive(timeout=5) == b"\x00\xff"


def test_the_page_is_answered_to_get_and_head(demo: ServerProcess) -> None:
    head, body = ask(demo, "GET / HTTP/1.1")
    assert head.startswith("HTTP/1.1 200 ")
    assert "\r\nContent-Type: text/html; charset=utf-8\r\n" in head
    assert f"\r\nContent-Length: {len(body.encode())}\r\n" in f"{head}\r\n"
    assert body.startswith("<!DOCTYPE html>")
    assert body.endswith("</html>\n")
    # Self-contained: nothing is loaded from anywhere.
    assert "http:" not in body
    assert "https://" not in body
    assert " src=" not in body
    same_head, no_body = ask(demo, "HEAD /?query=is+ignored HTTP/1.1")
    assert (same_head, no_body) == (head, "")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("POST / HTTP/1.1", "405"),
        ("GET /echo HTTP/1.1", "426"),
        ("GET /chat HTTP/1.1", "426"),
        ("GET /index.html HTTP/1.1", "404"),
        ("GET /echo/ HTTP/1.1", "404"),
    ],
)
def test_other_requests_are_refused(demo: ServerProcess, request_line: str, status: str) -> None:
    head, body = ask(demo, request_line)
    assert head.split()[1] == status
    assert body


def test_another_path_is_not_upgraded(demo: ServerProcess) -> None:
    with pytest.raises(HandshakeRefused) as caught:
        connect(ws(demo, "/nothing"))
    assert caught.value.status == 404


def join(server: ServerProcess, query: str) -> Connection:
    return connect(ws(server, f"/chat{query}"))


def heard(conn: Connection) -> str:
    text: str = conn.receive(timeout=5)
    return text


def test_the_chat_tells_everyone_everything(demo: ServerProcess) -> None:
    with join(demo, "?name=Ada%20L") as ada:
        assert heard(ada) == "* Ada L joined, 1 here"
        with join(demo, "?name=Bob") as bob:
            assert [heard(ada), heard(bob)] == ["* Bob joined, 2 here"] * 2
            bob.send("hello\n* Ada L left")
            assert [heard(ada), heard(bob)] == ["Bob: hello * Ada L left"] * 2
        assert heard(ada) == "* Bob left, 1 here"


def test_the_chat_bounds_names_and_messages(demo: ServerProcess) -> None:
    with join(demo, "?name=" + "x" * 40) as long:
        assert heard(long) == f"* {'x' * 32} joined, 1 here"
        long.send("y" * 4097)
        assert heard(long) == "* too long: at most 4096 characters"
        long.send("y" * 4096)
        assert heard(long) == f"{'x' * 32}: {'y' * 4096}"
        with join(demo, "") as nameless:
            assert heard(nameless).startswith("* guest ")
            nameless.send(b"bytes")
            with pytest.raises(ConnectionClosed) as caught:
                nameless.receive(timeout=5)
            assert caught.value.info.code == CloseCode.UNSUPPORTED_DATA


def test_one_slow_reader_does_not_stop_the_room() -> None:
    small = ["--option", "write_queue_size=64KiB", "--option", "close_timeout=0.2"]
    with run_server_process([*SERVE, "--bind", ANY_PORT, *small]) as server:
        with socket.socket() as slow, join(server, "?name=Ada") as ada:
            assert heard(ada) == "* Ada joined, 1 here"
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", server.port))
            slow.sendall(
                b"GET /chat?name=Slow HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert heard(ada) == "* Slow joined, 2 here"
            dropped = False
            # More than all the system's buffers for one socket hold.
            for number in range(2000):
                text = f"{number:04000d}"
                ada.send(text)
                while (got := heard(ada)) == "* Slow left, 1 here":
                    dropped = True
                assert got == f"Ada: {text}"
            assert dropped or heard(ada) == "* Slow left, 1 here"


# A handler of the user's

APP = """
from gws_gevent import EventHandler

class Shout(EventHandler):
    def on_message(self, conn, message):
        conn.send(message.data.upper())

class Needy(EventHandler):
    def __init__(self, what): ...

class Space:
    nested = Shout()

made = Shout()
number = 7

class Plain:
    pass

class Callable:
    def __call__(self, conn):
        conn.send("called")

called = Callable()

def two(conn, what): ...

def none(): ...

def keyword(conn, *, what): ...

def optional(conn, what=1, *more):
    conn.send("optional")

def reverse(conn):
    for message in conn:
        conn.send(message[::-1])

async def modern(conn): ...
"""


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("app:Shout", "ABC"),
        ("app:made", "ABC"),
        ("app:Space.nested", "ABC"),
        ("app:reverse", "cba"),
        ("pack.app:reverse", "cba"),
        ("app:called", "called"),
        ("app:called.__call__", "called"),
        ("app:optional", "optional"),
    ],
)
def test_a_handler_serves_every_path(tmp_path: Path, name: str, answer: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "app.py").write_text(APP)
    args = [*SERVE, "--bind", ANY_PORT, "--handler", name, "--option", "response_headers=X-App: yes"]
    with run_server_process(args, cwd=tmp_path, env={"PYTHONPATH": str(Path.cwd())}) as server:
        with connect(ws(server, "/any/path")) as conn:
            conn.send("abc")
            assert conn.receive(timeout=5) == answer


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothere:x", "--handler nothere:x: nothere cannot be imported: ModuleNotFoundError: No module named 'nothere'"),
        ("app:missing", "--handler app:missing: app has no missing"),
        ("app:number", "--handler app:number: a handler is an EventHandler or a function"),
        ("app:Needy", "--handler app:Needy: cannot be made without arguments: TypeError: "),
        ("app:Needy", "missing 1 required positional argument: 'what'\n"),
        ("app:Plain", "--handler app:Plain: is a class, but no EventHandler\n"),
        ("app:two", "--handler app:two: a handler is called with one argument, the connection, which two does not take: missing"),
        ("app.py:reverse", "--handler app.py:reverse: did you mean app:reverse?\n"),
        ("nothere.py:x", "--handler nothere.py:x: did you mean nothere:x?\n"),
        ("./app:reverse", "--handler ./app:reverse: MODULE is a module's name, such as app or package.app, not a path\n"),
        ("../app:reverse", "MODULE is a module's name"),
        ("wrong:x", "wrong cannot be imported: ValueError: parallel: must be a whole number of at least 0, not -1 ("),
        ("wrong:x", "/wrong.py, line 2; --log-level debug shows the traceback)\n"),
        ("app:modern", "--handler app:modern: a handler is a plain function, and modern is a coroutine function\n"),
        ("app", "--handler app: must be MODULE:OBJECT"),
        (":x", "--handler :x: must be MODULE:OBJECT"),
        ("broken:x", "broken cannot be imported: NameError: name 'oops' is not defined ("),
        ("syntax:x", "syntax cannot be imported: SyntaxError: "),
        ("leaves:x", "leaves cannot be imported: SystemExit: 3"),
    ],
)
def test_a_handler_that_cannot_be_had_is_told_in_one_line(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "broken.py").write_text("oops\n")
    (tmp_path / "wrong.py").write_text("from gws_gevent import ServerOptions\nServerOptions(parallel=-1)\n")
    (tmp_path / "syntax.py").write_text("def\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    assert_one_line(run_serve("--bind", ANY_PORT, "--handler", name, cwd=tmp_path), said)


def test_an_option_that_the_handler_cannot_have_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def echo(conn):\n    for message in conn:\n        conn.send(message)\n")
    finished = run_serve("--bind", ANY_PORT, "--handler", "app:echo", "--option", "park_after=2", cwd=tmp_path)
    assert_one_line(finished, "--option park_after: needs an EventHandler; ")


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


class Files:
    """Certificate files of one authority."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.authority = authority
        self.cert, self.key, self.ca = (str(folder / name) for name in ("cert.pem", "key.pem", "ca.pem"))
        authority.cert_pem.write_to_path(self.ca)
        self.issue()

    def issue(self) -> None:
        made = self.authority.issue_cert("localhost", "127.0.0.1", key_type=trustme.KeyType.ECDSA)
        made.private_key_pem.write_to_path(self.key)
        for number, pem in enumerate(made.cert_chain_pems):
            pem.write_to_path(self.cert, append=number > 0)


@pytest.fixture
def tls_files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


def certificate_of(server: ServerProcess, ca: str) -> bytes:
    url = server.address.replace("tls:", "wss:") + "/echo"
    with connect(url, ssl_context=client_context(ca)) as conn:
        conn.send("secret")
        assert conn.receive(timeout=5) == "secret"
        certificate: bytes = conn.stream.info("tls").getpeercert(True)
        return certificate


def test_a_certificate_makes_a_bare_endpoint_tls_and_is_reloaded(tls_files: Files) -> None:
    args = [*SERVE, "--bind", ANY_PORT, "tcp://127.0.0.1:0", "--cert", tls_files.cert, "--key", tls_files.key]
    with run_server_process(args) as server:
        assert server.addresses[0].startswith("tls://127.0.0.1:")
        assert server.addresses[1].startswith("tcp://127.0.0.1:")
        first = certificate_of(server, tls_files.ca)
        tls_files.issue()
        assert certificate_of(server, tls_files.ca) == first
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "certificates reloaded" in server.output())
        second = certificate_of(server, tls_files.ca)
        assert second != first
        # A damaged file changes nothing and is told.
        Path(tls_files.cert).write_text("damaged")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "certificates were not reloaded: " in server.output())
        assert certificate_of(server, tls_files.ca) == second


def test_certificates_of_an_endpoint_are_reloaded_too(tls_files: Files) -> None:
    with run_server_process([*SERVE, "--bind", f"tls://{ANY_PORT}?cert={tls_files.cert}&key={tls_files.key}"]) as server:
        first = certificate_of(server, tls_files.ca)
        tls_files.issue()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "certificates reloaded" in server.output())
        assert certificate_of(server, tls_files.ca) != first


# Errors


def test_an_output_that_cannot_be_written_is_told_in_one_line() -> None:
    command = 'exec "$@" >/dev/full'
    finished = run_program(["sh", "-c", command, "sh", sys.executable, *SERVE, "--bind", ANY_PORT])
    assert finished == (1, "", "gws-gevent: stdout: No space left on device\n")


def test_a_busy_port_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_line(run_serve("--bind", f"127.0.0.1:{port}"), f"listen on tcp://127.0.0.1:{port}: Address already in use")


def test_the_default_endpoint_is_port_3001_of_this_machine() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 3001))
        except OSError:
            pass  # somebody else's: just as good
        else:
            taken.listen()
        assert_one_line(run_serve(), "listen on tcp://127.0.0.1:3001: Address already in use")


def test_a_file_that_is_no_certificate_is_told_in_one_line(tls_files: Files, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    bind = ["--bind", ANY_PORT]
    assert_one_line(run_serve(*bind, "--cert", missing), missing, "No such file or directory")
    assert_one_line(run_serve(*bind, "--cert", tls_files.cert), "no private key")
    assert_one_line(run_serve(*bind, "--cert", tls_files.key, "--key", tls_files.key), "no certificate")
    assert_one_line(run_serve(*bind, "--cert", tls_files.cert, "--key", tls_files.key, "--client-ca", missing), missing)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--bind", "127.0.0.1"], "--bind '127.0.0.1': an endpoint is HOST:PORT, :PORT, SCHEME://HOST:PORT or unix:/path"),
        (["--bind", "127.0.0.1:99999"], "--bind '127.0.0.1:99999': a port is 0 to 65535, not '99999'"),
        (["--bind", "3001"], "--bind '3001': did you mean :3001?\n"),
        (["--bind", "*:3001"], "--bind '*:3001': all addresses are :3001\n"),
        (["--bind", "http://:3001"], "--bind 'http://:3001': an endpoint begins with tcp://, not http://\n"),
        (["--bind", "memory:x"], "--bind memory:x: memory stays inside of one process: it is for tests\n"),
        (["--bind", "tcp://:0?what=1"], "--bind 'tcp://:0?what=1': tcp has no parameter what"),
        (["--bind", "tls://:0?key=k.pem", "--cert", "c.pem"], "--bind 'tls://:0?key=k.pem': "),
        ([":3090"], "unrecognized arguments: :3090; did you mean --bind :3090? (see gws-gevent serve --help)\n"),
        (["3090"], "unrecognized arguments: 3090; did you mean --bind :3090? (see gws-gevent serve --help)\n"),
        (["--port", "3090"], "unrecognized arguments: --port 3090; an address is --bind HOST:PORT (see gws-gevent serve --help)\n"),
        (["--host=::1"], "unrecognized arguments: --host=::1; an address is --bind HOST:PORT (see gws-gevent serve --help)\n"),
        (["app:echo"], "unrecognized arguments: app:echo (see gws-gevent serve --help)\n"),
        (["--bind", "::1:3001"], "an IPv6 address stands in brackets"),
        (["--bind", "ftp://:0"], "--bind ftp://:0: no transport serves 'ftp'; known are h3, kcp, quic, tcp, tls, unix\n"),
        (["--bind", "unix:/no/such/folder/x.sock"], "No such file or directory"),
        (["--bind", "tls://127.0.0.1:0"], "--bind tls://127.0.0.1:0: needs --cert"),
        (["--bind", "unix:/run/x.sock", "--cert", "c.pem"], "--cert: no endpoint uses TLS"),
        (["--key", "k.pem"], "--key: needs --cert"),
        (["--client-ca", "c.pem"], "--client-ca: needs --cert"),
        (["--backlog", "0"], "argument --backlog: '0' is not a whole number from 1 on (see gws-gevent serve --help)\n"),
        (["--backlog", "x"], "argument --backlog: 'x' is not"),
        (["--stop-timeout", "0"], "argument --stop-timeout: '0' is not a positive number of seconds"),
        (["--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
        (["--option", "nothing=1"], "--option nothing: there is no such option"),
        (["--option", "parallel=x"], "--option parallel: must be a whole number"),
        (["--nonsense"], "unrecognized arguments: --nonsense (see gws-gevent serve --help)\n"),
        (["--bind"], "argument --bind: expected at least one argument"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(args: list[str], said: str) -> None:
    assert_one_line(run_serve(*args), said)


def test_a_command_is_needed() -> None:
    assert_one_line(run_program([sys.executable, "-m", "gws_gevent"]), "COMMAND")
    assert_one_line(run_program([sys.executable, "-m", "gws_gevent", "dance"]), "invalid choice: 'dance'")


def test_help_and_version_are_answers_not_errors() -> None:
    for args in (["--help"], ["serve", "--help"], ["connect", "--help"]):
        finished = run_program([sys.executable, "-m", "gws_gevent", *args])
        assert (finished.status, finished.errors) == (0, "")
        assert finished.output.startswith("usage: gws-gevent")
    assert run_program([sys.executable, "-m", "gws_gevent", "--version"]) == (0, f"gws-gevent {__version__}\n", "")


def test_serve_help_names_every_argument_and_option() -> None:
    text = run_serve("--help").output
    for name in ("--bind", "--handler", "--cert", "--key", "--client-ca", "--option", "--log-level", "--backlog"):
        assert name in text
    for name in ("tcp://", "tls://", "unix:", "quic://", "h3://", "kcp://"):
        assert f"\n  {name}" in text
    assert "\n  read_max_payload_size   16MiB     of one message; a larger one ends its connection (1009)\n" in text
