"""What collides in one app on the old stack, and does not on ours: all of the extensions beside each other."""

from __future__ import annotations

import json

import pytest

from gws_gevent import ClientOptions, connect
from tests.frameworks.apps import HERE, get, serving_app
from tests.peers.programs import node_modules
from tests.raw import RawClient
from tests.support import require_tool, run_program

pytestmark = pytest.mark.slow

SOCKS = ("flask_sock", "sock", "socketio")
#: Server, and parts of the app.
STACKS = {
    "without gevent-websocket": ("ours", *SOCKS),
    "install, without gevent-websocket": ("ours", *SOCKS, "install"),
    "install, with gevent-websocket": ("ours", *SOCKS, "install", "geventwebsocket"),
    "successor of gevent-websocket": ("successor", *SOCKS),
    "install, and successor of gevent-websocket": ("successor", *SOCKS, "install"),
}


def test_two_answers_on_one_socket_with_the_old_stack() -> None:
    # Flask-SocketIO#2122, flask-sock#46: gevent-websocket has said 101 before the route, and flask-sock says it again.
    with serving_app("geventwebsocket", "flask_sock") as app, RawClient(app.port) as client:
        client.upgrade(path="/echo")
        assert client.read_answer().status == 101


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.peer
def test_all_in_one_app(stack: str) -> None:
    with serving_app(*STACKS[stack]) as app:
        for route in ("/echo", "/ours/echo", *(["/old"] if "successor" in stack else [])):
            with connect(app.url(route), options=ClientOptions(ping_interval=None)) as conn:
                conn.send("hello")
                assert conn.receive(timeout=5) == "hello"
        for transports in ("websocket", "polling,websocket"):
            args = [require_tool("node"), str(HERE / "socketio_client.js"), f"http://127.0.0.1:{app.port}", transports]
            finished = run_program(args, env=node_modules())
            assert finished.status == 0, finished.errors + app.log()
            assert json.loads(finished.output)["transports"] == transports.split(",")
        assert get(app.port, "/")[1] == "a page"
        assert "Traceback" not in app.log()
