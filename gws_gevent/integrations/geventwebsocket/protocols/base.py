"""What a WebSocketApplication does with its messages unless it says otherwise: it gets them as they are."""

from __future__ import annotations

from typing import Any

__all__ = ["BaseProtocol"]


class BaseProtocol:
    """Stands between a WebSocket and its application. Subclass it, and name it as the application's `protocol_class`."""

    #: The subprotocol that is answered if the client offers it; "" for none.
    PROTOCOL_NAME = ""

    def __init__(self, app: Any) -> None:
        self._app = app

    def on_open(self) -> None:
        """The WebSocket is open."""
        self.app.on_open()

    def on_message(self, message: Any) -> None:
        """A message has come: `str` for text, `bytearray` for binary."""
        self.app.on_message(message)

    def on_close(self, reason: Any = None) -> None:
        """The WebSocket has closed. Called once for each `on_open`."""
        self.app.on_close(reason)

    @property
    def app(self) -> Any:
        """The application."""
        if self._app is None:
            raise RuntimeError("the protocol belongs to no application")
        return self._app

    @property
    def handler(self) -> Any:
        """The WSGI handler of the request; None before the application has its WebSocket."""
        ws = getattr(self.app, "ws", None)
        return None if ws is None else ws.handler

    @property
    def server(self) -> Any:
        """The server; None before the application has its WebSocket."""
        handler = self.handler
        return None if handler is None else handler.server
