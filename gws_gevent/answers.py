"""An HTTP answer off a stream: its head, and the beginning of the body of one that says no.

Belongs here: reading, for the client's opening handshake and for proxies. Does not belong here: what an answer means.
"""

from __future__ import annotations

import gevent

from gws_gevent import runtime
from gws_gevent.exceptions import HandshakeError, TransportError
from gws_gevent.http_body import BodyReader
from gws_gevent.http_head import ResponseHead, ResponseHeadReader, parse_response
from gws_gevent.transports.base import Stream

__all__ = ["Answer", "read_answer", "read_body"]

#: Interim responses (1xx) that are skipped before the one that counts.
MAX_INTERIM = 8
#: Seconds that a body has to come once its head is here: what matters is the refusal.
BODY_TIMEOUT = 1.0


class Answer:
    """An answer whose head has been read.

    Attributes:
        head: status and headers.
        raw: the head as it came.
        rest: bytes that came behind the head.
    """

    __slots__ = ("head", "raw", "rest")

    def __init__(self, head: ResponseHead, raw: bytes, rest: bytes) -> None:
        self.head = head
        self.raw = raw
        self.rest = rest


def read_answer(stream: Stream, limit: int) -> Answer:
    """Read until the head of the answer that counts is complete. The caller bounds the time.

    Args:
        limit: bytes of each head.

    Raises:
        HandshakeError: it is malformed or too long, or the stream ends before it is complete.
        TransportError: the stream failed.
    """
    rest = b""
    for _ in range(MAX_INTERIM):
        reader = ResponseHeadReader(limit)
        piece = rest
        while not (piece and reader.feed(piece)):
            piece = _read(stream)
            if not piece:
                raise HandshakeError("the server closed the stream before it answered")
        head, rest = parse_response(reader.head), reader.rest
        if not head.is_interim:
            return Answer(head, reader.head, rest)
    raise HandshakeError(f"the server sent {MAX_INTERIM} interim responses and no other")


def read_body(stream: Stream, answer: Answer) -> bytes:
    """Return the first bytes of an answer's body, as far as they come within BODY_TIMEOUT. Raises nothing: the refusal stands."""
    reader = BodyReader(answer.raw)
    timer = gevent.Timeout.start_new(BODY_TIMEOUT)
    try:
        reader.feed(answer.rest)
        while not reader.complete:
            piece = _read(stream)
            if not piece:
                break
            reader.feed(piece)
    except TransportError:
        pass
    except gevent.Timeout as raised:
        if raised is not timer:
            raise
    finally:
        timer.close()
    return reader.body


def _read(stream: Stream) -> bytes:
    buffer = runtime.current().buffer
    count = stream.recv_into(buffer)
    return bytes(memoryview(buffer)[:count])
