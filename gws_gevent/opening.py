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
from typing import TYPE_CHECKING, Any

from gevent import Timeout

from gws_gevent._accel import build_of
from gws_gevent.exceptions import HandshakeError, Refusal, TransportError
from gws_gevent.frames import CloseCode, Side
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
from gws_gevent.proxy_headers import ProxyHeaderError, TrustedProxies, client_address, looks_like_proxy_header, parse_proxy_header

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.options import ServerOptions
    from gws_gevent.service import Service
    from gws_gevent.transports.base import Stream
else:
    Service = build_of("service").Service

__all__ = ["ServerService"]

#: Bytes read and dropped behind a refused request, so that the answer isn't lost to a reset.
LINGER_BYTES = 256 * 1024

OnRequest = Callable[[Request], Any]
OnError = Callable[["Stream | None", Exception], object]


class ServerService(Service):
    """What the connections of one Server share.

    Args:
        handler: serves every upgrade where there is no `on_request`.
        on_request: routes each request; see Server.
        on_error: told of what fails before a connection is open.

    Attributes:
        alt_svc: value of the Alt-Svc header in what is answered over TLS (RFC 7838), where HTTP/3 has the same; "" for none.
    """

    options: ServerOptions

    def __init__(
        self, handler: EventHandler | None, options: ServerOptions, on_request: OnRequest | None, on_error: OnError
    ) -> None:
        Service.__init__(self, Side.SERVER, options)
        self.keep_request = options.keep_request
        self.stopping = False
        self.alt_svc = ""
        self._handler = handler
        self._on_request = on_request
        self._on_error = on_error
        self._trusted = TrustedProxies(options.trusted_proxies) if options.trusted_proxies else None
        self._awaited: set[Connection] = set()
        # Counted only where there is a limit.
        self._admitted: set[Connection] = set()

    def open(self, conn: Connection) -> EventHandler | None:
        try:
            stream = conn.stream
            peer, received = (None, b"") if self._trusted is None else self._read_proxy_header(stream, self._trusted)
            stream.handshake(received)
            if received and stream.info("carrier") is not None:
                received = b""  # the handshake has taken it
            return self._answer(conn, peer, received)
        except (TransportError, ProxyHeaderError) as error:
            self._on_error(conn.stream, error)
            return None

    def handshake_timed_out(self, conn: Connection) -> None:
        """In the hub: the deadline has passed. Say 408 where a head was being waited for."""
        self._hang_up(conn, 408)

    def stop_awaiting(self) -> None:
        """The server stops: who has not sent a whole request by now is told 503."""
        for conn in list(self._awaited):
            self._hang_up(conn, 503)

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
        request: Request | None = None
        deciding = False
        try:
            reader = self._read_head(conn, received)
            if reader is None:
                return None
            request = parse_request(reader.head)
            if self.stopping or not self._admit(conn):
                raise Refusal(503)
            # The peer has done its part in time. How long the program takes to decide is the program's affair.
            conn.allow(None)
            deciding = True
            remote = client_address(request.headers, peer, self._trusted) if self._trusted is not None else None
            handler = self._route(request)
            if isinstance(handler, Response):
                self._say(conn, http_response(handler, method=request.method, more_headers=self.own_headers(conn)))
                return None
            if not wants_websocket(request):
                raise upgrade_required()
            acceptance = judge_upgrade(request, self.options)
            self._authorize(conn, request)
            deciding = False
            conn.allow(self.options.write_timeout)
            headers = self.options.response_headers
            if self.alt_svc:
                headers = {**self.own_headers(conn), **headers}
            conn.stream.send_all(accept_response(acceptance, headers))
        except HandshakeError as error:
            refusal = error if isinstance(error, Refusal) else Refusal(400)
            self._refuse(conn, refusal, request)
            return None
        except TransportError:
            raise
        except Exception as error:
            self.log(logging.ERROR, conn, "a callback failed during the opening handshake", error=error)
            self._refuse(conn, Refusal(500), request)
            return None
        except Timeout as error:
            # No Exception, and yet the commonest way in which a look-up ends. One that was set around us finds us elsewhere too.
            if deciding:
                self.log(logging.ERROR, conn, "a callback failed during the opening handshake", error=error)
                with suppress(TransportError):  # which would stand in for the timeout
                    self._refuse(conn, Refusal(500), request)
            raise
        conn.accepted(acceptance.subprotocol, acceptance.deflate, request, remote, reader.rest)
        if self.stopping:
            conn.write_close(CloseCode.GOING_AWAY)
        return handler

    def own_headers(self, conn: Connection) -> Mapping[str, str]:
        """Headers that the server adds to what is answered on a connection."""
        return {"Alt-Svc": self.alt_svc} if self.alt_svc and conn.stream.info("scheme") == "tls" else {}

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

    def _read(self, stream: Stream) -> bytes:
        count = stream.recv_into(self.buffer)
        return bytes(memoryview(self.buffer)[:count])

    def _admit(self, conn: Connection) -> bool:
        """Give a connection one of `max_connections` places, to its end or its refusal; False: all are taken.

        Who has sent no request yet takes no place: neither a crowd that comes at once, nor who says nothing, keeps others out.
        """
        limit = self.options.max_connections
        if limit is None:
            return True
        if len(self._admitted) >= limit:
            return False
        self._admitted.add(conn)
        return True

    def closed(self, conn: Connection) -> None:
        """A connection's greenlet has come to its end."""
        self._admitted.discard(conn)
        Service.closed(self, conn)

    def is_beyond_refusing(self) -> bool:
        """True when so many connections wait for their 503 that the next is dropped unanswered."""
        limit = self.options.max_connections
        return limit is not None and len(self.connections) >= 2 * limit + 100

    def _route(self, request: Request) -> EventHandler | Response:
        if self._on_request is None:
            assert self._handler is not None
            return self._handler
        answer: Any = self._on_request(request)
        if answer is None:
            raise Refusal(404)
        if isinstance(answer, Refusal):
            raise answer
        if isinstance(answer, Response):
            return answer
        handler = as_handler(answer)
        refuse_parking(handler, self.options)
        return handler

    def _authorize(self, conn: Connection, request: Request) -> None:
        if self.options.authorize is None:
            return
        answer = self.options.authorize(request, conn.session)
        if answer is True:
            return
        if isinstance(answer, Refusal):
            raise answer
        if answer is False or answer is None:
            raise Refusal(401)
        # Neither a yes nor a no: whoever returns a user's name, or a coroutine, has made a mistake, and nobody gets in by it.
        self.log(logging.ERROR, conn, "authorize returns True, False or a Refusal, not %s", reprlib.repr(answer))
        raise Refusal(500)

    def _refuse(self, conn: Connection, refusal: Refusal, request: Request | None) -> None:
        head_only = request is not None and request.method == "HEAD"
        try:
            answer = refusal_response(refusal, head_only)
        except ValueError as error:
            self.log(logging.ERROR, conn, "a refusal that cannot be sent", error=error)
            answer = refusal_response(Refusal(500), head_only)
        self._say(conn, answer)

    def _say(self, conn: Connection, answer: bytes) -> None:
        """Answer with HTTP, then read on for a while: closing with unread input would reset the connection and lose the answer."""
        stream = conn.stream
        self._admitted.discard(conn)
        conn.allow(self.options.write_timeout)
        stream.send_all(answer)
        stream.shutdown_write()
        conn.allow(self.options.handshake_timeout)
        left = LINGER_BYTES
        while left > 0:
            count = stream.recv_into(self.runtime.buffer)
            if count == 0:
                break
            left -= count
        stream.close()
