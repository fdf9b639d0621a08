"""How a server is reached: directly, or through a proxy that is asked with CONNECT (RFC 9110 section 9.3.6) or SOCKS5 (RFC 1928).

Belongs here: the stream that the opening handshake is done on. Does not belong here: which proxy (proxies.py), the opening
handshake itself (client.py).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gws_gevent.answers import read_answer
from gws_gevent.exceptions import HandshakeError, MissingExtra, ProxyError, TransportError
from gws_gevent.options import ClientOptions
from gws_gevent.proxies import Proxy, choose_proxy
from gws_gevent.transports.accepting import resolve
from gws_gevent.transports.base import Dialer, DialSettings, Endpoint, Stream, as_transport_error
from gws_gevent.transports.registry import dialer
from gws_gevent.urls import WebSocketUrl

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Route", "Tunnel"]


@dataclass(frozen=True, slots=True)
class Route:
    """What `connect` is told beside the URL: see there."""

    ssl_context: ssl.SSLContext | None = None
    server_name: str | None = None
    proxy: str | bool | None = True

    def __post_init__(self) -> None:
        if self.ssl_context is not None and not isinstance(self.ssl_context, ssl.SSLContext):
            raise TypeError(f"ssl_context: must be an ssl.SSLContext or None, not {self.ssl_context!r}")
        if self.server_name is not None and not isinstance(self.server_name, str):
            raise TypeError(f"server_name: must be a name or None, not {self.server_name!r}")

    def dialer_to(self, url: WebSocketUrl, options: ClientOptions) -> Dialer:
        """Return what opens a stream to the server of a URL.

        Raises:
            EndpointError: no transport serves it, or the proxy's URL cannot be used.
            MissingExtra: a library is not installed.
        """
        proxy = choose_proxy(url, self.proxy)
        tunnel = None if proxy is None else Tunnel(proxy, url, options, self.ssl_context)
        if tunnel is not None and not url.secure:
            return tunnel
        settings = DialSettings(
            no_delay=options.no_delay,
            ssl_context=self.ssl_context,
            server_name=self.server_name,
            tunnel=tunnel,
            streams_per_connection=options.streams_per_connection,
        )
        return dialer(_endpoint_of(url, options), settings)

    def by_way_of(self, url: WebSocketUrl) -> str:
        """Say what stands between us and the server of a URL, for a sentence that ends with it; "" for nothing."""
        proxy = choose_proxy(url, self.proxy)
        return "" if proxy is None else f" through {proxy}"


def _endpoint_of(url: WebSocketUrl, options: ClientOptions) -> Endpoint:
    scheme = {"ws": "tcp", "wss": "tls"}.get(url.scheme, url.scheme.rpartition("+")[2])
    return Endpoint(scheme, url.host, url.port, url.path, {name: str(value) for name, value in options.transport_params.items()})


class Tunnel(Dialer):
    """Opens a connection to a URL's host and port that goes through a proxy.

    Args:
        ssl_context: for a proxy that is spoken to inside of TLS; None verifies against the system's authorities.
    """

    def __init__(
        self, proxy: Proxy, url: WebSocketUrl, options: ClientOptions, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.proxy = proxy
        self._host = url.host.partition("%")[0]
        self._port = url.port
        self._limit = options.max_response_head
        endpoint = Endpoint("tls" if proxy.scheme == "https" else "tcp", proxy.host, proxy.port)
        self._carrier = dialer(endpoint, DialSettings(no_delay=options.no_delay, ssl_context=ssl_context))
        self._ask: Callable[[Stream], None] = self._connect
        if proxy.scheme not in ("http", "https"):
            _python_socks()  # said before anything is sent
            self._ask = self._socks

    def dial(self) -> Stream:
        """Return the stream to the server; a ProxyError if there is none to be had. See Dialer."""
        try:
            stream = self._carrier.dial()
        except TransportError as error:
            said = f"the proxy {self.proxy} cannot be reached: {error.strerror or error}"
            raise ProxyError(said, error_number=error.errno) from error
        try:
            self._ask(stream)
            return stream
        except BaseException as error:
            stream.abort()
            if isinstance(error, TransportError) and not isinstance(error, ProxyError):
                said = f"the proxy {self.proxy} broke off: {error.strerror or error}"
                raise ProxyError(said, error_number=error.errno) from error
            raise

    def _connect(self, stream: Stream) -> None:
        place = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        head = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n"
        if self.proxy.authorization is not None:
            head += f"Proxy-Authorization: {self.proxy.authorization}\r\n"
        stream.send_all(f"{head}\r\n".encode())
        try:
            answer = read_answer(stream, self._limit)
        except HandshakeError as error:
            said = str(error).replace("the server", "it", 1)
            raise ProxyError(f"the proxy {self.proxy} gave no answer to CONNECT {place}: {said}") from error
        status = answer.head.status
        if not 200 <= status < 300:
            hint = " (it wants a user name and a password)" if status == 407 else ""
            raise ProxyError(f"the proxy {self.proxy} answered {status} to CONNECT {place}{hint}", status)
        if answer.rest:
            raise ProxyError(f"the proxy {self.proxy} sent {len(answer.rest)} bytes before the server was asked anything")

    def _socks(self, stream: Stream) -> None:
        proxy, library = self.proxy, _python_socks()
        client = library.sync.Proxy(
            library.ProxyType.SOCKS5, proxy.host, proxy.port, proxy.username, proxy.password, True, forward=_Connected(stream)
        )
        try:
            client.connect(self._host if proxy.scheme == "socks5h" else self._resolved(), self._port)
        except library.ProxyError as error:
            said = f"the proxy {proxy} did not connect to {self._host}:{self._port}: {error}"
            raise ProxyError(said, error.error_code) from error
        except ValueError as error:  # a name or a password that SOCKS5 cannot carry
            raise ProxyError(f"the proxy {proxy} cannot be asked for {self._host}:{self._port}: {error}") from error

    def _resolved(self) -> str:
        try:
            found = resolve(self._host, self._port)
        except OSError as error:
            raise as_transport_error(error, f"resolve {self._host}") from error
        return str(found[0][1][0])


class _Connected:
    """What python-socks takes for a connection that is there already, and for its socket."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def connect(self, **_: Any) -> _Connected:
        return self

    def sendall(self, data: bytes) -> None:
        self._stream.send_all(data)

    def recv(self, count: int) -> bytes:
        buffer = bytearray(count)
        return bytes(buffer[: self._stream.recv_into(buffer)])

    def close(self) -> None:
        self._stream.close()


def _python_socks() -> ModuleType:
    try:
        import python_socks
        import python_socks.sync
    except ImportError as error:
        raise MissingExtra("a SOCKS5 proxy", "proxy") from error
    return python_socks
