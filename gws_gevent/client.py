"""The client: dial, do the opening handshake, hand out a connection.

Belongs here: what a program that connects calls. Does not belong here: the rules of the handshake, a connection's life.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent
from greenlet import greenlet

from gws_gevent._accel import build_of
from gws_gevent.exceptions import HandshakeError, HandshakeRefused
from gws_gevent.extensions.permessage_deflate import offer
from gws_gevent.frames import Side
from gws_gevent.handler import EventHandler, as_handler, refuse_parking
from gws_gevent.handshake import judge_response, make_key, parse_response, request_head
from gws_gevent.http_head import ResponseHead, ResponseHeadReader
from gws_gevent.options import ClientOptions, options_or_default
from gws_gevent.transports.base import DialSettings, Endpoint, Stream
from gws_gevent.transports.registry import dialer
from gws_gevent.urls import WebSocketUrl, parse_url

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.service import Service
else:
    Connection, Service = build_of("connection").Connection, build_of("service").Service

__all__ = ["Client", "connect"]

#: Interim responses (1xx) that are skipped before the one that counts.
MAX_INTERIM = 8
#: Bytes of a refusal's body that HandshakeRefused carries.
MAX_REFUSAL_BODY = 4096


def connect(
    url: str,
    handler: EventHandler | Callable[[Connection], object] | None = None,
    options: ClientOptions | None = None,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> Connection:
    """Open a WebSocket connection.

    Args:
        url: `ws://host:port/target`, `wss://...`, or `ws+unix:/path/of/socket:/target`.
        handler: served by a greenlet of its own. None: the caller reads with `receive()` or iteration, as in
            `with connect(url) as conn: ...`.
        ssl_context: for wss; None verifies against the system's authorities.
        server_name: name to ask for and check in the certificate; None is the URL's host.

    Raises:
        TypeError: an argument of another kind.
        ValueError: `park_after` without an EventHandler.
        EndpointError: a malformed URL.
        TransportError: the server cannot be reached, or TLS failed.
        HandshakeRefused: the server answered with another status; it carries status, headers and body.
        HandshakeError: the server's answer is wrong.
        TimeoutError: all this took longer than `handshake_timeout`.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is a text such as 'ws://127.0.0.1:3001/', not {url!r}")
    options = options_or_default(options, ClientOptions)
    handler = as_handler(handler) if handler is not None else None
    refuse_parking(handler, options)
    parsed = parse_url(url)
    settings = DialSettings(no_delay=options.no_delay, ssl_context=ssl_context, server_name=server_name)
    dial = dialer(_endpoint_of(parsed), settings).dial
    timer = gevent.Timeout.start_new(options.handshake_timeout)
    try:
        return Client(options).open(dial(), parsed, handler)
    except gevent.Timeout as raised:
        if raised is not timer:
            raise
        raise TimeoutError(f"no opening handshake within {options.handshake_timeout} seconds") from None
    finally:
        timer.close()


def _endpoint_of(url: WebSocketUrl) -> Endpoint:
    scheme = {"ws": "tcp", "wss": "tls"}.get(url.scheme, url.scheme.rpartition("+")[2])
    return Endpoint(scheme, url.host, url.port, url.path)


class Client(Service):
    """What the connections of one client share."""

    options: ClientOptions

    def __init__(self, options: ClientOptions | None = None) -> None:
        Service.__init__(self, Side.CLIENT, options_or_default(options, ClientOptions))

    @classmethod
    def from_stream(
        cls,
        stream: Stream,
        url: str = "ws://localhost/",
        handler: EventHandler | Callable[[Connection], object] | None = None,
        options: ClientOptions | None = None,
    ) -> Connection:
        """Open a WebSocket connection over any connected stream; `url` gives target and Host. Raises as `connect`."""
        return cls(options).open(stream, parse_url(url), handler)

    def open(  # type: ignore[override]
        self, stream: Stream, url: WebSocketUrl, handler: EventHandler | Callable[[Connection], object] | None
    ) -> Connection:
        """Do the opening handshake in this greenlet; the stream is aborted if it fails."""
        served = as_handler(handler) if handler is not None else None
        refuse_parking(served, self.options)
        conn = Connection(stream, self)
        self.connections[conn] = None
        try:
            self._shake_hands(conn, url)
        except BaseException:
            conn.abort()
            self.closed(conn)
            raise
        if served is not None:
            conn.attach(served)
            self.hub.loop.run_callback(greenlet(conn, self.hub).switch)
        return conn

    def _shake_hands(self, conn: Connection, url: WebSocketUrl) -> None:
        options, key = self.options, make_key()
        headers = dict(options.headers)
        if url.authorization is not None and not any(name.lower() == "authorization" for name in headers):
            headers["Authorization"] = url.authorization
        extensions = offer(options.permessage_deflate) if options.permessage_deflate is not None else ""
        conn.stream.send_all(request_head(url.target, url.host_header, key, headers, options.subprotocols, extensions))
        response, rest = self._read_response(conn.stream)
        if response.status != 101:
            body = self._read_body(conn.stream, response, rest)
            raise HandshakeRefused(response.status, response.headers, body)
        acceptance = judge_response(response, key, options.subprotocols, extensions, options.permessage_deflate)
        conn.accepted(acceptance.subprotocol, acceptance.deflate, None, None, rest)

    def _read_response(self, stream: Stream) -> tuple[ResponseHead, bytes]:
        rest = b""
        for _ in range(MAX_INTERIM):
            reader = ResponseHeadReader(self.options.max_response_head)
            piece = rest
            while not (piece and reader.feed(piece)):
                piece = self._read(stream)
                if not piece:
                    raise HandshakeError("the server closed the stream before it answered")
            response, rest = parse_response(reader.head), reader.rest
            if not response.is_interim:
                return response, rest
        raise HandshakeError(f"the server sent {MAX_INTERIM} interim responses and no other")

    def _read_body(self, stream: Stream, response: ResponseHead, body: bytes) -> bytes:
        """The beginning of a refusal's body, as far as Content-Length says that there is one."""
        length = response.headers.get("content-length") or "0"
        wanted = min(int(length), MAX_REFUSAL_BODY) if length.isascii() and length.isdecimal() and len(length) < 10 else 0
        while len(body) < wanted:
            piece = self._read(stream)
            if not piece:
                break
            body += piece
        return body[:wanted]

    def _read(self, stream: Stream) -> bytes:
        count = stream.recv_into(self.runtime.buffer)
        return bytes(memoryview(self.runtime.buffer)[:count])
