"""The client: dial, do the opening handshake, hand out a connection.

Belongs here: what a program that connects calls. Does not belong here: the rules of the handshake and of redirects, how a server is
reached (dialing.py), a connection's life, coming back (reconnect.py).
"""

from __future__ import annotations

import reprlib
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent
from greenlet import greenlet

from gws_gevent import runtime
from gws_gevent._accel import build_of
from gws_gevent.answers import read_answer, read_body
from gws_gevent.dialing import Route
from gws_gevent.exceptions import HandshakeRefused
from gws_gevent.extensions.permessage_deflate import offer
from gws_gevent.frames import Side
from gws_gevent.handler import EventHandler, as_handler, refuse_parking
from gws_gevent.handshake import judge_response, make_key, request_head
from gws_gevent.option_names import names_options
from gws_gevent.options import ClientOptions, options_or_default
from gws_gevent.redirects import headers_after, is_redirect, next_url
from gws_gevent.transports.base import Stream
from gws_gevent.urls import WebSocketUrl, parse_url

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.http_head import ResponseHead
    from gws_gevent.service import Service
else:
    Connection, Service = build_of("connection").Connection, build_of("service").Service

__all__ = ["Client", "connect"]

#: What connections without options have.
_DEFAULT = ClientOptions()


@names_options(ClientOptions)
def connect(
    url: str,
    handler: EventHandler | Callable[[Connection], object] | None = None,
    options: ClientOptions | None = None,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_name: str | None = None,
    proxy: str | bool | None = True,
) -> Connection:
    """Open a WebSocket connection.

    Connections with the same options object, or with none, share a Client, and so its limits.

    Args:
        url: `ws://host:port/target`, `wss://...`, `ws+unix:/path/of/socket:/target`, or `ws+NAME://...` of another transport,
            such as `ws+quic://...`.
        handler: served by a greenlet of its own. None: the caller reads with `receive()` or iteration, as in
            `with connect(url) as conn: ...`.
        ssl_context: for wss, ws+quic and a proxy inside of TLS; None verifies against the system's authorities.
        server_name: name to ask for and check in the certificate, after a redirect too; None is the URL's host.
        proxy: URL of an HTTP (CONNECT), HTTPS or SOCKS5 proxy. True: as the environment says. None or False: none.

    Raises:
        TypeError: an argument of another kind.
        ValueError: `park_after` without an EventHandler.
        EndpointError: a malformed URL, of the server or of the proxy.
        MissingExtra: a library is not installed.
        TransportError: the server cannot be reached, or TLS failed.
        ProxyError: the proxy did not connect us (a TransportError).
        HandshakeRefused: the server answered with another status, or with a redirect that is not followed; it carries status,
            headers and body.
        HandshakeError: the server's answer is wrong.
        TimeoutError: all this took longer than `handshake_timeout`.
    """
    client = shared_client(options)
    return client.connect(url, handler, ssl_context=ssl_context, server_name=server_name, proxy=proxy)


def shared_client(options: ClientOptions | None) -> Client:
    """Return this hub's Client for an options object: the same one as long as it has connections, or is opening one."""
    options = _DEFAULT if options is None else options_or_default(options, ClientOptions)
    client: Client | None = runtime.current().clients.get(id(options))
    return client if client is not None else Client(options, shared=True)


class Client(Service):
    """What connections share that have the same options: the limits over all of them, and what is made once."""

    options: ClientOptions

    def __init__(self, options: ClientOptions | None = None, *, shared: bool = False) -> None:
        """Take options.

        Args:
            shared: while there are connections, `connect` with the same options object finds this client.
        """
        Service.__init__(self, Side.CLIENT, options_or_default(options, ClientOptions))
        self._shared = shared
        self._opening = 0
        self._watched: dict[Connection, Callable[[], object]] = {}

    def connect(
        self,
        url: str,
        handler: EventHandler | Callable[[Connection], object] | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_name: str | None = None,
        proxy: str | bool | None = True,
    ) -> Connection:
        """Open a connection of this client; see `gws_gevent.connect`."""
        if not isinstance(url, str):
            raise TypeError(f"a URL is a text such as 'ws://127.0.0.1:3001/', not {url!r}")
        return self.reach(parse_url(url), Route(ssl_context, server_name, proxy), handler)

    @classmethod
    def from_stream(
        cls,
        stream: Stream,
        url: str = "ws://localhost/",
        handler: EventHandler | Callable[[Connection], object] | None = None,
        options: ClientOptions | None = None,
    ) -> Connection:
        """Open a WebSocket connection over any connected stream, which is aborted if that fails. Raises as `connect`.

        Args:
            url: gives target and Host, and user and password. Redirects are not followed.
        """
        try:
            client, parsed = cls(options), parse_url(url)
            return client._open(_Opening(client, parsed, None, stream), handler, None)
        except BaseException:
            stream.abort()
            raise

    def reach(
        self,
        url: WebSocketUrl,
        route: Route,
        handler: EventHandler | Callable[[Connection], object] | None = None,
        on_end: Callable[[], object] | None = None,
    ) -> Connection:
        """Open a connection, as `connect` does.

        Args:
            on_end: called when the connection of a handler has ended, after on_close, in its greenlet; it may not block or raise.
        """
        return self._open(_Opening(self, url, route, None), handler, on_end)

    def _open(
        self,
        opening: _Opening,
        handler: EventHandler | Callable[[Connection], object] | None,
        on_end: Callable[[], object] | None,
    ) -> Connection:
        served = as_handler(handler) if handler is not None else None
        refuse_parking(served, self.options)
        timer = gevent.Timeout.start_new(self.options.handshake_timeout)
        self._opening += 1
        if self._shared:
            self.runtime.clients[id(self.options)] = self
        try:
            conn = opening.run()
        except gevent.Timeout as raised:
            if raised is not timer:
                raise
            if opening.refused is not None:
                raise opening.refused from None
            said = f"no opening handshake within {self.options.handshake_timeout} seconds"
            raise TimeoutError(f"{said}; still {opening.doing}") from None
        finally:
            timer.close()
            self._opening -= 1
            self._retire()
        if served is not None:
            conn.attach(served)
            if on_end is not None:
                self._watched[conn] = on_end
            self.hub.loop.run_callback(greenlet(conn, self.hub).switch)
        return conn

    def handshake_timed_out(self, conn: Connection) -> None:
        """In the hub: nothing to do, the deadline of `_open` began before the connection's and says what it waited for."""

    def closed(self, conn: Connection) -> None:
        """A connection has come to its end."""
        Service.closed(self, conn)
        on_end = self._watched.pop(conn, None)
        if on_end is not None:
            on_end()
        self._retire()

    def _retire(self) -> None:
        """Be forgotten while there is nothing to share: a program that makes options for each connection leaves none behind."""
        if self._shared and not self.connections and not self._opening:
            self.runtime.clients.pop(id(self.options), None)


class _Opening:
    """One opening handshake, over redirects if there is a route; without one it is done on a stream that is there.

    Attributes:
        doing: what is being waited for.
        refused: the server's refusal, while its body is being read.
    """

    def __init__(self, client: Client, url: WebSocketUrl, route: Route | None, stream: Stream | None) -> None:
        self._client = client
        self._url = url
        self._route = route
        self._stream = stream
        self._headers = client.options.headers
        self._redirects_left = client.options.max_redirects if route is not None else 0
        self.doing = ""
        self.refused: HandshakeRefused | None = None

    def run(self) -> Connection:
        """Return the open connection. What fails, or is thrown in, leaves nothing behind."""
        while True:
            conn = self._try()
            if conn is not None:
                return conn

    def _try(self) -> Connection | None:
        """Ask the server that `_url` names; None: it has sent us on to another place, which `_url` names now."""
        client = self._client
        conn = Connection(self._dial() if self._stream is None else self._stream, client)
        client.connections[conn] = None
        done = False
        try:
            done = self._shake_hands(conn)
        finally:
            if not done:
                conn.abort()
                client.closed(conn)
        return conn if done else None

    def _dial(self) -> Stream:
        assert self._route is not None
        dialer = self._route.dialer_to(self._url, self._client.options)
        self.doing = f"connecting to {self._url.host_header}{self._route.by_way_of(self._url)}"
        return dialer.dial()

    def _shake_hands(self, conn: Connection) -> bool:
        options, key, url = self._client.options, make_key(), self._url
        headers = dict(self._headers)
        if url.authorization is not None and not any(name.lower() == "authorization" for name in headers):
            headers["Authorization"] = url.authorization
        extensions = offer(options.permessage_deflate) if options.permessage_deflate is not None else ""
        self.doing = f"waiting for the answer of {url.host_header}"
        conn.stream.send_all(request_head(url.target, url.host_header, key, headers, options.subprotocols, extensions))
        answer = read_answer(conn.stream, options.max_response_head)
        if answer.head.status != 101:
            if is_redirect(answer.head) and options.max_redirects and self._route is not None:
                self._follow(answer.head)
                return False
            self.refused = HandshakeRefused(answer.head.status, answer.head.headers)
            raise HandshakeRefused(answer.head.status, answer.head.headers, read_body(conn.stream, answer))
        acceptance = judge_response(answer.head, key, options.subprotocols, extensions, options.permessage_deflate)
        conn.accepted(acceptance.subprotocol, acceptance.deflate, None, None, answer.rest)
        return True

    def _follow(self, head: ResponseHead) -> None:
        if not self._redirects_left:
            many, last = self._client.options.max_redirects, reprlib.repr(head.headers["location"])
            raise HandshakeRefused(head.status, head.headers, why=f"more than {many} redirects (max_redirects), the last to {last}")
        self._redirects_left -= 1
        url = next_url(self._url, head)
        self._headers = headers_after(self._headers, self._url, url)
        self._url = url
