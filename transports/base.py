"""The transport contract: Stream, Listener, Dialer, and the endpoints that name them.

Belongs here: what every transport promises and what the layers above may rely on. Does not belong here: any one transport.
`checks.py` tests the promises; `registry.py` finds a transport by its scheme.
"""

from __future__ import annotations

import reprlib
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, quote, urlencode

from gws_gevent.exceptions import EndpointError, TransportError

__all__ = [
    "ENCRYPTED",
    "DialSettings",
    "Dialer",
    "Endpoint",
    "EndpointLike",
    "ListenSettings",
    "Listener",
    "NonBlockingStream",
    "PollableStream",
    "ReadableWaiter",
    "Stream",
    "TlsFiles",
    "Transport",
    "as_transport_error",
    "is_encrypted",
    "refuse_unknown_params",
]

#: What `send_all` takes: anything with the buffer protocol that does not change until the call returns.
type_of_data = bytes | bytearray | memoryview


class Stream(ABC):
    """A reliable, ordered, two-way byte stream. One reader and one writer greenlet at a time.

    Every method that blocks blocks its greenlet only. An exception thrown into a waiting greenlet (a `gevent.Timeout`, a
    kill) leaves the stream usable and loses no received byte. Errors are `TransportError`; `StreamClosed` where this side
    closed. In the hub a method that would have to wait raises gevent's `BlockingSwitchOutError`; a second reader, or a second
    writer, while one waits gets gevent's `ConcurrentObjectUseError`.

    A stream over a file descriptor also has `fileno()`. A stream that can also write without waiting is a `NonBlockingStream`.
    """

    __slots__ = ()

    def handshake(self, received: bytes = b"") -> None:
        """Do the transport's own handshake, where it has one; a no-op otherwise. Called once, in the connection's greenlet.

        Args:
            received: bytes of the peer that were already read from `info("carrier")`, such as what followed a PROXY header.
        """

    @abstractmethod
    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """Wait for bytes and put some into `buffer`; return how many. 0: the peer finished (also on every later call)."""

    @abstractmethod
    def send_all(self, data: type_of_data) -> None:
        """Return when the transport owns every byte. Blocks while the peer is slow. Empty data is a no-op.

        An exception thrown in while it waits leaves a beginning of `data` sent, of unknown length: whoever must go on from
        there writes with `NonBlockingStream.try_send`.
        """

    def shutdown_write(self) -> None:
        """Half-close: the peer reads 0 after what was sent. A no-op where the transport has no half-close."""

    @abstractmethod
    def close(self) -> None:
        """Close in order. Idempotent, never blocks; wakes a blocked reader and writer with `StreamClosed`."""

    @abstractmethod
    def abort(self) -> None:
        """Close without a goodbye (TCP: reset). Idempotent, never blocks; wakes a blocked reader and writer with `StreamClosed`."""

    @abstractmethod
    def info(self, key: str) -> Any:
        """Facts by name; None where a name does not apply.

        "scheme" of the endpoint; "peername" and "sockname" as the socket module gives them; "tls" the SSLObject;
        "socket" a gevent socket on the same descriptor, which the stream keeps owning; "carrier" the stream below a TLS stream;
        "bytes" (received, sent) on the wire since `count_bytes()`, where the stream, or its carrier, has that and was asked.
        """


#: Bytes up to which the parts of one write are joined rather than sent one by one.
JOIN_BELOW = 16 * 1024


class NonBlockingStream(Stream):
    """A stream that can write without waiting: from the hub, or before deciding whether to wait.

    What `try_send` took is delivered without further calls, as long as the stream is neither closed nor aborted.
    """

    __slots__ = ()

    @abstractmethod
    def try_send(self, data: type_of_data) -> int:
        """Hand over as many bytes as fit now and return how many; 0 if it would block. Never waits."""

    def try_send_parts(self, parts: Sequence[type_of_data]) -> int:
        """Like `try_send` of the parts one after the other; return the bytes taken of all of them together."""
        if sum(map(len, parts)) <= JOIN_BELOW:
            return self.try_send(b"".join(parts))
        total = 0
        for part in parts:
            taken = self.try_send(part)
            total += taken
            if taken < len(part):
                break
        return total

    def _send_waiting(self, data: type_of_data) -> None:
        """What is left of `send_all` once it is allowed to wait: `try_send`, and `wait_writable` while something is left."""
        sent = self.try_send(data)
        if sent == len(data):
            return
        with memoryview(data) as view:
            while sent < len(view):
                self.wait_writable()
                sent += self.try_send(view[sent:])

    @abstractmethod
    def wait_writable(self) -> None:
        """Wait until `try_send` has a reason to take bytes again, and nothing it took is still held back in this process."""

    @abstractmethod
    def call_when_writable(self, callback: Callable[[], object]) -> None:
        """Call `callback()` once, in the hub, where `wait_writable` would return.

        There is one such callback at a time: another call replaces it. It is forgotten when the stream is closed.
        """


class ReadableWaiter(Protocol):
    """What `call_when_readable` takes: an object, so that no bound method has to live as long as the wait."""

    def on_readable(self) -> None:
        """In the hub: there is something to receive. It may not block or raise."""


class PollableStream(NonBlockingStream):
    """A stream that can also read without waiting, so that whoever waits does it where it costs least."""

    __slots__ = ()

    @abstractmethod
    def try_recv_into(self, buffer: bytearray | memoryview) -> int:
        """Like `recv_into` without waiting: -1 means that `wait_readable` comes first."""

    @abstractmethod
    def wait_readable(self) -> None:
        """Wait until `try_recv_into` has something to say. It may return early."""

    @abstractmethod
    def call_when_readable(self, waiter: ReadableWaiter | None) -> None:
        """Call `waiter.on_readable()` once, in the hub, where `wait_readable` would return, while no greenlet waits.

        None takes it back. It is forgotten when the stream is closed.
        """


class Listener(ABC):
    """Accepts streams on one endpoint."""

    #: The bound endpoint as a URL, port 0 replaced by the real one, after `start`.
    address: str

    @abstractmethod
    def start(self, on_stream: Callable[[Stream], object]) -> None:
        """Bind (a TransportError if that fails) and call `on_stream(stream)` in a new greenlet for each stream accepted.

        Where `on_stream` has a method `prepare`, a listener may call that with the stream in the hub instead, and let the new
        greenlet call, without arguments, what it returned; None: there is nothing to call.
        """

    @abstractmethod
    def stop_accepting(self) -> None:
        """Accept no more. Streams that exist go on. Idempotent."""

    def start_accepting(self) -> None:
        """Accept again after `stop_accepting`; a no-op in transports that never stop for a while."""

    @abstractmethod
    def close(self) -> None:
        """Stop accepting and give the endpoint back (a socket file is removed). Idempotent."""

    def reload(self) -> None:
        """Read certificate files again, for streams accepted from now on; a no-op where there are none.

        A TransportError if a file cannot be used: then everything stays as it was.
        """


class Dialer(ABC):
    """Opens streams to one endpoint."""

    @abstractmethod
    def dial(self) -> Stream:
        """Return a connected stream, its handshake done. Blocks this greenlet; a TransportError if it fails.

        The caller bounds the time: an exception thrown in leaves nothing behind.
        """


MAX_PORT: Final = 65535
#: Schemes that people know from URLs, and what they are here.
_OF_URLS: Final = {"http": "tcp", "ws": "tcp", "https": "tls", "wss": "tls"}
_FORMS: Final = "HOST:PORT, :PORT, SCHEME://HOST:PORT or unix:/path/of/socket"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to listen on or dial, parsed from its URL.

    Attributes:
        scheme: names the transport.
        host: host name or address without brackets; "" listens on every address. With the scheme "memory": the name.
        port: 0 to 65535.
        path: a Unix socket's path; a leading "@" means a Linux abstract name.
        params: what follows "?", for transports that have parameters.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    params: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, given: EndpointLike) -> Endpoint:
        """Return what a program gave as an endpoint: its text, a (host, port) pair, a port of all addresses, or an Endpoint.

        Raises:
            EndpointError: it cannot be understood.
            TypeError: it is none of these.
        """
        if isinstance(given, Endpoint):
            return given
        if isinstance(given, str):
            return cls.parse(given)
        pair = given if isinstance(given, tuple) and len(given) == 2 else ("", given)
        host, port = pair
        if not isinstance(host, str) or not isinstance(port, int) or isinstance(port, bool):
            raise TypeError(f"an endpoint is {_FORMS}, a (host, port) pair or a port, not {reprlib.repr(given)}")
        if not 0 <= port <= MAX_PORT:
            raise EndpointError(f"{given!r}: a port is 0 to {MAX_PORT}")
        return cls("tcp", _checked_host(host, f":{port}", repr(given)), port)

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse `host:3001`, `:3001`, `tcp://host:port`, `unix:/path` or `memory:name`; raise EndpointError with what is wrong.

        Examples:
            >>> Endpoint.parse(":3001")
            Endpoint(scheme='tcp', host='', port=3001, path='', params={})
            >>> Endpoint.parse("unix:/run/ws.sock?mode=660").params
            {'mode': '660'}
        """
        address, _, query = text.partition("?")
        params = dict(parse_qsl(query, keep_blank_values=True))
        if address.startswith("unix:"):
            path = address[len("unix:") :]
            if path.startswith("//"):
                path = path[2:]
                if path and not path.startswith(("/", "@")):
                    raise EndpointError(f"{text!r}: a Unix endpoint has no host; did you mean unix:/{path}?")
            if not path or path == "@" or "\0" in path:
                raise EndpointError(f"{text!r}: a Unix endpoint is unix:/path/of/socket or unix:@name")
            return cls("unix", path=path, params=params)
        if address.startswith("memory:"):
            name = address[len("memory:") :].removeprefix("//")
            if not name or not name.isprintable() or any(c in name for c in "/ "):
                raise EndpointError(f"{text!r}: an in-process endpoint is memory:name")
            return cls("memory", host=name, params=params)
        scheme, separator, rest = address.partition("://")
        if not separator:
            scheme, rest = "tcp", address
        elif scheme.lower() in _OF_URLS:
            raise EndpointError(f"{text!r}: an endpoint begins with {_OF_URLS[scheme.lower()]}://, not {scheme}://")
        host, port = _split_host_port(rest, f"{scheme}://" if separator else "", text)
        return cls(scheme.lower(), host, port, params=params)

    def __str__(self) -> str:
        query = urlencode(self.params, safe="/:@", quote_via=quote)
        suffix = f"?{query}" if query else ""
        if self.path or self.scheme == "memory":
            return f"{self.scheme}:{self.path or self.host}{suffix}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{suffix}"


#: What `Endpoint.of` takes.
EndpointLike = str | Endpoint | tuple[str, int] | int


def _split_host_port(rest: str, before: str, text: str) -> tuple[str, int]:
    host, separator, port = rest.rstrip("/").rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or "[" in rest:
        raise EndpointError(f"{text!r}: an IPv6 address stands in brackets, as in tcp://[::1]:3001")
    if not separator and _is_port(port):
        raise EndpointError(f"{text!r}: did you mean {before}:{port}?")
    if not separator and rest.startswith(("/", "./")) and not before:
        raise EndpointError(f"{text!r}: did you mean unix:{rest}?")
    if not separator or not port.removeprefix("-").isdecimal():
        raise EndpointError(f"{text!r}: an endpoint is {_FORMS}")
    if not _is_port(port):
        raise EndpointError(f"{text!r}: a port is 0 to {MAX_PORT}, not {port!r}")
    return _checked_host(host, f"{before}:{port}", repr(text)), int(port)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_PORT)) and int(text) <= MAX_PORT


def _checked_host(host: str, everywhere: str, shown: str) -> str:
    if host == "*":
        raise EndpointError(f"{shown}: all addresses are {everywhere}")
    if any(c in host for c in "/@ \t\r\n\0"):
        raise EndpointError(f"{shown}: not a host name: {host!r}")
    return host


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificate files in PEM form. They are read again when `Listener.reload()` is called."""

    cert: str
    key: str | None = None
    """None: the certificate's file also holds the key."""
    client_ca: str | None = None
    """Ask clients for a certificate and accept only those that this authority signed."""


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """What a transport needs to listen, beside its endpoint."""

    backlog: int = 1024
    no_delay: bool = True
    tls: TlsFiles | None = None
    sni: Mapping[str, TlsFiles] = field(default_factory=dict)
    """Other certificates by the name a client asks for: `"www.example.com"`, or `"*.example.com"` for one label more. Any other
    name gets `tls`, which also decides about client certificates."""
    ssl_context: ssl.SSLContext | None = None
    """Used as it is instead of `tls` and `sni`."""
    spawn: Any = None
    """A gevent Pool to run connections in, its size, or a function, as StreamServer's `spawn`. None: raw greenlets."""
    on_error: Callable[[Exception], object] | None = None
    """Told of a failed accept, in the hub. The listener backs off by itself. None: one line in the log `gws_gevent.transports`."""


@dataclass(frozen=True, slots=True)
class DialSettings:
    """What a transport needs to dial, beside its endpoint."""

    no_delay: bool = True
    ssl_context: ssl.SSLContext | None = None
    """None: the system's authorities."""
    server_name: str | None = None
    """Name for SNI and certificate checks. None: the endpoint's host."""
    tunnel: Dialer | None = None
    """Opens the connection below TLS, a SocketStream or TlsStream, by another way than straight to the endpoint. None: straight."""
    streams_per_connection: int = 100
    """Streams that may share a connection, where a connection can carry several (quic)."""


class Transport(Protocol):
    """What a registry entry is: a module or object with these two functions."""

    def listen(self, endpoint: Endpoint, settings: ListenSettings) -> Listener:
        """Make a Listener; an EndpointError for an endpoint or parameter it does not know."""

    def dialer(self, endpoint: Endpoint, settings: DialSettings) -> Dialer:
        """Make a Dialer; an EndpointError for an endpoint or parameter it does not know."""


#: Transports that are always encrypted.
ENCRYPTED: Final = frozenset({"tls", "quic", "h3"})


def is_encrypted(stream: Stream) -> bool:
    """Tell whether what a stream carries is encrypted by TLS, its own or QUIC's."""
    return stream.info("scheme") in ENCRYPTED or stream.info("tls") is not None


def refuse_unknown_params(endpoint: Endpoint, known: Collection[str] = ()) -> None:
    """Raise an EndpointError that names the parameters of `endpoint` which are not among the `known`."""
    unknown = sorted(set(endpoint.params) - set(known))
    if unknown:
        knows = f"it knows {', '.join(sorted(known))}" if known else "it has none"
        raise EndpointError(f"{str(endpoint)!r}: {endpoint.scheme} has no parameter {', '.join(unknown)}; {knows}")


def as_transport_error(error: OSError, doing: str) -> TransportError:
    """Turn an OS or TLS error into a TransportError with the same errno: `doing` says what failed, as in "accept"."""
    reason = error.strerror or str(error) or type(error).__name__
    mapped = TransportError(error.errno, f"{doing}: {reason}") if error.errno is not None else TransportError(f"{doing}: {reason}")
    mapped.__cause__ = error
    return mapped
