"""aioquic's connection with what it lacks: credit that follows the application, certificates by name, no early data.

Belongs here: everything that touches private parts of `QuicConnection`; for their sake the extra pins aioquic's minor version. Does
not belong here: sockets, timers, streams as the application sees them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import END_STATES, Limit, QuicConnection, QuicConnectionState
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from gws_gevent.transports.quic.recovery import PatientRecovery

__all__ = ["CoreConnection", "is_client_bidirectional"]

log = logging.getLogger("gws_gevent.transports")

#: What `_push_crypto_data` walks over after the handshake; before, the buffers have 16 KiB each.
_SMALL: Final = 64
#: Streams a second that a peer may open on one connection, and how many of them it is given at once: one by one would cost more.
STREAM_RATE: Final = 500
STREAM_STEP: Final = 25
#: Seconds that a closed connection still answers a peer that has not heard of it (RFC 9000 section 10.2: three PTO, mostly 0.1 s).
CLOSING_LIMIT: Final = 1.0


class _Quiet:
    """In place of aioquic's logger: what a peer does wrong is for the debug level, and costs nothing above it."""

    __slots__ = ()

    def debug(self, *_: Any) -> None:
        pass

    info = debug

    def warning(self, message: Any, *args: Any) -> None:
        log.debug(message, *args)

    error = warning


_QUIET: Final = _Quiet()


def is_client_bidirectional(stream_id: int) -> bool:
    """RFC 9000 section 2.1: the two lowest bits."""
    return not stream_id & 3


class _StreamCredit:
    """How many streams the peer may open in place of those that have ended: at first as many as at once, then STREAM_RATE a second.

    To open a stream and to reset it costs a peer next to nothing, and us a request that has begun.
    """

    __slots__ = ("_burst", "_granted", "_limit", "_saved", "_saved_at", "_step")

    def __init__(self, limit: Limit, streams: int) -> None:
        limit.value = limit.sent = streams
        self._limit = limit
        self._granted = streams
        self._burst = self._saved = float(streams)
        self._step = min(STREAM_STEP, streams)
        self._saved_at: float | None = None

    def lower(self, now: float) -> int:
        """Make the limit what may be granted now; return what it was, for `restore`."""
        if self._saved_at is not None:
            self._saved = min(self._burst, self._saved + (now - self._saved_at) * STREAM_RATE)
        self._saved_at = now
        earned = self._limit.value
        is_enough = self._saved >= min(earned - self._granted, self._step)
        self._limit.value = min(earned, self._granted + int(self._saved)) if is_enough else self._granted
        return earned

    def restore(self, earned: int) -> None:
        """Undo `lower`, and count what the peer has been told."""
        if self._limit.sent > self._granted:
            self._saved -= self._limit.sent - self._granted
            self._granted = self._limit.sent
        self._limit.value = earned

    def due(self) -> float | None:
        """When more can be granted than now, if that is less than the peer has earned."""
        missing = min(self._limit.value - self._granted, self._step) - self._saved
        # A bit later: what is a rounding error too early would find nothing to grant.
        return None if missing <= 0 or self._saved_at is None else self._saved_at + missing / STREAM_RATE + 0.0001


class CoreConnection(QuicConnection):
    """A QUIC connection without I/O whose receive windows are bounded.

    Attributes:
        certificates_for: gives (certificate, chain, private key) for the name a client asks for (SNI); None: the usual ones.
    """

    def __init__(
        self,
        configuration: QuicConfiguration,
        *,
        streams: int,
        other_streams: int = 0,
        certificates_for: Callable[[str | None], tuple[Any, list[Any], Any] | None] | None = None,
        **others: Any,
    ) -> None:
        """Take what QuicConnection takes.

        Args:
            streams: bidirectional streams that the peer may have open at the same time.
            other_streams: unidirectional ones.
        """
        super().__init__(configuration=configuration, **others)
        self.certificates_for = certificates_for
        self._stream_window = configuration.max_stream_data
        self._connection_window = configuration.max_data
        self._credits = (
            _StreamCredit(self._local_max_streams_bidi, streams),
            _StreamCredit(self._local_max_streams_uni, other_streams),
        )
        self._now = 0.0
        self._logger = self._loss._logger = _QUIET  # type: ignore[assignment]
        PatientRecovery.teach(self._loss)

    # What the session asks. None of it is part of aioquic's public interface.

    @property
    def is_over(self) -> bool:
        """Closed by us or by the peer, or timed out: nothing goes on any more, except that a timer may still run."""
        return self._close_event is not None or self._state in END_STATES

    @property
    def is_terminated(self) -> bool:
        """The timer after the close has run out, too."""
        return self._state is QuicConnectionState.TERMINATED

    @property
    def is_draining(self) -> bool:
        """The peer has closed the connection: nothing may be sent any more."""
        return self._state is QuicConnectionState.DRAINING

    @property
    def has_nobody(self) -> bool:
        """A server that could not read one packet so far."""
        return not self._is_client and self._state is QuicConnectionState.FIRSTFLIGHT

    @property
    def why_over(self) -> Any:
        """The ConnectionTerminated event to come; None: the connection is not over."""
        return self._close_event

    @property
    def streams_of_peer(self) -> int:
        """Bidirectional streams that the peer has opened so far: their ids are 0 or 1, plus 4 times 0 to this."""
        return self._local_max_streams_bidi.used

    def may_open(self) -> bool:
        """The peer allows another stream of ours now."""
        return self._local_next_stream_id_bidi // 4 < self._remote_max_streams_bidi

    def open_stream(self) -> int:
        """Open a bidirectional stream, and let the peer know of it even before there is data. Return its id."""
        stream_id = self._local_next_stream_id_bidi
        stream = self._get_or_create_stream_for_send(stream_id)
        stream.max_stream_data_local_sent = 0  # announces the window, which opens the stream
        return stream_id

    def sending(self, stream_id: int) -> int:
        """Return how many bytes of a stream are held until the peer acknowledges them."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        sender = stream.sender
        return 0 if sender._reset_error_code is not None else sender._buffer_stop - sender._buffer_start

    def is_delivered(self, stream_id: int) -> bool:
        """The peer has acknowledged all that was sent on a stream, and its end."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.sender.is_finished

    def discard_sending(self, stream_id: int) -> None:
        """Forget what was to be sent on a stream that has been reset."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.sender._reset_error_code is not None:
            stream.sender._buffer.clear()

    # Credit (RFC 9000 section 4).

    def grant(self, unread: Mapping[int, int]) -> None:
        """Let the peer send as much as the application has consumed, in steps of half a window.

        Args:
            unread: bytes that wait for the application, by stream.
        """
        half = self._stream_window // 2
        held = sum(unread.values())
        for stream_id, stream in self._streams.items():
            receiver = stream.receiver
            if receiver.is_finished or receiver._stop_error_code is not None:
                continue
            delivered = receiver._buffer_start
            held += receiver.highest_offset - delivered
            target = delivered - unread.get(stream_id, 0) + self._stream_window
            if target - stream.max_stream_data_local >= half:
                stream.max_stream_data_local = target
        limit = self._local_max_data
        target = limit.used - held + self._connection_window
        if target - limit.value >= self._connection_window // 2:
            limit.value = target

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        # aioquic would double the window when half of it has been received. It does not if the number is small enough.
        limit = self._local_max_data
        used, limit.used = limit.used, 0
        earned = [credit.lower(self._now) for credit in self._credits]
        try:
            super()._write_connection_limits(builder=builder, space=space)
        finally:
            limit.used = used
            for credit, streams in zip(self._credits, earned, strict=True):
                credit.restore(streams)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        self._now = now
        return super().datagrams_to_send(now)

    def get_timer(self) -> float | None:
        timer_at = super().get_timer()
        if timer_at is not None and not self.is_over:
            for credit in self._credits:
                due = credit.due()
                if due is not None and self._now < due < timer_at:  # what was due before could not be sent: it waits for an ACK
                    timer_at = due
        return timer_at

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        receiver = stream.receiver
        highest, receiver.highest_offset = receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder=builder, space=space, stream=stream)
        finally:
            receiver.highest_offset = highest

    def _close_begin(self, is_initiator: bool, now: float) -> None:
        super()._close_begin(is_initiator, now)
        assert self._close_at is not None
        self._close_at = min(self._close_at, now + CLOSING_LIMIT)

    # TLS.

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        # Early data (0-RTT) can be replayed by anybody who saw it, and an upgrade request has effects.
        self.tls._max_early_data = None
        if not self._is_client and self.certificates_for is not None:
            self._choose_certificate(self.certificates_for)

    def _choose_certificate(self, certificates_for: Callable[[str | None], tuple[Any, list[Any], Any] | None]) -> None:
        context = self.tls
        handle_hello = context._server_handle_hello

        def choose(input_buf: Buffer, *others: Any) -> None:
            start = input_buf.tell()
            name = tls.pull_client_hello(input_buf).server_name
            input_buf.seek(start)
            chosen = certificates_for(name)
            if chosen is not None:
                context.certificate, context.certificate_chain, context.certificate_private_key = chosen
            handle_hello(input_buf, *others)

        context._server_handle_hello = choose  # type: ignore[method-assign, assignment]

    def let_go_of_handshake(self) -> None:
        """After the handshake: give back the memory that only it needed."""
        self._crypto_buffers = {epoch: Buffer(capacity=_SMALL) for epoch in self._crypto_buffers}
        self._cryptos_initial = dict.fromkeys(self._cryptos_initial, self._cryptos[tls.Epoch.INITIAL])
        self.tls.__dict__.pop("_server_handle_hello", None)
        self.certificates_for = None

    def let_go(self) -> None:
        """Nothing comes or goes any more: break the circles of callbacks, so that the memory is given back now.

        Otherwise it waits for the collector of cyclic garbage, which takes its time for a server that many come to and leave.
        """
        for name in ("_QuicConnection__frame_handlers", "tls", "_cryptos", "_cryptos_initial"):
            self.__dict__.pop(name, None)
        self._loss._send_probe = None  # type: ignore[assignment]
        for space in self._loss.spaces:
            space.sent_packets.clear()
