"""The opening handshake of HTTP/3 in the words of HTTP/1.1, and back (RFC 9220, RFC 8441).

Belongs here: extended CONNECT to an upgrade request and 101 to 200, plain requests and answers as well, for both sides. Does not
belong here: HTTP/3 frames, QPACK, streams, whether a handshake is accepted.

A stream of HTTP/3 shows a server or a client the bytes that a connection of HTTP/1.1 would: so everything above it, a bridge
included, needs to know one handshake. There is no Sec-WebSocket-Key in HTTP/3, so there is one of ours on the HTTP/1.1 side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gws_gevent.exceptions import HandshakeError, Refusal
from gws_gevent.handshake import accept_key, make_key, wants_websocket
from gws_gevent.http_head import Headers, HeadReader, ResponseHeadReader, is_authority, is_token, parse_request, parse_response

__all__ = ["ClientTranslator", "Fields", "ServerTranslator"]

#: Header lines of HTTP/3, pseudo-headers first; names in lower case.
Fields = list[tuple[bytes, bytes]]

#: Of a connection of HTTP/1.1 (RFC 9114 section 4.2), or of its handshake: they do not go into HTTP/3.
_NOT_IN_H3: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "sec-websocket-accept", "sec-websocket-key"}
)
#: They do not come out of it: they are set here, or mean nothing to HTTP/1.1.
_NOT_FROM_H3: Final = _NOT_IN_H3 | {"host", "te"}
_TARGET: Final = re.compile(rb"/[\x21\x22\x24-\x7e]*")
#: Bytes of status line and headers of an answer: the programs that write them are ours, or have been read under a limit of ours.
_MAX_ANSWER: Final = 1024 * 1024


class ServerTranslator:
    """One request on the server's side, and its answer.

    Attributes:
        is_open: the answer was an upgrade: from now on the bytes of both directions are the WebSocket's.
        is_chunked: the request has a body of unknown length, which is to be passed through `chunk`.
    """

    __slots__ = ("_body", "_key", "_method", "_parser", "_reader", "is_chunked", "is_open")

    def __init__(self) -> None:
        self.is_open = self.is_chunked = False
        self._key: str | None = None
        self._reader: ResponseHeadReader | None = ResponseHeadReader(_MAX_ANSWER)
        self._parser: HttpResponseParser | None = None
        self._method = ""
        self._body = bytearray()

    @property
    def is_answered(self) -> bool:
        """The header lines of the answer are complete."""
        return self._reader is None

    def request(self, fields: Fields, ended: bool) -> bytes:
        """Return the head of a request as HTTP/1.1 has it.

        Args:
            fields: the pseudo-headers of HTTP/3 among them, each at most once.
            ended: nothing follows the header section.

        Raises:
            Refusal: 400 malformed, 405 a CONNECT that opens no WebSocket, 501 another protocol than WebSocket. `answer` takes what
                says so.
        """
        pseudo = {name: value for name, value in fields if name.startswith(b":")}
        self._method = pseudo.get(b":method", b"").decode("latin-1")
        authority, path = pseudo.get(b":authority", b""), pseudo.get(b":path", b"")
        if self._method == "CONNECT":
            self._check_connect(pseudo)
        if not is_token(self._method):
            raise Refusal(400, "The method is not valid.\n")
        if not (_TARGET.fullmatch(path) or (path == b"*" and self._method == "OPTIONS")):
            raise Refusal(400, "The request target is not valid.\n")
        if not is_authority(authority.decode("latin-1")) or any(value != authority for value in _values(fields, b"host")):
            raise Refusal(400, "A request has one authority, with a host and an optional port.\n")
        return self._translated(fields, authority, path, ended)

    def _check_connect(self, pseudo: dict[bytes, bytes]) -> None:
        protocol = pseudo.get(b":protocol")
        if protocol is None:
            raise Refusal(405, "This is no proxy. A WebSocket is opened with :protocol websocket.\n", {"Allow": "GET"})
        if protocol != b"websocket":
            raise Refusal(501, "This server speaks WebSocket.\n")  # RFC 9220 section 3
        if b":scheme" not in pseudo or b":path" not in pseudo:  # RFC 8441 section 4
            raise Refusal(400, "CONNECT with :protocol has a :scheme and a :path.\n")
        self._key = make_key()

    def _translated(self, fields: Fields, authority: bytes, path: bytes, ended: bool) -> bytes:
        method = b"GET" if self._key is not None else self._method.encode()
        lines = [b"%s %s HTTP/1.1" % (method, path), b"Host: " + authority]
        if self._key is not None:
            lines += [b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: " + self._key.encode()]
        elif not ended and not _values(fields, b"content-length"):
            self.is_chunked = True
            lines.append(b"Transfer-Encoding: chunked")
        cookies = b"; ".join(_values(fields, b"cookie"))  # RFC 9114 section 4.2.1
        lines += [b"Cookie: " + cookies] if cookies else []
        for name, value in fields:
            if not name.startswith(b":") and name != b"cookie" and name.decode("latin-1") not in _NOT_FROM_H3:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def chunk(self, data: bytes, ended: bool) -> bytes:
        """Return a piece of the request's body in the form that the head has promised (RFC 9112 section 7.1)."""
        if not self.is_chunked:
            return data
        chunk = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
        return chunk + b"0\r\n\r\n" if ended else chunk

    def answer(self, data: bytes) -> tuple[Fields | None, bytes, bool]:
        """Take bytes of the answer as HTTP/1.1 has it; not any more once `is_open`.

        Returns:
            header lines if they are complete with these bytes, what follows of the body or the WebSocket, and whether this is all.

        Raises:
            HandshakeError: it is no answer.
        """
        fields = None
        reader = self._reader
        if reader is not None:
            if not reader.feed(data):
                return None, b"", False
            fields, data, self._reader = self._answered(reader.head), reader.rest, None
            if self.is_open:
                return fields, data, False
            if self._method == "HEAD":
                return fields, b"", True
            self._parser = HttpResponseParser(self)
            data = reader.head + data
        ended = self._parse(data)
        body, self._body = bytes(self._body), bytearray()
        return fields, body, ended

    def _answered(self, head: bytes) -> Fields:
        response = parse_response(head)
        status = response.status
        if self._key is not None:
            if status == 101 and response.headers.get_all("sec-websocket-accept") == [accept_key(self._key)]:
                self.is_open = True
                status = 200
            elif status < 300:
                status = 400  # in HTTP/1.1 a page is a refusal; here 200 would open the WebSocket
        return [(b":status", b"%d" % status), *_lines(response.headers)]

    def _parse(self, data: bytes) -> bool:
        parser = self._parser
        if parser is None:
            return True
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._parser = None
        return self._parser is None

    def on_body(self, piece: bytes) -> None:
        """Called by the parser."""
        self._body += piece

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._parser = None


class ClientTranslator:
    """One opening handshake on the client's side.

    Attributes:
        is_open: the server has accepted: from now on the bytes of both directions are the WebSocket's.
    """

    __slots__ = ("_key", "_reader", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._key = ""
        self._reader: HeadReader | None = HeadReader(_MAX_ANSWER, 10_000)

    @property
    def is_asked(self) -> bool:
        """The request is complete."""
        return self._reader is None

    def request(self, data: bytes) -> Fields | None:
        """Take bytes of an upgrade request; return the header lines of the extended CONNECT once it is complete.

        Raises:
            HandshakeError: it is no opening handshake, something comes behind it, or it is complete already.
        """
        reader = self._reader
        if reader is None:
            raise HandshakeError("the server has not answered yet")
        if not reader.feed(data):
            return None
        self._reader = None
        request = parse_request(reader.head)
        keys = request.headers.get_all("sec-websocket-key")
        if request.method != "GET" or not wants_websocket(request) or len(keys) != 1 or reader.rest:
            raise HandshakeError("HTTP/3 carries opening handshakes here, and no other request")
        self._key = keys[0]
        fields = [
            (b":method", b"CONNECT"),
            (b":protocol", b"websocket"),
            (b":scheme", b"https"),
            (b":authority", request.host.encode("latin-1")),
            (b":path", request.target.encode("latin-1")),
        ]
        return fields + [line for line in _lines(request.headers) if line[0] != b"host"]

    def answer(self, fields: Fields) -> bytes:
        """Return the head of the server's answer as HTTP/1.1 has it."""
        status = next(int(value) for name, value in fields if name == b":status")
        lines = [b"%s: %s" % line for line in fields if line[0].decode("latin-1") not in _NOT_FROM_H3 and line[0] != b":status"]
        if 200 <= status < 300:
            self.is_open = True
            accept = b"Sec-WebSocket-Accept: " + accept_key(self._key).encode()
            framing = (b"content-length:", b"content-type:")
            lines = [line for line in lines if not line.startswith(framing)]
            head = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade", accept]
        elif status < 200:
            head = [b"HTTP/1.1 %d " % status]
        else:
            head = [b"HTTP/1.1 %d " % status, b"Connection: close"]
        return b"\r\n".join([*head, *lines, b"", b""])


def _values(fields: Fields, wanted: bytes) -> list[bytes]:
    return [value for name, value in fields if name == wanted]


def _lines(headers: Headers | Iterable[tuple[str, str]]) -> Fields:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers if name not in _NOT_IN_H3]
