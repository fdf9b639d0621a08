"""KCP on the command line: serve, connect, and what is said of wrong parameters."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.support import Finished, run_program, run_server_process

pytestmark = pytest.mark.slow


def gws_gevent(*args: str, stdin: str = "") -> Finished:
    return run_program([sys.executable, "-m", "gws_gevent", *args], stdin=stdin, timeout=20)


@pytest.mark.parametrize("kind", ["plain", "key"])
def test_serve_and_connect(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "kcp.key"
    file.write_text(os.urandom(32).hex())
    query, params = ("", []) if kind == "plain" else (f"&key-file={file}", ["--param", f"key-file={file}"])
    with run_server_process(["-m", "gws_gevent", "serve", "--bind", f"kcp://127.0.0.1:0?mode=fast{query}"]) as server:
        url = f"ws+{server.address}/echo"
        finished = gws_gevent("connect", url, "--param", "mode=fast3", *params, stdin="over KCP\n")
        assert (finished.status, finished.output.splitlines()) == (0, ["over KCP"]), finished.errors
        finished = gws_gevent("bench", url, *params, "--connections", "5", "--duration", "0.3")
        assert finished.status == 0, finished.errors


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serve", "--bind", "kcp://127.0.0.1:0?color=red"], "kcp has no parameter color; it knows"),
        (["serve", "--bind", "kcp://127.0.0.1:0?mode=faster"], "mode is one of normal, fast, fast2, fast3, not 'faster'"),
        (["serve", "--bind", "kcp://127.0.0.1:0?key=00"], "a key in an endpoint is seen by every user of the machine"),
        (["serve", "--bind", "kcp://127.0.0.1:0?key-file=/no/such/file"], "the key file /no/such/file: No such file or directory"),
        (["serve", "--bind", "kcp://127.0.0.1:{busy}"], "Address already in use"),
        (["connect", "ws+kcp://127.0.0.1:1/", "--param", "mtu=x"], "mtu is a whole number from 256 to 65000, not 'x'"),
        (["connect", "ws+kcp://127.0.0.1:1/", "--param", "mtu"], "--param 'mtu': must be NAME=VALUE"),
        (["connect", "ws+kcp://127.0.0.1:1/", "--param", "nc=1", "--param", "nc=0"], "--param 'nc=0': nc is given twice"),
        (["connect", "ws://127.0.0.1:1/", "--param", "mode=fast"], "tcp has no parameter mode; it has none"),
        (["bench", "ws+kcp://127.0.0.1:1/", "--param", "mode=x"], "mode is one of normal, fast, fast2, fast3, not 'x'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args: list[str], said: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        finished = gws_gevent(*(text.format(busy=holder.getsockname()[1]) for text in args))
    assert said in finished.errors
    assert finished.errors.count("\n") == 1
    assert finished.status == 2
