"""`gws-gevent bench` against other people's servers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gws_gevent.cli import main
from tests.peers.programs import HERE, Program, node_modules, running
from tests.support import require_module, require_tool

pytestmark = [pytest.mark.slow, pytest.mark.peer]


@pytest.mark.parametrize("peer", ["websockets", "ws"])
def test_other_servers_are_put_under_load(peer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env: dict[str, str] = {}
    if peer == "ws":
        env = node_modules()
        args = [require_tool("node"), str(HERE / "ws_server.js")]
    else:
        require_module("websockets")
        args = [sys.executable, str(HERE / "websockets_server.py")]
    with running(args, tmp_path, Program.output, env) as program:
        url = f"ws://127.0.0.1:{int(program.output().split()[1])}/"
        for load in (
            ["--text", "--check", "--depth", "5"],
            ["--check", "--size", "100KiB"],
            ["--rate", "200", "--check"],
            ["--ping", "--rate", "200"],
            ["--hold"],
        ):
            status = main(["bench", url, "--connections", "20", "--duration", "0.5", "--json", *load])
            data = json.loads(capsys.readouterr().out)
            assert (status, data["errors"]) == (0, {}), load
            assert data["connections"]["alive_at_end"] == 20
            if load != ["--hold"]:
                assert data["messages"]["answered"] == data["messages"]["sent"] >= 100
                assert data["messages"]["unanswered"] == data["messages"]["never_sent"] == 0
