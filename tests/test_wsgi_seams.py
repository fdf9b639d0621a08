"""The Upgrader behind middleware, on every kind of stream, and under servers that know nothing of us."""

from __future__ import annotations

import gzip
import io
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import gevent.ssl
import pytest
import trustme
from gevent.pywsgi import WSGIServer

from gws_gevent import (
    ClientOptions,
    Connection,
    GwsError,
    HandshakeRefused,
    Refusal,
    Server,
    ServerOptions,
    TlsFiles,
    Upgrader,
    WsgiSettings,
    connect,
)
from gws_gevent.integrations.pywsgi import WSGIHandler
from gws_gevent.transports.base import ListenSettings
from gws_gevent.transports.tls_contexts import client_context
from tests.pairs import EchoHandler, serving, url_of
from tests.support import ROOT, require_module, run_server_process, wait_until

QUIET = WsgiSettings(log=None, error_log=None)

#: A page that no buffer takes at once.
LARGE = bytes(range(256)) * 20_000

upgrader = Upgrader(EchoHandler())


def app(environ: dict[str, Any], start_response: Any) -> Any:
    """/ws upgrades, /view does so as a view without start_response, /block keeps its frame, and anything else is a page."""
    path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
    if path.endswith("/ws"):
        return upgrader.upgrade(environ, start_response)
    if path.endswith("/view"):
        return upgrader.upgrade(environ)(environ, start_response)
    if path.endswith("/lazy"):
        return lazy(environ, start_response)
    if path.endswith("/block"):
        with upgrader.accept(environ, start_response) as conn:
            for message in conn:
                conn.send(message)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"nobody reads this"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [LARGE if path == "/large" else b"a page"]


def lazy(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    yield from upgrader.upgrade(environ, start_response)


def talk(url: str, **more: Any) -> None:
    """Upgrade, and exchange messages of every size."""
    with connect(url, **more) as conn:
        for text in ("hi", "x" * 70_000, "y" * 3_000_000):
            conn.send(text)
            assert conn.receive(timeout=10) == text
    assert conn.close_info is not None
    assert conn.close_info.clean


PATHS = ("/ws", "/view", "/lazy", "/block")


class Gzip:
    """Compresses what it can: it has its own start_response, and an iterable that has to be closed."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.closed = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        begun: list[Any] = []
        answer = self.inner(environ, lambda *args: begun.append(args))
        body = b"".join(answer)
        if begun:
            status, headers = begun[-1][:2]
            packed = io.BytesIO()
            with gzip.GzipFile(fileobj=packed, mode="wb") as file:
                file.write(body)
            start_response(status, [*headers, ("Content-Encoding", "gzip")])
            body = packed.getvalue()
        return Closing(self, [body])


class Closing(list[bytes]):
    def __init__(self, owner: Gzip, body: list[bytes]) -> None:
        super().__init__(body)
        self._owner = owner

    def close(self) -> None:
        self._owner.closed += 1


def by_werkzeug(inner: Any) -> Any:
    middleware = require_module("werkzeug.middleware.dispatcher")
    fix = require_module("werkzeug.middleware.proxy_fix")
    return fix.ProxyFix(middleware.DispatcherMiddleware(inner, {"/sub": inner}))


@pytest.mark.parametrize(
    ("wrap", "prefix"), [(Gzip, ""), (by_werkzeug, "/sub"), (validator, "")], ids=["gzip", "werkzeug", "wsgiref.validate"]
)
def test_behind_middleware(wrap: Callable[[Any], Any], prefix: str, capfd: pytest.CaptureFixture[str]) -> None:
    wrapped = wrap(app)
    settings = WsgiSettings(log=None, error_log=sys.stderr)
    with serving(None, ServerOptions(), wsgi=wrapped, wsgi_settings=settings) as server:
        for path in PATHS:
            talk(url_of(server, prefix + path))
        with pytest.raises(HandshakeRefused) as refused:
            connect(url_of(server, "/page"))
        assert refused.value.status == 200
    if isinstance(wrapped, Gzip):
        assert wrapped.closed == len(PATHS) + 1
    assert capfd.readouterr().err == ""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, trustme.CA]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path), authority


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = client_context()
    authority.configure_trust(context)
    return context


def test_on_tls_and_unix_streams(certificates: tuple[str, trustme.CA], tmp_path: Path) -> None:
    path, authority = certificates
    settings = ListenSettings(tls=TlsFiles(path))
    seen: list[Any] = []

    def telling(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append([environ.get(key) for key in ("wsgi.url_scheme", "REMOTE_ADDR", "SERVER_NAME", "SERVER_PORT")])
        return app(environ, start_response)

    server = Server(EchoHandler(), wsgi=telling, wsgi_settings=QUIET, on_request=None)
    with server:
        server.start("tls://127.0.0.1:0", f"unix:{tmp_path / 'ws.sock'}", settings=settings)
        port = server.addresses[0].rpartition(":")[2]
        talk(url_of(server, "/direct"), ssl_context=trusting(authority))
        talk(url_of(server, "/direct", 1))
    assert seen == []
    with Server(wsgi=telling, wsgi_settings=QUIET) as server:
        server.start("tls://127.0.0.1:0", f"unix:{tmp_path / 'ws.sock'}", settings=settings)
        port = server.addresses[0].rpartition(":")[2]
        for path in PATHS:
            talk(url_of(server, path), ssl_context=trusting(authority))
            talk(url_of(server, path, 1))
        with gevent.socket.create_connection(("127.0.0.1", int(port)), timeout=10) as plain:
            context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            authority.configure_trust(context)
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
                for _ in range(2):
                    sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
                    found = b""
                    while not found.endswith(LARGE):
                        found += sock.recv(1_000_000)
                    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
        del seen[len(PATHS) * 2 :]
    assert [facts[0] for facts in seen] == ["https", "http"] * len(PATHS)
    assert seen[0][1:] == ["127.0.0.1", "localhost", port]
    assert seen[1][1:] == [None, "", ""]


@pytest.mark.parametrize("handler_class", [None, WSGIHandler], ids=["its own handler", "our handler"])
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_under_gevents_own_server(tls: bool, handler_class: Any, certificates: tuple[str, trustme.CA]) -> None:
    path, authority = certificates
    more = {}
    if tls:
        more["ssl_context"] = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        more["ssl_context"].load_cert_chain(path)
    server = WSGIServer(("127.0.0.1", 0), app, handler_class=handler_class, log=None, error_log=None, **more)
    server.start()
    url = f"{'wss' if tls else 'ws'}://127.0.0.1:{server.server_port}"
    for target in PATHS:
        talk(url + target, ssl_context=trusting(authority) if tls else None)
    wait_until(lambda: not upgrader.connections)
    server.stop(1)


def test_a_refusal_under_gevents_own_server() -> None:
    refusing = Upgrader(EchoHandler(), ServerOptions(origins=["https://here.example"]))
    raised: list[Refusal] = []

    def refuse(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/ws":
            return refusing.upgrade(environ, start_response)
        if environ["PATH_INFO"] == "/view":
            return refusing.upgrade(environ)(environ, start_response)
        try:
            refusing.accept(environ, start_response)
        except Refusal as refusal:
            raised.append(refusal)
        return []

    for handler_class in (None, WSGIHandler):
        server = WSGIServer(("127.0.0.1", 0), refuse, handler_class=handler_class, log=None, error_log=None)
        server.start()
        for path in ("/ws", "/view", "/block"):
            with pytest.raises(HandshakeRefused) as refused:
                options = ClientOptions(headers={"Origin": "https://elsewhere.example"})
                connect(f"ws://127.0.0.1:{server.server_port}{path}", options=options)
            assert refused.value.status == 403
            assert refused.value.body == b"This origin is not allowed.\n"
        server.stop(1)
    assert [refusal.status for refusal in raised] == [403, 403]


def test_a_server_that_nobody_knows_is_told() -> None:
    environ = {"REQUEST_METHOD": "GET", "wsgi.input": io.BytesIO(), "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_SOFTWARE": "x/1"}
    with pytest.raises(GwsError, match=r"cannot be found: its WSGI server \(x/1\) is none of those that are known"):
        upgrader.upgrade(environ)


def test_what_came_with_the_head_is_not_lost_under_gevents_own_server() -> None:
    got: list[Any] = []

    def once(conn: Connection) -> None:
        got.append(conn.receive(timeout=5))

    ahead = Upgrader(once)
    server = WSGIServer(("127.0.0.1", 0), ahead.upgrade, log=None, error_log=None)
    server.start()
    with gevent.socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as sock:
        head = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        sock.sendall(f"{head}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode() + b"\x81\x82\0\0\0\0hi")
        wait_until(lambda: got)
    server.stop(1)
    assert got == ["hi"]


SITE = """
import sys, tests.test_wsgi_seams
app = tests.test_wsgi_seams.app
"""

WERKZEUG = """
from werkzeug.serving import run_simple
from tests.test_wsgi_seams import app
run_simple("127.0.0.1", 0, app, threaded=True)
"""


WSGIREF = """
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server
from tests.test_wsgi_seams import app

class Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True

server = make_server("127.0.0.1", 0, app, server_class=Threads)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


@contextmanager
def foreign_server(kind: str, folder: Path) -> Iterator[str]:
    if kind in ("werkzeug", "wsgiref"):
        (folder / "site3.py").write_text(WERKZEUG if kind == "werkzeug" else WSGIREF)
        args, status = ["site3.py"], None
    else:
        (folder / "site3.py").write_text(SITE)
        control = ["--control-socket", str(folder / "control.sock")]
        args, status = ["-m", "gunicorn", "-k", kind, "-b", "127.0.0.1:0", *control, "site3:app"], 0
    with run_server_process(args, cwd=folder, env={"PYTHONPATH": str(ROOT)}, status=status) as process:
        yield process.address.replace("http:", "ws:")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gevent", "gevent_pywsgi", "werkzeug", "wsgiref"])
def test_under_other_servers(kind: str, tmp_path: Path) -> None:
    if kind != "wsgiref":
        require_module("werkzeug" if kind == "werkzeug" else "gunicorn")
    with foreign_server(kind, tmp_path) as url:
        for path in PATHS:
            talk(url + path)
        with connect(url + "/ws"):  # and says nothing
            talk(url + "/ws")
