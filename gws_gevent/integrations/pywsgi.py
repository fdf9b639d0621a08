"""A handler for `gevent.pywsgi` whose apps can give the connection of a request away.

Belongs here: what differs from gevent's own handler: the strict look at a request's head before anybody may upgrade it, the keys in
its environ, what happens once the connection has been taken. Does not belong here: listening, deadlines, the rules of the
handshake.

`Server(wsgi=app)` uses it, and a server of gevent's own can: `WSGIServer(address, app, handler_class=WSGIHandler)`.
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import Context, copy_context
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Protocol

from gevent import pywsgi
from greenlet import GreenletExit, getcurrent

from gws_gevent._accel import build_of
from gws_gevent.exceptions import ConnectionClosed, HandshakeError, Refusal, TransportError
from gws_gevent.frames import CloseCode, State
from gws_gevent.handshake import parse_request, refusal_response, wants_websocket
from gws_gevent.http_head import HeadReader, Request
from gws_gevent.integrations.pywsgi_body import Body
from gws_gevent.options import ServerOptions
from gws_gevent.socket_streams import stream_of
from gws_gevent.stream_socket import READER_SIZE, Intake, TakenSocket
from gws_gevent.takeover import KEY, Carrier, Takeover, switch

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.opening import ServerService
    from gws_gevent.transports.base import Stream
else:
    Connection = build_of("connection").Connection

__all__ = ["WSGIHandler"]

log = logging.getLogger("gws_gevent")

#: Who takes a connection by using its socket, in words.
LIBRARY = "a library that uses environ['gunicorn.socket']"
#: Seconds that a connection which a library took has for its end, where no options say so.
CLOSE_TIMEOUT = 5.0
#: The longest head that is looked at strictly where no options say so. A longer one cannot be upgraded.
MAX_HEAD = ServerOptions().max_request_head


class HandlerCarrier(Carrier, Protocol):
    """What a handler needs to know of the connection it serves, besides what a Takeover does."""

    #: Seconds that a connection which a library took has for its end.
    close_timeout: float
    #: An earlier request of this connection, or its body, was read with less care than an upgrade asks for.
    tainted: bool
    reader: io.BufferedReader

    def next_request(self) -> Request | None:
        """Read the next head and have it read again; None if it is not fit for the strict reader."""

    def head_complete(self) -> None:
        """The handler has read the head: what it reads now is the body."""

    def http_is_over(self) -> None:
        """The app answers 101 by itself: what is read from here on is no body."""

    def check_length(self, length: int | None) -> None:
        """Raise a Refusal for a body that is declared too long."""

    def environ(self, environ: dict[str, Any]) -> None:
        """Complete an environ with what is known of the connection."""

    def own_headers(self) -> Mapping[str, str]:
        """Headers that the server adds to what an app answers."""

    def keep(self) -> None:
        """The connection is to live on after the handler's end."""


class WSGIHandler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """Serves HTTP as its base class does. An app may take the connection of a request that asks for WebSocket.

    It may do so with an `Upgrader`, or with a library that uses `environ["gunicorn.socket"]`. Whatever the app answers after that
    goes nowhere, and the connection ends with the request. A request whose head is ambiguous is refused if it asks for an upgrade,
    and otherwise treated as the base class does.

    Attributes:
        request: the head of the request being served, strictly parsed; None if it is not fit for that.
        takeover: who has its connection.
    """

    carrier: Any = None
    code: Any
    socket: Any
    status: Any
    response_headers: Any
    request: Request | None = None
    takeover: Takeover | None = None
    wsgi_input: Any
    _asks_for_websocket = False

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        if rfile is None:
            self.carrier = SocketCarrier(sock)
            rfile = self.carrier.reader
        pywsgi.WSGIHandler.__init__(self, sock, address, server, rfile)

    def MessageClass(self, *args: Any) -> Any:
        """The headers of the request; their names in lower case if the head has been parsed strictly: that is not done twice."""
        request = self.request
        if request is None:
            return pywsgi.WSGIHandler.MessageClass(self, *args)
        # To its blank line, which is where the strict reader has found it, too.
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        message = pywsgi.OldMessage()
        for name, value in request.headers:
            message.set_raw(name, value)
        return message

    # Hooks for subclasses

    def before_application(self, environ: dict[str, Any]) -> None:
        """The environ is complete and the app is about to be called. Override it; what it raises is answered as the app's error."""

    def after_takeover(self, takeover: Takeover) -> None:
        """The app has returned and the connection was taken. What is left to do follows: the 101 and the read loop, or the end."""

    def application_failed(self, takeover: Takeover, error: Exception) -> None:
        """The app has failed after the connection was taken: nothing of that is answered. Override it to do something else.

        It is told where all failures of apps are, unless it is the connection's end; one that `accept` opened is closed with 1011.
        """
        conn = takeover.conn
        over = takeover.accepted is None and (conn is None or conn.state is not State.OPEN)
        if isinstance(error, Refusal) or (over and _is_end(error)):
            log.debug("the app failed after the connection of its request was taken by %s", takeover.by, exc_info=error)
            return
        self._log_error(type(error), error, error.__traceback__)
        if conn is not None:
            conn.close(CloseCode.INTERNAL_ERROR)

    # One request

    def handle(self) -> None:
        """Serve the connection, for a server of gevent's own; in the end run its read loop if it has been upgraded."""
        try:
            pywsgi.WSGIHandler.handle(self)
        except OSError as error:
            if error.errno not in self.ignored_socket_errors:
                raise
        carrier, takeover = self.carrier, self.takeover
        accepted = takeover.accepted if takeover is not None else None
        # The server's frames below keep this handler, and would keep the request.
        self.__dict__.clear()
        if accepted is None:
            return
        conn = carrier.connection(accepted.service, accepted.session)
        try:
            switch(conn, accepted, carrier)
        except TransportError:
            conn.abort()  # the peer has left
            return
        conn.attach(accepted.handler)
        del carrier, takeover, accepted
        conn.read_loop()

    def handle_one_request(self) -> Any:
        if self.rfile.closed:
            return None
        self.takeover = None
        request = self.request = self.carrier.next_request()
        self._asks_for_websocket = request is not None and wants_websocket(request)
        result = pywsgi.WSGIHandler.handle_one_request(self)
        body = self.wsgi_input
        if isinstance(body, Body):
            self.carrier.tainted = self.carrier.tainted or body.misread
            body.end()
            if body.lost and result is True:
                return None  # the app knows of the error, and has answered all the same
        return result

    def read_request(self, raw_requestline: str) -> Any:
        valid = pywsgi.WSGIHandler.read_request(self, raw_requestline)
        if valid:
            self.carrier.check_length(self.content_length)
            self._check_upgrade()
        self.carrier.head_complete()
        return valid

    def _check_upgrade(self) -> None:
        """Refuse what the app would take for an upgrade, but who reads with more care would not."""
        if not any("websocket" in value.lower() for value in self.headers.get_all("Upgrade", ())):
            return
        if self.request is None:
            raise Refusal(400, "A WebSocket handshake is a request that can be read in one way only.\n")
        if self.carrier.tainted:
            raise Refusal(400, "A WebSocket handshake may not follow a request that can be read in more than one way.\n")
        if self.command == "GET" and (self.content_length or "transfer-encoding" in self.request.headers):
            raise Refusal(400, "A WebSocket handshake has no body.\n")

    def _handle_client_error(self, ex: Exception) -> Any:
        if isinstance(ex, Refusal):
            return str(ex.status), refusal_response(ex, self.command == "HEAD")
        if isinstance(ex, OSError) and not isinstance(ex, pywsgi._InvalidClientInput):
            return None  # the stream has ended in the middle of a head
        if isinstance(ex, (HTTPException, IndexError)):
            # More headers than the standard library reads, or a version without a point: no reason for a traceback.
            ex = ValueError(str(ex))
        return pywsgi.WSGIHandler._handle_client_error(self, ex)

    def _connection_upgrade_requested(self) -> bool:
        """An upgrade to another protocol is ignored (RFC 9110 section 7.8), and its body is the app's to read."""
        return self._asks_for_websocket and self.command == "GET"

    def get_environ(self) -> Any:
        environ = pywsgi.WSGIHandler.get_environ(self)
        if self.wsgi_input.content_length or self.wsgi_input.chunked_input:
            # A request for an upgrade has the bare stream as its wsgi.input: there is no body then.
            self.wsgi_input = Body(self.wsgi_input)
            if not self._connection_upgrade_requested():
                environ["wsgi.input"] = self.wsgi_input
        self.carrier.environ(environ)
        self.takeover = environ[KEY] = Takeover(self.carrier, self.request)
        if self._connection_upgrade_requested():
            environ["gunicorn.socket"] = self.carrier.socket(self.takeover)
        return environ

    def start_response(self, status: Any, headers: Any, exc_info: Any = None) -> Any:
        if self.takeover is not None:
            if self.takeover.by is not None:
                return _swallow
            self.takeover.answered = True
        write = pywsgi.WSGIHandler.start_response(self, status, headers, exc_info)
        if self.code == 101:
            self.carrier.http_is_over()
        elif self.code == 400 and self._asks_for_websocket:
            self._hint_at_route()
        return write

    def _hint_at_route(self) -> None:
        """A route of Flask that is not marked for WebSocket is a 400 without a reason: say it, once for a server."""
        found = getattr(self.environ.get("werkzeug.request"), "routing_exception", None)
        if type(found).__name__ == "WebsocketMismatch" and not getattr(self.server, "hinted_at_route", False):
            self.server.hinted_at_route = True
            log.warning("%r asks for WebSocket, but its route was declared without websocket=True: Flask answers 400", self.path)

    def finalize_headers(self) -> None:
        pywsgi.WSGIHandler.finalize_headers(self)
        more = self.carrier.own_headers()
        if self.code != 101 and self._asks_for_websocket:
            more = {**more, "Connection": "close"}
        if more:
            given = {name.lower() for name, _ in self.response_headers}
            added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in more.items()]
            self.response_headers += [line for line in added if line[0].lower() not in given]

    def write(self, data: Any) -> None:
        if self.takeover is None or self.takeover.by is None:
            pywsgi.WSGIHandler.write(self, data)

    def process_result(self) -> None:
        takeover = self.takeover
        assert takeover is not None
        if not self._connection_upgrade_requested():
            pywsgi.WSGIHandler.process_result(self)
            return
        # The app may have taken the connection, or do so while its answer is made.
        answer = iter(self.result) if takeover.by is None else ()
        for data in answer:
            if takeover.by is not None:
                return
            if data:
                self.write(data)
        if takeover.by is not None:
            return
        if self.status and not self.headers_sent:
            self.write(b"")
        if self.response_use_chunked:
            self._sendall(b"0\r\n\r\n")

    def run_application(self) -> None:
        takeover = self.takeover
        assert takeover is not None
        try:
            self.before_application(self.environ)
            _throw_away_context().run(pywsgi.WSGIHandler.run_application, self)
        except StopIteration:
            if not self._connection_upgrade_requested():
                raise
            takeover.by = takeover.by or "the app, which says so by StopIteration"
        except GreenletExit:
            # The base class would answer 500 and go on.
            self.close_connection = True
            raise
        except Exception as error:
            if takeover.by is None:
                raise
            self.application_failed(takeover, error)
        if takeover.by is not None:
            self._connection_was_taken(takeover)
        elif self.code == 101 or takeover.refused or self._asks_for_websocket:
            # 101: the app has spoken another protocol by itself, and what follows on this connection is no HTTP. After any other
            # answer, what stands between may believe all the same that the connection has become another.
            self.close_connection = True

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        """Log what is no fault of the client's, and answer 500; a connection that was taken has its end as after any return.

        What is no Exception gets here past `run_application`: a `gevent.Timeout` of the app's, a kill. Who kills this greenlet
        wants an end of the connection, be it upgraded or not.
        """
        takeover = self.takeover
        if takeover is not None and issubclass(t, GreenletExit):
            takeover.drop()
        pywsgi.WSGIHandler.handle_error(self, t, v, tb)
        if takeover is not None and takeover.by is not None:
            self._connection_was_taken(takeover)

    def _connection_was_taken(self, takeover: Takeover) -> None:
        self.close_connection = True
        self.response_headers = []
        if takeover.refusal is not None:
            self.code = takeover.refusal.status
            answer = refusal_response(takeover.refusal, self.command == "HEAD")
            self._orig_status = answer[9 : answer.index(b"\r\n")].decode("latin-1")
            self.status = self._orig_status.encode("latin-1")
            self._sendall(answer)
            return
        self.code = 101
        self.status, self._orig_status = b"101 Switching Protocols", "101 Switching Protocols"
        self.after_takeover(takeover)
        if takeover.accepted is not None:
            self.carrier.keep()
            self.socket = None  # which the base class would close
        if takeover.conn is not None:
            takeover.conn.close()
        if takeover.socket is not None:
            takeover.socket.finish(self.carrier.close_timeout)

    def forget_request(self) -> None:
        """Let go of the last request: its environ knows the takeover, and that may be known to the app for longer."""
        if self.takeover is not None:
            self.takeover.end()
        for name in ("_asks_for_websocket", "application", "environ", "headers", "request", "result", "takeover", "wsgi_input"):
            self.__dict__.pop(name, None)


def _throw_away_context() -> Context:
    """A context for one request: one that lives on would keep what the app puts into it, the request among it.

    To copy where there is none would make one for as long as the greenlet lives.
    """
    return Context() if getcurrent().gr_context is None else copy_context()


def _is_end(error: Exception) -> bool:
    """What comes of using a connection that has ended."""
    gone = isinstance(error, OSError) and error.errno in pywsgi.WSGIHandler.ignored_socket_errors
    return gone or isinstance(error, (ConnectionClosed, TransportError))


def _swallow(_data: bytes) -> None:
    """What `start_response` returns once nobody listens to the app any more."""


def is_misread(request: Request) -> bool:
    """Tell whether pywsgi may look for the end of this request where others do not.

    To it any transfer coding but a single "chunked" is no body at all. In HTTP/1.0 there are none (RFC 9112 section 6.1), and what
    follows a CONNECT is the business of the host that it names (RFC 9110 section 9.3.6).
    """
    codings = request.headers.get_all("transfer-encoding")
    if codings and (request.version != "1.1" or [coding.lower() for coding in codings] != ["chunked"]):
        return True
    return request.method == "CONNECT"


class SocketCarrier:
    """A connection of a `gevent.pywsgi.WSGIServer`: a socket of gevent's, maybe with TLS. It has no deadlines."""

    close_timeout = CLOSE_TIMEOUT
    stopping = False

    def __init__(self, sock: Any) -> None:
        self.tainted = False
        self._socket = sock
        self._stream: Stream | None = None
        self._intake = Intake(sock.recv_into, sock)
        self.reader = io.BufferedReader(self._intake, READER_SIZE)

    def next_request(self) -> Request | None:
        """See HandlerCarrier."""
        taken = bytearray(self._intake.take_back(self.reader))
        reader = HeadReader(MAX_HEAD)
        piece = bytes(taken)
        try:
            while not (piece and reader.feed(piece)):
                piece = self._socket.recv(16384)
                if not piece:
                    raise Refusal(400)
                taken += piece
            request = parse_request(reader.head)
            self.tainted = self.tainted or is_misread(request)
            return request
        except HandshakeError:
            self.tainted = self.tainted or bool(taken)
            return None
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.EBADF):
                raise
            return None
        finally:
            self._intake.put_back(bytes(taken))

    def head_complete(self) -> None:
        """See HandlerCarrier."""

    def http_is_over(self) -> None:
        """See HandlerCarrier."""

    def check_length(self, length: int | None) -> None:
        """See HandlerCarrier."""

    def environ(self, environ: dict[str, Any]) -> None:
        """See HandlerCarrier."""

    def own_headers(self) -> Mapping[str, str]:
        """See HandlerCarrier: there are none."""
        return {}

    def keep(self) -> None:
        """See HandlerCarrier: the handler would close the socket."""
        self._as_stream()

    def service_of(self, own: Callable[[], ServerService], upgrader: object) -> ServerService:
        """See Carrier."""
        return own()

    def connection(self, service: ServerService, session: MutableMapping[Any, Any] | None) -> Connection:
        """See Carrier."""
        return new_connection(self._as_stream(), service, session)

    def remote(self, service: ServerService, request: Request) -> Any:
        """See Carrier."""
        return service.remote(request, self._as_stream().info("peername"))

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
            rest, stream = self.rest(), self._as_stream()
            return stream, stream.send_all, rest

        return TakenSocket(self._socket, take)

    def _as_stream(self) -> Stream:
        if self._stream is None:
            self._stream = stream_of(self._socket)
        return self._stream


def new_connection(stream: Stream, service: ServerService, session: MutableMapping[Any, Any] | None) -> Connection:
    """Return a connection, not yet open, on a stream that no Server of ours has accepted."""
    conn = Connection(stream, service)
    service.connections[conn] = None
    service.take_place(conn)
    conn.move_to(service, session)
    conn.add_close_callback(service.closed)
    return conn
