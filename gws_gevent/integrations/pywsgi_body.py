"""The body of a request that gevent's handler serves: what differs from `gevent.pywsgi.Input`, which reads it.

Belongs here: errors that are the client's and not the app's, bytes that others may read otherwise, memory. Does not belong here:
deadlines and limits (http_front.py).
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import gevent
from gevent import pywsgi

__all__ = ["Body"]

#: Bytes read at once, whatever size has been declared: a buffer for all of them would be there before any of them is.
PIECE = 256 * 1024
#: Reads, which may be of one byte, between two turns of others; a large one counts for its pages as well.
TURN, PAGE = 256, 4096
#: What others may take for the end of a line, or for nothing: a line feed alone, and all other controls but tabs.
CONTROLS = frozenset(bytes([code]) for code in range(32) if code not in b"\t\r\n") | {b"\x7f"}


class BodyCutOff(pywsgi._InvalidClientInput):  # type: ignore[misc]
    """The stream has ended in the middle of a body."""


class Body(pywsgi.Input):  # type: ignore[misc]
    """A body as `wsgi.input`. What is wrong with it is an OSError that the handler answers with 400 if the app lets it pass.

    Attributes:
        lost: nobody knows where it ends, so nothing behind it can be a request.
        misread: whoever stands in front may have seen its end elsewhere: nothing behind it is fit for an upgrade.
    """

    __slots__ = ("lost", "misread")

    def __init__(self, given: pywsgi.Input) -> None:
        self.lost = self.misread = False
        file = _File(given.rfile, self)
        pywsgi.Input.__init__(self, file, given.content_length, given.socket, given.chunked_input)

    def read(self, length: int | None = None) -> bytes:
        return self._ask(pywsgi.Input.read, length)

    def readline(self, size: int | None = None) -> bytes:
        return self._ask(pywsgi.Input.readline, size)

    def _ask(self, read: Callable[[Any, int | None], bytes], size: int | None) -> bytes:
        try:
            return read(self, size)
        except pywsgi._InvalidClientInput:
            self.lost = True
            raise
        except OSError as error:
            if type(error) is not OSError or error.errno is not None:
                raise  # the stream has failed, or took too long
            self.lost = True
            raise BodyCutOff(str(error)) from None
        except ValueError:
            if not self.chunked_input or self.rfile.closed:
                raise
            self.lost = True
            raise pywsgi._InvalidClientInput("a chunk without a size") from None

    def _discard(self) -> None:
        """Read what the app has left."""
        try:
            if not self.lost:
                pywsgi.Input._discard(self)
        except BodyCutOff:
            pass  # who waits for the next request finds that out

    def end(self) -> None:
        """The request is over: who still holds this, as a greenlet of the app's may, reads nothing of the next one."""
        this: Any = self  # the slot is the base class's, which has no hints
        this.rfile = BytesIO()


class _File:
    """What a body is read from: the handler's file, in pieces and turns, with an eye on the lines between chunks."""

    __slots__ = ("_before", "_body", "_file", "_reads")

    def __init__(self, file: Any, body: Body) -> None:
        self._file = file
        self._body = body
        self._before = b""
        self._reads = 0

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, size: int) -> bytes:
        body = self._body
        if body.chunked_input:
            if body.position < body.chunk_length:
                return self._take_turns(self._file.read(min(size, PIECE)))  # the rest is asked for again
            return self._look_at(self._take_turns(self._file.read(size)))
        if size <= PIECE:
            return self._take_turns(self._file.read(size))
        pieces = []
        while size and (piece := self._take_turns(self._file.read(min(size, PIECE)))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def readline(self, size: int) -> bytes:
        # A line that is cut here is, to the app, one that came in several reads.
        return self._take_turns(self._file.readline(size if not self._body.chunked_input else min(size, PIECE)))

    def _take_turns(self, data: bytes) -> bytes:
        """A client that sends faster than its body is read, such as one of tiny chunks, would leave no time for any other."""
        self._reads += 1 + len(data) // PAGE
        if self._reads >= TURN:
            self._reads = 0
            gevent.sleep(0)
        return data

    def _look_at(self, byte: bytes) -> bytes:
        """`byte` is one of a chunk's size, its extensions or the trailers: gevent asks for those one by one."""
        if byte in CONTROLS or (byte == b"\n" and self._before != b"\r"):
            self._body.misread = True
        self._before = byte
        return byte
