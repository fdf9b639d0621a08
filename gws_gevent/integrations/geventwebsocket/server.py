"""WebSocketServer: gevent's WSGI server, with WebSockets.

Belongs here: what the server knows, and its end. Does not belong here: a request (handler.py).
"""

from __future__ import annotations

import logging
from typing import Any

from gevent import pywsgi

from gws_gevent.frames import CloseCode
from gws_gevent.integrations.geventwebsocket.clients import Clients
from gws_gevent.integrations.geventwebsocket.handler import WebSocketHandler, check_options
from gws_gevent.integrations.geventwebsocket.logging import create_logger
from gws_gevent.options import ServerOptions

__all__ = ["WebSocketServer", "WebSocketServerMixin"]


class WebSocketServerMixin:
    """What any server of gevent.pywsgi's can do with WebSockets: it tells them that it stops.

    Attributes:
        clients: whose WebSockets are open.
        stopping: `close` has been called; what is opened from then on is told at once.
    """

    clients: Clients
    stopping = False

    def close(self) -> None:
        """Listen no more, and send every WebSocket a close frame with 1001."""
        super().close()  # type: ignore[misc]
        self.stopping = True
        for client in getattr(self, "clients", {}).values():
            client.ws.close(CloseCode.GOING_AWAY)

    def stop(self, timeout: float | None = None) -> None:
        """`close`, wait `timeout` seconds for what is under way (None: `stop_timeout`), and drop the WebSockets that are left."""
        super().stop(timeout)  # type: ignore[misc]
        clients = getattr(self, "clients", None)
        # Without a pool nobody has waited for them by now.
        if clients and not clients.wait_empty(self.stop_timeout if timeout is None else timeout):  # type: ignore[attr-defined]
            for client in clients.values():
                client.ws.connection.abort()


class WebSocketServer(WebSocketServerMixin, pywsgi.WSGIServer):  # type: ignore[misc]
    """`gevent.pywsgi.WSGIServer`, whose applications find a WebSocket in `environ["wsgi.websocket"]`.

    Args:
        debug: log everything to stderr.
        pre_start_hook: called with the handler of each request; if it returns something true, the request is served as plain HTTP.
        options: limits, deadlines, compression and so on of the WebSockets; None: those of the handler class.

    All other arguments are those of WSGIServer.

    Raises:
        TypeError: other options.
        ValueError: `park_after`, which a WebSocket that the application reads by itself cannot have.

    Attributes:
        clients: whose WebSockets are open, by address.
    """

    handler_class = WebSocketHandler
    debug_log_format = "%(levelname)s in %(module)s [%(pathname)s:%(lineno)d]: %(message)s"

    def __init__(
        self, *args: Any, debug: bool = False, pre_start_hook: Any = None, options: ServerOptions | None = None, **kwargs: Any
    ) -> None:
        self.debug = debug
        self.pre_start_hook = pre_start_hook
        self.websocket_options = None if options is None else check_options(options)
        self.clients = Clients()
        self._logger: logging.Logger | None = None
        super().__init__(*args, **kwargs)

    @property
    def logger(self) -> logging.Logger:
        """Where the server and its handlers log."""
        if self._logger is None:
            self._logger = create_logger(__name__, self.debug, self.debug_log_format)
        return self._logger
