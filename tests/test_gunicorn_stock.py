"""gunicorn's own gevent workers: what they do to WebSockets (the pain that our worker ends), and `Upgrader` under them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gws_gevent import CloseCode, HandshakeRefused, connect
from tests.gunicorn_process import run_gunicorn
from tests.raw import RawClient, frame
from tests.support import ROOT, require_module, wait_until
from tests.test_wsgi_corpus import CLIENTS_FAULT, CORPUS, answers, get

pytestmark = pytest.mark.slow

FLASK_SOCK = """
from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
sock = Sock(app)


@sock.route("/ws")
def echo(ws):
    while True:
        ws.send(ws.receive())
"""

GEVENT_WEBSOCKET = """
def app(environ, start_response):
    ws = environ["wsgi.websocket"]
    while (message := ws.receive()) is not None:
        ws.send(message)
    return []
"""


@pytest.mark.parametrize(
    ("worker", "app", "library"),
    [
        ("gevent", FLASK_SOCK, "flask_sock"),
        ("geventwebsocket.gunicorn.workers.GeventWebSocketWorker", GEVENT_WEBSOCKET, "geventwebsocket"),
    ],
    ids=["flask-sock", "gevent-websocket"],
)
def test_a_stopping_worker_tells_nobody(worker: str, app: str, library: str, tmp_path: Path) -> None:
    """gunicorn#1236, #3227: graceful_timeout passes, and the connection is cut without a close frame."""
    require_module(library)
    with run_gunicorn(tmp_path, app, "--graceful-timeout", "1", worker=worker) as server:
        with connect(server.url("/ws")) as conn:
            conn.send("hello")
            assert conn.receive(timeout=10) == "hello"
            server.process.send_signal(signal.SIGTERM)
            for _ in conn:
                pass
            assert conn.close_info is not None
            assert conn.close_info.received is None
        server.wait()


# Plain HTTP is the same under gunicorn's pywsgi worker and under ours

CORPUS_APP = """
import sys
sys.path.insert(0, {root!r})
from tests.test_wsgi_corpus import app
"""
#: Under its own worker, what gunicorn calls the proxy is not looked at.
FORWARDED = {"two proxies": get(more=b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n")}


def test_plain_http_gets_the_answers_of_gunicorns_own_worker(tmp_path: Path) -> None:
    app = CORPUS_APP.format(root=str(ROOT))
    for name in ("stock", "ours"):
        (tmp_path / name).mkdir()
    with (
        run_gunicorn(tmp_path / "stock", app, "--keep-alive", "75", worker="gevent_pywsgi") as stock,
        run_gunicorn(tmp_path / "ours", app, "--keep-alive", "75") as ours,
    ):
        differing = {}
        for name, request in (CORPUS | FORWARDED).items():
            expected, found = answers(stock.port, request), answers(ours.port, request)
            if expected != found and name not in CLIENTS_FAULT:
                differing[name] = (expected, found)
        assert not differing


# Our Upgrader under gunicorn's own workers

UPGRADER = """
from gws_gevent import EventHandler, Upgrader


class Echo(EventHandler):
    def on_message(self, conn, message):
        conn.write_message(message.opcode, message.data)


upgrader = Upgrader(Echo())


def app(environ, start_response):
    if environ["PATH_INFO"] == "/ws":
        return upgrader.upgrade(environ, start_response)
    if environ["PATH_INFO"] == "/accept":
        with upgrader.accept(environ, start_response) as conn:
            for message in conn:
                conn.send(message)
        # Nobody hears it any more, but these servers want an answer of every app.
        start_response("101 Switching Protocols", [("Content-Length", "0")])
        return []
    start_response("200 OK", [("Content-Length", "4")])
    return [b"page"]
"""


@pytest.mark.parametrize("worker", ["gevent", "gevent_pywsgi"])
def test_upgrader_under_gunicorns_own_workers(worker: str, tmp_path: Path) -> None:
    with run_gunicorn(tmp_path, UPGRADER, "--graceful-timeout", "1", worker=worker) as server:
        for target in ("/ws", "/accept"):
            with connect(server.url(target)) as conn:
                for data in ("hi", b"x" * 300_000):
                    conn.send(data)
                    assert conn.receive(timeout=10) == data
            assert conn.close_info is not None
            assert conn.close_info.clean
        with pytest.raises(HandshakeRefused) as refused:
            connect(server.url("/page"))
        assert refused.value.status == 200
        assert "Traceback" not in server.output()


# flask-sock under our worker


def test_flask_sock_under_our_worker(tmp_path: Path) -> None:
    """Under gunicorn's own workers it hangs or is reset at its end; here there is a clean end of the stream."""
    require_module("flask_sock")
    with run_gunicorn(tmp_path, FLASK_SOCK, "--access-logfile", "-") as server:
        with RawClient(server.port) as client:
            assert client.upgrade(path="/ws").status == 101
            client.send(frame(1, b"hello"))
            assert client.read_frame().payload == b"hello"
            client.send(frame(8, b"\x03\xe8"))
            assert client.read_frame().opcode == 8
            client.read_end()
        wait_until(lambda: server.output().count('"GET /ws HTTP/1.1" 101') == 2, what="both lines in the access log")
        assert "Traceback" not in server.output()


def test_when_our_worker_stops_flask_sock_ends_with_1001(tmp_path: Path) -> None:
    require_module("flask_sock")
    with run_gunicorn(tmp_path, FLASK_SOCK, "--graceful-timeout", "20") as server:
        with connect(server.url("/ws")) as conn:
            conn.send("hello")
            assert conn.receive(timeout=10) == "hello"
            server.process.send_signal(signal.SIGTERM)
            for _ in conn:
                pass
            assert conn.close_info is not None
            assert conn.close_info.clean
            assert conn.close_info.code == CloseCode.GOING_AWAY
        assert server.wait(10) == 0
        assert "Traceback" not in server.output()
        assert "graceful timeout" not in server.output()
