"""The same program (apps.py), served by gevent-websocket and by what takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.support import ServerProcess, require_module, run_server_process


@pytest.fixture(scope="session")
def old() -> Iterator[ServerProcess]:
    """The program with the real gevent-websocket."""
    if find_spec("geventwebsocket") is None:
        require_module("geventwebsocket")
    yield from _serve("old")


@pytest.fixture(scope="session")
def ours() -> Iterator[ServerProcess]:
    """The program with gws_gevent in its place."""
    yield from _serve("ours")


def _serve(package: str) -> Iterator[ServerProcess]:
    for module in ("bottle", "engineio", "flask", "flask_sock", "flask_sockets"):
        if find_spec(module) is None:
            require_module(module)
    with run_server_process(["-m", "tests.legacy.apps", package]) as server:
        yield server
