"""WebSocket over HTTP/3: `h3://host:port`, one WebSocket for each extended CONNECT (RFC 9220), on QUIC (RFC 9114).

Belongs here: HTTP/3 on the streams of transports/quic: frames, header sections, their limits. Does not belong here: QUIC itself,
the handshake in words of HTTP/1.1 (gws_gevent/extended_connect.py), which is what a stream shows to whoever reads and writes it.

aioquic's H3Connection does frames and QPACK. Its dynamic table is off: a few bytes that refer to a large entry again and again
would become megabytes, and a connection of ours carries few requests.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

import pylsqpack
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import ErrorCode, FrameType, H3Connection, ProtocolError, Setting, encode_frame
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic import events
from aioquic.quic.connection import QuicConnection

from gws_gevent.exceptions import HandshakeError, Refusal, TransportError
from gws_gevent.extended_connect import ClientTranslator, Fields, ServerTranslator
from gws_gevent.handshake import refusal_response
from gws_gevent.transports.base import (
    Dialer,
    DialSettings,
    Endpoint,
    Listener,
    ListenSettings,
    Stream,
    refuse_unknown_params,
    type_of_data,
)
from gws_gevent.transports.quic import CERTIFICATES, NUMBERS, numbers_of, with_certificates
from gws_gevent.transports.quic.admission import Limits
from gws_gevent.transports.quic.core import is_client_bidirectional
from gws_gevent.transports.quic.dialer import QuicDialer
from gws_gevent.transports.quic.listener import QuicListener
from gws_gevent.transports.quic.session import Application, QuicSession
from gws_gevent.transports.quic.stream import QuicStream, StreamTable

__all__ = ["dialer", "listen"]

#: The ALPN name (RFC 9114 section 3.1).
ALPN: Final = "h3"
#: Unidirectional streams of the peer: control, QPACK encoder and decoder, and some that have no meaning (RFC 9114 section 6.2.3).
OTHER_STREAMS: Final = 8
#: Bytes of one header section, as it is sent. How many a request's may have when decoded is the server's affair.
MAX_HEADER_SECTION: Final = 32 * 1024
#: Header lines of one section that are looked at. Each can be a single byte, and to check one takes two microseconds.
MAX_HEADER_LINES: Final = 1024


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `h3://host:port`, with the parameters of `quic://`."""
    refuse_unknown_params(endpoint, (*CERTIFICATES, *NUMBERS))
    numbers = numbers_of(endpoint)
    return QuicListener(
        replace(endpoint, params={}),
        with_certificates(endpoint, settings),
        alpn=[ALPN],
        make_application=_requests_of,
        limits=Limits(numbers["connections"], numbers["per_address"], numbers["half_open"], numbers["retry"]),
        streams=numbers["streams"],
        other_streams=OTHER_STREAMS,
        window=numbers["window"],
        idle=numbers["idle"],
    )


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `h3://host:port`. Parameters: idle and window, as for `quic://`."""
    refuse_unknown_params(endpoint, ("idle", "window"))
    numbers = numbers_of(endpoint)
    return H3Dialer(replace(endpoint, params={}), settings, alpn=ALPN, window=numbers["window"], idle=numbers["idle"])


def _requests_of(session: QuicSession, on_stream: Callable[[Stream], object], on_change: Callable[[], object]) -> Application:
    return ServerRequests(session, scheme="h3", on_stream=on_stream, on_change=on_change)


class H3Core(H3Connection):
    """aioquic's HTTP/3 without a dynamic table of QPACK, and with what there is to ask about its streams."""

    def __init__(self, quic: QuicConnection, on_goaway: Callable[[], object]) -> None:
        super().__init__(quic)
        self._decoder = pylsqpack.Decoder(0, 0)
        self._on_goaway = on_goaway

    def _get_local_settings(self) -> dict[int, int]:
        settings: dict[int, int] = {
            Setting.QPACK_MAX_TABLE_CAPACITY: 0,
            Setting.QPACK_BLOCKED_STREAMS: 0,
            Setting.MAX_FIELD_SECTION_SIZE: MAX_HEADER_SECTION,
        }
        if not self._is_client:
            settings[Setting.ENABLE_CONNECT_PROTOCOL] = 1  # RFC 9220 section 3
        return settings

    def send_goaway(self, stream_id: int) -> None:
        """Tell the client that this request and later ones are not served (RFC 9114 section 5.2)."""
        assert self._local_control_stream_id is not None  # opened when the connection was
        self._quic.send_stream_data(self._local_control_stream_id, encode_frame(FrameType.GOAWAY, encode_uint_var(stream_id)))

    def _check_control_frame_type(self, frame_type: int) -> None:
        # Once for each frame. What a GOAWAY says is not looked at: a server resets the requests that it does not serve.
        super()._check_control_frame_type(frame_type)
        if frame_type == FrameType.GOAWAY:
            self._on_goaway()

    def _decode_headers(self, stream_id: int, frame_data: bytes | None) -> Fields:
        # Far more than a server or a client of ours takes: it refuses what is left as well, and has to, as too long.
        return super()._decode_headers(stream_id, frame_data)[:MAX_HEADER_LINES]

    def waits_for_too_much(self, stream_id: int) -> bool:
        """What has begun on a stream is kept until it is complete, and that would be too much."""
        stream = self._stream.get(stream_id)
        if stream is None:
            return False
        declared = stream.frame_size if stream.frame_type == FrameType.HEADERS else 0
        return len(stream.buffer) > MAX_HEADER_SECTION or (declared or 0) > MAX_HEADER_SECTION

    def incomplete(self) -> Iterator[tuple[int, int]]:
        """Streams on which a frame has begun, and how many bytes of it are kept."""
        return ((stream_id, len(stream.buffer)) for stream_id, stream in self._stream.items() if stream.buffer)

    def forget(self, stream_id: int) -> None:
        """Nothing more comes of a stream."""
        self._stream.pop(stream_id, None)


class H3Table(StreamTable):
    """The requests of one connection.

    Attributes:
        h3: frames and header sections; None before the handshake.
    """

    h3: H3Core | None = None

    NO_ERROR = int(ErrorCode.H3_NO_ERROR)

    def on_event(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ProtocolNegotiated):
            self.h3 = H3Core(self.session.core, self._on_goaway)
        elif isinstance(event, events.StreamDataReceived):
            self._on_stream_data(event)
        else:
            if self.h3 is not None and isinstance(event, events.StreamReset | events.StopSendingReceived):
                self.h3.handle_event(event)
            super().on_event(event)

    def _on_stream_data(self, event: events.StreamDataReceived) -> None:
        stream, h3 = None, self.h3
        if h3 is None:
            return
        if is_client_bidirectional(event.stream_id):
            stream = self._stream(event.stream_id)
            if not isinstance(stream, H3Stream) or stream.is_deaf or stream.is_closed:
                return
        for found in h3.handle_event(event):
            self._tell(found)
        if h3.waits_for_too_much(event.stream_id):
            if isinstance(stream, H3Stream):
                stream.on_too_much()
            else:
                self.session.close(TransportError("h3: a frame is too long"), ErrorCode.H3_EXCESSIVE_LOAD, "a frame is too long")

    def _tell(self, found: H3Event) -> None:
        if isinstance(found, HeadersReceived | DataReceived) and found.push_id is None:
            stream = self._streams.get(found.stream_id)
            if isinstance(stream, H3Stream) and not stream.is_deaf:
                if isinstance(found, HeadersReceived):
                    stream.on_headers(found.headers, found.stream_ended)
                else:
                    stream.on_body(found.data, found.stream_ended)

    def unread(self) -> Mapping[int, int]:
        # A header section that never ends would else be kept beyond what a connection may have unread.
        unread = dict(super().unread())
        if self.h3 is not None:
            for stream_id, count in self.h3.incomplete():
                unread[stream_id] = unread.get(stream_id, 0) + count
        return unread

    def on_going_away(self) -> None:
        if self.h3 is not None:
            self.h3.send_goaway(4 * self._seen)

    def _on_goaway(self) -> None:
        self.is_full = True

    def _forget(self, stream_id: int) -> None:
        super()._forget(stream_id)
        if self.h3 is not None:
            self.h3.forget(stream_id)


class H3Stream(QuicStream):
    """One request.

    Attributes:
        is_deaf: what the peer still sends on it is dropped.
    """

    __slots__ = ("is_deaf",)

    ABORTED = int(ErrorCode.H3_REQUEST_CANCELLED)
    LEFT = int(ErrorCode.H3_NO_ERROR)

    _table: H3Table

    def __init__(self, table: StreamTable, stream_id: int) -> None:
        super().__init__(table, stream_id)
        self.is_deaf = False

    def on_headers(self, fields: Fields, ended: bool) -> None:
        """A header section has come."""
        raise NotImplementedError

    def on_body(self, data: bytes, ended: bool) -> None:
        """DATA has come, or the end."""
        self.on_data(data, ended)

    def on_too_much(self) -> None:
        """A header section is too long."""
        raise NotImplementedError

    @property
    def _h3(self) -> H3Core:
        assert self._table.h3 is not None  # there are no streams before the handshake
        return self._table.h3

    def _put(self, data: bytes, end: bool) -> None:
        try:
            self._h3.send_data(self.stream_id, data, end)
        except ProtocolError as error:
            raise TransportError(errno.EPIPE, f"send: {error.reason_phrase}") from error

    def _has_begun(self) -> bool:
        """Our headers have been sent."""
        raise NotImplementedError

    def _finish(self) -> None:
        if self._finished or self._stopped or self._error is not None or self._has_begun():
            super()._finish()
            return
        # An end without headers is none (RFC 9114 section 4.1).
        self._finished = True
        self._table.session.core.reset_stream(self.stream_id, self._reason())
        self._table.is_writing(self)

    def _become_deaf(self) -> None:
        self.is_deaf = True
        with suppress(ValueError):  # it has ended
            self._table.session.core.stop_stream(self.stream_id, self.LEFT)


class ServerStream(H3Stream):
    """One request of a client."""

    __slots__ = ("_asked", "_translator")

    def __init__(self, table: StreamTable, stream_id: int) -> None:
        super().__init__(table, stream_id)
        self._translator = ServerTranslator()
        self._asked = False

    def on_headers(self, fields: Fields, ended: bool) -> None:
        if self._asked:
            self.on_body(b"", ended)  # trailers
            return
        self._asked = True
        try:
            head = self._translator.request(fields, ended)
        except Refusal as refusal:
            self._refuse(refusal)
        else:
            self.on_data(head, ended)

    def on_body(self, data: bytes, ended: bool) -> None:
        self.on_data(self._translator.chunk(data, ended), ended)

    def on_too_much(self) -> None:
        if self._asked:
            self.abort()
        else:
            self._refuse(Refusal(431))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer instead of whoever reads, who hears that there was no request."""
        self._send_answer(refusal_response(refusal))
        self._become_deaf()
        self.on_data(b"", True)

    def try_send(self, data: type_of_data) -> int:
        if self._translator.is_open:
            return super().try_send(data)
        self._check_sending()
        part = self._fitting(data)
        if part:
            self._send_answer(part)
        return len(part)

    def _send_answer(self, data: bytes) -> None:
        try:
            fields, body, ended = self._translator.answer(data)
        except HandshakeError as error:
            raise TransportError(f"send: {error}") from error
        if fields is not None:
            self._h3.send_headers(self.stream_id, fields, ended and not body)
        if body or (ended and fields is None):
            self._put(body, ended)
        self._finished = self._finished or ended
        self._table.held += len(body)
        self._table.is_writing(self)

    def _has_begun(self) -> bool:
        return self._translator.is_answered

    def _reason(self) -> int:
        # Nobody has done anything about it: the client may ask again elsewhere (RFC 9114 section 4.1.1).
        return self.ABORTED if self._asked else int(ErrorCode.H3_REQUEST_REJECTED)

    def abort(self) -> None:
        if self.is_deaf:
            self.close()  # the refusal is on its way
        else:
            super().abort()


class ClientStream(H3Stream):
    """One request of ours."""

    __slots__ = ("_answered", "_translator")

    def __init__(self, table: StreamTable, stream_id: int) -> None:
        super().__init__(table, stream_id)
        self._translator = ClientTranslator()
        self._answered = False

    def on_headers(self, fields: Fields, ended: bool) -> None:
        head = b"" if self._answered else self._translator.answer(fields)
        self._answered = self._answered or not head.startswith(b"HTTP/1.1 1") or self._translator.is_open
        self.on_data(head, ended)

    def on_too_much(self) -> None:
        self._become_deaf()
        self.on_reset()

    def _has_begun(self) -> bool:
        return self._translator.is_asked

    def try_send(self, data: type_of_data) -> int:
        if self._translator.is_open:
            return super().try_send(data)
        self._check_sending()
        settings = self._h3.received_settings
        if settings is None:
            return 0  # the server says first whether it does this (RFC 8441 section 3)
        if not settings.get(Setting.ENABLE_CONNECT_PROTOCOL):
            raise TransportError("the server opens no WebSockets over HTTP/3")
        try:
            fields = self._translator.request(bytes(data))
        except HandshakeError as error:
            raise TransportError(f"send: {error}") from error
        if fields is not None:
            self._h3.send_headers(self.stream_id, fields)
            self._table.is_writing(self)
        return len(data)

    def _is_writable(self) -> bool:
        if not super()._is_writable():
            return False
        over = self._closed or self._finished or self._stopped or self._error is not None
        return over or self._h3.received_settings is not None


class ServerRequests(H3Table):
    """Those of a server's connection."""

    def make_stream(self, stream_id: int) -> QuicStream:
        return ServerStream(self, stream_id)


class ClientRequests(H3Table):
    """Those of a client's connection."""

    def make_stream(self, stream_id: int) -> QuicStream:
        return ClientStream(self, stream_id)


class H3Dialer(QuicDialer):
    """Opens requests to one server."""

    TABLE = ClientRequests
    OTHER_STREAMS = OTHER_STREAMS
