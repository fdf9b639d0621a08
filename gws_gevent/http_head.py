"""HTTP/1.1 heads: collecting their bytes, and parsing requests and responses strictly (RFC 9112).

Belongs here: what is true of any HTTP/1.1 head, on either side. Does not belong here: WebSocket rules (handshake.py), bodies,
I/O, time.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser

from gws_gevent.exceptions import HandshakeError, Refusal

__all__ = [
    "HeadReader", "Headers", "Request", "ResponseHead", "ResponseHeadReader", "check_header", "is_authority", "is_token",
    "parse_request", "parse_response",
]  # fmt: skip

#: Header lines of one head. Browsers send about 15; nginx and Apache stop at 100 too.
MAX_HEADER_LINES = 100
#: Bytes of a request's method. The longest registered one has 17.
MAX_METHOD = 32

_BLANK_LINE = b"\r\n\r\n"
_CR = 13
_SPACE = 32
#: Every byte that may stand in a head outside of its line ends.
_PLAIN = bytes([9, *range(32, 127), *range(128, 256)])
#: The last byte of a match is the first that may not stand where it does: a control character, a CR or LF by itself.
_ILLEGAL = re.compile(rb"\r[^\n]|(?<!\r)\n|[^\t\r\n\x20-\x7e\x80-\xff]", re.DOTALL)

_TCHAR = r"!#$%&'*+\-.^_`|~0-9A-Za-z"
_METHOD = re.compile(rf"[{_TCHAR}]{{0,{MAX_METHOD}}}".encode())
_REQUEST_LINE = re.compile(rf"([{_TCHAR}]{{1,{MAX_METHOD}}}) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])\r\n".encode())
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
_STATUS_START = b"HTTP/1."

#: What nearly every client sends: the request line and the field lines of a GET. Possessive throughout: linear in any input.
_PLAIN_GET = re.compile(r"GET (/[\x21\x22\x24-\x7e]*+) HTTP/1\.1\r\n")
#: Of a head that holds no control character but tabs and ends of lines, nor white space before an end.
_FIELD_LINE = re.compile(rf"(?<=\n)([{_TCHAR}]++):[ \t]*+([^\r]*+)\r\n")

_TOKEN = re.compile(rf"[{_TCHAR}]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# A reg-name without the comma the grammar also allows: that is what two Host headers joined by a proxy look like.
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]++|%[0-9A-Fa-f]{2})++)(?::([0-9]{0,5}))?")
_ABSOLUTE = re.compile(r"[A-Za-z]+://([^/?]*)(.*)")


def check_header(name: str, value: str) -> None:
    """Raise ValueError unless a header may be sent: a token, and a value without control characters (RFC 9110 section 5)."""
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise ValueError(f"not a header name: {name!r}")
    if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
        raise ValueError(f"not a header value for {name}: {value!r}")


def is_token(text: str) -> bool:
    """Tell whether a string is an HTTP token (RFC 9110 section 5.6.2)."""
    return _TOKEN.fullmatch(text) is not None


def is_authority(text: str) -> bool:
    """Tell whether a string is a host with an optional port, as the Host header has it (RFC 9110 section 7.2)."""
    match = _AUTHORITY.fullmatch(text)
    if match is None or (match[2] and int(match[2]) > 65535):
        return False
    if match[1] is not None:
        try:
            ipaddress.IPv6Address(match[1])
        except ValueError:
            return False
    return True


class Headers:
    """The header lines of one head: immutable, names compared without case.

    Iterates over (name, value) in order, names in lower case.
    """

    __slots__ = ("_first", "_lines")

    def __init__(self, lines: Iterable[tuple[str, str]] = ()) -> None:
        self._lines = tuple([(name.lower(), value) for name, value in lines])
        self._first = dict(reversed(self._lines))

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of the first line with this name."""
        return self._first.get(name.lower(), default)

    def get_all(self, name: str) -> list[str]:
        """Return the values of all lines with this name, in order."""
        name = name.lower()
        if name not in self._first:
            return []
        if len(self._first) == len(self._lines):  # as nearly always: no name stands twice
            return [self._first[name]]
        return [value for key, value in self._lines if key == name]

    def elements(self, name: str) -> list[str]:
        """Return the non-empty elements of a comma-separated header over all its lines (RFC 9110 section 5.6.1)."""
        found = ",".join(self.get_all(name)).split(",")
        return [element for text in found if (element := text.strip(" \t"))]

    def __getitem__(self, name: str) -> str:
        return self._first[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._first

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __eq__(self, other: object) -> bool:
        return self._lines == other._lines if isinstance(other, Headers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._lines)

    def __repr__(self) -> str:
        return f"Headers({list(self._lines)!r})"


@dataclass(frozen=True, slots=True)
class Request:
    """A request head.

    Attributes:
        method: as sent, such as "GET".
        target: as sent: not percent-decoded.
        headers: all of them; left out of the repr, which may end up in a log.
        version: "1.1" or "1.0".
    """

    method: str
    target: str
    headers: Headers = field(repr=False)
    version: str = "1.1"

    @property
    def path(self) -> str:
        """The target without its query, and without its authority if it has one."""
        return self._origin_form().partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the target's first "?", or ""."""
        return self.target.partition("?")[2]

    @property
    def host(self) -> str:
        """The authority the client asked for: of an absolute target, otherwise of the Host header (RFC 9112 section 3.2.2)."""
        absolute = None if self.target.startswith("/") else _ABSOLUTE.fullmatch(self.target)
        return absolute[1] if absolute else self.headers.get("host") or ""

    def _origin_form(self) -> str:
        absolute = None if self.target.startswith("/") else _ABSOLUTE.fullmatch(self.target)
        if absolute is None:
            return self.target
        return absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response head: status code and headers."""

    status: int
    headers: Headers

    @property
    def is_interim(self) -> bool:
        """Another response follows this one, as after 103 Early Hints (RFC 9110 section 15.2)."""
        return 100 <= self.status < 200 and self.status != 101


class HeadReader:
    """Collects a request head from bytes in any split; raises `Refusal` at the first byte that decides against it.

    What it says depends on the bytes alone, never on how they were split. Time is linear in the bytes fed.

    Attributes:
        head: the head with its blank line, once complete.
        rest: bytes that came glued behind it.
    """

    __slots__ = ("_buffer", "_limit", "_lines", "_max_lines", "_seen", "head", "rest")

    def __init__(self, limit: int, max_lines: int = MAX_HEADER_LINES) -> None:
        """Bound the head to `limit` bytes, its blank line included, and to `max_lines` header lines."""
        self._limit = limit
        self._max_lines = max_lines
        self._buffer = bytearray()
        self._seen = 0  # bytes already judged
        self._lines = 0  # line ends among them
        self.head = b""
        self.rest = b""

    @property
    def pending(self) -> int:
        """Bytes held of a head that is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> bool:
        """Take bytes; return True when the head is complete. Not to be called again after that, or after an error.

        Raises:
            Refusal: 400, 414 or 431.
        """
        buffer, seen = self._buffer, self._seen
        buffer += data
        stop = min(len(buffer), self._limit)
        blank = buffer.find(_BLANK_LINE, max(seen - 2, 0), stop)
        if blank >= 0:
            stop = blank + 4
        elif stop and buffer[stop - 1] == _CR:
            stop -= 1  # judged together with the byte that follows it
        if seen <= MAX_METHOD and not self._starts_well(buffer, stop):
            raise self._malformed()
        chunk = buffer[seen:stop]
        lines = chunk.count(b"\r\n")
        allowed = self._max_lines + (2 if blank >= 0 else 1)
        if len(chunk.translate(None, _PLAIN)) != 2 * lines or self._lines + lines > allowed:
            raise self._first_fault(chunk)
        self._lines += lines
        self._seen = stop
        if blank >= 0:
            self.head = bytes(buffer[:stop])
            self.rest = bytes(buffer[stop:])
            self._buffer = bytearray()
            return True
        if len(buffer) >= self._limit:
            raise self._headers_too_large() if self._lines else self._first_line_too_long()
        return False

    def _first_fault(self, chunk: bytearray) -> HandshakeError:
        """Tell which came first: a byte that may not stand in a head, or the end of one line too many."""
        illegal = _ILLEGAL.search(chunk)
        at = -1
        for _ in range(self._max_lines + 2 - self._lines):
            at = chunk.find(b"\r\n", at + 1)
            if at < 0:
                return self._malformed()
        if illegal is not None and illegal.end() - 1 < at + 1:
            return self._malformed()
        return self._headers_too_large()

    def _starts_well(self, buffer: bytearray, stop: int) -> bool:
        """Tell whether the first bytes can be a method and a space: a TLS ClientHello is refused on its first byte."""
        if buffer.startswith(b"GET ", 0, stop):
            return True
        match = _METHOD.match(buffer, 0, stop)
        end = match.end() if match is not None else 0
        return end >= stop or (end > 0 and buffer[end] == _SPACE)

    def _malformed(self) -> HandshakeError:
        return Refusal(400, "This is not an HTTP/1.1 request.\n")

    def _first_line_too_long(self) -> HandshakeError:
        return Refusal(414)

    def _headers_too_large(self) -> HandshakeError:
        return Refusal(431)


class ResponseHeadReader(HeadReader):
    """Collects a response head from bytes in any split; raises `HandshakeError` at the first byte that decides against it."""

    __slots__ = ()

    def _starts_well(self, buffer: bytearray, stop: int) -> bool:
        return _STATUS_START.startswith(bytes(buffer[: min(stop, len(_STATUS_START))]))

    def _malformed(self) -> HandshakeError:
        return HandshakeError("the server's answer is not HTTP/1.1")

    def _first_line_too_long(self) -> HandshakeError:
        return HandshakeError(f"the status line of the server's answer is longer than {self._limit} bytes")

    def _headers_too_large(self) -> HandshakeError:
        return HandshakeError(f"the headers of the server's answer pass {self._limit} bytes or {self._max_lines} lines")


class _Lines:
    """What httptools calls while it parses."""

    __slots__ = ("complete", "found")

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def headers(self) -> Headers:
        return Headers([(name.decode("latin-1"), value.strip(b" \t").decode("latin-1")) for name, value in self.found])


def parse_request(head: bytes) -> Request:
    """Parse a complete request head, its blank line included (RFC 9112). Checks syntax, framing and Host.

    Raises:
        Refusal: 400 malformed, 405 a method nobody knows, 505 a version other than 1.0 and 1.1.
    """
    request = _parse_plain_get(head) or _parse_any_request(head)
    _check_host(request.headers, request.version)
    _check_target(request.method, request.target)
    return request


def _parse_plain_get(head: bytes) -> Request | None:
    """Parse the head of a GET whose parts are all unremarkable, in a third of the time; None for any other.

    Nothing is refused here, and what is taken is exactly what httptools makes of it.
    """
    text = head.decode("latin-1")
    line = _PLAIN_GET.match(text)
    if line is None or not text.endswith("\r\n\r\n") or " \r" in text or "\t\r" in text:
        return None
    found = _FIELD_LINE.findall(text, line.end() - 1)
    # A line that is none of a field, or a blank line too many; a character that may not stand in one.
    if len(found) != text.count("\n") - 2 or len(head.translate(None, _PLAIN)) != 2 * (len(found) + 2):
        return None
    headers = Headers(found)
    if "content-length" in headers or "transfer-encoding" in headers:
        return None
    return Request("GET", line[1], headers)


def _parse_any_request(head: bytes) -> Request:
    line = _REQUEST_LINE.match(head)
    # A second head behind the blank line must not add its lines to this one's.
    if line is None or head.find(_BLANK_LINE) != len(head) - 4:
        raise Refusal(400, "This is not an HTTP/1.1 request.\n")
    method, target, version = line[1].decode(), line[2].decode(), line[3].decode()
    if version not in ("1.1", "1.0"):
        raise Refusal(505)
    lines = _Lines()
    try:
        HttpRequestParser(lines).feed_data(head)
    except HttpParserUpgrade:
        pass
    except HttpParserInvalidMethodError:
        raise Refusal(405, headers={"Allow": "GET"}) from None
    except HttpParserError:
        raise Refusal(400, "The request is malformed.\n") from None
    if not lines.complete:
        raise Refusal(400, "The request is malformed.\n")
    return Request(method, target, lines.headers(), version)


def _check_host(headers: Headers, version: str) -> None:
    # RFC 9112 section 3.2: exactly one, and a valid one; HTTP/1.0 may leave it out.
    hosts = headers.get_all("host")
    if not hosts and version == "1.0":
        return
    if len(hosts) != 1 or not is_authority(hosts[0]):
        raise Refusal(400, "A request has exactly one Host header, with a host and an optional port.\n")


def _check_target(method: str, target: str) -> None:
    # RFC 9112 section 3.2; a fragment is never sent.
    if method == "CONNECT":
        valid = is_authority(target)
    elif target.startswith("/"):
        valid = "#" not in target
    elif target == "*":
        valid = method == "OPTIONS"
    else:
        absolute = _ABSOLUTE.fullmatch(target)
        valid = absolute is not None and "#" not in target and is_authority(absolute[1])
    if not valid:
        raise Refusal(400, "The request target is not valid.\n")


def parse_response(head: bytes) -> ResponseHead:
    """Parse a complete response head, its blank line included (RFC 9112 section 4).

    Raises:
        HandshakeError: it is malformed.
    """
    line = _STATUS_LINE.match(head)
    if line is None or head.find(_BLANK_LINE) != len(head) - 4:
        raise HandshakeError("the server's answer is not HTTP/1.1")
    status = int(line[1])
    lines = _Lines()
    try:
        HttpResponseParser(lines).feed_data(head)
    except HttpParserUpgrade:
        pass
    except HttpParserError as error:
        # A 101 whose Upgrade header is missing is well-formed; judging it is not the parser's task.
        if not (lines.complete and status == 101):
            raise HandshakeError(f"the server's answer is malformed: {error}") from None
    if not lines.complete:
        raise HandshakeError("the server's answer is malformed")
    return ResponseHead(status, lines.headers())
