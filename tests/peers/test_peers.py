"""Our server with other people's clients, and our client with other people's servers.

Each pair exchanges text, binary, 1 MiB of both, fragments and pings in both directions, and closes from either end with code
and reason.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import gevent
import pytest

from gws_gevent import (
    ClientOptions,
    Close,
    Connection,
    EventHandler,
    Message,
    Opcode,
    Request,
    Response,
    Server,
    ServerOptions,
    connect,
)
from tests.pairs import Recorder, serving, url_of
from tests.peers.programs import HERE, Program, browser, node_modules, running
from tests.support import require_module, require_tool, run_program, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.peer]

BIG = 1 << 20
BINARY = bytes(range(256))
TEXT = "h\u00e9llo \u20ac \U0001d11e"
BIG_BINARY = BINARY * (BIG // 256)
BIG_TEXT = "\u20ac" * (BIG // 3)
BYE = Close(4001, "bye \u20ac")
AS_YOU_WISH = Close(4002, "as you wish \u20ac")
WHOLE = "alpha \u03b2\u03ae\u03c4\u03b1"
PIECES = ["alpha ", "", "\u03b2\u03ae\u03c4\u03b1"]

#: What a client saw after it did everything.
SEEN = {
    "text": TEXT,
    "binary": BINARY.hex(),
    "big binary": [BIG, sha256(BIG_BINARY).hexdigest()],
    "big text": [BIG // 3, sha256(BIG_TEXT.encode()).hexdigest()],
    "fragments sent": WHOLE,
    "fragments received": PIECES,
    "pong": True,
    "answered": "you answered my ping",
    "close": [BYE.code, ""],
    "closed": list(AS_YOU_WISH),
}


class Counterpart(Recorder):
    """Echoes, and does what a message that begins with "please" asks."""

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        match message.data:
            case "please fragment":
                conn.write_stream(Opcode.TEXT, PIECES)
            case "please ping":
                conn.write_ping(b"server")
            case "please close":
                conn.write_close(*AS_YOU_WISH)
            case _:
                conn.write_message(message.opcode, message.data)

    def on_pong(self, conn: Connection, payload: bytes) -> None:
        super().on_pong(conn, payload)
        if payload == b"server":
            conn.send("you answered my ping")


@pytest.fixture
def counterpart() -> Counterpart:
    return Counterpart()


@pytest.fixture
def server(counterpart: Counterpart) -> Iterator[Server]:
    with serving(counterpart, ServerOptions(ping_interval=None)) as server:
        yield server


def check_server_side(counterpart: Counterpart) -> None:
    """The client's two connections as our server saw them: the first closed by the client, the second by us."""
    wait_until(lambda: len(counterpart.infos) == 2, what="both connections to end")
    first, second = counterpart.infos
    assert (first.received, first.clean) == (BYE, True)
    assert (second.sent, second.clean) == (AS_YOU_WISH, True)
    assert second.received is not None
    assert second.received.code == AS_YOU_WISH.code
    assert ("pong", b"server") in counterpart.events
    assert counterpart.messages[2:4] == [BIG_BINARY, BIG_TEXT]


def test_websockets_client(server: Server, counterpart: Counterpart) -> None:
    require_module("websockets")
    finished = run_program([sys.executable, str(HERE / "websockets_client.py"), url_of(server)], timeout=60)
    assert finished.status == 0, finished.errors
    assert json.loads(finished.output) == SEEN
    check_server_side(counterpart)
    assert ("ping", b"tick") in counterpart.events


def test_npm_ws_client(server: Server, counterpart: Counterpart) -> None:
    env = node_modules()
    finished = run_program([require_tool("node"), str(HERE / "ws_client.js"), url_of(server)], timeout=60, env=env)
    assert finished.status == 0, finished.errors
    assert json.loads(finished.output) == {**SEEN, "fragments received": [WHOLE]}
    check_server_side(counterpart)
    assert ("ping", b"tick") in counterpart.events


# The browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


def test_chromium(driver: Any, counterpart: Counterpart) -> None:
    page = Response(200, "<!DOCTYPE html><title>peer</title>", {"Content-Type": "text/html"})

    def route(request: Request) -> EventHandler | Response:
        return counterpart if request.path == "/peer" else page

    with serving(None, ServerOptions(ping_interval=None), on_request=route) as server:
        # A call of the driver blocks its thread. While the page is loaded this one has to serve; later the page goes on by itself
        # and is asked from time to time.
        gevent.get_hub().threadpool.apply(driver.get, (url_of(server).replace("ws:", "http:"),))
        driver.execute_script((HERE / "browser_client.js").read_text(), url_of(server, "/peer"))
        seen = wait_until(lambda: driver.execute_script("return window.saw.done ? window.saw : null"), 30, "the page")
        gevent.get_hub().threadpool.apply(driver.get, ("about:blank",))
    assert seen.pop("done") == "done"
    expected = {**SEEN, "fragments received": [WHOLE], "protocol": "", "extensions": "", "clean": [True, True]}
    for name in ("fragments sent", "pong"):  # a page can do neither
        del expected[name]
    assert seen == expected
    check_server_side(counterpart)


# Our client


@pytest.fixture(params=["websockets", "ws"])
def peer_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    env: dict[str, str] = {}
    if request.param == "ws":
        env = node_modules()
        args = [require_tool("node"), str(HERE / "ws_server.js")]
    else:
        require_module("websockets")
        args = [sys.executable, str(HERE / "websockets_server.py")]
    with running(args, tmp_path, Program.output, env) as program:
        yield program


def port_of(program: Program) -> int:
    return int(program.output().split()[1])


def test_our_client(peer_server: Program) -> None:
    url = f"ws://127.0.0.1:{port_of(peer_server)}/"
    ours = Recorder()
    conn = connect(url, ours, ClientOptions(ping_interval=None))
    sent: list[str | bytes] = [TEXT, BINARY, "", b"", BIG_BINARY, BIG_TEXT]
    for message in sent:
        conn.send(message)
    conn.write_stream(Opcode.TEXT, PIECES)
    conn.write_ping(b"tick")
    conn.send("please fragment")
    conn.send("please ping")
    wait_until(lambda: len(ours.messages) == len(sent) + 3, 20, "the answers")
    assert ours.messages == [*sent, WHOLE, WHOLE, "you answered my ping"]
    assert ("pong", b"tick") in ours.events
    assert ("ping", b"server") in ours.events
    conn.close(*BYE)
    info = ours.wait_closed()
    assert (info.sent, info.clean) == (BYE, True)
    assert info.received is not None
    assert info.received.code == BYE.code
    wait_until(lambda: f"closed {BYE.code} {BYE.reason}\n" in peer_server.output(), what="the peer's account of the end")


def test_our_client_is_closed_by_the_peer(peer_server: Program) -> None:
    with connect(f"ws://127.0.0.1:{port_of(peer_server)}/") as conn:
        conn.send("please close")
        assert list(conn) == []
        assert conn.close_info is not None
        assert (conn.close_info.received, conn.close_info.clean) == (AS_YOU_WISH, True)


def test_our_fragments_are_fragments(tmp_path: Path) -> None:
    require_module("websockets")
    with running([sys.executable, str(HERE / "websockets_server.py")], tmp_path, Program.output) as program:
        with connect(f"ws://127.0.0.1:{port_of(program)}/") as conn:
            conn.write_stream(Opcode.TEXT, PIECES)
            assert conn.receive(timeout=10) == WHOLE
            conn.send("please count")
            assert conn.receive(timeout=10) == f"{len(PIECES)} fragments"
