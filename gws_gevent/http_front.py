"""HTTP beside WebSocket on the connections of a Server: requests for a WSGI app go to it through `gevent.pywsgi`.

Belongs here: which of a connection's requests goes where, and the deadlines of heads, bodies, answers and pauses. Does not belong
here: HTTP itself, which is gevent's; what differs from gevent's handler (integrations/pywsgi.py); the opening handshake
(opening.py).

All of it runs in the connection's greenlet, inside `ServerService.open`. When a request upgrades the connection, everything here is
gone before its read loop begins.
"""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable, Mapping, MutableMapping
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
import gevent.socket
from gevent import pywsgi

from gws_gevent.exceptions import HandshakeError, Refusal, TransportError
from gws_gevent.handshake import parse_request, wants_websocket
from gws_gevent.http_head import HeadReader, Request
from gws_gevent.integrations.pywsgi import LIBRARY, WSGIHandler, is_misread
from gws_gevent.opening import TO_APP
from gws_gevent.options import WsgiSettings
from gws_gevent.stream_socket import READER_SIZE, Intake, StreamSocket, TakenSocket, as_socket_error
from gws_gevent.takeover import Accepted, Takeover, switch
from gws_gevent.transports.base import PollableStream, is_encrypted

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.handler import EventHandler
    from gws_gevent.opening import ServerService
    from gws_gevent.transports.base import Stream

__all__ = ["HttpFront"]

#: Bytes of a body in each second that are enough not to be cut off by `body_timeout`.
MIN_BODY_RATE = 1024
#: Bytes handed at once to a stream that can only block.
SLICE = 64 * 1024
#: Local addresses whose names are kept.
MAX_NAMES = 64


class AppServer(pywsgi.WSGIServer):  # type: ignore[misc]
    """What a handler asks its server for: the app, logs, the beginning of an environ. It never listens."""

    def __init__(self, app: Any, settings: WsgiSettings) -> None:
        handler_class = WSGIHandler if settings.handler_class is None else settings.handler_class
        if not (isinstance(handler_class, type) and issubclass(handler_class, WSGIHandler)):
            raise TypeError(f"handler_class is a subclass of gws_gevent.integrations.pywsgi.WSGIHandler, not {handler_class!r}")
        logs = {"log": settings.log, "error_log": settings.error_log}
        super().__init__(("", 0), app, environ=dict(settings.environ), handler_class=handler_class, **logs)


class HttpFront:
    """Serves HTTP on the connections of one server."""

    def __init__(self, app: Any, settings: WsgiSettings) -> None:
        self.server = AppServer(app, settings)
        self.fixed = frozenset(settings.environ)
        self._names: dict[str, str] = {}

    def serve(self, service: ServerService, conn: Connection, peer: Any, received: bytes) -> EventHandler | None:
        """See opening.Front."""
        visit = Visit(self, service, conn, peer, received)
        try:
            while visit.read_head():
                found = self._route(visit)
                if found is TO_APP:
                    found = visit.ask_app()
                if found is not TO_APP:
                    return found
            # In order: what is left open is reset, and the end of the last answer could be lost with it.
            conn.stream.close()
            return None
        finally:
            service.head_is_here(conn)
            visit.forget()

    def _route(self, visit: Visit) -> EventHandler | None:
        """Let the direct path have what it wants; TO_APP for all else, None for what has been refused."""
        service, conn, request = visit.service, visit.conn, visit.request
        if request is not None and not visit.tainted and wants_websocket(request):
            found = service.answer(conn, visit.peer, request, visit.behind)
            if found is not TO_APP:
                return found
        try:
            service.check_room(conn)
            visit.find_remote()
        except Refusal as refusal:
            service.refuse(conn, refusal, request)
            return None
        return TO_APP

    def name_of(self, address: str) -> str:
        """SERVER_NAME of a local address: looked up once, as gevent's server does when it starts."""
        name = self._names.get(address)
        if name is None:
            try:
                name = str(gevent.socket.getfqdn(address))
            except OSError:
                name = address
            if len(self._names) < MAX_NAMES:
                self._names[address] = name
        return name


class Visit:
    """One connection while it speaks HTTP.

    Attributes:
        request: the head that was read last, strictly parsed; None if it is not fit for that.
        behind: what has been read behind it.
        tainted: a head of this connection was not fit for that: nothing behind it is taken for an upgrade.
        reader: what the handler reads; there once the app has been asked.
    """

    reader: io.BufferedReader
    _intake: Intake
    _socket: StreamSocket

    def __init__(self, front: HttpFront, service: ServerService, conn: Connection, peer: Any, received: bytes) -> None:
        self.front = front
        self.service = service
        self.conn = conn
        self.peer = peer
        self.request: Request | None = None
        self.behind = received
        self.tainted = False
        self.close_timeout = service.options.close_timeout
        self._head = b""
        self._remote: Any = None
        self._facts: dict[str, str] | None = None
        self._handler: WSGIHandler | None = None
        self._in_body = False
        self._waited = 0.0
        self._body = 0

    def forget(self) -> None:
        """Let go of everything, so that nothing here has to wait for the garbage collector."""
        if self._handler is not None:
            self._handler.forget_request()
            self._handler.__dict__.clear()
            self._intake.end()
        self.__dict__.clear()

    # Heads

    def read_head(self) -> bool:
        """Wait for a request and read its head; False: there is none, or none that is served, and the connection is to end."""
        if self._handler is not None and not self._wait_for_another():
            return False
        service, conn = self.service, self.conn
        self._in_body = False
        taken, self.behind = bytearray(self.behind), b""
        service.expect_head(conn)
        try:
            reader = HeadReader(service.options.max_request_head)
            piece = bytes(taken)
            while not (piece and reader.feed(piece)):
                piece = service.read_some(conn)
                taken += piece
                if not piece:
                    if not taken:
                        return False
                    raise Refusal(400)
            self.request = parse_request(reader.head)
            self.tainted = self.tainted or is_misread(self.request)
            self._head, self.behind = reader.head, reader.rest
        except HandshakeError as error:
            if isinstance(error, Refusal) and error.status == 431:
                service.refuse(conn, error, None)
                return False
            # What gevent's handler makes of it, it may. It goes on reading, if it has to, under the same deadline.
            self.request, self.tainted = None, True
            self._head = bytes(taken)
            return True
        finally:
            if self.request is not None or not taken:
                service.head_is_here(conn)
        return True

    def _wait_for_another(self) -> bool:
        """Between two requests: wait until something comes. False: nothing will."""
        service, conn = self.service, self.conn
        self.request = None
        service.give_place_back(conn)
        self.behind = self._intake.take_back(self.reader)
        if self.behind:
            # Requests that came all at once, to an app that never waits: others have their turn between any two of them.
            gevent.sleep(0)
        else:
            conn.allow(service.options.keep_alive_timeout)
            try:
                self.behind = service.read_or_leave(conn)
            except TransportError:
                return False
        conn.allow(service.options.handshake_timeout)
        return bool(self.behind) and not service.stopping

    def find_remote(self) -> None:
        """Learn who the client is; a Refusal if proxies disagree."""
        self._remote = self.service.remote(self.request, self.peer) if self.request is not None else self.peer

    # The app

    def ask_app(self) -> EventHandler | None:
        """Serve one request: TO_APP: read the next; the handler that the connection is upgraded for; None: it has ended."""
        handler = self._handler or self._make_handler()
        handler.client_address = self._remote or self.conn.remote_address
        self._intake.put_back(self._head + self.behind)
        self._head = self.behind = b""
        handler.time_start, handler.time_finish = time.time(), 0
        result = handler.handle_one_request()
        # Also where the handler gave the head up in its middle.
        self.service.head_is_here(self.conn)
        accepted = handler.takeover.accepted if handler.takeover is not None else None
        if accepted is None and (result is not True or self.service.stopping):
            self._end(handler, result)
            return None
        handler.forget_request()
        return TO_APP if accepted is None else self._upgrade(accepted)

    def _make_handler(self) -> WSGIHandler:
        self._socket = StreamSocket(self.conn.stream, self._send)
        self._intake = Intake(self._receive, self._socket)
        self.reader = io.BufferedReader(self._intake, READER_SIZE)
        server = self.front.server
        handler: WSGIHandler = server.handler_class(self._socket, None, server, self.reader)
        handler.carrier = self
        self._handler = handler
        return handler

    def _upgrade(self, accepted: Accepted) -> EventHandler | None:
        conn = self.connection(accepted.service, accepted.session)
        switch(conn, accepted, self)
        return accepted.handler

    def _end(self, handler: WSGIHandler, result: Any) -> None:
        """The last request has been served: close."""
        stream = self.conn.stream
        if isinstance(result, tuple):
            handler._orig_status = ""
            handler.status, answer = result
            try:
                self._socket.sendall(answer)
            except OSError:
                stream.abort()  # who sent what is refused here did not wait for the answer
                return
            handler.response_length = len(answer)
            handler.time_finish = time.time()
            handler.log_request()
            self.service.linger(self.conn)
            return
        if isinstance(stream, PollableStream):
            try:
                # Closing with unread input would reset the connection, and the end of the answer could be lost with it.
                stream.try_recv_into(self.service.buffer)
            except TransportError:
                pass
        stream.close()

    # What the handler asks

    def next_request(self) -> Request | None:
        """See HandlerCarrier: the head has been read already."""
        return self.request

    def head_complete(self) -> None:
        """See HandlerCarrier."""
        self.service.head_is_here(self.conn)
        self.conn.allow(None)
        self._in_body = True
        self._waited, self._body = 0.0, 0

    def http_is_over(self) -> None:
        """See HandlerCarrier."""
        self._in_body = False

    def check_length(self, length: int | None) -> None:
        """See HandlerCarrier."""
        limit = self.service.options.max_request_body
        if length is not None and limit is not None and length > limit:
            raise Refusal(413, "The request has too large a body.\n")

    def environ(self, environ: dict[str, Any]) -> None:
        """See HandlerCarrier."""
        if self._facts is None:
            self._facts = self._learn_facts()
        environ.update(self._facts)
        scheme = self.service.scheme(self.request, self.peer)
        if scheme is not None and "wsgi.url_scheme" not in self.front.fixed:
            environ["wsgi.url_scheme"] = scheme

    def _learn_facts(self) -> dict[str, str]:
        """What is the same in all environs of this connection."""
        local = self.conn.local_address
        host, port = (self.front.name_of(str(local[0])), str(local[1])) if isinstance(local, tuple) else ("", "")
        scheme = "https" if is_encrypted(self.conn.stream) else "http"
        facts = {"SERVER_NAME": host, "SERVER_PORT": port, "wsgi.url_scheme": scheme}
        return {key: value for key, value in facts.items() if key not in self.front.fixed}

    def own_headers(self) -> Mapping[str, str]:
        """See HandlerCarrier."""
        return self.service.own_headers(self.conn)

    def keep(self) -> None:
        """See HandlerCarrier: it lives on anyway."""

    @property
    def stopping(self) -> bool:
        """See Carrier."""
        return self.service.stopping

    def service_of(self, own: Callable[[], ServerService], upgrader: Any) -> ServerService:
        """See Carrier."""
        return self.service.guest(upgrader, upgrader.options)

    def connection(self, service: ServerService, session: MutableMapping[Any, Any] | None) -> Connection:
        """See Carrier."""
        self.conn.move_to(service, session)
        return self.conn

    def remote(self, service: ServerService, request: Request) -> Any:
        """See Carrier."""
        return self._remote

    def rest(self) -> bytes:
        """See Carrier."""
        rest = self._intake.take_back(self.reader)
        self._intake.end()  # an app that reads on is not to take bytes away from the connection
        return rest

    def socket(self, takeover: Takeover) -> Any:
        """See Carrier."""

        def take(taken: TakenSocket) -> tuple[Stream, Callable[[Any], None], bytes]:
            takeover.take(LIBRARY)
            takeover.socket = taken
            self.service.taken_by_library(self.conn, taken.go_away)
            return self.conn.stream, self._send, self.rest()

        return TakenSocket(self._socket, take)

    # Bytes, and how long they may take

    def _receive(self, view: memoryview) -> int:
        try:
            return self._receive_body(view) if self._in_body else self.conn.stream.recv_into(view)
        except TransportError as error:
            raise as_socket_error(error, errno.ECONNRESET) from error

    def _receive_body(self, view: memoryview) -> int:
        conn, options = self.conn, self.service.options
        if options.max_request_body is not None and self._body > options.max_request_body:
            raise pywsgi._InvalidClientInput(f"the body of a request is larger than {options.max_request_body} bytes")
        if options.body_timeout is None:
            count = conn.stream.recv_into(view)
        else:
            conn.allow(max(options.body_timeout + self._body / MIN_BODY_RATE - self._waited, 0.001))
            began = monotonic()
            count = conn.stream.recv_into(view)
            self._waited += monotonic() - began
            conn.allow(None)
        self._body += count
        return count

    def _send(self, data: Any) -> None:
        """Send all of `data`; a peer that takes none of it for `write_timeout` is given up."""
        conn, timeout = self.conn, self.service.options.write_timeout
        stream: Any = conn.stream
        try_send = getattr(stream, "try_send", None)
        sent = try_send(data) if try_send is not None else 0
        if sent == len(data):
            return
        with memoryview(data) as view:
            while sent < len(view):
                conn.allow(timeout)
                if try_send is None:
                    stream.send_all(view[sent : sent + SLICE])
                    sent += SLICE
                else:
                    stream.wait_writable()
                    sent += try_send(view[sent:])
        conn.allow(None)
