"""The other programs that tests talk to: how each is found, started, and known to be ready.

Belongs here: what more than one test module needs to run a browser, a proxy or a peer. Does not belong here: tests.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import ssl
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent.socket
import pytest

from gws_gevent import Client, ClientOptions, Connection
from gws_gevent.transports.base import Stream
from gws_gevent.transports.tcp import SocketStream
from gws_gevent.transports.tls import TlsStream
from tests.support import CI, ROOT, free_port, require_module, require_tool, run_program, wait_until

__all__ = ["HERE", "Program", "accepts", "browser", "connect_from", "nginx", "node_modules", "running"]

HERE = Path(__file__).resolve().parent

#: For a headless browser in a container: no sandbox, no GPU, nothing that phones out.
BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


class Program:
    """A running program and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def output(self) -> str:
        """Everything it wrote to stdout and stderr so far, to the last line that is whole."""
        text = self._log.read_text(errors="replace")
        return text[: text.rfind("\n") + 1]


@contextmanager
def running(
    args: Sequence[str],
    folder: Path,
    ready: Callable[[Program], object],
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    stop: int = signal.SIGTERM,
    timeout: float = 20.0,
) -> Iterator[Program]:
    """Run a program until the end of the block, from the moment `ready` says so on; then it gets the signal `stop`.

    Args:
        folder: where its output is kept.
        env: variables on top of this process's.
    """
    log = folder / f"{Path(args[0]).name}-{len(list(folder.iterdir()))}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    program = Program(process, log)
    try:
        wait_until(lambda: process.poll() is not None or ready(program), timeout, f"{args[0]} to be ready")
        assert process.poll() is None, f"{args[0]} ended with status {process.returncode}:\n{program.output()}"
        yield program
        assert process.poll() is None, f"{args[0]} ended early, with status {process.returncode}:\n{program.output()}"
        process.send_signal(stop)
        wait_until(lambda: process.poll() is not None, timeout, f"the end of {args[0]}")
    finally:
        # With the processes it has started: the workers of a killed nginx would go on.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def accepts(port: int) -> bool:
    """Tell whether something listens on a port of 127.0.0.1."""
    try:
        gevent.socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def connect_from(
    source: str,
    port: int,
    headers: Mapping[str, str] | None = None,
    target: str = "/",
    prefix: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> Connection:
    """Connect to a port of 127.0.0.1 from another address of the loopback network.

    Args:
        prefix: bytes to send before everything else.
        tls: to speak it with a server whose certificate is for localhost.
    """
    sock = gevent.socket.create_connection(("127.0.0.1", port), 5, source_address=(source, 0))
    try:
        sock.sendall(prefix)
        carrier = SocketStream.adopt(sock)
    finally:
        sock.close()
    stream: Stream = carrier
    if tls is not None:
        stream = TlsStream(carrier, tls, server_side=False, server_hostname="localhost")
        stream.handshake()
    return Client.from_stream(stream, f"ws://127.0.0.1:{port}{target}", options=ClientOptions(headers=dict(headers or {})))


@contextmanager
def nginx(config: Path) -> Iterator[int]:
    """Run nginx in the folder of a configuration that says `listen 127.0.0.1:8080`; the context is the port it has instead."""
    program = require_tool("nginx")
    port = free_port()
    text = config.read_text()
    assert "listen 127.0.0.1:8080;" in text
    config.write_text(text.replace("listen 127.0.0.1:8080;", f"listen 127.0.0.1:{port};"))
    args = [program, "-e", "stderr", "-p", f"{config.parent}/", "-c", config.name]
    if os.geteuid() == 0:
        args += ["-g", "user root;"]
    with running(args, config.parent, lambda _: accepts(port), cwd=config.parent):
        yield port


@contextmanager
def browser(folder: Path, quic: Sequence[str] = ()) -> Iterator[Any]:
    """Run headless Chromium with a new profile in `folder`; the context is selenium's driver.

    Args:
        quic: flags that say what it speaks QUIC with. Without any it speaks none.

    Each call of the driver blocks this whole process: a server in it answers between the calls only.
    """
    chromium, driver_program = require_tool("chromium", "chromium-browser", "google-chrome"), require_tool("chromedriver")
    require_module("selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*BROWSER_FLAGS, *(quic or ("--disable-quic",)), f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        driver.set_script_timeout(10)
        driver.set_page_load_timeout(20)
        yield driver
    finally:
        driver.quit()


def node_modules() -> dict[str, str]:
    """Install what package.json asks for, once, and return the environment with which node finds it."""
    require_tool("node")
    npm = require_tool("npm")
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    # Several processes may run tests at once: one installs, the others wait.
    with (HERE / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((HERE / "node_modules" / name / "package.json").exists() for name in wanted):
            _install(npm, wanted)
    return {"NODE_PATH": str(HERE / "node_modules")}


def _install(npm: str, wanted: Collection[str]) -> None:
    args = [npm, "install", "--prefix", str(HERE), "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
    finished = run_program(args, timeout=120)
    if finished.status == 0:
        return
    reason = f"npm could not install {' and '.join(wanted)}: {finished.errors[-500:]}"
    if CI:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
