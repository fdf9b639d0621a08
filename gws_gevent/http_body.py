"""The body of an HTTP/1.1 response: its first bytes, for people to read, or just its end.

Belongs here: where a body ends, with a length, in chunks, or with the connection (RFC 9112 section 6). Does not belong here: heads,
I/O.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = ["MAX_BODY", "BodyEnd", "BodyReader"]

#: Bytes that are kept.
MAX_BODY = 4096


class BodyEnd:
    """Finds the end of a body; what is malformed ends it.

    Attributes:
        complete: no more is to be fed.
    """

    __slots__ = ("_parser", "complete")

    def __init__(self, begin: bytes) -> None:
        """Take the response's head, its blank line included, and what came behind it."""
        self.complete = False
        self._parser = HttpResponseParser(self)
        self.feed(begin)

    def feed(self, data: bytes) -> None:
        """Take bytes that follow."""
        if self.complete or not data:
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self.complete = True

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.complete = True


class BodyReader(BodyEnd):
    """Collects the beginning of a body, MAX_BODY bytes at most."""

    __slots__ = ("_found",)

    def __init__(self, head: bytes) -> None:
        """Take the response's head, its blank line included."""
        self._found = bytearray()
        super().__init__(head)

    @property
    def body(self) -> bytes:
        """What has come, at most MAX_BODY bytes."""
        return bytes(self._found[:MAX_BODY])

    def on_body(self, piece: bytes) -> None:
        """Called by the parser."""
        self._found += piece
        self.complete = self.complete or len(self._found) >= MAX_BODY
