"""An echo server with gevent-websocket on gevent.pywsgi, on 127.0.0.1: python echo_gevent_websocket.py PORT [CERTIFICATE]."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gevent.pywsgi import WSGIServer
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Send each message back; a connection that the load cuts off is no error."""
    connection = environ["wsgi.websocket"]
    try:
        while (message := connection.receive()) is not None:
            connection.send(message, binary=not isinstance(message, str))
    except (WebSocketError, OSError):
        pass
    return []


if __name__ == "__main__":
    tls = {"certfile": sys.argv[2], "keyfile": sys.argv[2]} if sys.argv[2:] else {}
    address = ("127.0.0.1", int(sys.argv[1]))
    WSGIServer(address, echo, handler_class=WebSocketHandler, log=None, error_log=None, **tls).serve_forever()
