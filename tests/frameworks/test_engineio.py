"""Flask-SocketIO, with Socket.IO's own client: on gevent's own server, where what hurts is reproduced, and on ours.

A test that fails for "old" because a new release of theirs has mended something is good news: take that case out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from gws_gevent import ClientOptions, connect
from tests.frameworks.apps import HERE, App, serving_app
from tests.peers.programs import node_modules
from tests.raw import RawClient, frame
from tests.support import require_tool, run_program, wait_until

pytestmark = pytest.mark.slow

#: Name of a stack: server, and parts of the app.
STACKS = {
    "old": ("pywsgi", "socketio"),
    "old, with gevent-websocket": ("geventwebsocket", "socketio"),
    "simple-websocket on ours": ("ours", "socketio"),
    "install": ("ours", "socketio", "install"),
    "install, with gevent-websocket": ("ours", "socketio", "install", "geventwebsocket"),
    "install, on our worker": ("gunicorn", "socketio", "install"),
}

ENGINE = "/socket.io/?EIO=4&transport=websocket"
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module", params=STACKS)
def stack(request: pytest.FixtureRequest) -> Iterator[tuple[str, App]]:
    with serving_app(*STACKS[request.param]) as app:
        yield request.param, app


@pytest.fixture
def app(stack: tuple[str, App]) -> App:
    return stack[1]


@pytest.fixture
def name(stack: tuple[str, App]) -> str:
    return stack[0]


@pytest.mark.peer
@pytest.mark.parametrize("transports", ["websocket", "polling,websocket"])
def test_socketio_s_own_client(app: App, transports: str) -> None:
    before = app.facts()
    node = require_tool("node")
    args = [node, str(HERE / "socketio_client.js"), f"http://127.0.0.1:{app.port}", transports]
    finished = run_program(args, env=node_modules())
    assert finished.status == 0, finished.errors + app.log()
    assert json.loads(finished.output) == {
        "transports": transports.split(","),
        "acknowledged": "got it",
        "echoed": {"text": "h\u00e9llo \u20ac", "list": [1, 2, 3]},
        "binary": [0, 1, 254, 255],
        "big": 900_000,
        "room": ["garden", "garden"],
        "server's end": "io server disconnect",
        "client's end": "io client disconnect",
        "refused": "Connection rejected by server",
    }
    wait_until(lambda: app.facts()["descriptors"] <= before["descriptors"], what="the descriptors to be given back")
    events = app.facts()["app"][len(before["app"]) :]
    assert [event[0] for event in events].count("connect") == 3
    assert sorted(event[1] for event in events if event[0] == "disconnect") == ["client disconnect", "server disconnect"]


def open_client(app: App, receive_buffer: int | None = None) -> RawClient:
    """A Socket.IO client in the default namespace, by WebSocket."""
    client = RawClient(app.port, receive_buffer)
    client.upgrade(path=ENGINE)
    assert client.read_frame().payload.startswith(b"0{")
    client.send(frame(1, b"40"))
    assert client.read_frame().payload.startswith(b"40{")
    return client


def test_what_a_client_takes(name: str, app: App) -> None:
    clients = [open_client(app)]  # the first one has Engine.IO start its monitor
    before = app.settled_facts()
    clients += [open_client(app) for _ in range(5)]
    during = app.facts()
    took = {key: (during[key] - before[key]) / 5 for key in ("greenlets", "descriptors")}
    # Engine.IO's own: who reads, who writes, who pings.
    assert took == ({"greenlets": 4, "descriptors": 1} if "simple" in name else
                    {"greenlets": 4, "descriptors": 2} if name == "old" else {"greenlets": 3, "descriptors": 1})  # fmt: skip
    for client in clients:
        client.close()
    wait_until(lambda: app.facts()["descriptors"] <= before["descriptors"], what="the descriptors to be given back")


def test_a_client_that_reads_nothing(name: str, app: App) -> None:
    # Flask-SocketIO #311, #663, #754.
    descriptors = app.settled_facts()["descriptors"]
    with open_client(app, receive_buffer=64 * 1024) as client:
        before = len(app.facts()["app"])
        client.send(frame(1, b'42["flood",40]'))
        wait_until(lambda: ["flooded"] in app.facts()["app"][before:], 20)
        events, queued = app.facts()["app"][before:], app.facts()["queued"]
        if name.startswith("install"):
            assert ["disconnect", "transport error"] in events
            assert queued == 0
            wait_until(lambda: app.facts()["descriptors"] <= descriptors, 10, "close_timeout to end the connection")
        else:
            assert queued > 30 * MEGABYTE


def test_a_client_that_reads_gets_all(name: str, app: App) -> None:
    if name == "old":
        return  # simple-websocket's send() loses what the kernel did not take: all arrive only where the client is quick enough
    options = ClientOptions(ping_interval=None, close_timeout=0.5)
    with connect(app.url(ENGINE), options=options) as conn:
        conn.receive(timeout=5)
        conn.send("40")
        conn.receive(timeout=5)
        conn.send('42["flood",20]')
        received = [conn.receive(timeout=5) for _ in range(40)]
        assert [len(data) for data in received if isinstance(data, bytes)] == [MEGABYTE] * 20
        assert {data for data in received if isinstance(data, str)} == {'451-["data",{"_placeholder":true,"num":0}]'}
