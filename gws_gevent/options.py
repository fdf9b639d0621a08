"""Frozen option classes: every limit, deadline and policy by name.

Belongs here: names, units, defaults, validation. Does not belong here: acting on them.
A wrong value is a ValueError that names the field; something else in place of options is a TypeError.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import reprlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from gws_gevent.option_names import refuse_unknown

if TYPE_CHECKING:
    from gws_gevent.handshake import Request

__all__ = ["BridgeOptions", "ClientOptions", "PermessageDeflate", "ServerOptions", "WsgiSettings"]

Options = TypeVar("Options", bound="ConnectionOptions | BridgeOptions")

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

#: Headers of the opening handshake and of HTTP framing: `response_headers` and a client's `headers` may not set them.
PROTECTED_HEADERS = frozenset(
    {
        "connection",
        "upgrade",
        "host",
        "content-length",
        "transfer-encoding",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
    }
)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
#: An origin as browsers write it (RFC 6454 section 6.2): what is written otherwise would never be met.
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.\-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9\-._~]+)(?::[0-9]{1,5})?")


def _seconds(default: float | None, *, optional: bool = False) -> Any:
    return field(default=default, metadata={"check": _check_seconds, "optional": optional})


def _bytes(default: int, *, least: int = 1) -> Any:
    return field(default=default, metadata={"check": _check_count, "least": least, "unit": "bytes"})


def _count(default: int | None, *, least: int = 0, optional: bool = False) -> Any:
    return field(default=default, metadata={"check": _check_count, "least": least, "optional": optional})


def _between(default: int, least: int, most: int) -> Any:
    return field(default=default, metadata={"check": _check_between, "least": least, "most": most})


def _flag(default: bool) -> Any:
    return field(default=default, metadata={"check": _check_flag})


def _check_seconds(value: Any, _meta: Mapping[str, Any]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        return "must be a positive number of seconds"
    return None


def _check_count(value: Any, meta: Mapping[str, Any]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < meta["least"]:
        return f"must be a whole number of at least {meta['least']}"
    return None


def _check_between(value: Any, meta: Mapping[str, Any]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int) or not meta["least"] <= value <= meta["most"]:
        return f"must be a whole number from {meta['least']} to {meta['most']}"
    return None


def _check_flag(value: Any, _meta: Mapping[str, Any]) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


class _Checked:
    """Names the option that was meant by one that does not exist, and runs each field's check after construction."""

    __slots__ = ()

    def __new__(cls, *_: object, **given: object) -> Self:
        refuse_unknown(cls, given)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            check = item.metadata.get("check")
            value = getattr(self, item.name)
            if check is None or (value is None and item.metadata.get("optional")):
                continue
            problem = check(value, item.metadata)
            if problem:
                also = " or None" if item.metadata.get("optional") else ""
                raise ValueError(f"{item.name}: {problem}{also}, not {value!r}")

    def _normalise(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PermessageDeflate(_Checked):
    """Compression of messages (RFC 7692), on either side.

    Without context takeover, the default, no connection has a compressor of its own: an idle one costs what it costs without
    compression.
    """

    level: int = _between(1, 1, 9)
    """1 is fastest, 9 smallest."""
    threshold: int = _bytes(512, least=0)
    """Bytes below which a message goes uncompressed. Not looked at by a side that has context takeover."""
    server_context_takeover: bool = _flag(False)
    """The server compresses each message with the help of those before it. Costs memory for each connection, on both sides."""
    client_context_takeover: bool = _flag(False)
    """The client does."""
    server_max_window_bits: int = _between(15, 8, 15)
    """Bytes that the server looks back, as a power of 2. A server takes 9 to 15: zlib cannot deflate with 8."""
    client_max_window_bits: int = _between(15, 8, 15)
    """Bytes that the client looks back, as a power of 2. A client takes 9 to 15."""
    memory_level: int = _between(8, 1, 9)
    """How much memory a compressor takes besides its window; see the documentation for bytes."""
    pool_size: int = _count(32)
    """Idle compressors kept for the connections that have none of their own."""
    codec: Literal["zlib", "isal", "zlib-ng", "auto"] = "zlib"
    """What deflates: the standard library, or what the extra `deflate` brings. "auto": isal if it is installed, else zlib-ng, else
    zlib."""

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.codec not in ("zlib", "isal", "zlib-ng", "auto"):
            raise ValueError(f"codec: must be 'zlib', 'isal', 'zlib-ng' or 'auto', not {self.codec!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions(_Checked):
    """What both sides of a connection share. See ServerOptions and ClientOptions."""

    read_max_payload_size: int = _bytes(16 * MiB)
    """Bytes of one message after decompression. A frame that declares more is refused on its header with 1009."""
    write_max_payload_size: int = _bytes(16 * MiB)
    """Bytes of one message to write. A larger one raises MessageTooLarge and nothing of it is sent."""
    max_fragments: int = _count(131_072, least=1)
    """Fragments of one message; 1009 above it."""
    check_utf8: bool = _flag(True)
    """Check incoming text and close reasons; 1007 on the first bad fragment. Off: bad bytes arrive as U+FFFD."""
    parallel: int = _count(0)
    """Messages of one connection handled at once. 0 keeps order in the connection's own greenlet."""
    handshake_timeout: float = _seconds(5.0)
    """Server: seconds from accept to the end of the request head, TLS included. Client: for the whole opening handshake."""
    close_timeout: float = _seconds(5.0)
    """Seconds to wait for the peer's close frame before the transport is aborted."""
    park_after: float | None = _seconds(None, optional=True)
    """Seconds without input after which an event handler's connection gives its greenlet back until there is some. None: never.

    It then costs a third of the memory, and a little more at its next message. Not for functions, nor for reading with `receive()`.
    """
    ping_interval: float | None = _seconds(30.0, optional=True)
    """Seconds between two keepalive pings, under traffic too (`latency`), less up to a quarter at random. None: no keepalive."""
    ping_timeout: float | None = _seconds(30.0, optional=True)
    """Seconds a ping may stay unanswered before the transport is aborted. None: for ever."""
    read_timeout: float | None = _seconds(None, optional=True)
    """Seconds without a byte from the peer before the transport is aborted. None: for ever."""
    message_timeout: float | None = _seconds(60.0, optional=True)
    """Seconds from a message's first byte to its last. None: for ever."""
    write_timeout: float | None = _seconds(30.0, optional=True)
    """Seconds a peer may take no bytes while there are some to send. None: for ever."""
    write_high_water: int = _bytes(64 * KiB)
    """Bytes of unsent output above which a writing greenlet waits."""
    write_queue_size: int = _bytes(1 * MiB)
    """Bytes of unsent output above which asynchronous writes meet `slow_consumer`."""
    slow_consumer: Literal["close", "drop", "block"] = "close"
    """What meets an asynchronous write to a full queue: close with 1008, drop the newest, or block the caller."""
    max_buffered: int = _bytes(1 * GiB)
    """Bytes of incomplete messages and unsent output over all connections; above it the largest offender is closed (1013)."""
    no_delay: bool = _flag(True)
    """Set TCP_NODELAY."""
    new_session: Callable[[], MutableMapping[Any, Any]] | None = None
    """Makes `conn.session` on first use. None: SessionStorage."""
    recovery: bool = _flag(True)
    """Log a handler's exception and close that connection with 1011. Off: also hand it to the hub's error handler."""
    logger: logging.Logger | logging.LoggerAdapter[Any] | None = None
    """Where records go; each carries the connection's id and peer. None: logging.getLogger("gws_gevent")."""
    subprotocols: Sequence[str] = ()
    """Server: supported, in order of preference. Client: offered, in order of preference."""
    permessage_deflate: PermessageDeflate | None = None
    """Compress messages where the peer agrees (RFC 7692). None: never."""

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.slow_consumer not in ("close", "drop", "block"):
            raise ValueError(f"slow_consumer: must be 'close', 'drop' or 'block', not {self.slow_consumer!r}")
        if self.new_session is not None and not callable(self.new_session):
            raise ValueError(f"new_session: must be callable or None, not {self.new_session!r}")
        if self.logger is not None and not isinstance(self.logger, logging.Logger | logging.LoggerAdapter):
            raise ValueError(f"logger: must be a logging.Logger or None, not {self.logger!r}")
        self._normalise("subprotocols", _check_subprotocols(self.subprotocols))
        if self.permessage_deflate is not None and not isinstance(self.permessage_deflate, PermessageDeflate):
            raise ValueError(f"permessage_deflate: must be PermessageDeflate(...) or None, not {self.permessage_deflate!r}")

    def _check_own_window(self, side: str) -> None:
        deflate = self.permessage_deflate
        if deflate is not None and getattr(deflate, f"{side}_max_window_bits") == 8:
            raise ValueError(
                f"permessage_deflate: a {side} takes {side}_max_window_bits from 9 to 15, for zlib cannot deflate with 8"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(ConnectionOptions):
    """Options of a Server or Upgrader."""

    max_request_head: int = _bytes(16 * KiB, least=64)
    """Bytes of request line and headers: 414 or 431 above it. Twice nginx's header buffer. Also at most 100 header lines."""
    trusted_proxies: Sequence[str] = ()
    """Networks (`"10.0.0.0/8"`), addresses, or `"unix"` for every Unix-socket peer, whose X-Forwarded-For or Forwarded header
    and PROXY protocol header set `remote_address`."""
    require_subprotocol: bool = _flag(False)
    """Refuse with 400 a client that offers none of `subprotocols`."""
    origins: Sequence[str | re.Pattern[str]] | None = None
    """Allowed Origin values: strings such as "https://example.com:8443", compared exactly, or patterns that match whole. Others,
    and no Origin, are refused with 403. None: any."""
    authorize: Callable[[Request, MutableMapping[Any, Any]], Any] | None = None
    """Called as authorize(request, session) after the header checks. True, and nothing else, lets the client in. False and None
    refuse with 401; a Refusal, returned or raised, as it says; anything else, and any exception, is logged and answered 500."""
    response_headers: Mapping[str, str] = field(default_factory=dict)
    """Extra headers of the 101 response."""
    keep_request: bool = _flag(False)
    """Keep `conn.request` until the end. Off: it is freed when the connection is first read, after on_open."""
    max_connections: int | None = _count(None, least=1, optional=True)
    """Connections open at once; above it a request is answered 503 and accepting goes on. None: no bound."""
    accept_limit: int | None = _count(None, least=1, optional=True)
    """Connections at once, those that say nothing included, above which no more are accepted: they wait in the kernel's queue, or
    go to another process that listens on the same socket. For TCP, TLS and Unix sockets. None: no bound."""
    context_vars: Sequence[ContextVar[Any] | str] = ()
    """Context variables, or their names, whose values go from a WSGI app that upgrades its request to the connection's greenlet.
    All others end with the request."""
    keep_alive_timeout: float | None = _seconds(75.0, optional=True)
    """Beside a WSGI app: seconds that a connection may wait for its next request. None: for ever."""
    body_timeout: float | None = _seconds(30.0, optional=True)
    """Beside a WSGI app: seconds that it may wait for a request's body in all, and one more for each KiB that has come; then the
    connection is dropped. None: for ever."""
    max_request_body: int | None = field(
        default=1 * GiB, metadata={"check": _check_count, "least": 0, "unit": "bytes", "optional": True}
    )
    """Beside a WSGI app: bytes of a request's body; 413, or 400 where it is sent in chunks, above it. None: no bound."""

    def __post_init__(self) -> None:
        ConnectionOptions.__post_init__(self)
        self._check_own_window("server")
        self._normalise("trusted_proxies", _check_networks(self.trusted_proxies))
        self._normalise("response_headers", _check_headers("response_headers", self.response_headers))
        if self.authorize is not None and not callable(self.authorize):
            raise ValueError(f"authorize: must be callable or None, not {self.authorize!r}")
        if self.origins is not None:
            self._normalise("origins", _check_origins(self.origins))
        self._normalise("context_vars", _check_context_vars(self.context_vars))
        if self.require_subprotocol and not self.subprotocols:
            raise ValueError("require_subprotocol: without subprotocols nobody could get in")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions(ConnectionOptions):
    """Options of a client connection."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """Extra headers of the opening handshake's request."""
    max_response_head: int = _bytes(64 * KiB, least=64)
    """Bytes of status line and headers of the server's answer."""
    max_redirects: int = _count(10)
    """Redirects that one `connect` follows. 0: none, and a redirect is a HandshakeRefused."""
    streams_per_connection: int = _count(100, least=1)
    """WebSockets that may share one connection to a server, with transports that can carry several (quic). 1: each has its own."""
    transport_params: Mapping[str, str | float] = field(default_factory=dict)
    """Parameters of the transport, as they stand behind the `?` of an endpoint: `{"mode": "fast", "mtu": 1200}` for ws+kcp."""

    def __post_init__(self) -> None:
        ConnectionOptions.__post_init__(self)
        self._check_own_window("client")
        self._normalise("headers", _check_headers("headers", self.headers))
        self._normalise("transport_params", _check_params(self.transport_params))


@dataclass(frozen=True, slots=True, kw_only=True)
class WsgiSettings(_Checked):
    """How the WSGI app of a Server is served, beside what ServerOptions says."""

    log: Any = field(default_factory=lambda: logging.getLogger("gws_gevent.access"))
    """Access log: a Logger, told at INFO; something with `write`, such as sys.stderr; None: nowhere."""
    error_log: Any = field(default_factory=lambda: logging.getLogger("gws_gevent.wsgi"))
    """`wsgi.errors`, and complaints about malformed requests: a Logger, told at ERROR; something with `write`; None: nowhere."""
    environ: Mapping[str, Any] = field(default_factory=dict)
    """What stands in every environ, in place of ours where the key is the same."""
    handler_class: type[Any] | None = None
    """Serves each connection: a subclass of integrations.pywsgi.WSGIHandler. None: that class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeOptions(_Checked):
    """Options of a Bridge or RawBridge."""

    handshake_timeout: float = _seconds(5.0)
    """Seconds from accept to the end of the request head, TLS included: 408 above it."""
    target_timeout: float = _seconds(10.0)
    """Seconds for the connection to the target, and its answer to the request: 504 above it."""
    idle_timeout: float | None = _seconds(3600.0, optional=True)
    """Seconds without a byte in either direction before both sides are closed. None: for ever."""
    write_timeout: float | None = _seconds(30.0, optional=True)
    """Seconds a side may take no bytes while there are some for it. None: for ever."""
    close_timeout: float = _seconds(10.0)
    """Seconds without a byte once one direction has ended, or a closing handshake has begun, before both sides are closed."""
    max_connections: int | None = _count(None, least=1, optional=True)
    """Connections carried at once; above it a request is answered 503. None: no bound."""
    max_request_head: int = _bytes(16 * KiB, least=64)
    """Bytes of a request's line and headers: 414 or 431 above it."""
    max_response_head: int = _bytes(64 * KiB, least=64)
    """Bytes of status line and headers of the target's answer: 502 above it."""
    forwarded: bool = _flag(False)
    """Tell the target who the client is: X-Forwarded-For and X-Forwarded-Proto. What the client says of itself there, in Forwarded
    or in X-Real-IP is never passed on."""
    trusted_proxies: Sequence[str] = ()
    """Networks (`"10.0.0.0/8"`), addresses, or `"unix"`: peers whose forwarding headers are passed on, and added to."""
    origins: Sequence[str | re.Pattern[str]] | None = None
    """Allowed Origin values, as in ServerOptions. None: any."""
    logger: logging.Logger | logging.LoggerAdapter[Any] | None = None
    """Where records go. None: logging.getLogger("gws_gevent")."""

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        self._normalise("trusted_proxies", _check_networks(self.trusted_proxies))
        if self.origins is not None:
            self._normalise("origins", _check_origins(self.origins))
        if self.logger is not None and not isinstance(self.logger, logging.Logger | logging.LoggerAdapter):
            raise ValueError(f"logger: must be a logging.Logger or None, not {self.logger!r}")


def options_or_default(options: Options | None, kind: type[Options]) -> Options:
    """Return the options given, or those by default for None.

    Raises:
        TypeError: they are something else, such as a dict.
    """
    if options is None:
        return kind()
    if not isinstance(options, kind):
        raise TypeError(f"options are {kind.__name__}(...), not {reprlib.repr(options)}")
    return options


def _check_subprotocols(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"subprotocols: must be a sequence of names, not {value!r}")
    for name in value:
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ValueError(f"subprotocols: each must be an HTTP token, not {name!r}")
    if len(set(value)) != len(tuple(value)):
        raise ValueError(f"subprotocols: each may stand once, not {value!r}")
    return tuple(value)


def _check_context_vars(value: Any) -> tuple[ContextVar[Any] | str, ...]:
    if isinstance(value, str | ContextVar):
        raise ValueError(f"context_vars: must be a sequence of context variables or their names, not {value!r}")
    for one in value:
        if not isinstance(one, str | ContextVar):
            raise ValueError(f"context_vars: each must be a ContextVar or the name of one, not {one!r}")
    return tuple(value)


def _check_networks(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"trusted_proxies: must be a sequence of networks, not {value!r}")
    for network in value:
        if network == "unix":
            continue
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(f"trusted_proxies: {error}") from None
    return tuple(str(network) for network in value)


def _check_headers(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: must be a mapping of names to values, not {value!r}")
    for key, text in value.items():
        if not isinstance(key, str) or not _TOKEN.fullmatch(key):
            raise ValueError(f"{name}: not a header name: {key!r}")
        if key.lower() in PROTECTED_HEADERS:
            raise ValueError(f"{name}: {key} belongs to the handshake and cannot be set")
        if not isinstance(text, str) or not _FIELD_VALUE.fullmatch(text):
            raise ValueError(f"{name}: not a header value for {key}: {text!r}")
    return dict(value)


def _check_params(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"transport_params: must be a mapping of names to values, not {value!r}")
    for key, given in value.items():
        if not isinstance(key, str) or not isinstance(given, str | int | float) or isinstance(given, bool):
            raise ValueError(f"transport_params: each must be a name and a text or number, not {key!r}: {given!r}")
    return {key: str(given) for key, given in value.items()}


def _check_origins(value: Any) -> tuple[str | re.Pattern[str], ...]:
    if isinstance(value, str):
        raise ValueError(f"origins: must be a sequence of origins, not {value!r}")
    origins = tuple(value)
    if not origins:
        raise ValueError("origins: an empty list would let nobody in; None allows any origin")
    for origin in origins:
        if origin == "*":
            raise ValueError("origins: '*' is no origin; None, the default, allows any")
        if isinstance(origin, str):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"origins: each is scheme://host or scheme://host:port in lower case, or 'null', not {origin!r}")
        elif not isinstance(origin, re.Pattern) or not isinstance(origin.pattern, str):
            raise ValueError(f"origins: each must be a string or a compiled pattern of one, not {origin!r}")
    return origins
