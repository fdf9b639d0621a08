"""A worker class for gunicorn: `-k gws_gevent.integrations.geventwebsocket.gunicorn.workers.GeventWebSocketWorker`.

The class is made when it is first asked for: `install()` imports this module where there is no gunicorn.
"""

from __future__ import annotations

from typing import Any

from gws_gevent.exceptions import MissingExtra
from gws_gevent.integrations.geventwebsocket.handler import WebSocketHandler
from gws_gevent.integrations.geventwebsocket.server import WebSocketServerMixin

__all__ = ["GeventWebSocketWorker"]  # noqa: F822  # by __getattr__


def __getattr__(name: str) -> Any:
    if name != "GeventWebSocketWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    worker = globals()[name] = _make_worker()
    return worker


def _make_worker() -> type:
    try:
        from gunicorn.workers import ggevent
    except ImportError as error:
        raise MissingExtra("the worker for gunicorn", "gunicorn") from error

    class Handler(ggevent.PyWSGIHandler, WebSocketHandler):  # type: ignore[misc]
        """Logs to gunicorn's access log."""

    class Server(WebSocketServerMixin, ggevent.PyWSGIServer):  # type: ignore[misc]
        """Says goodbye when the worker stops."""

    class GeventWebSocketWorker(ggevent.GeventPyWSGIWorker):  # type: ignore[misc]
        """gunicorn's `gevent_pywsgi` worker, whose applications find a WebSocket in `environ["wsgi.websocket"]`."""

        server_class = Server
        wsgi_handler = Handler

    GeventWebSocketWorker.__module__ = __name__
    GeventWebSocketWorker.__qualname__ = "GeventWebSocketWorker"
    return GeventWebSocketWorker
