"""Our worker under the real gunicorn: the WSGI app and WebSocket on the same sockets, and every way to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
import trustme

from gws_gevent import (
    ClientOptions,
    CloseCode,
    Connection,
    EventHandler,
    GwsError,
    HandshakeRefused,
    Message,
    PermessageDeflate,
    Reconnect,
    connect,
)
from gws_gevent.transports.tls_contexts import client_context
from tests.gunicorn_process import Gunicorn, run_gunicorn
from tests.support import require_module, wait_until

pytestmark = pytest.mark.slow

APP = """
import json
import os
import time

from gws_gevent import EventHandler, Upgrader


class Echo(EventHandler):
    def on_message(self, conn, message):
        if message.data == "pid":
            conn.send(str(os.getpid()))
        elif message.data == "address":
            conn.send(str(conn.remote_address))
        else:
            conn.write_message(message.opcode, message.data)


def function(conn):
    for message in conn:
        conn.send("function: " + message)


upgrader = Upgrader(Echo())


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/ws":
        return upgrader.upgrade(environ, start_response)
    if path == "/accept":
        with upgrader.accept(environ, start_response) as conn:
            for message in conn:
                conn.send("accept: " + message)
        return []
    if path == "/fails":
        raise RuntimeError("a mistake of the app's")
    if path == "/slow":
        time.sleep(float(environ["QUERY_STRING"]))
    shown = {key: value for key, value in environ.items() if isinstance(value, (str, bool))}
    shown["pid"] = os.getpid()
    body = json.dumps(shown).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""


#: Worker classes of the user's.
WORKERS = """
from gws_gevent import PermessageDeflate, ServerOptions
from gws_gevent.integrations.gunicorn import GwsWorker


class Ours(GwsWorker):
    handler = "app:Echo"
    options = ServerOptions(subprotocols=["chat"], origins=["http://here"], permessage_deflate=PermessageDeflate())


class Routes(GwsWorker):
    @staticmethod
    def on_request(request):
        from app import function
        return function if request.path == "/direct" else None
"""


def get(server: Gunicorn, target: str = "/", headers: dict[str, str] | None = None) -> dict[str, Any]:
    """The environ that the app saw."""
    conn = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        conn.request("GET", target, headers=headers or {})
        answer = conn.getresponse()
        assert answer.status == 200
        found: dict[str, Any] = json.load(answer)
        return found
    finally:
        conn.close()


def ask(conn: Connection, data: str) -> str:
    conn.send(data)
    return str(conn.receive(timeout=10))


def told_at_the_end(conn: Connection) -> int:
    """Read to the end; the code of the close frame that came, which must be a clean end."""
    for _ in conn:
        pass
    assert conn.close_info is not None
    assert conn.close_info.clean, conn.close_info
    return conn.close_info.code


def test_the_app_and_websocket_on_one_port(tmp_path: Path) -> None:
    with run_gunicorn(tmp_path, APP) as server:
        seen = get(server, "/page?q")
        assert seen["SERVER_SOFTWARE"].startswith("gevent/")
        assert "gunicorn/" in seen["SERVER_SOFTWARE"]
        assert (seen["RAW_URI"], seen["REMOTE_ADDR"], seen["wsgi.multithread"]) == ("/page?q", "127.0.0.1", True)
        for target, answer in (("/ws", "hi"), ("/accept", "accept: hi")):
            with connect(server.url(target)) as conn:
                assert ask(conn, "hi") == answer
        with pytest.raises(HandshakeRefused) as refused:
            connect(server.url("/page"))
        assert refused.value.status == 200
        # Patched, as under gunicorn's own gevent workers: others are served meanwhile.
        slow = gevent.spawn(gevent.get_hub().threadpool.apply, get, (server, "/slow?0.5"))
        began = time.monotonic()
        gevent.get_hub().threadpool.apply(get, (server,))
        assert time.monotonic() - began < 0.4
        slow.get()


@pytest.mark.parametrize("how", ["environment", "class", "on_request"])
def test_a_handler_without_code_in_the_app(how: str, tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    worker, env = {
        "environment": ("gws_gevent.integrations.gunicorn.GwsWorker", {"GWS_GEVENT_HANDLER": "app:function"}),
        "class": ("workers.Ours", {}),
        "on_request": ("workers.Routes", {}),
    }[how]
    with run_gunicorn(tmp_path, APP, worker=worker, env=env) as server:
        with connect(server.url("/direct"), options=ClientOptions(headers={"Origin": "http://here"})) as conn:
            assert ask(conn, "hi") == ("hi" if how == "class" else "function: hi")
        assert get(server)["PATH_INFO"] == "/"
        if how == "on_request":
            with connect(server.url("/ws")) as conn:
                assert ask(conn, "hi") == "hi"


@pytest.mark.parametrize("name", ["no_such_module:Chat", "json:NoSuchName", "a module:Chat"])
def test_a_handler_that_cannot_be_imported_is_told_with_its_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gws_gevent.integrations.gunicorn import GwsWorker

    monkeypatch.setenv("GWS_GEVENT_HANDLER", name)
    worker = object.__new__(GwsWorker)
    with pytest.raises(GwsError, match=f"^GWS_GEVENT_HANDLER {name}: cannot be imported: "):
        worker._find_handler()
    monkeypatch.setattr(GwsWorker, "handler", name)
    with pytest.raises(GwsError, match=f"^handler {name}: cannot be imported: "):
        worker._find_handler()


def test_a_wrong_handler_ends_gunicorn_and_not_worker_after_worker(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    worker = "gws_gevent.integrations.gunicorn.GwsWorker"
    command = [sys.executable, "-m", "gunicorn", "-k", worker, "-b", "unix:app.sock", "app:app"]
    environ = {**os.environ, "GWS_GEVENT_HANDLER": "app:nobody", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "GWS_GEVENT_HANDLER app:nobody: cannot be imported: " in done.stderr
    assert "Worker failed to boot" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_when_it_stops_every_websocket_is_told(how: signal.Signals, tmp_path: Path) -> None:
    conf = "def worker_int(worker):\n    worker.log.info('hook: worker_int')\n\n\n"
    conf += "def worker_exit(server, worker):\n    worker.log.info('hook: worker_exit')\n"
    (tmp_path / "workers.py").write_text(WORKERS)
    with run_gunicorn(tmp_path, APP, "--graceful-timeout", "10", conf=conf, worker="workers.Routes") as server:
        direct, hijacked, accepted = (connect(server.url(target)) for target in ("/direct", "/ws", "/accept"))
        assert (ask(direct, "a"), ask(hijacked, "b"), ask(accepted, "c")) == ("function: a", "b", "accept: c")
        began = time.monotonic()
        server.process.send_signal(how)
        for conn in (direct, hijacked, accepted):
            assert told_at_the_end(conn) == CloseCode.GOING_AWAY
        assert server.wait() == 0
        assert time.monotonic() - began < 5
        assert ("hook: worker_int" in server.output()) is (how is not signal.SIGTERM)
        assert "hook: worker_exit" in server.output()
        assert "graceful timeout" not in server.output()


# Reload


class Back(EventHandler):
    """Asks for the server's process id each time it is open, and remembers how it was closed.

    Attributes:
        pids: what was answered, in order.
        codes: of the closes, in order.
    """

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.codes: list[int] = []

    def on_open(self, conn: Connection) -> None:
        conn.send("pid")

    def on_message(self, conn: Connection, message: Message) -> None:
        self.pids.append(int(message.data))

    def on_close(self, conn: Connection, info: Any) -> None:
        self.codes.append(info.code)


def test_a_thousand_move_to_the_new_worker_on_a_reload(tmp_path: Path) -> None:
    count = 1000
    with run_gunicorn(tmp_path, APP, "--worker-connections", "2000", "--backlog", "2048") as server:
        (old,) = server.workers()
        handlers = [Back() for _ in range(count)]
        clients = [Reconnect(server.url("/ws"), handler) for handler in handlers]
        try:
            for client in clients:
                client.start()
            wait_until(lambda: all(handler.pids for handler in handlers), 30, "the first connections")
            server.reload()
            wait_until(lambda: all(handler.codes for handler in handlers), 30, "the close frames")
            wait_until(lambda: all(len(handler.pids) == 2 for handler in handlers), 60, "the second connections")
            (new,) = server.workers()
            assert {tuple(handler.codes) for handler in handlers} == {(CloseCode.GOING_AWAY,)}
            assert {tuple(handler.pids) for handler in handlers} == {(old, new)}
        finally:
            gevent.joinall([gevent.spawn(client.stop) for client in clients], raise_error=True)


def test_what_is_stuck_is_ended_at_the_graceful_timeout(tmp_path: Path) -> None:
    """One request that never ends beside a WebSocket, and one that ends in time: each as it deserves."""
    with run_gunicorn(tmp_path, APP, "--graceful-timeout", "2") as server:
        with gevent.socket.create_connection(("127.0.0.1", server.port), timeout=20) as stuck:
            with gevent.socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
                for sock, seconds in ((stuck, 60), (slow, 1.0)):
                    sock.sendall(f"GET /slow?{seconds} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                with connect(server.url("/ws")) as conn:
                    ask(conn, "hi")
                    began = time.monotonic()
                    os.kill(server.workers()[0], signal.SIGTERM)  # as at a reload: the arbiter does not kill it
                    assert told_at_the_end(conn) == CloseCode.GOING_AWAY
                    assert time.monotonic() - began < 1
                assert slow.recv(100).startswith(b"HTTP/1.1 200 OK")
                try:
                    assert stuck.recv(100) == b""
                except ConnectionResetError:
                    pass
                assert 1.5 < time.monotonic() - began < 5
        wait_until(lambda: "Worker graceful timeout" in server.output(), what="the warning")


# The access log

FORMAT = '%(h)s "%(r)s" %(s)s %(b)s "%({x-one}i)s" "%(a)s" L=%(L)s in=%({gws_gevent.received}e)s'


def logged(server: Gunicorn, count: int) -> list[str]:
    """Lines of the access log, once there are so many."""

    def lines() -> list[str]:
        return [line for line in server.output().splitlines() if line.startswith('127.0.0.1 "')]

    wait_until(lambda: len(lines()) >= count, what=f"{count} lines in the access log")
    return lines()


def test_the_access_log(tmp_path: Path) -> None:
    with run_gunicorn(tmp_path, APP, "--access-logfile", "-", "--access-logformat", FORMAT) as server:
        get(server, "/page?q", {"X-One": "1", "User-Agent": "test"})
        (page,) = logged(server, 1)
        assert re.fullmatch(r'127\.0\.0\.1 "GET /page\?q HTTP/1\.1" 200 \d+ "1" "test" L=0\.\d{6} in=-', page)
        for number, (target, sent) in enumerate((("/ws", 2 + 5), ("/accept", 2 + 13))):
            with connect(server.url(target)) as conn:
                conn.send("hello")
                conn.receive(timeout=5)
                lines = logged(server, 2 + 2 * number)
                assert lines[-1].startswith(f'127.0.0.1 "GET {target} HTTP/1.1" 101 - "-" "')
                gevent.sleep(0.3)
                conn.close(4000, "enough")
            # Frames without what came before them: the message masked and unmasked, and the two close frames.
            lines = logged(server, 3 + 2 * number)
            closed = re.fullmatch(rf'127\.0\.0\.1 "GET {target} HTTP/1\.1" 4000 (\d+) "-" ".*" L=(\d+\.\d+) in=(\d+)', lines[-1])
            assert closed is not None, lines
            assert int(closed[1]) == sent + 4
            assert float(closed[2]) >= 0.3
            assert int(closed[3]) == (2 + 4 + 5) + (2 + 4 + 2 + 6)
        raw = gevent.socket.create_connection(("127.0.0.1", server.port), timeout=5)
        raw.sendall(b"nonsense\r\n\r\n")
        raw.close()
        assert '"nonsense' in logged(server, 6)[-1]


def test_what_is_refused_compressed_or_fails_in_the_logs(tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    args = ("--access-logfile", "-", "--access-logformat", FORMAT)
    with run_gunicorn(tmp_path, APP, *args, worker="workers.Ours") as server:
        with pytest.raises(HandshakeRefused) as refused:
            connect(server.url("/ws?q"), options=ClientOptions(headers={"Origin": "http://elsewhere", "X-One": "1"}))
        (line,) = logged(server, 1)
        found = re.fullmatch(r'127\.0\.0\.1 "GET /ws\?q HTTP/1\.1" 403 (\d+) "1" ".*" L=0\.\d{6} in=-', line)
        assert found is not None, line
        assert int(found[1]) > len(refused.value.body) > 0
        too_long = b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n"
        answers = {b"431": too_long, b"400": b"nonsense\r\n\r\n"}
        for number, (status, request) in enumerate(answers.items()):
            with gevent.socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
                raw.sendall(request)
                answer = b""
                while piece := raw.recv(1000):
                    answer += piece
            assert answer.split()[1] == status
            assert f'" {status.decode()} {len(answer)} "-"' in logged(server, 2 + number)[-1]
        options = ClientOptions(headers={"Origin": "http://here"}, permessage_deflate=PermessageDeflate())
        with connect(server.url("/ws"), options=options) as conn:
            assert ask(conn, "a" * 100_000) == "a" * 100_000
        sent, received = re.findall(r"1000 (\d+) .* in=(\d+)", logged(server, 5)[-1])[0]
        assert 50 < int(sent) < int(received) < 2000
        with pytest.raises(AssertionError):
            get(server, "/fails")
        assert '"GET /fails HTTP/1.1" 500 ' in logged(server, 6)[-1]
        said = server.output()
        assert re.search(r"\[ERROR\] Error handling request /fails\nTraceback ", said)
        assert said.count("RuntimeError: a mistake of the app's") == 1


def test_without_an_access_log_nothing_is_kept(tmp_path: Path) -> None:
    with run_gunicorn(tmp_path, APP) as server:
        with connect(server.url("/ws")) as conn:
            ask(conn, "hi")
        assert '"GET /ws' not in server.output()


# gunicorn's settings


def test_max_requests_counts_requests_and_upgrades(tmp_path: Path) -> None:
    with run_gunicorn(tmp_path, APP, "--max-requests", "3") as server:
        (old,) = server.workers()
        with connect(server.url("/ws")) as conn:
            assert ask(conn, "pid") == str(old)
            assert [get(server)["pid"] for _ in range(2)] == [old, old]
            assert told_at_the_end(conn) == CloseCode.GOING_AWAY
        wait_until(lambda: server.workers() not in ([], [old]), 20, "a new worker")
        assert get(server)["pid"] != old
        assert "Autorestarting worker after current request." in server.output()


@pytest.mark.parametrize("seconds", [0, 1])
def test_keepalive(seconds: int, tmp_path: Path) -> None:
    with run_gunicorn(tmp_path, APP, "--keep-alive", str(seconds)) as server:
        with gevent.socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock, sock.makefile("rb") as file:
            for _ in range(2 if seconds else 1):
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                head = list(iter(file.readline, b"\r\n"))
                assert head[0] == b"HTTP/1.1 200 OK\r\n"
                length = next(int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length:"))
                file.read(length)
            began = time.monotonic()
            assert file.read() == b""
            assert seconds - 0.3 < time.monotonic() - began < seconds + 2


def test_above_worker_connections_others_wait(tmp_path: Path) -> None:
    with run_gunicorn(tmp_path, APP, "--worker-connections", "3") as server:
        conns = [connect(server.url("/ws")) for _ in range(3)]
        assert [ask(conn, "hi") for conn in conns] == ["hi"] * 3
        waiting = gevent.spawn(connect, server.url("/ws"))
        gevent.sleep(0.3)
        assert not waiting.ready()
        conns.pop().close()
        conns.append(waiting.get(timeout=5))
        assert ask(conns[-1], "hi") == "hi"
        for conn in conns:
            conn.close()


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "gunicorn.sock"
    with run_gunicorn(tmp_path, APP, bind=f"unix:{path}") as server:
        with connect(server.url("/ws")) as conn:
            assert ask(conn, "hi") == "hi"
            server.reload()
            assert told_at_the_end(conn) == CloseCode.GOING_AWAY
        # The file is the arbiter's: the worker that has gone did not take it along.
        with connect(server.url("/ws")) as conn:
            assert ask(conn, "pid") == str(server.workers()[0])
        with gevent.socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["REMOTE_ADDR"] == ""
    assert not path.exists()


def test_tls_by_gunicorns_settings(tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    conf = """
def ssl_context(config, default):
    context = default()
    context.set_alpn_protocols(["http/1.1"])
    return context
"""
    with run_gunicorn(tmp_path, APP, "--certfile", "cert.pem", "--keyfile", "key.pem", conf=conf) as server:
        assert server.addresses[0].startswith("https:")
        with connect(server.url("/ws"), ssl_context=client_context(str(tmp_path / "ca.pem"))) as conn:
            assert ask(conn, "hi") == "hi"
            assert conn.stream.info("tls").selected_alpn_protocol() in ("http/1.1", None)
            server.process.send_signal(signal.SIGTERM)
            assert told_at_the_end(conn) == CloseCode.GOING_AWAY
        assert server.wait() == 0


def test_several_workers_and_sockets(tmp_path: Path) -> None:
    path = tmp_path / "gunicorn.sock"
    with run_gunicorn(tmp_path, APP, "--workers", "3", "--bind", f"unix:{path}") as server:
        wait_until(lambda: len(server.workers()) == 3, 20, "three workers")
        conns: list[Connection] = []
        pids: set[str] = set()

        def another() -> bool:
            # A worker that has just been started takes its time until it accepts.
            conns.append(connect(server.url("/ws", len(conns) % 2)))
            pids.add(ask(conns[-1], "pid"))
            return len(pids) > 1 and len(conns) >= 20

        wait_until(another, 20, "a second worker to accept")
        assert get(server)["wsgi.multiprocess"] is True
        server.process.send_signal(signal.SIGTERM)
        assert {told_at_the_end(conn) for conn in conns} == {CloseCode.GOING_AWAY}
        assert server.wait() == 0


def test_hooks_around_requests(tmp_path: Path) -> None:
    conf = """
def note(worker, *words):
    worker.log.info("hook: %s", " ".join(map(str, words)))

def post_fork(server, worker):
    note(worker, "post_fork")

def post_worker_init(worker):
    note(worker, "post_worker_init")

def pre_request(worker, req):
    note(worker, "pre_request", req.method, req.path, req.query, req.uri, req.version, dict(req.headers)["HOST"])

def post_request(worker, req, environ, resp):
    kind = dict(resp.headers).get("Content-Type")
    note(worker, "post_request", req.path, environ["PATH_INFO"], resp.status, resp.status_code, kind)
"""
    with run_gunicorn(tmp_path, APP, conf=conf) as server:
        get(server, "/page?q")
        with connect(server.url("/ws")) as conn:
            ask(conn, "hi")
        hooks = re.findall(r"hook: (.*)", server.output())
    assert hooks == [
        "post_fork",
        "post_worker_init",
        f"pre_request GET /page q /page?q (1, 1) 127.0.0.1:{server.port}",
        "post_request /page /page 200 OK 200 application/json",
        f"pre_request GET /ws  /ws (1, 1) 127.0.0.1:{server.port}",
        "post_request /ws /ws 101 Switching Protocols 101 None",
    ]


def test_a_worker_that_hangs_is_aborted(tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text("from gevent.monkey import get_original\nhang = get_original('time', 'sleep')\n")
    app = APP.replace("time.sleep(", "__import__('hang').hang(")
    conf = "def worker_abort(worker):\n    worker.log.info('hook: worker_abort')\n"
    with run_gunicorn(tmp_path, app, "--timeout", "1", conf=conf) as server:
        (old,) = server.workers()
        # A quiet worker gives signs of life.
        gevent.sleep(2.5)
        assert server.workers() == [old]
        with gevent.socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(b"GET /slow?30 HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: server.workers() not in ([], [old]), 20, "another worker")
        assert "hook: worker_abort" in server.output()
        with connect(server.url("/ws")) as conn:
            assert ask(conn, "hi") == "hi"


def test_without_its_arbiter_a_worker_says_goodbye(tmp_path: Path) -> None:
    with run_gunicorn(tmp_path, APP, status=None) as server:
        with connect(server.url("/ws")) as conn:
            ask(conn, "hi")
            server.process.kill()
            assert told_at_the_end(conn) == CloseCode.GOING_AWAY
        wait_until(lambda: server.workers() == [], 10, "the worker's end")


def test_who_is_trusted_to_tell_the_client(tmp_path: Path) -> None:
    headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    client, proxy = "192.0.2.7", "127.0.0.1"
    for allowed, address, scheme in (("127.0.0.1", client, "https"), ("*", client, "https"), ("192.0.2.1", proxy, "http")):
        with run_gunicorn(tmp_path, APP, "--forwarded-allow-ips", allowed) as server:
            with connect(server.url("/ws"), options=ClientOptions(headers=headers)) as conn:
                assert address in ask(conn, "address")
            seen = get(server, "/", headers)
            assert (seen["wsgi.url_scheme"], seen["REMOTE_ADDR"]) == (scheme, "127.0.0.1")


# Patching and --preload

PRELOADED = "from urllib3.util.ssl_ import create_urllib3_context\nimport threading\n\nLOCK = threading.Lock()\n" + APP


@pytest.mark.parametrize("patched", [False, True], ids=["too late", "in gunicorn.conf.py"])
def test_preload_says_what_was_imported_too_early(patched: bool, tmp_path: Path) -> None:
    """gunicorn#2796: the arbiter has imported the app when the worker patches."""
    require_module("urllib3")
    app = PRELOADED.replace('if path == "/slow":', 'if path == "/tls":\n        create_urllib3_context()\n    if path == "/slow":')
    conf = "from gevent import monkey\nmonkey.patch_all()\n" if patched else ""
    with run_gunicorn(tmp_path, app, "--preload", "--workers", "2", conf=conf) as server:
        wait_until(lambda: len(server.workers()) == 2, 20, "two workers")
        with connect(server.url("/ws")) as conn:
            assert ask(conn, "hi") == "hi"
            server.reload()
            assert told_at_the_end(conn) == CloseCode.GOING_AWAY
        output = server.output()
        assert ("imported before gevent patched:" in output) is not patched
        if patched:
            get(server, "/tls")
            assert "RecursionError" not in output
        else:
            assert "  app (LOCK): who waits for it blocks every greenlet" in output
            assert "  urllib3.util.ssl_ (SSLContext): TLS through it ends in a RecursionError" in output
            assert "first in gunicorn.conf.py" in output


def test_without_preload_nothing_is_too_early(tmp_path: Path) -> None:
    require_module("urllib3")
    with run_gunicorn(tmp_path, PRELOADED) as server:
        with connect(server.url("/ws")) as conn:
            assert ask(conn, "hi") == "hi"
        assert "imported before" not in server.output()
