"""WebSocketApplication, and Resource, which picks one by the path.

Belongs here: what an application sees of its WebSocket's life. Does not belong here: the handshake (handler.py), sending and
receiving (websocket.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gws_gevent.frames import CloseCode
from gws_gevent.integrations.geventwebsocket.exceptions import ProtocolError, WebSocketError
from gws_gevent.integrations.geventwebsocket.protocols.base import BaseProtocol

__all__ = ["Resource", "WebSocketApplication"]

#: An application: a subclass of WebSocketApplication, or a WSGI application.
App = Any


class WebSocketApplication:
    """Handles one WebSocket. Subclass it and override `on_open`, `on_message` and `on_close`.

    Attributes:
        ws: the WebSocket.
        protocol: made of `protocol_class`; stands between the two.
    """

    protocol_class: type[BaseProtocol] = BaseProtocol

    def __init__(self, ws: Any) -> None:
        self.protocol = self.protocol_class(self)
        self.ws = ws

    def handle(self) -> None:
        """Serve the WebSocket until it closes. `on_close` is called exactly once after `on_open`, whatever happened."""
        try:
            self.protocol.on_open()
            while (message := self._next()) is not None:
                self._take(message)
        except ProtocolError as error:
            self.ws.close(CloseCode.PROTOCOL_ERROR, str(error)[:40])
        finally:
            self.protocol.on_close(self.ws.close_reason)

    def _next(self) -> Any:
        try:
            return self.ws.receive()
        except WebSocketError:
            return None  # closed by on_open, by on_message or by somebody else

    def _take(self, message: Any) -> None:
        try:
            self.protocol.on_message(message)
        except ProtocolError:
            raise
        except WebSocketError:
            # Our own has closed, which `receive` tells next; or one of those that the message was passed on to, and that is no
            # fault of this client's.
            if not self.ws.closed:
                self.ws.logger.warning("on_message could not send to another WebSocket", exc_info=True)

    def on_open(self, *args: Any, **kwargs: Any) -> None:
        """The WebSocket is open."""

    def on_close(self, *args: Any, **kwargs: Any) -> None:
        """The WebSocket has closed; the argument is the reason that the peer gave, or None."""

    def on_message(self, message: Any, *args: Any, **kwargs: Any) -> None:
        """A message has come. The default sends it back."""
        self.ws.send(message, **kwargs)

    @classmethod
    def protocol_name(cls) -> str:
        """The subprotocol of this application, or ""."""
        return cls.protocol_class.PROTOCOL_NAME


class Resource:
    """A WSGI application that picks another one by the path.

    Args:
        apps: pairs of a pattern and an application, or a mapping. The first whose pattern matches the beginning of the path
            (`re.match`) and that is of the right kind is taken: a WebSocketApplication for a WebSocket, a WSGI application for
            anything else.
    """

    apps: Iterable[tuple[str, App]]

    def __init__(self, apps: Mapping[str, App] | Iterable[tuple[str, App]] | None = None) -> None:
        self.apps = apps.items() if isinstance(apps, Mapping) else apps if apps else []

    def _is_websocket_app(self, app: App) -> bool:
        """Tell the two kinds apart; override it for an application of another kind."""
        return isinstance(app, type) and issubclass(app, WebSocketApplication)

    def _app_by_path(self, environ_path: str, is_websocket_request: bool) -> App:
        for path, app in self.apps:
            if re.match(path, environ_path) and is_websocket_request == self._is_websocket_app(app):
                return app
        return None

    def app_protocol(self, path: str) -> str:
        """The subprotocol of the WebSocketApplication at this path, or ""."""
        app = self._app_by_path(path, True)
        return str(app.protocol_name()) if hasattr(app, "protocol_name") else ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        ws = environ.get("wsgi.websocket")
        app = self._app_by_path(environ["PATH_INFO"], ws is not None)
        if app is None:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"There is nothing here.\n"]
        if ws is None:
            answer: Iterable[bytes] = app(environ, start_response)
            return answer
        current_app = app(ws)
        current_app.ws = ws
        # Before on_open: an exception of the constructor is still answered with HTTP.
        ws.accept()
        current_app.handle()
        return []
