"""Our worker under the real gunicorn: the WSGI app and WebSocket on the same sockets, and every way to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
import trustme
from gevent.event import Event

from gws_gevent import CloseCode, Connection, EventHandler, HandshakeRefused, Message, Reconnect, connect
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
from gws_gevent import ServerOptions
from gws_gevent.integrations.gunicorn import GwsWorker


class Ours(GwsWorker):
    handler = "app:Echo"
    options = ServerOptions(subprotocols=["chat"])


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
        with connect(server.url("/direct")) as conn:
            assert ask(conn, "hi") == ("hi" if how == "class" else "function: hi")
        assert get(server)["PATH_INFO"] == "/"
        if how == "on_request":
            with connect(server.url("/ws")) as conn:
                assert ask(conn, "hi") == "hi"


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
