"""KCP with peers that know nothing of ours: the client of the package `kcp`, and kcp-go with golang.org/x/net/websocket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gws_gevent import ClientOptions, connect
from tests.pairs import EchoHandler, serving
from tests.peers.programs import HERE, running
from tests.support import CI, ROOT, require_module, require_tool, run_program

pytestmark = [pytest.mark.slow, pytest.mark.peer]

#: Where Debian's package golang-github-xtaci-kcp-dev puts its source.
GO_PATH = "/usr/share/gocode"
SIZES = ["0", "1", "125", "126", "65536", "300000"]
MODES = pytest.mark.parametrize("mode", ["stream", "message"])


@pytest.fixture(scope="module")
def kcp_go(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the peer, from packages that are on this machine: nothing is downloaded."""
    go = require_tool("go")
    if not os.path.isdir(f"{GO_PATH}/src/github.com/xtaci/kcp-go"):
        reason = "kcp-go is not installed (Debian: golang-github-xtaci-kcp-dev)"
        pytest.fail(reason, pytrace=False) if CI else pytest.skip(reason)
    program = tmp_path_factory.mktemp("kcp_go") / "kcp_go"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": GO_PATH, "GOFLAGS": ""}
    build = [go, "build", "-o", str(program), "."]
    subprocess.run(build, cwd=HERE / "kcp_go", env=environment, check=True, capture_output=True, timeout=200)
    return str(program)


def param(mode: str) -> str:
    # A peer that has exited acknowledges no end: it is not waited for.
    return f"cookie=0&linger=1&stream={int(mode == 'stream')}"


@MODES
def test_the_client_of_the_package_kcp(mode: str) -> None:
    require_module("kcp")
    require_module("websockets")
    handler = EchoHandler()
    with serving(handler, None, f"kcp://127.0.0.1:0?{param(mode)}") as server:
        port = server.address.rpartition(":")[2]
        finished = run_program([sys.executable, str(HERE / "kcp_client.py"), port, *SIZES], timeout=60)
        assert (finished.status, finished.output) == (0, "ok\n"), finished.errors
        info = handler.wait_closed()
        assert (info.code, info.reason) == (1000, "bye")


@MODES
@pytest.mark.parametrize("theirs", ["stream", "message"])
def test_a_client_on_kcp_go(mode: str, theirs: str, kcp_go: str) -> None:
    handler = EchoHandler()
    with serving(handler, None, f"kcp://127.0.0.1:0?{param(mode)}&mode=fast3") as server:
        finished = run_program([kcp_go, "client", server.address.removeprefix("kcp://"), theirs, *SIZES], timeout=60)
        assert (finished.status, finished.output) == (0, "ok\n"), finished.errors
        handler.wait_closed()
        assert len(handler.messages) == 2 * len(SIZES)


@MODES
@pytest.mark.parametrize("theirs", ["stream", "message"])
def test_a_server_on_kcp_go(mode: str, theirs: str, kcp_go: str, tmp_path: Path) -> None:
    params: dict[str, str | float] = {"cookie": 0, "linger": 1, "stream": int(mode == "stream"), "mode": "fast3"}
    options = ClientOptions(transport_params=params, close_timeout=0.5)  # theirs does not answer a close
    with running([kcp_go, "server", theirs], tmp_path, lambda program: "kcp://" in program.output(), cwd=ROOT) as program:
        found = re.search(r"kcp://\S+", program.output())
        assert found is not None
        with connect(f"ws+{found[0]}/", options=options) as conn:
            for size in map(int, SIZES):
                data = os.urandom(size)
                conn.write_binary(data)
                assert conn.receive(timeout=20) == data
