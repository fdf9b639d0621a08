"""What tests of frameworks share: an app in a server process, and what it says of itself.

Belongs here: starting serve_app.py, asking /facts. Does not belong here: tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket

from tests.gunicorn_process import GWS_WORKER
from tests.support import ROOT, ServerProcess, require_installed, run_server_process, wait_until

__all__ = ["App", "get", "serving_app"]

HERE = ROOT / "tests" / "frameworks"


class App:
    """An app that is being served."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.port = server.port

    def url(self, target: str = "/") -> str:
        """The URL of a WebSocket."""
        return f"ws://127.0.0.1:{self.port}{target}"

    def facts(self) -> dict[str, Any]:
        """What /facts says."""
        facts: dict[str, Any] = json.loads(get(self.port, "/facts")[1])
        return facts

    def settled_facts(self) -> dict[str, Any]:
        """The same, once what earlier tests did has come to its end: three answers in a row are alike."""
        last: list[dict[str, Any]] = []

        def settled() -> bool:
            gevent.sleep(0.05)
            last.append(self.facts())
            return last[-3:] == [last[-1]] * 3

        wait_until(settled, 10)
        return last[-1]

    def log(self) -> str:
        """What the server has written."""
        return self.server.output()


@contextmanager
def serving_app(server: str, *parts: str) -> Iterator[App]:
    """Serve the Flask app of flask_apps.py in a process of its own: see serve_app.py; "gunicorn" is that, with our worker."""
    for package in ("flask", "flask_sock", "flask_socketio", "geventwebsocket"):
        require_installed(package)
    args = [str(HERE / "serve_app.py"), server, *parts]
    if server == "gunicorn":
        args = ["-m", "gunicorn", "-k", GWS_WORKER, "--bind", "127.0.0.1:0", f"tests.frameworks.flask_apps:make({list(parts)})"]
    with run_server_process(args, env={"PYTHONPATH": str(ROOT)}) as process:
        yield App(process)


def get(port: int, target: str, headers: str = "") -> tuple[str, str]:
    """Ask for a page; return head and body."""
    sock = gevent.socket.create_connection(("127.0.0.1", port), 10)
    try:
        sock.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n".encode())
        answer = b""
        while received := sock.recv(65536):
            answer += received
    finally:
        sock.close()
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body
