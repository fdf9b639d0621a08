"""Asking the program of apps.py: raw clients over TCP and over a Unix socket, its pages, its notes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent import socket

from tests.raw import PATIENCE, Answer, RawClient
from tests.support import ServerProcess, wait_until

__all__ = ["RawUnixClient", "clear_notes", "notes", "page", "wait_for_notes", "websocket"]


class RawUnixClient(RawClient):
    """A raw client on a Unix socket."""

    def __init__(self, path: str) -> None:
        self.sock: Any = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.buffer = bytearray()
        self.sock.connect(path)


@contextmanager
def websocket(server: ServerProcess | int, path: str, *headers: str) -> Iterator[RawClient]:
    """A raw client after its opening handshake."""
    with RawClient(server if isinstance(server, int) else server.port) as client:
        client.upgrade(*headers, path=path)
        yield client


def page(server: ServerProcess | int, path: str, method: str = "GET") -> Answer:
    """The answer to a plain request."""
    with RawClient(server if isinstance(server, int) else server.port) as client:
        client.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return client.read_answer()


def notes(server: ServerProcess) -> list[Any]:
    """What the program's applications have noted down."""
    found: list[Any] = json.loads(page(server, "/notes").body)
    return found


def clear_notes(server: ServerProcess) -> None:
    """Begin a new page."""
    page(server, "/clear")


def wait_for_notes(server: ServerProcess, count: int) -> list[Any]:
    """Wait until there are so many notes."""
    return wait_until(lambda: found if len(found := notes(server)) >= count else [], what=f"{count} notes")
