"""The body of an HTTP/1.1 response: its first bytes, for people to read.

Belongs here: where a body ends, with a length, in chunks, or with the connection (RFC 9112 section 6). Does not belong here: heads,
I/O.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = ["MAX_BODY", "BodyReader"]

#: Bytes that are kept.
MAX_BODY = 4096


class BodyReader:
    """Collects the beginning of a body; what is malformed ends it.

    Attributes:
        complete: no more is to be fed: it has ended, or MAX_BODY bytes are here.
    """

    __slots__ = ("_found", "_parser", "complete")

    def __init__(self, head: bytes) -> None:
        """Take the response's head, its blank line included."""
        self._found = bytearray()
        self.complete = False
        self._parser = HttpResponseParser(self)
        self.feed(head)

    @property
    def body(self) -> bytes:
        """What has come, at most MAX_BODY bytes."""
        return bytes(self._found[:MAX_BODY])

    def feed(self, data: bytes) -> None:
        """Take bytes that follow."""
        if self.complete or not data:
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self.complete = True

    def on_body(self, piece: bytes) -> None:
        """Called by the parser."""
        self._found += piece
        self.complete = self.complete or len(self._found) >= MAX_BODY

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.complete = True
