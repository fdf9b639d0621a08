"""WebSocketHandler: a request to one of gevent's WSGI servers, and the WebSocket that it may become.

Belongs here: the hooks of gevent-websocket's handler, and when the handshake is done. Does not belong here: how the connection is
taken from under the request (integrations/pywsgi.py), reading and writing (websocket.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from greenlet import GreenletExit

from gws_gevent.exceptions import Refusal
from gws_gevent.frames import CloseCode
from gws_gevent.handler import refuse_parking
from gws_gevent.handshake import judge_upgrade
from gws_gevent.integrations.geventwebsocket.clients import Client, Clients
from gws_gevent.integrations.geventwebsocket.logging import create_logger
from gws_gevent.integrations.geventwebsocket.routing import let_plain_routes_match
from gws_gevent.integrations.geventwebsocket.websocket import MSG_ALREADY_CLOSED, WebSocket, WebSocketError
from gws_gevent.integrations.pywsgi import WSGIHandler
from gws_gevent.options import ServerOptions, options_or_default
from gws_gevent.takeover import Takeover
from gws_gevent.upgrader import Upgrader

if TYPE_CHECKING:
    from gws_gevent.connection import Connection

__all__ = ["Client", "WebSocketHandler", "check_options"]


#: Upgraders that a server keeps, one for each subprotocol. An application has a few; one that makes its names of paths, any number.
MAX_UPGRADERS = 100


def check_options(options: ServerOptions) -> ServerOptions:
    """Return the options, if WebSockets that an application reads by itself can have them. Raises TypeError or ValueError."""
    options = options_or_default(options, ServerOptions)
    refuse_parking(None, options)
    return options


class WebSocketHandler(WSGIHandler):
    """The handler class of a WebSocketServer, and of any `gevent.pywsgi.WSGIServer` that is given it.

    A request that asks for a WebSocket has one in its environ, under "wsgi.websocket"; it is opened when the application first uses
    it. Set `prevent_wsgi_call` in a subclass, or on an instance before `run_application`, to have the handshake done, and the
    application not called.

    Attributes:
        options: of the WebSockets, where their server has none.
        hide_upgrade_headers: leave Upgrade and Connection out of the environ, for routers that take a WebSocket to none of
            their routes. Werkzeug's, and so Flask's, needs no such help.
        open_after: seconds after which it is opened all the same, if the application is still running and has neither used it nor
            answered: one that waits for news before it sends any would leave its client unconnected. None: never.
        websocket: of the request being served; None if it asks for none.
    """

    SUPPORTED_VERSIONS = ("13",)

    options: ServerOptions = ServerOptions()
    hide_upgrade_headers = False
    open_after: float | None = 1.0
    prevent_wsgi_call = False
    websocket: WebSocket | None = None
    _client: Client | None = None
    _opener: gevent.Greenlet | None = None

    # The request

    def run_application(self) -> None:
        """Serve one request."""
        self.websocket = self._client = None
        hook = getattr(self.server, "pre_start_hook", None)
        if hook is not None and hook(self):
            super().run_application()
            return
        answer = self.upgrade_websocket()
        if self.websocket is None and self.status:
            # Refused, by us or by a subclass. What stands between may believe that the connection has become another one.
            self.close_connection = True
            self.result = answer or []
            self.process_result()
        elif self.websocket is not None and self.prevent_wsgi_call:
            self._accept_only(self.websocket)
        else:
            super().run_application()

    def _accept_only(self, ws: WebSocket) -> None:
        """Do the handshake. Whoever set `prevent_wsgi_call` goes on with the WebSocket, until `handle_one_request` ends."""
        assert self.takeover is not None
        try:
            ws.accept()
        except WebSocketError:
            self._connection_was_taken(self.takeover)  # by a refusal
            return
        self.close_connection = True
        self.code, self.status, self._orig_status = 101, b"101 Switching Protocols", "101 Switching Protocols"
        self.response_headers = []

    def process_result(self) -> None:
        """Send what the application returned, or open the WebSocket that it has left to us."""
        ws = self.websocket
        if self.result is None and ws is not None and not self.status:
            self.result = ()  # many an application ends with its loop over messages, and returns nothing
        super().process_result()
        if ws is None:
            return
        if not ws.closed and not self.status:
            # As gevent-websocket has it: an application that neither answers nor uses its WebSocket has it opened all the same.
            ws.accept()
        if ws.is_open:
            for _ in self.result:
                pass  # the application is a generator, and goes on

    def handle_one_request(self) -> Any:
        """Serve one request; its WebSocket ends with it."""
        try:
            return super().handle_one_request()
        finally:
            self._leave()

    def application_failed(self, takeover: Takeover, error: Exception) -> None:
        """The application has failed with its WebSocket open: log that, and close with 1011."""
        ws = self.websocket
        if ws is not None and ws.closed and isinstance(error, WebSocketError):
            self.logger.debug("the application used its WebSocket after the end", exc_info=error)
        else:
            super().application_failed(takeover, error)

    def upgrade_websocket(self) -> Iterable[bytes] | None:
        """Call `upgrade_connection` for a request that asks for a WebSocket; nothing for any other.

        Returns:
            the body of the answer, after a call of `start_response`; None where there is no answer yet.
        """
        if self._connection_upgrade_requested():
            return self.upgrade_connection()
        return None

    def upgrade_connection(self) -> Iterable[bytes] | None:
        """Judge the handshake; where it may be accepted, put a WebSocket into the environ. See `upgrade_websocket`.

        A subclass may refuse by calling `start_response` instead, and returning a body.
        """
        assert self.request is not None
        assert self.takeover is not None
        upgrader = self._upgrader()
        try:
            judge_upgrade(self.request, upgrader.options)
        except Refusal as refusal:
            return self.takeover.refuse(refusal, self.start_response)
        environ = self.environ
        self.websocket = WebSocket(environ, self, partial(self._open, upgrader))
        self._client = Client(self.client_address, self.websocket)
        if self.open_after is not None:
            self._opener = gevent.spawn_later(self.open_after, self._open_late, self.websocket)
        environ["wsgi.websocket"] = self.websocket
        environ["wsgi.websocket_version"] = environ["HTTP_SEC_WEBSOCKET_VERSION"]
        if self.hide_upgrade_headers:
            del environ["HTTP_UPGRADE"], environ["HTTP_CONNECTION"]
        let_plain_routes_match()
        return None

    def _upgrader(self) -> Upgrader:
        """The server's upgrader with the subprotocol that the application has for this path."""
        app_protocol = getattr(self.application, "app_protocol", None)
        name = str(app_protocol(self.environ["PATH_INFO"]) or "") if app_protocol is not None else ""
        options: ServerOptions = getattr(self.server, "websocket_options", None) or self.options
        upgraders: dict[str, tuple[ServerOptions, Upgrader]] = self.server.__dict__.setdefault("websocket_upgraders", {})
        made_of, upgrader = upgraders.get(name, (None, None))
        if upgrader is None or made_of is not options:
            if len(upgraders) >= MAX_UPGRADERS:
                upgraders.clear()  # connections keep what they need of theirs
            upgrader = Upgrader(options=replace(options, subprotocols=(name,)) if name else options)
            upgraders[name] = options, upgrader
        return upgrader

    # The WebSocket

    def _open_late(self, ws: WebSocket) -> None:
        try:
            ws.accept()
        except WebSocketError:
            pass  # it has been answered, or nobody is there any more

    def _open(self, upgrader: Upgrader) -> Connection:
        """Send the 101: the WebSocket is used for the first time."""
        assert self._client is not None
        self._need_no_opener()
        conn = upgrader.accept(self.environ)
        self.rfile.close()  # what the connection does not read from any more, and 8 KB
        if not isinstance(getattr(self.server, "clients", None), Clients):
            self.server.clients = Clients()
        self.server.clients.add(self._client)
        if getattr(self.server, "stopping", False):
            conn.write_close(CloseCode.GOING_AWAY)
        return conn

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        """What is no Exception has come out of the application: a kill drops its WebSocket, anything else closes it with 1011."""
        ws = self.websocket
        if ws is not None and ws.is_open:
            if issubclass(t, GreenletExit):
                ws.connection.abort()
            else:
                ws.close(CloseCode.INTERNAL_ERROR)
        super().handle_error(t, v, tb)

    def _need_no_opener(self) -> None:
        opener, self._opener = self._opener, None
        if opener is not None and opener is not gevent.getcurrent():
            opener.kill(block=False)

    def _leave(self) -> None:
        self._need_no_opener()
        ws, client, self.websocket, self._client = self.websocket, self._client, None, None
        if ws is None or client is None:
            return
        if ws.is_open:
            # Usually closed already, but not where `prevent_wsgi_call` is set.
            self.server.clients.discard(client)
            try:
                ws.connection.close()
            finally:
                ws.connection.abort()
        ws.give_up(MSG_ALREADY_CLOSED)
        if self.environ is not None:
            self.environ["wsgi.websocket"] = None

    @property
    def active_client(self) -> Client:
        """The client of this request: what `server.clients` has of it.

        Raises:
            KeyError: the request is for no WebSocket.
        """
        if self._client is None:
            raise KeyError(self.client_address)
        return self._client

    @property
    def logger(self) -> logging.Logger:
        """The server's logger; made here where the server has none."""
        logger: logging.Logger | None = getattr(self.server, "logger", None)
        if logger is None:
            logger = self.server.logger = create_logger(__name__)
        return logger

    def log_request(self) -> None:
        """Log a request that was answered with HTTP, at level INFO."""
        if self.code != 101:
            self.logger.info(self.format_request())
