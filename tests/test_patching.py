"""Monkey patching: every order works, and what was imported too early is named. Each test that patches has its own process."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import trustme

from gws_gevent import patching
from tests.support import ROOT, Finished, require_module, run_program, run_server_process

pytestmark = pytest.mark.slow

PATCH = "from gevent import monkey; monkey.patch_all()"
#: What stands before and after the import of this package.
ORDERS = {
    "unpatched": ("", ""),
    "before": (PATCH, ""),
    "after": ("", PATCH),
    "before, after ssl and threading": (f"import ssl, threading, selectors, subprocess, queue; {PATCH}", ""),
}
in_every_order = pytest.mark.parametrize("order", ORDERS)


def run_script(tmp_path: Path, script: str, order: str, *args: str) -> Finished:
    """Run a script whose lines BEFORE and AFTER become those of the order."""
    before, after = ORDERS[order]
    path = tmp_path / "program.py"
    path.write_text(script.replace("BEFORE", before).replace("AFTER", after))
    return run_program([sys.executable, "-W", "error", path.name, *args], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate with its key for 127.0.0.1, and its authority."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
    return str(folder / "cert.pem"), str(folder / "ca.pem")


SERVES = """
BEFORE
import gws_gevent.transports.tls, gws_gevent.transports.unix
from gws_gevent import ListenSettings, Server, TlsFiles, client_context, connect
AFTER
import socket, sys, threading
import gevent

cert, ca = sys.argv[1:]


def echo(conn):
    for message in conn:
        conn.send(message)


def talk(url):
    with connect(url, ssl_context=client_context(ca)) as conn:
        for data in ("text", b"x" * 300_000):
            conn.send(data)
            assert conn.receive(timeout=10) == data
    talked.append(url)


def plainly():
    # The socket module, as it is: in a greenlet where it is patched, in a thread of the system where it is not.
    with socket.create_connection(("127.0.0.1", int(tcp.rpartition(":")[2])), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n"
            b"Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\\r\\n\\r\\n")
        assert b" 101 " in sock.recv(1000)
        sock.sendall(bytes.fromhex("8182 00000000 6869"))
        assert sock.recv(100) == b"\\x81\\x02hi"
    talked.append("plainly")


server = Server(echo)
server.start("127.0.0.1:0", "tls://127.0.0.1:0", "unix:ws.sock", settings=ListenSettings(tls=TlsFiles(cert)))
tcp, tls, _ = server.addresses
urls = [tcp.replace("tcp", "ws"), tls.replace("tls", "wss"), "ws+unix:ws.sock"]
talked = []
gevent.joinall([gevent.spawn(talk, url) for url in urls], raise_error=True)
threads = [threading.Thread(target=talk, args=(url,)) for url in urls] + [threading.Thread(target=plainly)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    gevent.sleep(0.005)
assert sorted(talked) == sorted([*urls, *urls, "plainly"]), talked
server.stop()
print("done")
"""


@in_every_order
def test_server_client_and_threads(order: str, tmp_path: Path, certificates: tuple[str, str]) -> None:
    finished = run_script(tmp_path, SERVES, order, *certificates)
    assert finished == (0, "done\n", ""), finished


FLASK = """
BEFORE
import gws_gevent.http_front
from gws_gevent import Server, Upgrader, WsgiSettings, connect
AFTER
import queue, threading
from urllib.request import ProxyHandler, build_opener

import gevent
from flask import Flask, request

app = Flask("app")
lock, done, local = threading.Lock(), queue.Queue(), threading.local()


def echo(conn):
    for message in conn:
        with lock:  # held by one greenlet at a time, and nobody waits inside
            conn.send(f"{conn.session['name']}: {message}")
    done.put(conn.session["name"])


upgrader = Upgrader(echo)


@app.route("/page")
def page():
    local.name = request.args["name"]
    return f"page for {local.name}"


@app.route("/ws", websocket=True)
def ws():
    return upgrader.upgrade(request.environ, session={"name": request.args["name"]})


server = Server(wsgi=app, wsgi_settings=WsgiSettings(log=None))
server.start("127.0.0.1:0")
http = server.address.replace("tcp", "http")
pages = []


def look(name):
    # What the standard library has for HTTP: it blocks a thread of the system, or a greenlet.
    with build_opener(ProxyHandler({})).open(f"{http}/page?name={name}", timeout=10) as answer:
        pages.append(answer.read().decode())


def talk(name):
    with connect(f"{http.replace('http', 'ws')}/ws?name={name}") as conn:
        conn.send("hello")
        assert conn.receive(timeout=10) == f"{name}: hello"


threads = [threading.Thread(target=look, args=(name,)) for name in "abc"]
for thread in threads:
    thread.start()
gevent.joinall([gevent.spawn(talk, name) for name in "abc"], raise_error=True)
while any(thread.is_alive() for thread in threads):
    gevent.sleep(0.005)
assert sorted(pages) == ["page for a", "page for b", "page for c"], pages
while done.qsize() < 3:
    gevent.sleep(0.005)
server.stop()
print("done")
"""


@in_every_order
def test_a_flask_app_on_the_same_port(order: str, tmp_path: Path) -> None:
    require_module("flask")
    finished = run_script(tmp_path, FLASK, order)
    assert finished == (0, "done\n", ""), finished


def test_import_patches_nothing(tmp_path: Path) -> None:
    script = """
import gws_gevent, gws_gevent.cli, gws_gevent.patching, gws_gevent.watchdog
from gevent import monkey
assert not monkey.is_anything_patched()
print("done")
"""
    finished = run_script(tmp_path, script, "unpatched")
    assert finished == (0, "done\n", ""), finished


# What was imported too early

TOO_EARLY = """
import queue, ssl, socket, threading, time
from ssl import SSLContext
from time import sleep as pause
LOCK, RLOCK, LOCAL, EVENT, QUEUE = threading.Lock(), threading.RLock(), threading.local(), threading.Event(), queue.Queue()
CONTEXT = ssl.create_default_context()


class Registry:
    lock = threading.Lock()

    def __init__(self):
        self.changed = threading.Condition()


class Context(ssl.SSLContext):
    pass


registry = Registry()
thread, local = threading.Thread, threading.local
"""

FINDS = """
import early
import gws_gevent, gws_gevent.cli
from gws_gevent import patching
PATCHES
for one in patching.early_imports():
    if one.module == "early":
        print(one)
"""

SAID = """\
early (SSLContext, CONTEXT, class Context): TLS through it ends in a RecursionError or blocks every greenlet
early (pause, QUEUE): it blocks every greenlet while it waits
early (LOCK, RLOCK, EVENT._cond._lock, Registry.lock, registry.changed._lock): who waits for it blocks every greenlet, its holder \
as well
early (LOCAL, local): all greenlets share its values
"""


@pytest.mark.parametrize("patches", ["patching.patch_all()", ""], ids=["patched", "not yet patched"])
def test_what_was_imported_too_early_is_named(patches: str, tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(TOO_EARLY)
    finished = run_script(tmp_path, FINDS.replace("PATCHES", patches), "unpatched")
    assert finished.status == 0, finished
    assert finished.output == SAID
    if patches:
        # Nobody has set up logging, and the report is to be seen all the same. gevent's own warning, an error here, says less.
        assert finished.errors.startswith("imported before gevent patched:\n  early (SSLContext")
        assert "monkey.patch_all()` before every other import" in finished.errors


def test_nothing_is_said_of_what_came_after(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(TOO_EARLY)
    for library in ("flask", "requests", "flask_sock", "gunicorn.app.wsgiapp", "gunicorn.workers.ggevent"):
        require_module(library)
    script = """
from gevent import monkey; monkey.patch_all()
import early, flask, requests, flask_sock, logging, gunicorn.app.wsgiapp, gunicorn.workers.ggevent
import gws_gevent.cli
from gws_gevent import patching
assert patching.early_imports() == [], patching.early_imports()
assert not patching.report_early_imports()
"""
    finished = run_script(tmp_path, script, "unpatched")
    assert finished == (0, "", ""), finished


def test_modules_and_objects_of_every_kind_are_looked_at_and_not_woken(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text("raise SystemExit('a lazy module was loaded')")
    script = dedent(
        """
            import importlib.util, sys, threading

            class Stubborn:
                @property
                def __class__(self): raise RuntimeError("no class")
                @property
                def __dict__(self): raise RuntimeError("no dict")

            class WithoutHash(type):
                def __eq__(self, other): return False

            class Kind(metaclass=WithoutHash): pass
            class Child(Kind): pass

            stubborn, kind, LOCK = Stubborn(), Kind(), threading.Lock()
            spec = importlib.util.find_spec("lazy")
            spec.loader = importlib.util.LazyLoader(spec.loader)
            sys.modules["lazy"] = lazy = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(lazy)
            sys.modules.update(stubborn=stubborn, none=None)

            from gws_gevent.patching import early_imports
            print([found.names for found in early_imports() if found.module == "__main__"])
        """
    )
    finished = run_script(tmp_path, script, "unpatched")
    assert finished.output == "[('LOCK',)]\n", finished.errors


def test_the_recursion_that_others_leave_you_with(tmp_path: Path) -> None:
    """gevent#1016: what happens if urllib3 (requests) is imported first, and what is said of it."""
    require_module("urllib3")
    script = """
from urllib3.util.ssl_ import create_urllib3_context
from gws_gevent import patching
patching.patch_all()
try:
    create_urllib3_context()
except RecursionError:
    print("recursion")
"""
    finished = run_script(tmp_path, script, "unpatched")
    assert finished.status == 0, finished
    assert finished.output == "recursion\n"
    assert "urllib3.util.ssl_ (SSLContext): TLS through it ends in a RecursionError" in finished.errors


def test_patching_in_part_is_judged_by_that_part(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("from ssl import SSLContext\nfrom time import sleep\n")
    script = """
import early
from gws_gevent import patching
patching.patch_all(ssl=False)
"""
    finished = run_script(tmp_path, script, "unpatched")
    assert "early (sleep)" in finished.errors
    assert "SSLContext" not in finished.errors


@pytest.mark.parametrize("patch", [False, True], ids=["the app patches", "--patch"])
def test_serve_says_it_of_an_app(patch: bool, tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("import threading\nLOCK = threading.Lock()\n")
    (tmp_path / "late.py").write_text(f"import early\n{PATCH}\n\n\ndef app(environ, start_response):\n    pass\n")
    command = ["-m", "gws_gevent", "serve", "--bind", "127.0.0.1:0", "--wsgi", "late:app", *(["--patch"] if patch else [])]
    with run_server_process(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as server:
        assert ("WARNING gws_gevent: imported before gevent patched:\n  early (LOCK)" in server.output()) is not patch
        assert ("imported before" in server.output()) is not patch


def test_an_unpatched_process_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    assert not patching.report_early_imports(logging.getLogger("mine"))
    assert caplog.records == []
