"""Compression with other people's clients and servers, in every combination of parameters that they and we can take.

Each pair echoes messages that are alike, so that context takeover has something to refer to; what the two agreed on is checked too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import gevent
import pytest

from gws_gevent import (
    ClientOptions,
    EventHandler,
    HandshakeRefused,
    Opcode,
    PermessageDeflate,
    Request,
    Response,
    Server,
    ServerOptions,
    connect,
)
from tests.pairs import EchoHandler, serving, url_of
from tests.peers.programs import HERE, browser, node_modules, running
from tests.support import require_module, require_tool, run_program, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.peer]

TEXT = "compress me, please " * 50
MESSAGES: list[Any] = [TEXT, TEXT, "short", bytes(range(256)) * 40, TEXT * 100, TEXT]

#: Ours: takeover of either side, and windows.
OURS = [
    PermessageDeflate(
        server_context_takeover=server,
        client_context_takeover=client,
        server_max_window_bits=bits,
        client_max_window_bits=bits,
        threshold=0,
    )
    for server, client, bits in product((False, True), (False, True), (9, 15))
]

#: The peer's: names as `websockets` has them. None: not said at all.
TAKEOVER = list(product((False, True), repeat=2))
WINDOWS = list(product((None, 9, 15), (None, 9, 15)))
FULL = [
    {
        "server_no_context_takeover": server, "client_no_context_takeover": client,
        "server_max_window_bits": server_bits, "client_max_window_bits": client_bits,
    }
    for (server, client), (server_bits, client_bits) in product(TAKEOVER, WINDOWS)
]  # fmt: skip


def camel_case(combination: dict[str, Any]) -> dict[str, Any]:
    """The same as npm's `ws` has it. To it False means "never", which is not what it means here."""
    words = {name: name.split("_") for name in combination}
    return {
        words[name][0] + "".join(word.capitalize() for word in words[name][1:]): value
        for name, value in combination.items()
        if value
    }


@contextmanager
def our_server(deflate: PermessageDeflate) -> Iterator[Server]:
    with serving(EchoHandler(), ServerOptions(ping_interval=None, permessage_deflate=deflate)) as server:
        yield server


def check_answer(answer: str, ours: PermessageDeflate, combination: dict[str, Any]) -> None:
    """What our server answered has to grant what was asked for, and what it wants itself."""
    for side in ("server", "client"):
        wants = combination.get(f"{side}_no_context_takeover") or not getattr(ours, f"{side}_context_takeover")
        assert (f"{side}_no_context_takeover" in answer) is wants, (answer, combination)
    asked = combination.get("server_max_window_bits")
    if asked is not None or ours.server_max_window_bits < 15:
        assert f"server_max_window_bits={min(asked or 15, ours.server_max_window_bits)}" in answer


def node(script: str) -> tuple[list[str], dict[str, str]]:
    env = node_modules()
    return [require_tool("node"), str(HERE / script)], env


def python(script: str, needs: str) -> tuple[list[str], dict[str, str]]:
    require_module(needs)
    return [sys.executable, str(HERE / script)], {}


def name_of(deflate: PermessageDeflate) -> str:
    keeps = [side for side in ("server", "client") if getattr(deflate, f"{side}_context_takeover")]
    return f"{'-'.join(keeps) or 'none'}-{deflate.server_max_window_bits}"


EACH_OF_OURS = pytest.mark.parametrize("ours", OURS, ids=name_of)


# Our server


def run_client(program: tuple[list[str], dict[str, str]], ours: PermessageDeflate, combinations: list[dict[str, Any]]) -> list[str]:
    args, env = program
    with our_server(ours) as server:
        finished = run_program([*args, "client", url_of(server), json.dumps(combinations)], timeout=60, env=env)
    assert finished.status == 0, finished.errors
    answers: list[str] = json.loads(finished.output)
    assert len(answers) == len(combinations)
    return answers


@EACH_OF_OURS
def test_websockets_client(ours: PermessageDeflate) -> None:
    answers = run_client(python("deflate_websockets.py", "websockets"), ours, FULL)
    for answer, combination in zip(answers, FULL, strict=True):
        check_answer(answer, ours, combination)


@EACH_OF_OURS
def test_npm_ws_client(ours: PermessageDeflate) -> None:
    answers = run_client(node("deflate_ws.js"), ours, [camel_case(one) for one in FULL])
    for answer, combination in zip(answers, FULL, strict=True):
        check_answer(answer, ours, combination)


@EACH_OF_OURS
def test_aiohttp_client(ours: PermessageDeflate) -> None:
    # It offers window bits and nothing else.
    combinations = [{"compress": bits} for bits in (9, 12, 15)]
    answers = run_client(python("deflate_aiohttp.py", "aiohttp"), ours, combinations)
    assert all(answer.startswith("permessage-deflate") for answer in answers)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


def test_chromium(driver: Any) -> None:
    page = Response(200, "<!DOCTYPE html><title>peer</title>", {"Content-Type": "text/html"})

    def route(request: Request) -> EventHandler | Response:
        return EchoHandler() if request.path == "/peer" else page

    for ours in OURS:
        options = ServerOptions(ping_interval=None, permessage_deflate=ours)
        with serving(None, options, on_request=route) as server:
            gevent.get_hub().threadpool.apply(driver.get, (url_of(server).replace("ws:", "http:"),))
            driver.execute_script((HERE / "deflate_browser.js").read_text(), url_of(server, "/peer"))
            seen = wait_until(lambda: driver.execute_script("return window.saw"), 30, "the page")
            gevent.get_hub().threadpool.apply(driver.get, ("about:blank",))
        assert seen.startswith("extensions permessage-deflate"), seen
        check_answer(seen, ours, {})


# Our client


@contextmanager
def peer_servers(
    program: tuple[list[str], dict[str, str]], combinations: list[dict[str, Any]], folder: Path
) -> Iterator[list[int]]:
    args, env = program
    with running([*args, "server", json.dumps(combinations)], folder, lambda one: "ports" in one.output(), env) as peer:
        yield [int(port) for port in peer.output().split("ports", 1)[1].split()]


def talk(port: int, ours: PermessageDeflate) -> str:
    with connect(f"ws://127.0.0.1:{port}/", options=ClientOptions(ping_interval=None, permessage_deflate=ours)) as conn:
        for message in MESSAGES:
            conn.send(message)
            assert conn.receive(timeout=10) == message
        conn.write_stream(Opcode.TEXT, [TEXT[:7], "", TEXT[7:]])
        assert conn.receive(timeout=10) == TEXT
        return conn.extensions


def test_our_client_with_websockets(tmp_path: Path) -> None:
    with peer_servers(python("deflate_websockets.py", "websockets"), FULL, tmp_path) as ports:
        for ours, (port, combination) in product(OURS, zip(ports, FULL, strict=True)):
            check_agreement(talk(port, ours), ours, combination)


def test_our_client_with_npm_ws(tmp_path: Path) -> None:
    with peer_servers(node("deflate_ws.js"), [camel_case(one) for one in FULL], tmp_path) as ports:
        for ours, (port, combination) in product(OURS, zip(ports, FULL, strict=True)):
            # It refuses to go below the windows that it was given.
            too_narrow = any(
                (combination[f"{side}_max_window_bits"] or 0) > ours.server_max_window_bits for side in ("server", "client")
            )
            if too_narrow:
                with pytest.raises(HandshakeRefused, match="400"):
                    talk(port, ours)
            else:
                check_agreement(talk(port, ours), ours, combination)


def test_our_client_with_aiohttp(tmp_path: Path) -> None:
    with peer_servers(python("deflate_aiohttp.py", "aiohttp"), [{"compress": True}], tmp_path) as (port,):
        for ours in OURS:
            agreed = talk(port, ours)
            if agreed:
                check_agreement(agreed, ours, {})
        assert talk(port, OURS[-1])


def check_agreement(agreed: str, ours: PermessageDeflate, combination: dict[str, Any]) -> None:
    for side in ("server", "client"):
        wants = combination.get(f"{side}_no_context_takeover") or not getattr(ours, f"{side}_context_takeover")
        assert not wants or f"{side}_no_context_takeover" in agreed, (agreed, combination)
        bits = int(agreed.partition(f"{side}_max_window_bits=")[2].partition(";")[0])
        assert bits <= getattr(ours, f"{side}_max_window_bits")
