"""Plain routes of Werkzeug, and so of Flask and Flask-Sockets, serve WebSockets.

Belongs here: that one rule. Since Werkzeug 1.0 (Flask 2 asks for 2.0) a route that is not marked `websocket=True` matches no
request that asks for an upgrade, and programs written for gevent-websocket have no other. Hiding the Upgrade header would do, and
would keep the marked routes of flask-sock, and engineio, from what they look at.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from gws_gevent.integrations.geventwebsocket.websocket import WebSocket

__all__ = ["let_plain_routes_match"]

_MARK = "_gws_gevent"


def let_plain_routes_match() -> None:
    """Where no marked route matches a request that has one of our WebSockets, let the plain ones match. Idempotent.

    Nothing changes for other requests, nor where Werkzeug is not in use.
    """
    routing = sys.modules.get("werkzeug.routing")
    if routing is None or hasattr(routing.Map.bind_to_environ, _MARK):
        return
    bind = routing.Map.bind_to_environ

    @functools.wraps(bind)
    def bind_to_environ(self: Any, environ: Any, *args: Any, **kwargs: Any) -> Any:
        adapter = bind(self, environ, *args, **kwargs)
        if adapter.websocket and _has_websocket(environ) and _no_marked_route(adapter):
            adapter.websocket = False
        return adapter

    setattr(bind_to_environ, _MARK, True)
    routing.Map.bind_to_environ = bind_to_environ


def _has_websocket(environ: Any) -> bool:
    return isinstance(getattr(environ, "environ", environ).get("wsgi.websocket"), WebSocket)


def _no_marked_route(adapter: Any) -> bool:
    try:
        adapter.match()
    except Exception as error:
        return type(error).__name__ == "WebsocketMismatch"
    return False
