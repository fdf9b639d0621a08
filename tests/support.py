"""What tests of every kind share: tools that may be missing, ports, waiting for something, processes.

Belongs here: things that more than one test module needs and that know nothing of WebSocket. Does not belong here: fixtures.

Processes are started with the standard library's subprocess and waited for by polling. gevent.subprocess makes libev reap every
child of the process, and from then on the standard library takes each exit status to be 0.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, NamedTuple, NoReturn, TypeVar

import gevent
import pytest

__all__ = [
    "CI",
    "ROOT",
    "Finished",
    "ServerProcess",
    "free_port",
    "require_installed",
    "require_module",
    "require_tool",
    "run_program",
    "run_server_process",
    "wait_until",
]

T = TypeVar("T")

#: The checkout.
ROOT = Path(__file__).resolve().parent.parent
#: In CI a missing tool is a failure, not a skip.
CI = os.environ.get("GWS_GEVENT_CI", "") not in ("", "0")

_SYSTEM_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")
_ENDPOINT = re.compile(r"\b[a-z][a-z0-9+]*:(?://\S*:\d+|[/@]\S+)")


def require_tool(name: str, *others: str) -> str:
    """Return the path of the first of these programs that is installed; skip the test if none is, or fail it in CI."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_FOLDERS))
    for candidate in (name, *others):
        found = shutil.which(candidate, path=path)
        if found is not None:
            return found
    _missing(f"{' or '.join((name, *others))} is not installed")


def require_module(name: str) -> ModuleType:
    """Import and return a module that is not one of ours; skip the test if it is not installed, or fail it in CI."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        _missing(f"{name} cannot be imported: {error}")


def require_installed(name: str) -> None:
    """`require_module`, without the import: for what patches the process that imports it."""
    if importlib.util.find_spec(name) is None:
        _missing(f"{name} is not installed")


def _missing(reason: str) -> NoReturn:
    if CI:
        pytest.fail(f"{reason}, and in CI nothing may be skipped for that", pytrace=False)
    pytest.skip(reason)


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port that nothing used a moment ago. For programs that cannot bind port 0 and say which one they got."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(predicate: Callable[[], T], timeout: float = 5.0, what: str = "") -> T:
    """Let other greenlets run until `predicate()` is true and return what it returned; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise AssertionError(f"still waiting after {timeout} s for {what or getattr(predicate, '__name__', predicate)}")
        gevent.sleep(0.002)


class Finished(NamedTuple):
    """How a program ended: its exit status (negative: the signal), and what it wrote."""

    status: int
    output: str
    errors: str


def run_program(
    args: Sequence[str],
    *,
    stdin: str | bytes = b"",
    timeout: float = 30.0,
    env: dict[str, str] | None = None,
    cwd: str | Path = ROOT,
) -> Finished:
    """Run a program to its end while the greenlets of this process go on; kill it and fail after `timeout` seconds.

    Args:
        stdin: all it reads.
        env: variables on top of this process's.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        source.write(stdin.encode() if isinstance(stdin, str) else stdin)
        source.seek(0)
        process = subprocess.Popen(args, stdin=source, stdout=output, stderr=errors, cwd=cwd, env={**os.environ, **(env or {})})
        try:
            wait_until(lambda: process.poll() is not None, timeout, f"the end of {' '.join(args)}")
        except AssertionError as error:
            error.add_note(f"it wrote: {_text(output)}\n{_text(errors)}")
            raise
        finally:
            _kill(process)
        return Finished(process.returncode, _text(output), _text(errors))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


class ServerProcess:
    """A server in a process of its own.

    Attributes:
        process: the subprocess.Popen.
        addresses: the endpoints it printed, such as "tcp://127.0.0.1:40123", in its order.
    """

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.addresses: list[str] = []
        self._output = output

    @property
    def address(self) -> str:
        """The first endpoint it printed."""
        return self.addresses[0]

    @property
    def port(self) -> int:
        """The port of the first endpoint."""
        return int(self.address.rpartition(":")[2])

    def output(self) -> str:
        """Everything it wrote to stdout and stderr so far."""
        return self._output.read_text(errors="replace")

    def wait(self, timeout: float = 10.0) -> int:
        """Return its exit status once it has ended; fail after `timeout` seconds."""
        wait_until(lambda: self.process.poll() is not None, timeout, "the server process to end")
        status: int = self.process.returncode
        return status

    def _read_addresses(self) -> bool:
        text = self.output()
        self.addresses = _ENDPOINT.findall(text[: text.rfind("\n") + 1])
        return bool(self.addresses) or self.process.poll() is not None


@contextmanager
def run_server_process(
    args: Sequence[str], *, env: dict[str, str] | None = None, cwd: str | Path = ROOT, timeout: float = 20.0, status: int | None = 0
) -> Iterator[ServerProcess]:
    """Run `python *args` until the end of the block, from the line in which it prints its addresses on.

    At the end it gets SIGTERM, unless it has ended by itself, and must exit with `status` (None: any).

    Args:
        args: as in ["-m", "gws_gevent", "serve", "--bind", "127.0.0.1:0"].
        env: variables on top of this process's.
        timeout: seconds until the address is printed, and again until the process has ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, *args],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )
        server = ServerProcess(process, output)
        try:
            wait_until(server._read_addresses, timeout, f"an address printed by {args}")
            if not server.addresses:
                raise AssertionError(f"{args} ended with status {process.returncode} and no address:\n{server.output()}")
            yield server
            process.terminate()
            ended = server.wait(timeout)
            if status is not None and ended != status:
                raise AssertionError(f"{args} ended with status {ended}, not {status}:\n{server.output()}")
        finally:
            _kill(process)
