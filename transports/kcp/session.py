"""One KCP session: the core between an application that reads and writes and a port that sends and receives.

Belongs here: everything that KCP itself lacks: an end, a close that waits for its acknowledgement, a reset, limits, life signs.
Does not belong here: how a session begins (server.py, client.py), who waits for it (stream.py), what goes to an address that nobody
has shown to be his (unproven.py).

What is not read stays in the core, whose window shrinks with each message, down to none at all. What is written is taken while
the core's send window has room. So a session holds at most `sndwnd + rcvwnd` segments, and nothing beside them.

* The end of what one side sends is an empty message.
* A closed session goes on until all that was written has been acknowledged, the end included, or for `linger` seconds; what still
  comes is thrown away. Then the peer is told (Code.GONE), unless it has ended as well.
* `abort` tells the peer (Code.ABORTED) and keeps nothing.
* A stock peer knows of no end and of no RESET: `abort` closes, and what tells it of an end is in its own protocol.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

from gws_gevent.exceptions import TransportError
from gws_gevent.transports.datagram import DatagramPort, DatagramSession
from gws_gevent.transports.kcp.cipher import Seal
from gws_gevent.transports.kcp.cookie import Code, Control, Controls, Kind
from gws_gevent.transports.kcp.core import HEADER, MAX_FRAGMENTS, Core, Outbox
from gws_gevent.transports.kcp.params import KcpParams
from gws_gevent.transports.kcp.unproven import Unproven

__all__ = ["KcpSession", "SessionParts", "Watcher"]

#: Seconds between two questions to a peer whose window is closed: its answer may have been lost, and KCP itself waits for seven.
ASK_WINDOW: Final = 0.5
#: Seconds between two looks at the core while the peer's window is closed.
CLOSED_WINDOW: Final = 0.1
#: Seconds that a closed session waits if only its end is not acknowledged: the peer may have ended too, and its answer be lost.
LINGER_FOR_END: Final = 2.0
#: Seconds that the abort of a session with a stock peer may take.
STOCK_ABORT: Final = 1.0
#: Segments that a stock peer's window has at least: kcp-go's default.
_STOCK_WINDOW: Final = 32


class Watcher(Protocol):
    """Whoever waits for a session. Called in the pump's greenlet: it may not block or raise."""

    def session_changed(self) -> bool:
        """There may be something to read, room to write, or an end. True: a reader is about to run, and may write."""


class SessionParts:
    """What the sessions of one port share."""

    __slots__ = ("controls", "outbox", "params", "port", "tuning")

    def __init__(self, port: DatagramPort, params: KcpParams, controls: Controls, overhead: int) -> None:
        """Take what a port's sessions have in common.

        Args:
            overhead: bytes that a session's Seal adds to each datagram.
        """
        self.port = port
        self.params = params
        self.controls = controls
        self.outbox = Outbox()
        #: Tuning with what the datagrams of the core may have.
        self.tuning = replace(params.tuning, mtu=params.tuning.mtu - overhead)


class KcpSession(DatagramSession):
    """A conversation with one peer.

    Attributes:
        address: the peer's.
        conv: conversation number as it is sent.
        nonce: of the client; b"" with a stock peer.
        accept: server: the ACCEPT that a client may still be waiting for.
        error: why the session failed; None while it has not.
        has_ended: nothing is sent and nothing received any more, and the core is gone.
        peer_ended: the end of what the peer sends has been read.
        watcher: told when something changes.
        was_heard: something has come from the peer.
        on_end: called once, with the session, when it has ended.
        on_proof: called once, when the peer of a session that began without has shown its address, or the session has ended.
    """

    __slots__ = (
        "_asked", "_clock", "_closed_at", "_core", "_heard", "_is_fresh", "_is_shut", "_mss", "_opened", "_parts", "_progress",
        "_rest", "_unproven", "_wait_until", "_waiting", "_was_reset", "_widest", "_wrote_end", "accept", "address", "conv",
        "error", "has_ended", "nonce", "on_end", "on_proof", "peer_ended", "seal", "was_heard", "watcher",
    )  # fmt: skip

    def __init__(
        self, parts: SessionParts, core: Core, seal: Seal, address: Any, conv: bytes, nonce: bytes, clock: int, *, proven: bool
    ) -> None:
        """Begin.

        Args:
            clock: what the core's clock shows now, milliseconds modulo 2**32. From anybody's point of view but ours and the
                peer's it is random: the peer shows that it gets what we send by telling it to us.
            proven: the peer has shown that already.
        """
        DatagramSession.__init__(self)
        now = parts.port.now()
        self._parts = parts
        self._core: Core | None = core
        self._mss = parts.tuning.mtu - HEADER
        self._clock = (clock - int(now * 1000)) & 0xFFFFFFFF
        self._opened = self._heard = self._progress = self._asked = now
        self._waiting = 0
        self._unproven = None if proven else Unproven(now)
        self._widest = _STOCK_WINDOW
        self._rest: bytes | bytearray | None = None
        self._is_fresh = False  # something has come since the last flush
        self._is_shut = False  # we have told the peer that our window is closed
        self._wrote_end = False
        self._was_reset = False  # the peer has gone in peace: what has come can be read
        self._closed_at: float | None = None
        self._wait_until = 0.0
        self.address = address
        self.conv = conv
        self.nonce = nonce
        self.seal = seal
        self.accept: bytes | None = None
        self.error: TransportError | None = None
        self.has_ended = False
        self.peer_ended = False
        self.watcher: Watcher | None = None
        self.was_heard = False
        self.on_end: Callable[[KcpSession], object] | None = None
        self.on_proof: Callable[[], object] | None = None

    # The network's side

    def on_datagram(self, data: bytes, now: float) -> None:
        """Take a datagram of this conversation that is no control datagram."""
        core = self._core
        if core is None:
            return
        packet = self.seal.open(data)
        if packet is None or len(packet) < HEADER or not core.receive(packet):
            return
        self._heard = now
        self.was_heard = True
        self.accept = None
        waiting = core.waiting()
        if waiting < self._waiting:
            self._progress = now
        self._waiting = waiting
        self._is_fresh = True
        if self._unproven is not None and self._unproven.hears(packet, len(data)):
            self._proven()
        self._parts.port.touch(self)

    def on_control(self, control: Control) -> None:
        """Take a control datagram of this conversation."""
        if control.kind is not Kind.RESET or control.nonce != self.nonce or self.has_ended:
            return
        if control.code == Code.GONE and self._closed_at is None:
            self._was_reset = True
            self._changed()
        elif self._closed_at is not None:
            self._end()
        else:
            self._fail(errno.ECONNRESET, "the peer aborted the session")

    def _proven(self) -> None:
        on_proof, self.on_proof = self.on_proof, None
        if self._unproven is not None and on_proof is not None:
            on_proof()
        self._unproven = None

    # The application's side. Each of these is followed by what it changes: `touch`.

    def can_read(self) -> bool:
        """`take_into` would not return -1, or would raise."""
        if self._rest is not None or self.peer_ended or self.error is not None or self._core is None or self._was_reset:
            return True
        return self._core.next_size() >= 0

    def take_into(self, buffer: bytearray | memoryview) -> int:
        """Put received bytes into `buffer` and return how many; 0: the peer has ended; -1: there are none yet. Raises `error`."""
        if self.error is not None:
            raise self._error("receive")
        if self.peer_ended and self._rest is None:
            return 0
        with memoryview(buffer) as view:
            count = self._fill(view)
        if count:
            if self._is_shut:
                self._is_shut = False
                self._parts.port.touch(self)
            return count
        if self.peer_ended:
            return 0
        if self._was_reset:
            raise TransportError(errno.ECONNRESET, "receive: the peer has gone")
        return -1

    def _fill(self, view: memoryview) -> int:
        core, count, space = self._core, 0, len(view)
        rest = self._rest
        while space:
            if rest is None:
                if core is None or self.peer_ended:
                    break
                size = core.next_size()
                if size < 0:
                    break
                rest = core.take()
                if not size:
                    self.peer_ended = True
                    rest = None
                    break
            size = len(rest)
            if size > space:
                view[count:] = rest[:space]
                rest = rest[space:]
                count += space
                break
            view[count : count + size] = rest
            count += size
            space -= size
            rest = None
        self._rest = rest
        return count

    def can_write(self) -> bool:
        """There is reason to call `try_send` again after it has returned 0."""
        if self._core is None or self.error is not None or self._was_reset or self._wrote_end:
            return True
        if self._unproven is not None and not self._unproven.room():
            return False
        room = self._parts.tuning.sndwnd - self._core.waiting()
        return room >= (self._parts.tuning.sndwnd // 4 if self._parts.tuning.stream else MAX_FRAGMENTS)

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Take what there is room for and return how many bytes; 0: none. Raises `error`, or EPIPE after an end."""
        core = self._core
        if self.error is not None:
            raise self._error("send")
        if core is None or self._was_reset:
            raise TransportError(errno.EPIPE, "send: the peer has closed the session")
        if self._wrote_end:
            raise TransportError(errno.EPIPE, "send: after shutdown_write")
        tuning = self._parts.tuning
        most = MAX_FRAGMENTS if tuning.stream else self._message_limit(core)
        room = tuning.sndwnd - core.waiting()
        sent, size = 0, len(data)
        if self._unproven is not None:
            size = self._taken_of(size, self._unproven)
        with memoryview(data) as view:
            while sent < size and room >= (1 if tuning.stream else MAX_FRAGMENTS):
                piece = bytes(view[sent : min(size, sent + min(room, most) * self._mss)])
                core.send(piece)
                sent += len(piece)
                room = tuning.sndwnd - core.waiting()
        if sent:
            if not self._waiting:
                self._progress = self._parts.port.now()
            self._waiting = core.waiting()
            self._parts.port.touch(self)
        return sent

    def _taken_of(self, size: int, unproven: Unproven) -> int:
        wanted_more = unproven.wants_more
        taken = unproven.take(size)
        if unproven.wants_more and not wanted_more:
            self._parts.port.touch(self)
        return taken

    def _message_limit(self, core: Core) -> int:
        """Fragments of one message: a peer with a smaller window would never have all of them."""
        self._widest = max(self._widest, core.peer_window() if self.was_heard else 0)
        return min(MAX_FRAGMENTS, self._widest)

    def end_writing(self) -> None:
        """Send the end after what was written. Idempotent."""
        if self._core is not None and not self._wrote_end:
            self._core.send_end()
            if not self._waiting:
                self._progress = self._parts.port.now()
            self._waiting = self._core.waiting()
            self._parts.port.touch(self)
        self._wrote_end = True

    def close(self, linger: float | None = None) -> None:
        """Let what was written arrive, and then end. Idempotent."""
        if self._core is None or self._closed_at is not None:
            return
        if self._was_reset:
            self._end()
            return
        self.end_writing()
        self._rest = None
        self._closed_at = self._parts.port.now()
        self._wait_until = self._closed_at + (self._parts.params.linger if linger is None else linger)
        self._parts.port.touch(self)

    def abort(self) -> None:
        """End at once. Idempotent."""
        if self._core is None:
            return
        if not self.nonce:
            self.close(min(STOCK_ABORT, self._parts.params.linger))
            return
        if not self._was_reset:
            self._tell(Code.ABORTED)
        self._end()

    # What the schedule calls

    def flush(self, now: float) -> float | None:
        """See DatagramSession."""
        core = self._core
        if core is None or self._was_reset:
            return None  # what the core still has can be read; nobody is there who would be asked or answered
        if self._is_fresh:
            self._is_fresh = False
            if self._changed():
                return now  # an answer and the acknowledgement go in one datagram
        milliseconds = self._milliseconds(now)
        if self._closed_at is not None:
            self._throw_away(core)
            if self._waiting <= 1:
                self._wait_until = min(self._wait_until, now + LINGER_FOR_END)
        self._put_out(core, milliseconds)
        if self._closed_at is not None and not self._waiting:
            if not self.peer_ended:
                self._tell(Code.GONE)
            self._end()
            return None
        self._changed()
        return self._next_deadline(core, now, milliseconds)

    def _put_out(self, core: Core, milliseconds: int) -> None:
        datagrams = self._parts.outbox.datagrams
        try:
            core.update(milliseconds)
            core.flush()
            if not datagrams:
                return
            seal, send, address = self.seal.seal, self._parts.port.send, self.address
            self._is_shut = datagrams[-1][6:8] == b"\0\0"
            unproven = self._unproven
            for packet in datagrams if unproven is None else unproven.allowed(datagrams, milliseconds.to_bytes(4, "little")):
                send(seal(packet), address)
        finally:
            datagrams.clear()

    def _next_deadline(self, core: Core, now: float, milliseconds: int) -> float:
        params = self._parts.params
        if not self._waiting:
            due = min(max(self._heard, self._asked) + params.keepalive, self._heard + params.idle_timeout)
        elif core.peer_window():
            due = now + core.check(milliseconds) / 1000
        else:
            due = now + CLOSED_WINDOW
        if self._closed_at is not None:
            due = min(due, self._wait_until)
        if self._unproven is not None:
            due = min(due, self._opened + params.handshake_timeout)
            if self._unproven.wants_more:
                due = min(due, self._unproven.next_question(now))
        # The core counts whole milliseconds: in less than one nothing is due to it.
        return max(due, now + 0.001)

    def on_deadline(self, now: float) -> None:
        """See DatagramSession."""
        core, params, unproven = self._core, self._parts.params, self._unproven
        if core is None:
            return
        if self._closed_at is not None and now >= self._wait_until:
            self._tell(Code.GONE)
            self._end()
        elif unproven is not None and now >= self._opened + params.handshake_timeout:
            self._fail(errno.ETIMEDOUT, f"the peer has acknowledged nothing within {params.handshake_timeout:g} seconds")
        elif unproven is not None and unproven.wants_more:
            question = unproven.question(self.conv, self._parts.tuning.rcvwnd, now)
            if question is not None:
                self._parts.port.send(question, self.address)
        elif now - self._heard >= params.idle_timeout:
            self._fail(errno.ETIMEDOUT, f"nothing has come for {params.idle_timeout:g} seconds")
        elif self._waiting:
            self._watch_progress(core, now)
        elif now - max(self._heard, self._asked) >= params.keepalive:
            self._asked = now
            core.ask_window()

    def _watch_progress(self, core: Core, now: float) -> None:
        limit = self._parts.params.no_progress
        if not core.peer_window() and now - self._heard < limit:
            self._progress = now  # it is there, and does not read
            if now - self._asked >= ASK_WINDOW:
                self._asked = now
                core.ask_window()
        elif now - self._progress >= limit:
            self._fail(errno.ETIMEDOUT, f"the peer has acknowledged nothing for {limit:g} seconds")

    def on_failure(self, error: Exception) -> None:
        """See DatagramSession."""
        self._fail(errno.EIO, f"the session failed: {error!r}")

    def fail(self, error: TransportError) -> None:
        """End with an error of the port's: the peer cannot be reached."""
        if self._core is not None:
            self.error = error
            self._end()

    # The end

    def _throw_away(self, core: Core) -> None:
        while not self.peer_ended and (size := core.next_size()) >= 0:
            core.take()
            self.peer_ended = not size

    def _tell(self, code: Code) -> None:
        if self.nonce:
            reset = self._parts.controls.write(Control(Kind.RESET, self.conv, self.nonce, code=code))
            self._parts.port.send(reset, self.address)

    def _fail(self, number: int, said: str) -> None:
        self.fail(TransportError(number, said))

    def _end(self) -> None:
        core, self._core = self._core, None
        if core is None:
            return
        self.has_ended = True
        core.release()
        self._parts.port.forget(self)
        self._proven()
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(self)
        self._changed()
        self.watcher = None

    def _changed(self) -> bool:
        return self.watcher is not None and self.watcher.session_changed()

    def _error(self, doing: str) -> TransportError:
        assert self.error is not None
        raised = TransportError(self.error.errno, f"{doing}: {self.error.strerror or self.error}")
        raised.__cause__ = self.error
        return raised

    def _milliseconds(self, now: float) -> int:
        return (self._clock + int(now * 1000)) & 0xFFFFFFFF
