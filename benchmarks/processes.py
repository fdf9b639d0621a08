"""Programs of the benchmarks: building the C ones, and running servers on a core of their own.

Belongs here: what the measurements of throughput and of memory share. Does not belong here: measuring, which libraries there are.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "HERE",
    "LOAD_TIMEOUT",
    "ROOT",
    "BenchmarkError",
    "Server",
    "build",
    "dial",
    "free_port",
    "pinned",
    "run_load",
    "running",
    "set_up",
]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = HERE / ".build"

#: Seconds a server has until it accepts connections, and a killed one until it is gone.
START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0
#: Seconds between two attempts to connect to a server that is starting.
START_INTERVAL = 0.05
#: Descriptors that a process needs beside those of its connections.
OTHER_DESCRIPTORS = 100
#: Characters of a server's last words in an error.
LAST_WORDS = 400
#: Seconds a load may take beyond those it was given: for its handshakes, and for a server that is slow.
LOAD_TIMEOUT = 60.0


class BenchmarkError(Exception):
    """Something could not be measured; the text says what and why."""


@dataclass(frozen=True, slots=True)
class Server:
    """An echo server to measure.

    Attributes:
        name: what it is called in the results.
        address: "host:port" (IPv4) or "unix:/path/of/socket".
        command: starts it.
        target: where the echo is.
        tls: it speaks TLS.
        env: variables of its environment, on top of ours.
    """

    name: str
    address: str
    command: tuple[str, ...]
    target: str = "/"
    tls: bool = False
    env: tuple[tuple[str, str], ...] = ()


def build(name: str, tls: bool = False) -> str:
    """Compile `name`.c of this folder, unless that has been done since it changed, and return the program's path.

    Args:
        tls: the program is to speak TLS, with OpenSSL.
    """
    if sys.platform != "linux":
        raise BenchmarkError("the benchmarks need Linux: the load is an epoll loop, and memory is read from /proc")
    source, program = HERE / f"{name}.c", BUILD / (f"{name}-tls" if tls else name)
    changed = max(path.stat().st_mtime for path in (source, *HERE.glob("*.h")))
    if program.exists() and program.stat().st_mtime >= changed:
        return str(program)
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise BenchmarkError("the benchmarks need a C compiler: none is installed as cc, and CC names none")
    BUILD.mkdir(exist_ok=True)
    unfinished = BUILD / f"{program.name}.{os.getpid()}"
    flags, libraries = (["-DWITH_TLS"], ["-lssl", "-lcrypto"]) if tls else ([], [])
    done = subprocess.run([compiler, "-O3", *flags, "-o", unfinished, source, *libraries], capture_output=True, text=True)
    if done.returncode:
        needs = "needs the headers of OpenSSL (libssl-dev) and " if tls else ""
        raise BenchmarkError(f"{source.name} {needs}does not compile:\n{done.stderr.strip()[:LAST_WORDS]}")
    unfinished.replace(program)
    return str(program)


def pinned(place: int) -> list[str]:
    """Return what to put before a command so that it runs on one core: the servers on place 0, the load on place 1.

    Nothing where there is no taskset, or no second core to pin the other to.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or shutil.which("taskset") is None:
        return []
    return ["taskset", "-c", str(cores[place])]


def set_up() -> int:
    """Prepare this process: SIGTERM ends it as Ctrl-C does, with its servers; files up to the hard limit may be open.

    Returns:
        How many connections it, or a server that it starts, can hold.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard - OTHER_DESCRIPTORS


def run_load(program: str, *arguments: object, timeout: float = LOAD_TIMEOUT) -> str:
    """Run one of the C loads on the core that is for loads and return what it printed.

    Raises:
        BenchmarkError: it failed, or took longer than `timeout` seconds.
    """
    command = [*pinned(1), program, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"the load took longer than {timeout:.0f} s") from None
    if done.returncode:
        raise BenchmarkError(done.stderr.strip() or f"the load ended with status {done.returncode}")
    return done.stdout


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def dial(address: str) -> socket.socket:
    """Connect to a server's address."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address[5:])
        except OSError:
            connection.close()
            raise
        return connection
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


@contextmanager
def running(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, on the core that is for servers, until the end of the block.

    Raises:
        BenchmarkError: it ended, or did not listen within START_TIMEOUT seconds.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [*pinned(0), *server.command],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env={**os.environ, "PYTHONPATH": path, "GOMAXPROCS": "1", **dict(server.env)},
        )

        def said() -> str:
            words.seek(0)
            return words.read().decode(errors="replace").strip()[-LAST_WORDS:]

        try:
            _wait_until_listening(server, process, said)
            yield process
        finally:
            process.kill()
            process.wait(STOP_TIMEOUT)


def _wait_until_listening(server: Server, process: subprocess.Popen[bytes], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None:
        try:
            dial(server.address).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{server.name} does not listen on {server.address}: {error}; it said: {said()}") from error
        time.sleep(START_INTERVAL)
    raise BenchmarkError(f"{server.name} ended with status {process.returncode}: {said()}")
