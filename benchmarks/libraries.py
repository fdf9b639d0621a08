"""The libraries that are measured, and how the server of each is started.

Belongs here: which there are, what each can do, why one cannot be measured here. Does not belong here: measuring.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from typing import NamedTuple

import gws_gevent
from benchmarks.processes import BUILD, HERE, BenchmarkError, Server, build, free_port

__all__ = ["FLOOR", "GO", "LIBRARIES", "OURS", "PLAIN", "Library", "floor", "label_of", "server_of", "why_not"]

#: The library all others are compared with, its build without a compiler, Go's gws, and the C loop that bounds them all.
OURS = "gws_gevent"
PLAIN = "gws_gevent, plain"
GO = "gws"
FLOOR = "C epoll loop"

#: Seconds to build a program in Go, its modules fetched.
BUILD_TIMEOUT = 120.0


class Library(NamedTuple):
    """A library with servers in servers/`kind`_`script`.py.

    Attributes:
        name: its name in the results.
        script: how its servers are called; the server of an empty one is a program in Go.
        module: what they import.
        runs_on: what else its figures depend on.
        kinds: what there is besides the echo: "tls" (the echo with a certificate), "broadcast".
        env: variables of their environment.
    """

    name: str
    script: str
    module: str
    runs_on: str
    kinds: frozenset[str] = frozenset()
    env: tuple[tuple[str, str], ...] = ()


_BOTH = frozenset({"tls", "broadcast"})
_UVLOOP = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"

LIBRARIES = [
    Library(OURS, "gws_gevent", "gws_gevent", "compiled" if gws_gevent.ACCELERATED else "plain", _BOTH),
    Library(PLAIN, "gws_gevent", "gws_gevent", "plain Python", env=(("GWS_GEVENT_PURE_PYTHON", "1"),)),
    Library("picows", "picows", "picows", _UVLOOP, _BOTH),
    Library("websockets", "websockets", "websockets", "asyncio", _BOTH),
    Library("aiohttp", "aiohttp", "aiohttp", "asyncio", frozenset({"tls"})),
    Library("gevent-websocket", "gevent_websocket", "geventwebsocket", "pywsgi", _BOTH),
    Library("socketify", "socketify", "socketify", "uWebSockets"),
    Library(GO, "", "", "Go, one core"),
]


def why_not(library: Library) -> str | None:
    """Say why a library cannot be measured here; None if it can."""
    if library.script:
        return None if importlib.util.find_spec(library.module) is not None else "it is not installed"
    try:
        _build_go()
    except BenchmarkError as error:
        return str(error)
    return None


def label_of(library: Library) -> str:
    """The library's name with its version and what it runs on."""
    if library.module == "gws_gevent":
        version = gws_gevent.__version__
    elif library.script:
        version = importlib.metadata.version(library.name)
    else:
        version = _go_version()
    return f"{library.name.partition(',')[0]} {version} ({library.runs_on})"


def server_of(
    library: Library,
    kind: str = "echo",
    *more: object,
    name: str | None = None,
    certificate: str | None = None,
    endpoint: str | None = None,
) -> Server:
    """Return a server of a library, to be started.

    Args:
        kind: "echo", or one that the file is called after.
        more: arguments behind the port.
        name: in the results, if not the library's.
        certificate: file with a certificate and its key: the server speaks TLS.
        endpoint: a "unix:/path" instead of a port of its own; only gws_gevent takes it.
    """
    place = endpoint or str(free_port())
    program = [sys.executable, str(HERE / "servers" / f"{kind}_{library.script}.py")] if library.script else [_build_go()]
    command = (*program, place, *([certificate] if certificate else []), *map(str, more))
    return Server(name or library.name, endpoint or f"127.0.0.1:{place}", command, "/echo", certificate is not None, library.env)


def floor(program: str = "rawecho", *more: object) -> Server:
    """Return a C loop, to be started."""
    port = free_port()
    return Server(FLOOR, f"127.0.0.1:{port}", (build(program), str(port), *map(str, more)))


def _build_go() -> str:
    """Build the server in Go unless that has been done, and return its path."""
    source, program = HERE / "servers" / "gws", BUILD / "gws"
    if program.exists() and program.stat().st_mtime >= (source / "main.go").stat().st_mtime:
        return str(program)
    go = shutil.which("go")
    if go is None:
        raise BenchmarkError("go is not installed")
    # A copy, for go writes into the folder that it builds.
    copied = shutil.copytree(source, BUILD / "gws-source", dirs_exist_ok=True)
    command = [go, "build", "-mod=mod", "-o", str(program), "."]
    try:
        done = subprocess.run(command, cwd=copied, capture_output=True, text=True, timeout=BUILD_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"go build took longer than {BUILD_TIMEOUT:.0f} s") from None
    if done.returncode:
        raise BenchmarkError(f"go cannot build it: {done.stderr.strip().splitlines()[-1]}")
    return str(program)


def _go_version() -> str:
    lines = (HERE / "servers" / "gws" / "go.mod").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("require")).removeprefix("v")
