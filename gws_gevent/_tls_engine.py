# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""An SSLObject between two memory BIOs that it shares with others, and its handshake.

Belongs here: what goes into the BIOs and out of them, the handshake. Does not belong here: data, the end of a stream
(_tls_stream.py), contexts, sessions.

The streams of a hub share one pair of BIOs: an idle connection has none, and a busy one leaves no grown buffer behind. It
works because each use of an SSLObject begins by putting in what that stream has received (`_borrow`) and ends by taking out
all that is left and all that was made (`_give_back`), with no switch in between. So records also leave in the order in which
they were made, whoever made them.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from types import NoneType
from typing import Any, Final

import gevent

from gws_gevent.exceptions import StreamClosed, TransportError
from gws_gevent.runtime import current
from gws_gevent.transports.tls_contexts import may_switch

from ._fdio import SocketStream

__all__ = ["TlsEngine", "reason_of"]

#: Seconds after which to try again to shake hands while a callback of another handshake waits for something.
RETRY_DELAY: Final = 0.01

_PLAIN_HTTP_BODY = b"This port speaks TLS: use https:// or wss://.\n"
_PLAIN_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_PLAIN_HTTP_BODY), _PLAIN_HTTP_BODY)
)


class Buffers:
    """A pair of BIOs, both empty but for the length of one call on an SSLObject, and where received bytes are put first.

    Attributes:
        busy: a call is under way. Only a finalizer, a signal handler or a callback of the context can see that.
    """

    __slots__ = ("busy", "incoming", "outgoing", "scratch", "view")

    def __init__(self, scratch: bytearray) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.scratch = scratch
        self.view = memoryview(scratch)
        self.busy = False


def _buffers_for(context: ssl.SSLContext) -> Buffers:
    """The pair that this hub's streams share, or a new one: where a callback might let others run in the middle of a handshake, and
    where those that are shared are of the other build."""
    runtime = current()
    if may_switch(context) or type(runtime.tls_buffers) not in (Buffers, NoneType):
        return Buffers(runtime.scratch)
    if runtime.tls_buffers is None:
        runtime.tls_buffers = Buffers(runtime.scratch)
    buffers: Buffers = runtime.tls_buffers
    return buffers


class TlsEngine:
    """The SSLObject of a stream, and all that the stream keeps: TlsStream has nothing of its own."""

    __slots__ = (
        "_buffers", "_carrier", "_closed", "_core", "_ended", "_failure", "_held", "_keep_session", "_linger", "_more",
        "_on_writable", "_pending", "_plain", "_sending", "_ssl", "_stalled",
    )  # fmt: skip

    def __init__(
        self,
        carrier: SocketStream,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        keep_session: Callable[[ssl.SSLSession], object] | None = None,
    ) -> None:
        """Begin TLS on a connected stream; `handshake` does the rest.

        Args:
            session: of a client: what to resume, if the server still knows it.
            keep_session: of a client: called once with a session that can be resumed later, when data has come.
        """
        self._carrier = carrier
        self._buffers = _buffers_for(context)
        bios = self._buffers.incoming, self._buffers.outgoing
        self._ssl = context.wrap_bio(*bios, server_side=server_side, server_hostname=server_hostname, session=session)
        # An SSLObject only passes reads and writes on to this.
        self._core: Any = getattr(self._ssl, "_sslobj", self._ssl)
        self._keep_session = keep_session
        #: Bytes the carrier has given and the SSLObject has not taken yet.
        self._held: bytes | None = None
        #: Records the carrier has not taken yet.
        self._pending: bytearray | None = None
        #: Plaintext that had to be read before its time.
        self._plain: bytearray | None = None
        self._on_writable: Callable[[], object] | None = None
        self._linger: Any = None
        self._failure: str | None = None
        self._more = True  # there may be plaintext without new bytes from the carrier
        self._ended = False
        self._stalled = False
        self._sending = False
        self._closed = False

    # The shared BIOs

    def _borrow(self) -> Any:
        """Put what was held back into the BIOs, and what somebody's interrupted call has there aside; return that."""
        buffers = self._buffers
        aside = self._set_aside()
        if self._held is not None:
            held, self._held = self._held, None
            buffers.incoming.write(held)
        return aside

    def _give_back(self, aside: Any) -> Any:
        """Leave the BIOs as they were found; return the records that have been made, or None."""
        buffers = self._buffers
        if buffers.incoming.pending:
            self._held = buffers.incoming.read()
        records = buffers.outgoing.read() if buffers.outgoing.pending else None
        self._put_back(aside)
        return records

    def _set_aside(self) -> Any:
        """All that a write needs of `_borrow`: it reads nothing."""
        buffers = self._buffers
        aside = (buffers.incoming.read(), buffers.outgoing.read()) if buffers.busy else None
        buffers.busy = True
        return aside

    def _put_back(self, aside: Any) -> None:
        buffers = self._buffers
        if aside is None:
            buffers.busy = False
        else:
            buffers.incoming.write(aside[0])
            buffers.outgoing.write(aside[1])

    # The handshake

    def handshake(self, received: bytes = b"") -> None:
        """Do the TLS handshake; a TransportError that says why if it fails."""
        if received:
            self._held = received
        while not self._advance_handshake():
            self._fetch_for_handshake()

    def _advance_handshake(self) -> bool:
        while self._buffers.busy:
            gevent.sleep(RETRY_DELAY)
        if self._closed:
            raise StreamClosed("TLS handshake: the stream is closed")
        failure: ssl.SSLError | None = None
        done = False
        aside = self._borrow()
        try:
            self._ssl.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            failure = error
        finally:
            records = self._give_back(aside)
        if failure is not None:
            self._tell_why(failure, records)
            raise TransportError(f"TLS handshake: {reason_of(failure)}") from failure
        self._push(records)
        return done

    def _fetch_for_handshake(self) -> None:
        buffers = self._buffers
        received = self._carrier.try_recv_into(buffers.scratch)
        while received < 0:
            self._carrier.wait_readable()
            if self._closed:
                raise StreamClosed("TLS handshake: the stream was closed")
            received = self._carrier.try_recv_into(buffers.scratch)
        if received == 0:
            raise TransportError("TLS handshake: the peer closed the connection")
        fresh = bytes(buffers.view[:received])
        self._held = fresh if self._held is None else self._held + fresh

    def _tell_why(self, error: ssl.SSLError, alert: Any) -> None:
        """Let the peer know, if it can be done at once: an alert, or a plain answer to a plain request."""
        self._failure = reason_of(error)
        try:
            if error.reason == "HTTP_REQUEST":
                self._carrier.try_send(_PLAIN_HTTP_ANSWER)
            else:
                self._push(alert)
        except TransportError:
            pass

    def _push(self, records: bytes | None) -> None:
        """Hand over what the SSLObject has produced, in its order. Never waits."""
        raise NotImplementedError


def reason_of(error: ssl.SSLError) -> str:
    """What went wrong, in the words of an error text."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the peer is not accepted: {error.verify_message}"
    if error.reason == "HTTP_REQUEST":
        return "the peer speaks plain HTTP"
    if error.reason == "WRONG_VERSION_NUMBER":  # OpenSSL's word for the first byte of something that is no record of TLS
        return "the peer does not speak TLS (wrong version number)"
    return (error.reason or str(error)).lower().replace("_", " ")
