"""gunicorn with the worker class of gevent-websocket, by whatever name it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.legacy.client import page, websocket
from tests.raw import frame
from tests.support import ROOT, ServerProcess, require_module, run_server_process

pytestmark = pytest.mark.slow

INSTALL = "from gws_gevent.integrations.geventwebsocket import install\ninstall()\n"
OURS = "gws_gevent.integrations.geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
OLD = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
APP = """
def app(environ, start_response):
    ws = environ.get("wsgi.websocket")
    if ws is None:
        start_response("200 OK", [])
        return [b"a page"]
    while True:
        message = ws.receive()
        if message is None:
            return []
        ws.send(message)
"""


@contextmanager
def gunicorn(folder: Path, worker: str, config: str = "", graceful: int = 5) -> Iterator[ServerProcess]:
    """The application under gunicorn, with its access log in `folder`."""
    require_module("gunicorn")
    (folder / "gunicorn.conf.py").write_text(config)
    (folder / "old_app.py").write_text(APP)
    log = ["--access-logfile", "access", "--access-logformat", "%(m)s %(U)s %(s)s", "--no-control-socket"]
    args = ["-m", "gunicorn", "-k", worker, "-b", "127.0.0.1:0", *log, "--graceful-timeout", str(graceful), "old_app:app"]
    with run_server_process(args, cwd=folder, env={"PYTHONPATH": str(ROOT)}) as server:
        yield server


@pytest.mark.parametrize(
    ("worker", "config"),
    [(OURS, ""), ("flask_sockets.worker", INSTALL)],  # which is the worker by its old name
    ids=["by our name", "by the name of Flask-Sockets"],
)
def test_pages_and_websockets_until_it_stops(tmp_path: Path, worker: str, config: str) -> None:
    require_module("flask_sockets")
    with gunicorn(tmp_path, worker, config) as server:
        assert page(server, "/page").body == b"a page"
        with websocket(server, "/ws") as closed, websocket(server, "/open") as client:
            closed.echo()
            closed.send(frame(8, b"\x03\xe8"))
            closed.read_close()
            closed.read_end()
            client.echo()
            server.process.terminate()
            assert client.read_close() == (1001, b"")
            client.send(frame(8, b"\x03\xe9"))
            client.read_end()
            server.wait()
    assert (tmp_path / "access").read_text().splitlines() == ["GET /page 200", "GET /ws 101", "GET /open 101"]


def test_a_websocket_hears_nothing_when_it_stops_old(tmp_path: Path) -> None:
    require_module("geventwebsocket")
    with gunicorn(tmp_path, OLD, graceful=1) as server, websocket(server, "/open") as client:
        client.echo()
        server.process.terminate()
        # gevent-websocket says goodbye when the greenlet is killed, but to a program that asks why: an empty frame, or nothing.
        assert client.read_to_the_end() in (b"", b"\x88\x00")
        server.wait()
