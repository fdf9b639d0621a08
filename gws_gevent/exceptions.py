"""Every exception this package raises on purpose.

Belongs here: the tree below, and the facts each exception carries. Does not belong here: deciding when to raise.

    GwsError
    +-- ProtocolError            the peer broke the protocol; carries the close code it is answered with
    +-- ConnectionClosed         a read or write on a connection that is closing or closed; carries its CloseInfo
    +-- MessageTooLarge          a write above write_max_payload_size; nothing was sent
    +-- WriteQueueFull           a write that may not wait (hub, other thread, policy "drop") found its queue full
    +-- HandshakeError           the opening handshake failed
    |   +-- HandshakeRefused     client: the server answered with something other than 101; status, headers, body
    |   +-- Refusal              server: answer this request with a status instead of upgrading it
    +-- TransportError           (also OSError) the transport failed: refused, reset, timed out, TLS
    |   +-- StreamClosed         the stream was closed or aborted on this side
    |   +-- ProxyError           client: the proxy refused, broke off, or cannot be reached
    +-- ReconnectFailed          client: a Reconnect has given up; carries how often it tried, and why
    +-- EndpointError            (also ValueError) an endpoint or URL that cannot be understood
    +-- MissingExtra             (also ImportError) an optional dependency is not installed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gws_gevent.frames import CloseInfo
    from gws_gevent.http_head import Headers

__all__ = [
    "ConnectionClosed",
    "EndpointError",
    "GwsError",
    "HandshakeError",
    "HandshakeRefused",
    "MessageTooLarge",
    "MissingExtra",
    "ProtocolError",
    "ProxyError",
    "ReconnectFailed",
    "Refusal",
    "StreamClosed",
    "TransportError",
    "WriteQueueFull",
]

#: Characters of a refusal's body that stand in the text of HandshakeRefused.
MAX_SHOWN_BODY: Final = 200


class GwsError(Exception):
    """Root of everything this package raises on purpose."""


class ProtocolError(GwsError):
    """The peer broke the protocol.

    Attributes:
        code: the close code that answers it (RFC 6455 section 7.4.1).
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ConnectionClosed(GwsError):
    """The connection is closing or closed: nothing more can be read or written.

    Attributes:
        info: what was received and sent, and whether it was clean.
    """

    def __init__(self, info: CloseInfo) -> None:
        super().__init__(str(info))
        self.info = info


class MessageTooLarge(GwsError):
    """A message to write is larger than ``write_max_payload_size``; nothing of it was sent."""


class WriteQueueFull(GwsError):
    """A write that must not wait would exceed ``write_queue_size``; nothing of it was queued."""


class HandshakeError(GwsError):
    """The opening handshake failed (RFC 6455 section 4)."""


class HandshakeRefused(HandshakeError):
    """The server did not switch protocols. The text ends with the first line of the answer's body, if a person can read it.

    Attributes:
        status: HTTP status code of the answer.
        headers: of the answer, as those of a Request.
        body: the first bytes of its body (bounded).
    """

    def __init__(self, status: int, headers: Headers, body: bytes = b"", why: str = "") -> None:
        said = f"the server answered {status} instead of 101"
        if status == 200:
            said += " (there is a page at this path, not a WebSocket endpoint)"
        words = why or _first_line(body)
        super().__init__(f"{said}: {words}" if words else said)
        self.status = status
        self.headers = headers
        self.body = body


def _first_line(body: bytes) -> str:
    """What a person can read of a body's first line: not HTML, nor anything that could move a terminal's cursor."""
    line, _, _ = body.lstrip().partition(b"\n")
    words = " ".join(line.decode(errors="replace").split())[:MAX_SHOWN_BODY]
    return words if words.isprintable() and not words.startswith("<") else ""


class Refusal(HandshakeError):
    """Return it from, or raise it in, ``authorize`` or ``on_request`` to answer a request without upgrading it.

    Attributes:
        status: HTTP status code, 200 to 599.
        headers: extra headers; framing headers (Content-Length, Connection, ...) are ours.
        body: what the client reads, as text or bytes.
    """

    def __init__(self, status: int, body: str | bytes = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"refused with {status}")
        self.status = status
        self.headers = dict(headers or {})
        self.body = body


class TransportError(GwsError, OSError):
    """The transport failed: connection refused, reset, timed out, TLS alert, unreachable. ``errno`` where there is one."""


class StreamClosed(TransportError):
    """The stream was closed or aborted on this side while, or before, it was used."""


class ProxyError(TransportError):
    """The proxy did not connect us: it refused, broke off, or cannot be reached.

    Attributes:
        status: HTTP status of the answer to CONNECT, or the reply code of SOCKS5 (RFC 1928 section 6); None if there was none.
    """

    def __init__(self, said: str, status: int | None = None, *, error_number: int | None = None) -> None:
        if error_number is None:
            super().__init__(said)
        else:
            super().__init__(error_number, said)
        self.status = status


class ReconnectFailed(GwsError):
    """A Reconnect has given up. Its cause is the error of the last attempt.

    Attributes:
        attempts: how often it tried since it was last connected.
    """

    def __init__(self, url: str, attempts: int, cause: Exception) -> None:
        times = "once" if attempts == 1 else f"{attempts} times"
        words = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        super().__init__(f"gave up on {url}, tried {times}: {words}")
        self.attempts = attempts
        self.__cause__ = cause


class EndpointError(GwsError, ValueError):
    """An endpoint or URL that cannot be understood or used."""


class MissingExtra(GwsError, ImportError):
    """An optional dependency is not installed. The message says what to install."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra: pip install 'gws_gevent[{extra}]'")
        self.extra = extra
