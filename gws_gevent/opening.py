"""The opening handshake of a server connection: from the first byte to 101 or a refusal.

Belongs here: reading the head off a stream, PROXY headers, routing, the answer. Does not belong here: the rules themselves
(handshake.py, proxy_headers.py), the connection's life. Runs in the connection's greenlet under one deadline, and its frames
and buffers are gone before the read loop starts.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from gevent import Timeout

from gws_gevent._accel import build_of
from gws_gevent.exceptions import HandshakeError, Refusal, TransportError
from gws_gevent.frames import CloseCode, Side, frame_header
from gws_gevent.handler import EventHandler, as_handler, refuse_parking
from gws_gevent.handshake import (
    Response,
    accept_response,
    http_response,
    judge_upgrade,
    parse_request,
    refusal_response,
    upgrade_required,
    wants_websocket,
)  # fmt: skip
from gws_gevent.http_head import HeadReader, Request
from gws_gevent.proxy_headers import (
    ProxyHeaderError,
    TrustedProxies,
    client_address,
    client_scheme,
    looks_like_proxy_header,
    parse_proxy_header,
)

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from gws_gevent.connection import Connection
    from gws_gevent.options import ServerOptions
    from gws_gevent.service import Service
    from gws_gevent.transports.base import Stream
else:
    Service = build_of("service").Service

__all__ = ["TO_APP", "Front", "GuestService", "ServerService"]

#: Bytes read and dropped behind a refused request, so that the answer isn't lost to a reset.
LINGER_BYTES = 256 * 1024

#: Bytes that are read at once where pages are served, too.
AHEAD = 16 * 1024

#: The close frame that a stopping server sends where a library would not (RFC 6455 section 7.4.1).
GOING_AWAY = frame_header(0x88, 2) + CloseCode.GOING_AWAY.to_bytes(2, "big")

#: What `answer` returns for a request that is the WSGI app's.
TO_APP: Final = EventHandler()

OnRequest = Callable[[Request], Any]
OnError = Callable[["Stream | None", Exception], object]


def _nobody(*_told: object) -> None:
    """Whom to tell where nobody asked."""


class Front(Protocol):
    """What serves HTTP on the connections of a server: see http_front.py."""

    def serve(self, service: ServerService, conn: Connection, peer: Any, received: bytes) -> EventHandler | None:
        """Answer a connection's requests; return the handler of the one that upgrades it, or None at the connection's end.

        Args:
            peer: the address that a PROXY header told, or the stream's own where proxies are trusted; None where none are.
            received: what has been read.
        """


class ServerService(Service):
    """What the connections of one Server share.

    Args:
        handler: serves every upgrade where there is no `on_request`.
        on_request: routes each request; see Server.
        on_error: told of what fails before a connection is open.
        front: serves what is no upgrade, and upgrades that nobody here wants.
        home: see Service.

    Attributes:
        alt_svc: value of the Alt-Svc header in what is answered over TLS (RFC 7838), where HTTP/3 has the same; "" for none.
    """

    options: ServerOptions

    def __init__(
        self,
        handler: EventHandler | None,
        options: ServerOptions,
        on_request: OnRequest | None,
        on_error: OnError,
        front: Front | None = None,
        home: ServerService | None = None,
    ) -> None:
        Service.__init__(self, Side.SERVER, options, home)
        self.keep_request = options.keep_request
        self.stopping = False
        self.alt_svc = ""
        self._handler = handler
        self._on_request = on_request
        self._on_error = on_error
        self._front = front
        self._guests: WeakKeyDictionary[object, GuestService] = WeakKeyDictionary()
        self._trusted = TrustedProxies(options.trusted_proxies) if options.trusted_proxies else None
        # Who is to send a request head; and who need not: kept alive between two requests.
        self._awaited: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        self._libraries: dict[Connection, Callable[[bytes], object]] = {}
        # Counted only where there is a limit.
        self._admitted: set[Connection] = set()
        #: See Server.
        self.on_upgrade: Callable[[Connection, Request], object] = _nobody
        #: Told of what is answered over HTTP without a WSGI app, be it a refusal or a page of `on_request`, with the whole answer.
        self.on_answer: Callable[[Connection, Request | None, bytes], object] = _nobody
        self.accepting: Callable[[bool], object] = _nobody
        self._full = False

    def open(self, conn: Connection) -> EventHandler | None:
        try:
            stream = conn.stream
            peer, received = (None, b"") if self._trusted is None else self._read_proxy_header(stream, self._trusted)
            stream.handshake(received)
            if received and stream.info("carrier") is not None:
                received = b""  # the handshake has taken it
            if self._front is not None:
                return self._front.serve(self, conn, peer, received)
            return self._answer(conn, peer, received)
        except (TransportError, ProxyHeaderError) as error:
            self._on_error(conn.stream, error)
            return None

    def handshake_timed_out(self, conn: Connection) -> None:
        """In the hub: the deadline has passed. Say 408 where a head was being waited for; between two requests, nothing."""
        if conn in self._idle:
            conn.stream.close()
        self._hang_up(conn, 408)

    def stop_awaiting(self) -> None:
        """The server stops: who has not sent a whole request by now is told 503; whose requests have been answered, nothing."""
        for conn in list(self._awaited):
            self._hang_up(conn, 503)
        for conn in list(self._idle):
            conn.stream.close()
        for go_away in self._libraries.values():
            go_away(GOING_AWAY)

    def taken_by_library(self, conn: Connection, go_away: Callable[[bytes], object]) -> None:
        """A library in the app speaks WebSocket on this connection: `go_away(close_frame)` is called when the server stops."""
        self._libraries[conn] = go_away
        if self.stopping:
            go_away(GOING_AWAY)

    def _hang_up(self, conn: Connection, status: int) -> None:
        """Without waiting: say why if a head was being waited for, and drop the stream."""
        try_send = getattr(conn.stream, "try_send", None)
        if conn in self._awaited and try_send is not None:
            try:
                try_send(refusal_response(Refusal(status)))
                conn.stream.shutdown_write()
            except TransportError:
                pass  # there is nobody left to tell
            conn.stream.close()
        conn.abort()

    def _answer(self, conn: Connection, peer: Any, received: bytes) -> EventHandler | None:
        try:
            reader = self._read_head(conn, received)
            if reader is None:
                return None
            request = parse_request(reader.head)
        except HandshakeError as error:
            self.refuse(conn, error if isinstance(error, Refusal) else Refusal(400), None)
            return None
        return self.answer(conn, peer, request, reader.rest)

    def answer(self, conn: Connection, peer: Any, request: Request, rest: bytes) -> EventHandler | None:
        """Answer a request: the handler that it is upgraded for, TO_APP, or None: it has been refused.

        Args:
            rest: what came behind its head.
        """
        deciding = False
        try:
            if self.stopping or self.options.max_connections is not None:
                self.check_room(conn)
            # The peer has done its part in time. How long the program takes to decide is the program's affair.
            conn.allow(None)
            deciding = True
            remote = self.remote(request, peer) if self._trusted is not None else None
            handler = self._route(request)
            if handler is TO_APP:
                return TO_APP
            if isinstance(handler, Response):
                self._say(conn, http_response(handler, method=request.method, more_headers=self.own_headers(conn)), request)
                return None
            if not wants_websocket(request):
                raise upgrade_required()
            acceptance = judge_upgrade(request, self.options)
            if self.options.authorize is not None:
                self.authorize(conn, request, conn.session)
            deciding = False
            conn.allow(self.options.write_timeout)
            headers = self.options.response_headers
            if self.alt_svc:
                headers = {**self.own_headers(conn), **headers}
            conn.stream.send_all(accept_response(acceptance, headers))
        except HandshakeError as error:
            self.refuse(conn, error if isinstance(error, Refusal) else Refusal(400), request)
            return None
        except TransportError:
            raise
        except Exception as error:
            self.log(logging.ERROR, conn, "a callback failed during the opening handshake", error=error)
            self.refuse(conn, Refusal(500), request)
            return None
        except Timeout as error:
            # No Exception, and yet the commonest way in which a look-up ends. One that was set around us finds us elsewhere too.
            if deciding:
                self.log(logging.ERROR, conn, "a callback failed during the opening handshake", error=error)
                with suppress(TransportError):  # which would stand in for the timeout
                    self.refuse(conn, Refusal(500), request)
            raise
        conn.accepted(acceptance.subprotocol, acceptance.deflate, request, remote, rest)
        if self.on_upgrade is not _nobody:
            self.upgraded(conn, request)
        if self.stopping:
            conn.write_close(CloseCode.GOING_AWAY)
        return handler

    def own_headers(self, conn: Connection) -> Mapping[str, str]:
        """Headers that the server adds to what is answered on a connection."""
        return {"Alt-Svc": self.alt_svc} if self.alt_svc and conn.stream.info("scheme") == "tls" else {}

    def check_room(self, conn: Connection) -> None:
        """Raise a Refusal if the server is stopping or full; otherwise the connection has one of `max_connections` places."""
        if self.stopping or not self._admit(conn):
            raise Refusal(503)

    def remote(self, request: Request, peer: Any) -> Any:
        """Return the client's address as a trusted proxy tells it; None where none is trusted. Refusal if proxies disagree."""
        return client_address(request.headers, peer, self._trusted) if self._trusted is not None else None

    def scheme(self, request: Request | None, peer: Any) -> str | None:
        """Return "http" or "https" as a trusted proxy tells it; None if none does."""
        if request is None or self._trusted is None:
            return None
        return client_scheme(request.headers, peer, self._trusted)

    # What serves HTTP in front tells

    def expect_head(self, conn: Connection) -> None:
        """A request's head is awaited: the handshake's deadline is answered with 408, the server's end with 503."""
        self._awaited.add(conn)

    def head_is_here(self, conn: Connection) -> None:
        """It is awaited no more."""
        self._awaited.discard(conn)

    def read_or_leave(self, conn: Connection) -> bytes:
        """Between two requests: wait for bytes, and be closed without a word if the server stops or they do not come."""
        self._idle[conn] = None
        try:
            return self.read_some(conn)
        finally:
            self._idle.pop(conn, None)

    def read_some(self, conn: Connection) -> bytes:
        """Wait for bytes. Not many at once: what follows a head is copied for each of the requests that it holds."""
        return self._read(conn.stream, AHEAD)

    def _read_proxy_header(self, stream: Stream, trusted: TrustedProxies) -> tuple[Any, bytes]:
        """Return the client's address and what was read behind the PROXY header, if a trusted proxy sent one."""
        peer = stream.info("peername")
        if not trusted.trusts(peer):
            return peer, b""
        carrier = stream.info("carrier") or stream
        received = b""
        while True:
            piece = self._read(carrier)
            received += piece
            looks = looks_like_proxy_header(received)
            if looks is False or (looks is None and not piece):
                return peer, received
            header = parse_proxy_header(received) if looks else None
            if header is not None:
                return header.source or peer, received[header.consumed :]
            if not piece:
                raise ProxyHeaderError("the stream ended inside a PROXY header")

    def _read_head(self, conn: Connection, received: bytes) -> HeadReader | None:
        """Collect the request head; None if the peer left before it began one."""
        reader = HeadReader(self.options.max_request_head)
        self._awaited.add(conn)
        try:
            if received and reader.feed(received):
                return reader
            while True:
                piece = self._read(conn.stream)
                if not piece:
                    if reader.pending:
                        raise Refusal(400)
                    return None
                if reader.feed(piece):
                    return reader
        finally:
            self._awaited.discard(conn)

    def _read(self, stream: Stream, most: int | None = None) -> bytes:
        count = stream.recv_into(self.buffer if most is None else memoryview(self.buffer)[:most])
        return bytes(memoryview(self.buffer)[:count])

    def _admit(self, conn: Connection) -> bool:
        """Give a connection one of `max_connections` places, to its end or its refusal; False: all are taken.

        Who has sent no request yet takes no place: neither a crowd that comes at once, nor who says nothing, keeps others out.
        """
        if self.is_full() and conn not in self._admitted:
            return False
        self.take_place(conn)
        return True

    def is_full(self) -> bool:
        """All of `max_connections` places are taken."""
        return self.options.max_connections is not None and len(self._admitted) >= self.options.max_connections

    def take_place(self, conn: Connection) -> None:
        """One of them is this connection's, to its end."""
        if self.options.max_connections is not None:
            self._admitted.add(conn)

    def give_place_back(self, conn: Connection) -> None:
        """It has no request under way any more."""
        self._admitted.discard(conn)

    def closed(self, conn: Connection) -> None:
        """A connection's greenlet has come to its end."""
        self._admitted.discard(conn)
        if self._libraries:
            self._libraries.pop(conn, None)
        Service.closed(self, conn)
        if self._full and len(self.connections) < (self.options.accept_limit or 0) and not self.stopping:
            self._full = False
            self.accepting(True)

    def guest(self, upgrader: object, options: ServerOptions) -> GuestService:
        """Return what the connections share that `upgrader` opens in this server's WSGI app, with its own options."""
        guest = self._guests.get(upgrader)
        if guest is None:
            guest = self._guests[upgrader] = GuestService(self, options)
        return guest

    def is_beyond_refusing(self) -> bool:
        """True when so many connections wait for their 503 that the next is dropped unanswered. Asked about each that comes.

        Those between two requests do not keep others out: the one that has waited longest makes room.
        """
        limit = self.options.max_connections
        if limit is not None and len(self.connections) >= 2 * limit + 100:
            if not self._idle:
                return True
            longest = next(iter(self._idle))
            del self._idle[longest]
            longest.stream.close()
        limit = self.options.accept_limit
        if limit is not None and len(self.connections) + 1 >= limit and not self._full:
            # The one that has come is the last for now.
            self._full = True
            self.accepting(False)
        return False

    def upgraded(self, conn: Connection, request: Request) -> None:
        """The opening handshake is done: tell who wants to know."""
        try:
            self.on_upgrade(conn, request)
        except Exception as error:
            self.log(logging.ERROR, conn, "on_upgrade failed", error=error)

    def _route(self, request: Request) -> EventHandler | Response:
        if self._on_request is None:
            return self._handler or TO_APP
        answer: Any = self._on_request(request)
        if answer is None:
            if self._front is not None:
                return TO_APP
            raise Refusal(404)
        if isinstance(answer, Refusal):
            raise answer
        if isinstance(answer, Response):
            return answer
        handler = as_handler(answer)
        refuse_parking(handler, self.options)
        return handler

    def authorize(self, conn: Connection | None, request: Request, session: MutableMapping[Any, Any]) -> None:
        """Call the option `authorize`, and raise the Refusal that it means.

        Args:
            conn: for the log.
        """
        assert self.options.authorize is not None
        answer = self.options.authorize(request, session)
        if answer is True:
            return
        if isinstance(answer, Refusal):
            raise answer
        if answer is False or answer is None:
            raise Refusal(401)
        # Neither a yes nor a no: whoever returns a user's name, or a coroutine, has made a mistake, and nobody gets in by it.
        self.log(logging.ERROR, conn, "authorize returns True, False or a Refusal, not %s", reprlib.repr(answer))
        raise Refusal(500)

    def refuse(self, conn: Connection, refusal: Refusal, request: Request | None) -> None:
        """Answer a request with a refusal, and close."""
        head_only = request is not None and request.method == "HEAD"
        try:
            answer = refusal_response(refusal, head_only)
        except ValueError as error:
            self.log(logging.ERROR, conn, "a refusal that cannot be sent", error=error)
            answer = refusal_response(Refusal(500), head_only)
        self._say(conn, answer, request)

    def _say(self, conn: Connection, answer: bytes, request: Request | None) -> None:
        """Answer with HTTP, then read on for a while: closing with unread input would reset the connection and lose the answer."""
        stream = conn.stream
        self._admitted.discard(conn)
        conn.allow(self.options.write_timeout)
        stream.send_all(answer)
        self.on_answer(conn, request, answer)
        self.linger(conn)

    def linger(self, conn: Connection) -> None:
        """End our output and read on for a while, then close."""
        stream = conn.stream
        stream.shutdown_write()
        conn.allow(self.options.handshake_timeout)
        left = LINGER_BYTES
        while left > 0:
            count = stream.recv_into(self.runtime.buffer)
            if count == 0:
                break
            left -= count
        stream.close()


class GuestService(ServerService):
    """What the connections share that one Upgrader opens in the WSGI app of one Server, the home.

    They stand among the home's connections, which count in its `max_buffered` and end when it stops. All other options are those of
    the Upgrader.
    """

    def __init__(self, home: ServerService, options: ServerOptions) -> None:
        ServerService.__init__(self, None, options, None, home._on_error, home=home)
        self._home = home
        self.on_upgrade = home.on_upgrade

    def is_full(self) -> bool:
        """Who got this far has a place of the home's."""
        return False

    def account(self, change: int) -> None:
        """See Service."""
        self._home.account(change)

    def closed(self, conn: Connection) -> None:
        """See Service."""
        self._home.closed(conn)
