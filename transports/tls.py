"""TLS over TCP: an SSLObject between two memory buffers, on top of a SocketStream.

Belongs here: moving bytes between the SSLObject and the carrier, the TLS listener and dialer. Does not belong here: contexts and
certificate files (tls_contexts.py).

A reader and a writer greenlet share one SSLObject. It is safe because no call on it is ever followed by a switch before what it
produced has been handed to the carrier or put behind what waits there already (`_push`): so records leave in the order in
which they were made, whoever made them. What the carrier does not take at once is flushed from the hub.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent
from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from gevent.hub import get_hub
from greenlet import getcurrent

from gws_gevent.exceptions import EndpointError, StreamClosed, TransportError
from gws_gevent.runtime import current
from gws_gevent.transports.accepting import SocketListener
from gws_gevent.transports.base import (
    Dialer,
    DialSettings,
    Endpoint,
    Listener,
    ListenSettings,
    PollableStream,
    ReadableWaiter,
    Stream,
    TlsFiles,
    refuse_unknown_params,
    type_of_data,
)
from gws_gevent.transports.tcp import SocketStream, TcpDialer
from gws_gevent.transports.tls_contexts import client_context, server_context

__all__ = ["TlsDialer", "TlsListener", "TlsStream", "dialer", "listen"]

#: Bytes handed to the SSLObject at once in either direction. Its memory buffers never shrink: with more, an idle connection
#: that once was busy would keep more. One TLS record holds as much.
SLICE = 16 * 1024
#: Bytes of records that wait for the carrier. `try_send` adds to them only when there are none; above this a peer makes us
#: answer (key updates) without ever reading the answers.
MAX_PENDING = 64 * 1024
#: Seconds that a closed stream may go on sending what it had taken.
CLOSE_LINGER = 5.0
#: Seconds after which to try again to write while the peer renegotiates (TLS 1.2, and only with a context of the user's).
RENEGOTIATION_DELAY = 0.01

_PLAIN_HTTP_BODY = b"This port speaks TLS: use https:// or wss://.\n"
_PLAIN_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_PLAIN_HTTP_BODY), _PLAIN_HTTP_BODY)
)


class TlsStream(PollableStream):
    """TLS on top of a SocketStream, which it owns."""

    __slots__ = (
        "_carrier", "_closed", "_ended", "_failure", "_incoming", "_linger", "_more", "_on_writable", "_outgoing", "_pending",
        "_plain", "_sending", "_ssl", "_stalled",
    )  # fmt: skip

    def __init__(
        self, carrier: SocketStream, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        self._carrier = carrier
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname)
        #: Records the carrier has not taken yet.
        self._pending: bytearray | None = None
        #: Plaintext that had to be read before its time.
        self._plain: bytearray | None = None
        self._on_writable: Callable[[], object] | None = None
        self._linger: Any = None
        self._failure: str | None = None
        self._more = True  # the SSLObject may have plaintext without new bytes from the carrier
        self._ended = False
        self._stalled = False
        self._sending = False
        self._closed = False

    def handshake(self, received: bytes = b"") -> None:
        """Do the TLS handshake; a TransportError that says why if it fails."""
        if received:
            self._incoming.write(received)
        while True:
            if self._closed:
                raise StreamClosed("TLS handshake: the stream is closed")
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                self._push()
                self._fetch_for_handshake()
            except ssl.SSLError as error:
                self._tell_why(error)
                raise TransportError(f"TLS handshake: {_reason(error)}") from error
            else:
                self._push()
                return

    def _fetch_for_handshake(self) -> None:
        scratch = current().scratch
        while (received := self._carrier.try_recv_into(scratch)) < 0:
            self._carrier.wait_readable()
            if self._closed:
                raise StreamClosed("TLS handshake: the stream was closed")
        if received == 0:
            raise TransportError("TLS handshake: the peer closed the connection")
        with memoryview(scratch) as view:
            self._incoming.write(view[:received])

    def _tell_why(self, error: ssl.SSLError) -> None:
        """Let the peer know, if it can be done at once: an alert, or a plain answer to a plain request."""
        self._failure = _reason(error)
        try:
            if error.reason == "HTTP_REQUEST":
                self._carrier.try_send(_PLAIN_HTTP_ANSWER)
            else:
                self._push()
        except TransportError:
            pass

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        while True:
            received = self.try_recv_into(buffer)
            if received >= 0:
                return received
            self._carrier.wait_readable()

    def wait_readable(self) -> None:
        self._carrier.wait_readable()

    def call_when_readable(self, waiter: ReadableWaiter | None) -> None:
        self._carrier.call_when_readable(waiter)

    def try_recv_into(self, buffer: bytearray | memoryview) -> int:
        scratch = current().scratch
        while True:
            if self._closed:
                raise StreamClosed("receive: the stream is closed")
            if self._plain is not None or self._more:
                with memoryview(buffer) as view:
                    filled = self._take_plain(view) if self._plain is not None else self._decrypt(view, 0)
                if filled:
                    return filled
            if self._failure is not None:
                raise TransportError(f"receive: TLS: {self._failure}")
            if self._ended:
                return 0
            received = self._carrier.try_recv_into(scratch)
            if received < 0:
                return -1
            if received == 0:
                self._ended = True
                continue
            # From here to the return nothing may switch: `scratch` and `buffer` belong to the whole hub.
            with memoryview(buffer) as view:
                filled = self._feed(scratch, received, view)
            if filled:
                return filled

    def _feed(self, scratch: bytearray, received: int, view: memoryview) -> int:
        """Decrypt `received` bytes of `scratch` into `view` and return how many that gave; the rest stays with the SSLObject."""
        filled = 0
        with memoryview(scratch) as source:
            for at in range(0, received, SLICE):
                self._incoming.write(source[at : min(at + SLICE, received)])
                if filled < len(view):
                    filled = self._decrypt(view, filled)
        if self._outgoing.pending:  # an alert, or the answer to a key update
            try:
                self._push()
            except TransportError:
                pass  # the next read or write meets the same fault
        return filled

    def _decrypt(self, view: memoryview, filled: int) -> int:
        self._more = False
        try:
            while filled < len(view):
                count = self._ssl.read(len(view) - filled, view[filled:])
                if not count:
                    self._ended = True
                    return filled
                filled += count  # type: ignore[operator]
            self._more = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = True
        except ssl.SSLError as error:
            self._failure = _reason(error)
        return filled

    def _take_plain(self, view: memoryview) -> int:
        plain = self._plain
        assert plain is not None
        count = min(len(plain), len(view))
        view[:count] = plain[:count]
        del plain[:count]
        if not plain:
            self._plain = None
        return count

    def try_send(self, data: type_of_data) -> int:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        if self._failure is not None:
            raise TransportError(f"send: TLS: {self._failure}")
        if not self._flush():
            return 0
        taken = 0
        with memoryview(data) as view:
            while taken < len(view) and self._pending is None:
                with view[taken : taken + SLICE] as piece:
                    try:
                        taken += self._ssl.write(piece)
                    except ssl.SSLWantReadError:
                        self._stalled = True
                        self._push()
                        break
                    except ssl.SSLError as error:
                        raise TransportError(f"send: TLS: {_reason(error)}") from error
                self._push()
        return taken

    def send_all(self, data: type_of_data) -> None:
        if self._sending:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if getcurrent() is get_hub():
            raise BlockingSwitchOutError("send_all may have to wait, and the hub cannot: use try_send there")
        self._sending = True
        try:
            with memoryview(data) as view:
                sent = self.try_send(view)
                while sent < len(view) or self._pending is not None:
                    self.wait_writable()
                    sent += self.try_send(view[sent:])
        finally:
            self._sending = False

    def wait_writable(self) -> None:
        if self._stalled:
            self._stalled = False
            gevent.sleep(RENEGOTIATION_DELAY)
        while True:
            if self._closed:
                raise StreamClosed("send: the stream is closed")
            self._carrier.wait_writable()
            if self._closed:
                raise StreamClosed("send: the stream was closed")
            if self._flush():
                return

    def call_when_writable(self, callback: Callable[[], object]) -> None:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        self._on_writable = callback
        self._carrier.call_when_writable(self._flush_in_hub)

    def _push(self) -> None:
        """Hand over what the SSLObject has produced, in its order. Never waits."""
        data = self._outgoing.read()
        if not data:
            return
        if self._pending is not None:
            self._pending += data
            if len(self._pending) > MAX_PENDING:
                self._failure = "the peer asks for answers that it does not read"
                raise TransportError(f"send: TLS: {self._failure}")
            return
        sent = self._carrier.try_send(data)
        if sent < len(data):
            self._pending = bytearray(data[sent:])
            self._carrier.call_when_writable(self._flush_in_hub)

    def _flush(self) -> bool:
        """Send waiting records; True when there are none left. Never waits."""
        if self._pending is not None:
            del self._pending[: self._carrier.try_send(self._pending)]
            if self._pending:
                return False
            self._pending = None
        return True

    def _flush_in_hub(self) -> None:
        try:
            done = self._flush()
        except TransportError as error:
            self._failure, self._pending, done = str(error), None, True
        if not done:
            self._carrier.call_when_writable(self._flush_in_hub)
        elif self._closed:
            self._stop_lingering()
        elif self._on_writable is not None:
            callback, self._on_writable = self._on_writable, None
            callback()

    def shutdown_write(self) -> None:
        """Send close_notify. The carrier stays open both ways: TLS 1.3 has a half-close of its own (RFC 8446 section 6.1)."""
        if self._closed:
            raise StreamClosed("shutdown: the stream is closed")
        self._save_plaintext()
        self._say_goodbye()

    def _save_plaintext(self) -> None:
        """Decrypt all that has arrived: unwrap() would look for the peer's close_notify there and throw away the rest."""
        while self._more:
            plain = bytearray(SLICE)
            with memoryview(plain) as view:
                filled = self._decrypt(view, 0)
            self._plain = (self._plain or bytearray()) + plain[:filled] if filled else self._plain

    def _say_goodbye(self) -> None:
        try:
            if self._failure is None:
                self._ssl.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # it wants to read the peer's goodbye, which is not waited for, or there was no handshake
        self._push()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._on_writable = self._plain = None
        try:
            self._say_goodbye()
        except TransportError:
            self._pending = None
        if self._pending is None:
            self._carrier.close()
            return
        # TCP itself would go on sending what it had taken before the close; so do we, for a while.
        self._carrier.interrupt()
        self._linger = get_hub().loop.timer(CLOSE_LINGER)
        self._linger.start(self.abort)

    def abort(self) -> None:
        if self._closed and self._linger is None:
            return
        self._closed = True
        self._on_writable = self._plain = self._pending = None
        self._carrier.abort()
        self._stop_lingering()

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.stop()
            self._linger.close()
            self._linger = None
        self._carrier.close()

    def info(self, key: str) -> Any:
        if key == "scheme":
            return "tls"
        if key == "tls":
            return self._ssl
        return self._carrier if key == "carrier" else self._carrier.info(key)


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the peer is not accepted: {error.verify_message}"
    if error.reason == "HTTP_REQUEST":
        return "the peer speaks plain HTTP"
    return (error.reason or str(error)).lower().replace("_", " ")


class TlsListener(SocketListener):
    """Listens on one TCP port and speaks TLS. The handshake is left to the connection's greenlet (`Stream.handshake`)."""

    scheme = "tls"

    def __init__(self, listener: Any, *args: Any, settings: ListenSettings | None = None, **kwargs: Any) -> None:
        """Take what SocketListener takes; `settings` must have `tls` or `ssl_context`. A TransportError if files cannot be used."""
        settings = settings or ListenSettings()
        if settings.tls is None and settings.ssl_context is None:
            raise EndpointError(f"{str(listener)!r}: TLS needs a certificate: `tls` in the settings, or ?cert=FILE&key=FILE")
        self._context = settings.ssl_context or self._load(settings)
        super().__init__(listener, *args, settings=settings, **kwargs)

    def make_stream(self, accepted: SocketStream) -> Stream:
        return TlsStream(accepted, self._context, server_side=True)

    def reload(self) -> None:
        if self.settings.ssl_context is None:
            self._context = self._load(self.settings)

    @staticmethod
    def _load(settings: ListenSettings) -> ssl.SSLContext:
        assert settings.tls is not None
        return server_context(settings.tls, settings.sni)


class TlsDialer(Dialer):
    """Connects to one TCP port and does the TLS handshake."""

    def __init__(self, endpoint: Endpoint, settings: DialSettings | None = None) -> None:
        self.endpoint = endpoint
        self.settings = settings or DialSettings()
        self._carrier = TcpDialer(endpoint, self.settings)
        self._context = self.settings.ssl_context or client_context()

    def dial(self) -> TlsStream:
        carrier = self._carrier.dial()
        try:
            name = self.settings.server_name or self.endpoint.host
            stream = TlsStream(carrier, self._context, server_side=False, server_hostname=name)
            stream.handshake()
            return stream
        except BaseException as error:
            carrier.close()  # and not abort: a reset could overtake the alert that tells the server why
            if isinstance(error, TransportError):
                raise TransportError(f"connect to {self.endpoint}: {error}") from error
            raise


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `tls://host:port`; its parameters cert, key and client_ca stand for `tls` in the settings."""
    refuse_unknown_params(endpoint, ("cert", "key", "client_ca"))
    params = endpoint.params
    if not params:
        return TlsListener(endpoint, settings=settings)
    if "cert" not in params:
        raise EndpointError(f"{str(endpoint)!r}: {' and '.join(sorted(params))} without cert")
    files = TlsFiles(params["cert"], params.get("key"), params.get("client_ca"))
    return TlsListener(endpoint, settings=replace(settings, tls=files, ssl_context=None))


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `tls://host:port`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return TlsDialer(endpoint, settings)
