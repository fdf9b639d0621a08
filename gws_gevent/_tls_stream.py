# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""TLS as a stream, on top of a SocketStream; the plain build also on top of another TlsStream.

Belongs here: moving bytes between the SSLObject and the carrier, the end of a stream. Does not belong here: the SSLObject's
buffers and its handshake (_tls_engine.py), listening, dialling, contexts, sessions.

What the carrier does not take at once is flushed from the hub.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import gevent
from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from gevent.hub import get_hub
from greenlet import getcurrent

from gws_gevent.exceptions import StreamClosed, TransportError
from gws_gevent.transports.base import PollableStream, ReadableWaiter, type_of_data

from ._tls_engine import TlsEngine, reason_of

__all__ = ["TlsStream"]

#: Bytes of a full TLS record: the SSLObject makes one of each write, and a larger write is taken in part.
RECORD: Final = 16 * 1024
#: Bytes encrypted before they are handed to the carrier: four records, one system call.
BATCH: Final = 64 * 1024
#: Bytes of records that wait for the carrier. `try_send` adds to them only when there are none; above this a peer makes us
#: answer (key updates) without ever reading the answers.
MAX_PENDING = 2 * BATCH
#: Seconds that a closed stream may go on sending what it had taken.
CLOSE_LINGER = 5.0
#: Seconds after which to try again to write while the peer renegotiates (TLS 1.2, and only with a context of the user's).
RETRY_DELAY = 0.01


class TlsStream(TlsEngine):
    """TLS on top of a SocketStream, which it owns. A PollableStream."""

    __slots__ = ()

    @property
    def unsent(self) -> int:
        """Bytes of records that wait for the carrier."""
        return len(self._pending) if self._pending is not None else 0

    # Reading

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """See Stream."""
        while True:
            received = self.try_recv_into(buffer)
            if received >= 0:
                return received
            self._carrier.wait_readable()

    def wait_readable(self) -> None:
        """See PollableStream."""
        self._carrier.wait_readable()

    def interrupt(self) -> None:
        """End a wait, as that of a SocketStream does: it may carry another TlsStream."""
        self._carrier.interrupt()

    def call_when_readable(self, waiter: ReadableWaiter | None) -> None:
        """See PollableStream."""
        self._carrier.call_when_readable(waiter)

    def try_recv_into(self, buffer: bytearray | memoryview) -> int:
        """See PollableStream."""
        while True:
            if self._closed:
                raise StreamClosed("receive: the stream is closed")
            if self._plain is not None:
                return self._take_plain(buffer)
            if self._more:
                filled = self._decrypt(buffer, 0)
                if filled:
                    return filled
            if self._failure is not None:
                raise TransportError(f"receive: TLS: {self._failure}")
            if self._ended:
                return 0
            received = self._carrier.try_recv_into(self._buffers.scratch)
            if received < 0:
                return -1
            if received == 0:
                self._ended = True
                continue
            filled = self._decrypt(buffer, received)
            if filled:
                return filled

    def _decrypt(self, buffer: bytearray | memoryview, received: int) -> int:
        """Decrypt `received` bytes of the scratch buffer, and what was held back, into `buffer`; return how many that gave."""
        filled = 0
        aside = self._borrow()
        try:
            if received:
                self._buffers.incoming.write(self._buffers.view[:received])
            filled = self._read_records(buffer)
        finally:
            records = self._give_back(aside)
        if records is not None:  # an alert, or the answer to a key update
            try:
                self._push(records)
            except TransportError:
                pass  # the next read or write meets the same fault
        if self._keep_session is not None and filled:
            self._offer_session()
        return filled

    def _read_records(self, buffer: bytearray | memoryview) -> int:
        size = len(buffer)
        filled = 0
        view: memoryview | None = None
        self._more = False
        try:
            while filled < size:
                if filled == 0:
                    count: int = self._core.read(size, buffer)
                else:
                    if view is None:
                        view = memoryview(buffer)
                    count = self._core.read(size - filled, view[filled:])
                if count == 0:
                    self._ended = True
                    return filled
                filled += count
                # A record is taken out of the BIO in one piece. If nothing is left there, and not all of the buffer was needed,
                # then another look would cost an exception that says so.
                if filled < size and not self._buffers.incoming.pending:
                    return filled
            self._more = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = True
        except ssl.SSLError as error:
            self._failure = reason_of(error)
        return filled

    def _take_plain(self, buffer: bytearray | memoryview) -> int:
        plain = self._plain
        assert plain is not None
        with memoryview(buffer) as view:
            count = min(len(plain), len(view))
            view[:count] = plain[:count]
        del plain[:count]
        if not plain:
            self._plain = None
        return count

    def _offer_session(self) -> None:
        """Once data has come, the tickets of TLS 1.3 mostly have; if not, there is another look when the stream is closed."""
        session = self._ssl.session
        if session is not None and (session.has_ticket or (session.id and self._ssl.version() != "TLSv1.3")):
            keep, self._keep_session = self._keep_session, None
            assert keep is not None
            keep(session)

    # Writing

    def try_send(self, data: type_of_data) -> int:
        """See NonBlockingStream."""
        if not self._may_send():
            return 0
        if len(data) <= BATCH:
            return self._encrypt((data,)) if len(data) else 0
        taken = 0
        with memoryview(data) as view:
            while taken < len(view) and self._pending is None and not self._stalled:
                with view[taken : taken + BATCH] as piece:
                    taken += self._encrypt((piece,))
        return taken

    def _may_send(self) -> bool:
        """False while records wait for the carrier."""
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        if self._failure is not None:
            raise TransportError(f"send: TLS: {self._failure}")
        return self._pending is None or self._flush()

    def try_send_parts(self, parts: Sequence[type_of_data]) -> int:
        """See NonBlockingStream."""
        size = sum(map(len, parts))
        if size <= RECORD:
            return self.try_send(b"".join(parts))
        if len(parts) == 2 and len(parts[0]) < RECORD and size <= BATCH:
            return self._try_send_pair(parts[0], parts[1])
        total = 0
        for part in parts:
            taken = self.try_send(part)
            total += taken
            if taken < len(part):
                break
        return total

    def _try_send_pair(self, head: type_of_data, payload: type_of_data) -> int:
        """A message and its header: by itself the header would be a record of its own, and a system call."""
        if not self._may_send():
            return 0
        with memoryview(payload) as view:
            room = RECORD - len(head)
            return self._encrypt((b"".join((head, view[:room])), view[room:]))

    def _encrypt(self, pieces: tuple[type_of_data, ...]) -> int:
        """Make records of all of `pieces`, unless the peer renegotiates, and hand them over; return how many bytes are in them."""
        taken = 0
        aside = self._set_aside()
        try:
            for piece in pieces:
                size = len(piece)
                done: int = self._core.write(piece)
                taken += done
                if done < size:
                    with memoryview(piece) as view:
                        while done < size:
                            count: int = self._core.write(view[done:])
                            done += count
                            taken += count
        except ssl.SSLWantReadError:
            self._stalled = True
        except ssl.SSLError as error:
            raise TransportError(f"send: TLS: {reason_of(error)}") from error
        finally:
            records = self._buffers.outgoing.read()
            self._put_back(aside)
        self._push(records)
        return taken

    def send_all(self, data: type_of_data) -> None:
        """See Stream."""
        if self._sending:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if getcurrent() is get_hub():
            raise BlockingSwitchOutError("send_all may have to wait, and the hub cannot: use try_send there")
        self._sending = True
        try:
            with memoryview(data) as view:
                sent = self.try_send(view)
                while sent < len(view) or self._pending is not None:
                    self.wait_writable()
                    sent += self.try_send(view[sent:])
        finally:
            self._sending = False

    def wait_writable(self) -> None:
        """See NonBlockingStream."""
        if self._stalled:
            self._stalled = False
            gevent.sleep(RETRY_DELAY)
        while True:
            if self._closed:
                raise StreamClosed("send: the stream is closed")
            self._carrier.wait_writable()
            if self._closed:
                raise StreamClosed("send: the stream was closed")
            if self._flush():
                return

    def call_when_writable(self, callback: Callable[[], object]) -> None:
        """See NonBlockingStream."""
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        self._on_writable = callback
        self._carrier.call_when_writable(self._flush_in_hub)

    def _push(self, records: bytes | None) -> None:
        """Hand over what the SSLObject has produced, in its order. Never waits."""
        if not records:
            return
        if self._pending is not None:
            self._pending += records
            if len(self._pending) > MAX_PENDING:
                self._failure = "the peer asks for answers that it does not read"
                raise TransportError(f"send: TLS: {self._failure}")
            return
        sent = self._carrier.try_send(records)
        if sent < len(records):
            self._pending = bytearray(records)
            del self._pending[:sent]
            self._carrier.call_when_writable(self._flush_in_hub)

    def _flush(self) -> bool:
        """Send waiting records; True when there are none left. Never waits."""
        if self._pending is not None:
            del self._pending[: self._carrier.try_send(self._pending)]
            if self._pending:
                return False
            self._pending = None
        return True

    def _flush_in_hub(self) -> None:
        try:
            done = self._flush()
        except TransportError as error:
            self._failure, self._pending, done = str(error), None, True
        if not done:
            self._carrier.call_when_writable(self._flush_in_hub)
        elif self._closed:
            self._stop_lingering()
        elif self._on_writable is not None:
            callback, self._on_writable = self._on_writable, None
            callback()

    # The end

    def shutdown_write(self) -> None:
        """Send close_notify. The carrier stays open both ways: TLS 1.3 has a half-close of its own (RFC 8446 section 6.1)."""
        if self._closed:
            raise StreamClosed("shutdown: the stream is closed")
        self._save_plaintext()
        self._say_goodbye()

    def _save_plaintext(self) -> None:
        """Decrypt all that has arrived: unwrap() would look for the peer's close_notify there and throw away the rest."""
        while self._more:
            plain = bytearray(RECORD)
            filled = self._decrypt(plain, 0)
            if filled:
                del plain[filled:]
                self._plain = plain if self._plain is None else self._plain + plain

    def _say_goodbye(self) -> None:
        if self._failure is not None:
            return
        aside = self._borrow()
        try:
            self._ssl.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # it wants to read the peer's goodbye, which is not waited for, or there was no handshake
        finally:
            records = self._give_back(aside)
        self._push(records)

    def close(self) -> None:
        """See Stream. Records that wait for the carrier have CLOSE_LINGER seconds."""
        if self._closed:
            return
        self._closed = True
        self._on_writable = self._plain = None
        if self._keep_session is not None:
            self._offer_session()
            self._keep_session = None
        try:
            self._say_goodbye()
        except TransportError:
            self._pending = None
        self._held = None
        if self._pending is None:
            self._carrier.close()
            return
        # TCP itself would go on sending what it had taken before the close; so do we, for a while.
        self._carrier.interrupt()
        self._linger = get_hub().loop.timer(CLOSE_LINGER)
        self._linger.start(self.abort)

    def abort(self) -> None:
        """See Stream."""
        if self._closed and self._linger is None:
            return
        self._closed = True
        self._on_writable = self._plain = self._pending = self._held = self._keep_session = None
        self._carrier.abort()
        self._stop_lingering()

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.stop()
            self._linger.close()
            self._linger = None
        self._carrier.close()

    def info(self, key: str) -> Any:
        """See Stream."""
        if key == "scheme":
            return "tls"
        if key == "tls":
            return self._ssl
        return self._carrier if key == "carrier" else self._carrier.info(key)


PollableStream.register(TlsStream)
