"""gunicorn's own gevent workers: what they do to WebSockets (the pain that our worker ends), and `Upgrader` under them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gws_gevent import connect
from tests.gunicorn_process import run_gunicorn
from tests.support import require_module

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
