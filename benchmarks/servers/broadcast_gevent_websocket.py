"""Any message is answered with SIZE bytes to every connection, by gevent-websocket.

python broadcast_gevent_websocket.py PORT SIZE
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gevent.pywsgi import WSGIServer
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler

members: set[Any] = set()


def join(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    connection = environ["wsgi.websocket"]
    members.add(connection)
    try:
        while connection.receive() is not None:
            payload = bytes(int(sys.argv[2]))
            for member in list(members):
                member.send(payload, binary=True)
    except (WebSocketError, OSError):
        pass
    finally:
        members.discard(connection)
    return []


if __name__ == "__main__":
    WSGIServer(("127.0.0.1", int(sys.argv[1])), join, handler_class=WebSocketHandler, log=None, error_log=None).serve_forever()
