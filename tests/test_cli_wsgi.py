"""`gws-gevent serve --wsgi`: an app beside a handler, patched or not, and an app that cannot be had."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import pytest

from gws_gevent import HandshakeRefused, connect
from gws_gevent.cli.errors import UsageError
from gws_gevent.cli.loading import load_app
from tests.support import ROOT, require_module, run_program, run_server_process

SERVE = ["-m", "gws_gevent", "serve", "--bind", "127.0.0.1:0"]

APP = """
import socket, threading
from flask import Flask, request
from gws_gevent import EventHandler, Upgrader

class Shout(EventHandler):
    def on_message(self, conn, message):
        conn.send(message.data.upper())

upgrader = Upgrader(Shout())
app = Flask("app")

@app.get("/")
def index():
    return f"{socket.socket.__module__} {request.url}"

@app.route("/ws", websocket=True)
def ws():
    return upgrader.upgrade(request.environ)

number = 7

async def asgi(scope, receive, send): ...

class Asgi:
    async def __call__(self, scope, receive, send): ...

modern = Asgi()

def one(environ): ...
"""


@pytest.mark.slow
@pytest.mark.parametrize("patch", [False, True], ids=["unpatched", "patched"])
def test_an_app_is_served_beside_a_handler(tmp_path: Path, patch: bool) -> None:
    require_module("flask")
    (tmp_path / "site1.py").write_text(APP)
    args = [*SERVE, "--wsgi", "site1:app", *(["--patch"] if patch else ["--handler", "site1:Shout"])]
    with run_server_process(args, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as server:
        url = server.address.replace("tcp:", "http:")
        with urllib.request.urlopen(f"{url}/?q", timeout=10) as answer:
            assert answer.read().decode() == f"{'gevent._socket3' if patch else 'socket'} {url}/?q"
        with connect(f"{url.replace('http:', 'ws:')}/ws") as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "HI"
        elsewhere = f"{url.replace('http:', 'ws:')}/nowhere"
        if patch:
            with pytest.raises(HandshakeRefused) as refused:
                connect(elsewhere)
            assert refused.value.status == 404
        else:
            connect(elsewhere).close()
        # The access log goes where all else that is logged goes.
        assert '"GET /?q HTTP/1.1" 200' in server.output()
        assert "Warning" not in server.output()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothere9:x", "nothere9 cannot be imported: ModuleNotFoundError: No module named 'nothere9'"),
        ("site2:missing", "site2 has no missing"),
        ("site2:number", "is not callable, and so no WSGI app: int"),
        ("site2:asgi", "is a coroutine function, as an ASGI app is, and no WSGI app"),
        ("site2:modern", "is a coroutine function, as an ASGI app is, and no WSGI app"),
        ("site2:one", "is to be called with two arguments, environ and start_response: too many positional arguments"),
        ("site2.py:app", "did you mean site2:app?"),
        ("site2", "must be MODULE:OBJECT"),
    ],
)
def test_an_app_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    (tmp_path / "site2.py").write_text(APP[APP.index("number") :])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    try:
        with pytest.raises(UsageError) as told:
            load_app(name)
    finally:
        sys.modules.pop("site2", None)
    assert str(told.value) == f"--wsgi {name}: {said}"


@pytest.mark.slow
def test_it_is_told_in_one_line_with_status_2() -> None:
    finished = run_program([sys.executable, *SERVE, "--wsgi", "nothere9:app"])
    assert finished.status == 2
    assert finished.errors.startswith("gws-gevent: --wsgi nothere9:app: ")
    assert finished.errors.count("\n") == 1
