"""`gws-gevent serve --wsgi`: an app beside a handler, patched or not, and an app that cannot be had."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

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

def create_app(name="a", *, size=1):
    if name == "fails":
        raise KeyError("SECRET_KEY")
    app.made = name, size
    return app

def create_nothing(): ...
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


DJANGO = """
import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path
from gws_gevent import EventHandler, Upgrader

class Shout(EventHandler):
    def on_message(self, conn, message):
        conn.send(message.data.upper())

upgrader = Upgrader(Shout())

def ws(request):
    upgrader.upgrade(request.environ)
    return HttpResponse()

urlpatterns = [path("", lambda request: HttpResponse("a page")), path("ws", ws)]
middleware = ["django.middleware.gzip.GZipMiddleware", "django.middleware.common.CommonMiddleware"]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", MIDDLEWARE=middleware)
django.setup()
from django.core.wsgi import get_wsgi_application
app = get_wsgi_application()
"""

BOTTLE = """
from bottle import Bottle, request
from gws_gevent import EventHandler, Upgrader

class Shout(EventHandler):
    def on_message(self, conn, message):
        conn.send(message.data.upper())

upgrader = Upgrader(Shout())
app = Bottle()
app.route("/", callback=lambda: "a page")
app.route("/ws", callback=lambda: upgrader.upgrade(request.environ))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "source"), [("django", DJANGO), ("bottle", BOTTLE)])
def test_views_of_other_frameworks(tmp_path: Path, framework: str, source: str) -> None:
    require_module(framework)
    (tmp_path / "site4.py").write_text(source)
    with run_server_process([*SERVE, "--wsgi", "site4:app", "--patch"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as server:
        url = server.address.replace("tcp:", "http:")
        with urllib.request.urlopen(f"{url}/", timeout=10) as answer:
            assert answer.read() == b"a page"
        with connect(f"{url.replace('http:', 'ws:')}/ws") as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "HI"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/ws", timeout=10)
        assert refused.value.code == 426
        refused.value.close()
        assert "Traceback" not in server.output()


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
        (
            "site2:create_app",
            "is to be called with two arguments, environ and start_response (if it makes the app: site2:create_app()): "
            "too many positional arguments",
        ),
        ("site2:create_nothing()", "is not callable, and so no WSGI app: NoneType"),
        ("site2:missing()", "site2 has no missing"),
        ("site2:number()", "number cannot be called: int"),
        ("site2:create_app(x=2)", "create_app fails: TypeError: create_app() got an unexpected keyword argument 'x'"),
        ("site2:create_app(number)", "a factory is called as in app:create_app() or app:create_app('test', size=3)"),
        ("site2:create_app(**{})", "a factory is called as in app:create_app() or app:create_app('test', size=3)"),
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


@pytest.mark.parametrize(
    ("call", "made"),
    [("()", ("a", 1)), ("('b')", ("b", 1)), ("(size=2)", ("a", 2)), ("(name='c', size=[1, {}])", ("c", [1, {}]))],
)
def test_a_factory_makes_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, made: Any) -> None:
    (tmp_path / "site3.py").write_text("class App:\n    def __call__(self, environ, start_response): ...\n\napp = App()\n")
    with (tmp_path / "site3.py").open("a") as file:
        file.write(APP[APP.index("def create_app") :])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    try:
        app: Any = load_app(f"site3:create_app{call}")
        assert app.made == made
    finally:
        sys.modules.pop("site3", None)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["info", "debug"])
def test_what_fails_in_a_factory_is_told_in_one_line(tmp_path: Path, level: str) -> None:
    (tmp_path / "site4.py").write_text(APP[APP.index("def create_app") :])
    args = [sys.executable, *SERVE, "--log-level", level, "--wsgi", "site4:create_app('fails')"]
    finished = run_program(args, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert finished.status == 2
    *before, last = finished.errors.splitlines()
    place = f"({tmp_path}/site4.py, line 3; --log-level debug shows the traceback)"
    assert last == f"gws-gevent: --wsgi site4:create_app('fails'): create_app fails: KeyError: 'SECRET_KEY' {place}"
    assert ("Traceback (most recent call last):" in before) == (level == "debug")
    assert bool(before) == (level == "debug")


@pytest.mark.slow
def test_it_is_told_in_one_line_with_status_2() -> None:
    finished = run_program([sys.executable, *SERVE, "--wsgi", "nothere9:app"])
    assert finished.status == 2
    assert finished.errors.startswith("gws-gevent: --wsgi nothere9:app: ")
    assert finished.errors.count("\n") == 1
