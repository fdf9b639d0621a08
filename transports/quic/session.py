"""One QUIC connection: feeds aioquic's state machine, sends what it has to say, keeps its timer, and ends in order.

Belongs here: the life of a connection from its first datagram to the end of its closing period. Does not belong here: what runs on
top of it (`Application`: stream.py for WebSocket in streams; HTTP/3 is another), who is let in (admission.py), sockets.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final

from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode

from gws_gevent.exceptions import TransportError
from gws_gevent.transports.datagram import Address, DatagramPort, DatagramSession
from gws_gevent.transports.quic.core import CoreConnection

__all__ = ["Application", "QuicSession", "SessionOwner"]

log = logging.getLogger("gws_gevent.transports")

#: Seconds for what was sent last, see `QuicSession.ends_when_left`.
LINGER: Final = 5.0
#: In the closing period the last words are repeated after the 1st, 2nd, 4th ... datagram of the peer (RFC 9000 section 10.2.1).
_LAST_ANSWER: Final = 64


class Application(ABC):
    """What runs on a connection. One object per connection; called in the pump, and never waits."""

    #: What the peer is told when a connection ends in peace.
    NO_ERROR = int(QuicErrorCode.NO_ERROR)

    @abstractmethod
    def on_event(self, event: events.QuicEvent) -> None:
        """The handshake is complete, data has come, a stream was reset ... (`aioquic.quic.events`)."""

    @abstractmethod
    def after_events(self) -> None:
        """All events of this turn have been told, or acknowledgements alone have come. What is written now is sent at once."""

    @abstractmethod
    def unread(self) -> Mapping[int, int]:
        """Return how many received bytes wait for whoever reads, by stream: the peer may send that much less."""

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """There is no stream, and nothing that has to be delivered."""

    @property
    @abstractmethod
    def is_left(self) -> bool:
        """There are streams, and all of them have been closed on this side: what was sent last may not have been delivered."""

    def on_going_away(self) -> None:
        """The server accepts no more streams: the peer may be told. What is written now is sent soon."""

    @abstractmethod
    def on_end(self, error: TransportError) -> None:
        """The connection is over: everybody who waits is to be woken. Called once."""


class SessionOwner(ABC):
    """Who has a connection: the listener or the dialer's pool."""

    def on_connection_id(self, session: QuicSession, connection_id: bytes, *, is_known: bool) -> None:
        """Datagrams to this connection ID are for `session` from now on, or (not `is_known`) no more."""

    def on_established(self, session: QuicSession) -> None:
        """The handshake is complete."""

    @abstractmethod
    def on_over(self, session: QuicSession) -> None:
        """No more datagrams have to be sent or received; called once."""


class QuicSession(DatagramSession):
    """A connection and what runs on it.

    Attributes:
        core: aioquic's state machine.
        application: what runs on the connection.
        established: the handshake is complete.
        ends_when_left: what was sent last has LINGER seconds to be delivered, and then the connection ends.
        error: why the connection has ended; None: it has not.
    """

    __slots__ = (
        "_answers", "_grants", "_handshake_until", "_last_words", "_left_until", "_owner", "_port", "application", "core", "doing",
        "ends_when_left", "error", "established",
    )  # fmt: skip

    def __init__(
        self,
        core: CoreConnection,
        port: DatagramPort,
        owner: SessionOwner,
        make_application: Callable[[QuicSession], Application],
        doing: str = "quic",
        handshake_until: float | None = None,
    ) -> None:
        """Take what belongs together.

        Args:
            doing: what stands in front of errors, such as "connect to quic://example.org:4433".
            handshake_until: when a connection that is not established is given up. None: its idle timeout has to do.
        """
        super().__init__()
        self.core = core
        self.doing = doing
        self.ends_when_left = False
        self.established = False
        self.error: TransportError | None = None
        self._handshake_until = handshake_until
        self._left_until: float | None = None
        self._port = port
        self._owner: SessionOwner | None = owner
        self._last_words: list[tuple[bytes, Address]] = []
        self._answers = 0
        self._grants = False
        self.application: Application | None = make_application(self)

    @property
    def peername(self) -> Address:
        return self.core.get_peer_address()

    @property
    def sockname(self) -> Address:
        return self._port.local_address

    def touch(self) -> None:
        """There is something to send."""
        self._port.touch(self)

    def consumed(self) -> None:
        """The application has read: the peer may send more."""
        self._grants = True
        self._port.touch(self)

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """A datagram for this connection has come."""
        if self.error is not None:
            self._answer_again()
            return
        self.core.receive_datagram(data, address, now)
        # At once: between here and the flush the application may write to a stream that has just been stopped.
        self._tell_events()
        self._grants = True
        self._port.touch(self)

    def close(self, error: TransportError, code: int | None = None, reason: str = "") -> None:
        """End the connection with CONNECTION_CLOSE and tell the application. Idempotent.

        Args:
            code: what went wrong, in the application's numbers. None: nothing.
        """
        if self.error is None:
            self.core.close(self._no_error() if code is None else code, reason_phrase=reason)
            self._tell_end(error)
            self._port.touch(self)

    def say_going_away(self) -> None:
        """No more streams are accepted."""
        if self.established and self.application is not None:
            self.application.on_going_away()
            self.touch()

    def say_goodbye(self, now: float) -> None:
        """Send CONNECTION_CLOSE at once: the process ends."""
        if self.error is None:
            self.core.close(self._no_error())
            for data, address in self.core.datagrams_to_send(now):
                self._port.send(data, address)

    def _no_error(self) -> int:
        return Application.NO_ERROR if self.application is None else self.application.NO_ERROR

    def drop(self, error: TransportError) -> None:
        """End the connection without a word, at once."""
        self._tell_end(error)
        self._leave()

    def migrate(self, port: DatagramPort) -> None:
        """Go on over another port, as after a change of network (RFC 9000 section 9), with another connection ID."""
        self._port = port
        self.core.change_connection_id()
        self.core.send_ping(0)  # something to send, so that the peer learns of the new address
        port.touch(self)

    # DatagramSession

    def on_deadline(self, now: float) -> None:
        if not self.established and self._handshake_until is not None and now >= self._handshake_until:
            self.drop(TransportError(f"{self.doing}: no handshake in time"))
            return
        if self._left_until is not None and now >= self._left_until:
            self.close(TransportError(f"{self.doing}: what was sent last was not acknowledged"))
            return
        due = self.core.get_timer()
        if due is not None and now >= due:
            self.core.handle_timer(now)

    def on_failure(self, error: Exception) -> None:
        self.drop(TransportError(f"{self.doing}: {error!r}"))

    def flush(self, now: float) -> float | None:
        core = self.core
        if self.error is None:
            application = self.application
            if application is not None:
                application.after_events()
                if self._grants:
                    self._grants = False
                    core.grant(application.unread())
        if core.has_nobody:
            self.drop(TransportError(f"{self.doing}: not a QUIC client"))
            return None
        sent = core.datagrams_to_send(now)
        for data, address in sent:
            self._port.send(data, address)
        self._tell_events()
        if core.is_over:
            if self.error is None:
                self._tell_end(_why(core.why_over, self.doing, self._no_error()))
            if sent:
                self._last_words = sent
            if core.is_terminated or core.is_draining:
                self._leave()
                return None
        self._look_whether_left(now)
        times = (core.get_timer(), None if self.established else self._handshake_until, self._left_until)
        return min((when for when in times if when is not None), default=None)

    def _look_whether_left(self, now: float) -> None:
        if not self.ends_when_left or self.application is None or not self.application.is_left:
            self._left_until = None
        elif self._left_until is None:
            self._left_until = now + LINGER

    def _tell_events(self) -> None:
        core, application = self.core, self.application
        while (event := core.next_event()) is not None:
            if isinstance(event, events.ConnectionIdIssued):
                self._tell_id(event.connection_id, True)
            elif isinstance(event, events.ConnectionIdRetired):
                self._tell_id(event.connection_id, False)
            elif application is not None and self.error is None:
                if isinstance(event, events.HandshakeCompleted):
                    self._established()
                application.on_event(event)

    def _tell_id(self, connection_id: bytes, is_known: bool) -> None:
        if self._owner is not None:
            self._owner.on_connection_id(self, connection_id, is_known=is_known)

    def _established(self) -> None:
        self.established = True
        self.core.let_go_of_handshake()
        if self._owner is not None:
            self._owner.on_established(self)

    def _tell_end(self, error: TransportError) -> None:
        if self.error is None:
            self.error = error
            application, self.application = self.application, None
            if application is not None:
                application.on_end(error)

    def _leave(self) -> None:
        self._port.forget(self)
        self.core.let_go()
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.on_over(self)

    def _answer_again(self) -> None:
        """The peer goes on although we have closed: it has not heard of it."""
        self._answers += 1
        if self._answers & (self._answers - 1) == 0 and self._answers <= _LAST_ANSWER:
            for data, address in self._last_words:
                self._port.send(data, address)


def _why(event: Any, doing: str, no_error: int) -> TransportError:
    """Put the end of a connection into words."""
    code, reason = event.error_code, event.reason_phrase
    if event.frame_type is None:  # the numbers are the application's (RFC 9000 section 20.2)
        if code in (QuicErrorCode.NO_ERROR, no_error):
            return TransportError(f"{doing}: the peer has closed the connection")
        return TransportError(f"{doing}: application error {code:#x}{f' ({reason})' if reason else ''}")
    if code == QuicErrorCode.APPLICATION_ERROR:  # all that an application may say before it is known who hears it (section 10.2.3)
        return TransportError(f"{doing}: the peer has closed the connection before the handshake was complete")
    if QuicErrorCode.CRYPTO_ERROR <= code <= QuicErrorCode.CRYPTO_ERROR + 0xFF:
        alert = code - QuicErrorCode.CRYPTO_ERROR
        return TransportError(f"{doing}: TLS failed: {reason or _ALERTS.get(alert, f'alert {alert}')}")
    if reason == "Idle timeout":
        return TransportError(f"{doing}: nothing was heard from the peer (idle timeout)")
    name = QuicErrorCode(code).name if code in list(QuicErrorCode) else f"error {code:#x}"
    return TransportError(f"{doing}: {name.lower().replace('_', ' ')}{f' ({reason})' if reason else ''}")


#: RFC 8446 section 6.
_ALERTS: Final = {
    40: "handshake failure",
    42: "bad certificate",
    45: "certificate expired",
    48: "unknown authority",
    120: "no common protocol (ALPN)",
}
