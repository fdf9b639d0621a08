"""Whose WebSockets are open on a server.

Belongs here: `server.clients`. Does not belong here: opening and closing them (handler.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

from gevent.event import Event

if TYPE_CHECKING:
    from gws_gevent.integrations.geventwebsocket.websocket import WebSocket

__all__ = ["Client", "Clients"]


class Client:
    """Whoever has opened a WebSocket. Applications add attributes of their own.

    Attributes:
        address: its key in `server.clients`.
        ws: its WebSocket.
    """

    def __init__(self, address: Any, ws: WebSocket) -> None:
        self.address = address
        self.ws = ws


class Clients(dict[Any, Client]):
    """The clients of a server by their addresses, from the 101 to the end of the request.

    Loops over it go over a copy: whoever sends in a loop lets others come and go meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers = count(1)
        self._empty: Event | None = None

    def add(self, client: Client) -> None:
        """Let a client in, under its address, or one with a number where the address says nothing, as on a Unix socket."""
        if not client.address or client.address in self:
            client.address = (client.address or "", next(self._numbers))
        self[client.address] = client

    def discard(self, client: Client) -> None:
        """Let it out."""
        if self.get(client.address) is client:
            del self[client.address]
        if self._empty is not None and not self:
            self._empty.set()

    def wait_empty(self, timeout: float) -> bool:
        """Wait until nobody is left; False if somebody is after `timeout` seconds."""
        if not self:
            return True
        self._empty = Event()
        return bool(self._empty.wait(timeout))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._copy())

    def keys(self):  # type: ignore[no-untyped-def]  # the views of dict have no public names
        """The addresses; a copy."""
        return self._copy().keys()

    def values(self):  # type: ignore[no-untyped-def]
        """The clients; a copy."""
        return self._copy().values()

    def items(self):  # type: ignore[no-untyped-def]
        """Both; a copy."""
        return self._copy().items()

    def _copy(self) -> dict[Any, Client]:
        return dict(dict.items(self))  # dict.copy would call our own keys()
