"""The opening handshake, both sides (RFC 6455 section 4).

Belongs here: accepting or refusing a parsed request, judging a server's answer, and the bytes of requests and responses.
Does not belong here: the syntax of HTTP heads (http_head.py), reading bytes, deadlines, logging, WSGI.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from binascii import b2a_base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from http import HTTPStatus
from typing import NamedTuple

from gws_gevent.exceptions import HandshakeError, HandshakeRefused, Refusal
from gws_gevent.extensions.permessage_deflate import Agreement, accept_offer, judge_answer
from gws_gevent.http_head import (
    Headers,
    HeadReader,
    Request,
    ResponseHead,
    ResponseHeadReader,
    check_header,
    is_authority,
    is_token,
    parse_request,
    parse_response,
)
from gws_gevent.options import PROTECTED_HEADERS, PermessageDeflate, ServerOptions

__all__ = [
    "Acceptance", "HeadReader", "Headers", "Request", "Response", "ResponseHead", "ResponseHeadReader", "accept_key",
    "accept_response", "check_origin", "http_response", "judge_response", "judge_upgrade", "make_key", "parse_extensions",
    "parse_request", "parse_response", "refusal_response", "request_head", "upgrade_required", "wants_websocket",
]  # fmt: skip

#: Name and parameters of one extension, as offered or answered (section 9.1).
Extension = tuple[str, list[tuple[str, str | None]]]

#: Headers of a response that are the encoder's own.
FRAMING_HEADERS = frozenset({"connection", "content-length", "transfer-encoding"})

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCHING = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
#: The base64 of 16 bytes.
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*")

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = r'"(?:[^"\\]++|\\.)*+"'
# Possessive throughout: no input makes them backtrack.
_ELEMENT = re.compile(rf'((?:[^",]++|{_QUOTED})*+)(,|\Z)', re.DOTALL)
_EXTENSION = re.compile(rf"[ \t]*+({_TOKEN})[ \t]*+((?:;[ \t]*+{_TOKEN}[ \t]*+(?:=[ \t]*+(?:{_TOKEN}|{_QUOTED})[ \t]*+)?+)*+)")
_PARAMETER = re.compile(rf";[ \t]*+({_TOKEN})[ \t]*+(?:=[ \t]*+(?:({_TOKEN})|({_QUOTED})))?+")

#: What a client reads when a refusal brings no body of its own.
_DEFAULT_BODIES = {
    400: "The request is not valid.",
    401: "Authorisation is required.",
    403: "This is not allowed.",
    404: "There is nothing here.",
    405: "Only GET opens a WebSocket.",
    408: "The request took too long to arrive.",
    414: "The request line is too long.",
    426: "This is a WebSocket endpoint. It speaks version 13.",
    431: "The request headers are too large.",
    500: "The server failed.",
    503: "The server is full or stopping. Try again later.",
    505: "This server speaks HTTP/1.1.",
}


class Acceptance(NamedTuple):
    """An accepted handshake, on either side.

    Attributes:
        accept: value of Sec-WebSocket-Accept.
        subprotocol: the one in use, or None.
        extensions: value of Sec-WebSocket-Extensions in the answer, or "".
        deflate: what was agreed on about compression, or None.
    """

    accept: str
    subprotocol: str | None = None
    extensions: str = ""
    deflate: Agreement | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What `on_request` returns to answer a plain HTTP request.

    Attributes:
        status: HTTP status code, 200 to 599.
        body: text (sent as UTF-8) or bytes.
        headers: extra headers, Content-Type among them (text/plain in UTF-8 if not given); framing headers are ours. A wrong
            status or header is a ValueError.
    """

    status: int
    body: str | bytes = b""
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        _check_answer(self.status, self.headers or {})


def accept_key(key: str) -> str:
    """Return the Sec-WebSocket-Accept that answers a Sec-WebSocket-Key (section 4.2.2)."""
    return b2a_base64(sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest(), newline=False).decode()


# Server side


def wants_websocket(request: Request) -> bool:
    """Tell whether a request asks for an upgrade to WebSocket (section 4.2.1).

    Other protocols in Upgrade, such as h2c, are ignored (RFC 9110 section 7.8).
    """
    return _lists(request.headers, "upgrade", "websocket") and _lists(request.headers, "connection", "upgrade")


def _lists(headers: Headers, name: str, token: str) -> bool:
    value = headers.get(name)
    if value is None:
        return False
    # Nearly always the token stands alone; otherwise all lines count.
    return value.lower() == token or token in [element.lower() for element in headers.elements(name)]


def upgrade_required() -> Refusal:
    """Return the 426 for a plain request, or another version, where only WebSocket is served (section 4.4)."""
    return Refusal(426, headers={"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})


def judge_upgrade(request: Request, options: ServerOptions) -> Acceptance:
    """Accept a request to upgrade (section 4.2.1), or raise.

    Raises:
        Refusal: 400, 403, 405, 426 or 505, with a body that says why.
    """
    if request.version != "1.1":
        raise Refusal(505, "A WebSocket handshake is HTTP/1.1.\n")
    if request.method != "GET":
        raise Refusal(405, headers={"Allow": "GET"})
    if not wants_websocket(request):
        raise upgrade_required()
    headers = request.headers
    if "transfer-encoding" in headers or (headers.get("content-length") or "").strip("0"):
        raise Refusal(400, "A WebSocket handshake has no body.\n")
    if headers.get_all("sec-websocket-version") != ["13"]:
        raise upgrade_required()
    keys = headers.get_all("sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise Refusal(400, "A WebSocket handshake has one Sec-WebSocket-Key: the base64 of 16 bytes.\n")
    if options.origins is not None:
        check_origin(headers, options.origins)
    accept, subprotocol = accept_key(keys[0]), _choose_subprotocol(headers, options)
    if options.permessage_deflate is not None and "sec-websocket-extensions" in headers:
        offers = parse_extensions(headers.get_all("sec-websocket-extensions"))
        accepted = accept_offer(offers, options.permessage_deflate)
        if accepted is not None:
            return Acceptance(accept, subprotocol, accepted[1], accepted[0])
    return Acceptance(accept, subprotocol)


def check_origin(headers: Headers, allowed: Sequence[str | re.Pattern[str]]) -> None:
    """Raise a Refusal with 403 unless the Origin is one of those allowed (section 10.2).

    A client without an Origin is no browser, but a list of origins asks for one of them.
    """
    found = headers.get_all("origin")
    if len(found) == 1:
        origin = found[0]
        if any(origin == entry if isinstance(entry, str) else entry.fullmatch(origin) for entry in allowed):
            return
    raise Refusal(403, "This origin is not allowed.\n")


def _choose_subprotocol(headers: Headers, options: ServerOptions) -> str | None:
    if "sec-websocket-protocol" in headers:
        # Section 4.1: one or more tokens, all different. An offer that breaks this is refused even where none is supported.
        offered = headers.elements("sec-websocket-protocol")
        if not offered or len(set(offered)) != len(offered) or not all(map(is_token, offered)):
            raise Refusal(400, "Sec-WebSocket-Protocol lists one or more names, all different.\n")
        for name in options.subprotocols:
            if name in offered:
                return name
    if options.require_subprotocol:
        raise Refusal(400, "None of the offered subprotocols is supported.\n")
    return None


def parse_extensions(values: Iterable[str]) -> list[Extension]:
    """Parse Sec-WebSocket-Extensions values into (name, [(parameter, value or None), ...]), in order (section 9.1).

    An element that breaks the grammar is left out, so that it is declined like any extension we do not know.
    """
    return [extension for extension in _extensions(values) if extension is not None]


def _extensions(values: Iterable[str]) -> list[Extension | None]:
    """Parse as above, with None for each element that breaks the grammar. Empty elements are allowed and do not count."""
    found: list[Extension | None] = []
    for value in values:
        at = 0
        while at < len(value):
            element = _ELEMENT.match(value, at)
            if element is None:  # a quote that never ends takes the rest of the line with it
                found.append(None)
                break
            at = element.end()
            if element[1].strip(" \t"):
                found.append(_parse_extension(element[1]))
    return found


def _parse_extension(text: str) -> Extension | None:
    extension = _EXTENSION.fullmatch(text)
    if extension is None:
        return None
    parameters: list[tuple[str, str | None]] = []
    for name, value, quoted in _PARAMETER.findall(extension[2]):
        if quoted:
            value = re.sub(r"\\(.)", r"\1", quoted[1:-1])
            if not is_token(value):  # section 9.1: what is left after unescaping is a token
                return None
        parameters.append((name, value or None))
    return extension[1], parameters


def accept_response(acceptance: Acceptance, extra_headers: Mapping[str, str] | None = None) -> bytes:
    """Encode the 101 (section 4.2.2).

    Raises:
        ValueError: an extra header that belongs to the handshake, or that cannot be sent.
    """
    head = _SWITCHING + acceptance.accept + "\r\n"
    if acceptance.subprotocol is not None:
        head += f"Sec-WebSocket-Protocol: {acceptance.subprotocol}\r\n"
    if acceptance.extensions:
        head += f"Sec-WebSocket-Extensions: {acceptance.extensions}\r\n"
    if extra_headers:
        head += _header_lines(extra_headers, PROTECTED_HEADERS)
    return (head + "\r\n").encode("latin-1")


def refusal_response(refusal: Refusal, head_only: bool = False) -> bytes:
    """Encode a complete response that refuses a request, with a body a person can read, and closes the connection.

    Args:
        head_only: leave the body out, as for HEAD.

    Raises:
        ValueError: a status or header that cannot be sent.
    """
    body = refusal.body or _default_body(refusal.status)
    return _encode_answer(refusal.status, body, refusal.headers, head_only, close=True)


def http_response(
    response: Response, *, method: str, close: bool = True, more_headers: Mapping[str, str] | None = None
) -> bytes:
    """Encode a complete response to a plain request.

    Args:
        method: of the request: the answer to HEAD has no body.
        close: announce that the connection is closed after it.
        more_headers: those of the server, where the response does not set them.
    """
    headers = response.headers or {}
    if more_headers:
        given = {name.lower() for name in headers}
        headers = {**headers, **{name: value for name, value in more_headers.items() if name.lower() not in given}}
    return _encode_answer(response.status, response.body, headers, method == "HEAD", close)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _default_body(status: int) -> str:
    return (_DEFAULT_BODIES.get(status) or f"{status} {_phrase(status)}".rstrip()) + "\n"


def _check_answer(status: int, headers: Mapping[str, str]) -> None:
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError(f"status: must be 200 to 599, not {status!r}")
    _header_lines(headers, FRAMING_HEADERS)


def _header_lines(headers: Mapping[str, str], protected: frozenset[str]) -> str:
    lines = []
    for name, value in headers.items():
        check_header(name, value)
        if name.lower() in protected:
            raise ValueError(f"{name} is set by this package and cannot be overridden")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines)


def _encode_answer(status: int, body: str | bytes, headers: Mapping[str, str], head_only: bool, close: bool) -> bytes:
    _check_answer(status, headers)
    content = body.encode() if isinstance(body, str) else bytes(body)
    names = {name.lower() for name in headers}
    lines = f"HTTP/1.1 {status} {_phrase(status)}\r\n" + _header_lines(headers, FRAMING_HEADERS)
    if status in (204, 304):  # RFC 9110 sections 15.3.5 and 15.4.5: these have no body
        content = b""
    else:
        if "content-type" not in names:
            lines += "Content-Type: text/plain; charset=utf-8\r\n"
        lines += f"Content-Length: {len(content)}\r\n"
    # RFC 9110 section 7.8: who sends Upgrade lists it in Connection.
    connection = [option for option, wanted in (("close", close), ("Upgrade", "upgrade" in names)) if wanted]
    if connection:
        lines += f"Connection: {', '.join(connection)}\r\n"
    head = (lines + "\r\n").encode("latin-1")
    return head if head_only else head + content


# Client side


def make_key() -> str:
    """Return a new Sec-WebSocket-Key: the base64 of 16 random bytes (section 4.1)."""
    return b64encode(os.urandom(16)).decode()


def request_head(
    target: str,
    host: str,
    key: str,
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    extensions: str = "",
) -> bytes:
    """Encode a client's request (section 4.1).

    Args:
        target: path and query.
        host: value of the Host header.
        key: from `make_key`.
        headers: extra ones.
        subprotocols: offered, in order of preference.
        extensions: value of Sec-WebSocket-Extensions; "" offers none.

    Raises:
        ValueError: a part that cannot stand where it is to stand.
    """
    if not _TARGET.fullmatch(target):
        raise ValueError(f"not a request target: {target!r}")
    if not is_authority(host):
        raise ValueError(f"not a host: {host!r}")
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a Sec-WebSocket-Key: {key!r}")
    head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
    if subprotocols:
        if len(set(subprotocols)) != len(subprotocols) or not all(map(is_token, subprotocols)):
            raise ValueError(f"subprotocols: each must be an HTTP token that stands once, not {subprotocols!r}")
        head += f"Sec-WebSocket-Protocol: {', '.join(subprotocols)}\r\n"
    if extensions:
        check_header("Sec-WebSocket-Extensions", extensions)
        head += f"Sec-WebSocket-Extensions: {extensions}\r\n"
    return (head + _header_lines(headers or {}, PROTECTED_HEADERS) + "\r\n").encode("latin-1")


def judge_response(
    response: ResponseHead,
    key: str,
    subprotocols: Sequence[str] = (),
    extensions: str = "",
    permessage_deflate: PermessageDeflate | None = None,
) -> Acceptance:
    """Accept a server's answer (section 4.1), or raise.

    Args:
        key: the one that was sent.
        subprotocols: those that were offered.
        extensions: the offer that was sent. What was accepted is checked by name only, but for permessage-deflate.
        permessage_deflate: what that was offered with.

    Raises:
        HandshakeRefused: another status than 101, a redirect included.
        HandshakeError: a 101 that breaks the RFC.
    """
    headers = response.headers
    if response.status != 101:
        raise HandshakeRefused(response.status, headers)
    if [element.lower() for element in headers.elements("upgrade")] != ["websocket"]:
        raise HandshakeError("the server's answer has no Upgrade: websocket header")
    if not _lists(headers, "connection", "upgrade"):
        raise HandshakeError("the server's answer has no Connection: Upgrade header")
    accept = accept_key(key)
    if headers.get_all("sec-websocket-accept") != [accept]:
        raise HandshakeError("the server's answer has not the Sec-WebSocket-Accept that belongs to our key")
    answered = headers.get_all("sec-websocket-extensions")
    _check_answered_extensions(answered, extensions)
    subprotocol = _answered_subprotocol(headers, subprotocols)
    deflate = judge_answer(parse_extensions(answered), permessage_deflate) if permessage_deflate is not None else None
    return Acceptance(accept, subprotocol, ", ".join(answered), deflate)


def _answered_subprotocol(headers: Headers, offered: Sequence[str]) -> str | None:
    answered = headers.get_all("sec-websocket-protocol")
    if not answered:
        return None
    if len(answered) > 1:
        raise HandshakeError("the server's answer has more than one Sec-WebSocket-Protocol header")
    if answered[0] not in offered:
        raise HandshakeError(f"the server chose a subprotocol that was not offered: {answered[0]!r}")
    return answered[0]


def _check_answered_extensions(answered: list[str], offer: str) -> None:
    offered = {name for name, _ in parse_extensions([offer])}
    for extension in _extensions(answered):
        if extension is None:
            raise HandshakeError("the server's answer has a malformed Sec-WebSocket-Extensions header")
        if extension[0] not in offered:
            raise HandshakeError(f"the server chose an extension that was not offered: {extension[0]!r}")
