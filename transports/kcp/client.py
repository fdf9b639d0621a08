"""The client's side of a KCP session: the exchange of cookies, and then the one session of its port.

Belongs here: what is sent until there is a session. Does not belong here: sockets, waiting (endpoints.py), a session's life
(session.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from gws_gevent.exceptions import TransportError
from gws_gevent.transports.datagram import Address, DatagramPort, DatagramProtocol, DatagramSession
from gws_gevent.transports.kcp.cipher import Bare, Seal
from gws_gevent.transports.kcp.cookie import COOKIE_LIFE, NONCE, Code, Control, Controls, Kind
from gws_gevent.transports.kcp.core import HEADER, MakeCore
from gws_gevent.transports.kcp.params import KcpParams
from gws_gevent.transports.kcp.server import make_seal, overhead_of
from gws_gevent.transports.kcp.session import KcpSession, SessionParts

__all__ = ["KcpClient"]

#: Seconds after which what has not been answered is sent again: the first time, and at most. Each wait is twice the last.
FIRST_WAIT: Final = 0.2
LONGEST_WAIT: Final = 1.0
#: Seconds without an answer after which there will be none.
GIVE_UP: Final = 10.0


class KcpClient(DatagramProtocol, DatagramSession):
    """The protocol of a client's port: until there is a session it is asked by the schedule itself.

    Attributes:
        session: None until the server has accepted.
        error: why there will be none.
    """

    def __init__(
        self,
        port: DatagramPort,
        address: Address,
        params: KcpParams,
        make_core: MakeCore,
        random: Callable[[int], bytes],
        on_done: Callable[[], object],
        on_end: Callable[[KcpSession], object] | None = None,
    ) -> None:
        """Take a port that is not started yet.

        Args:
            random: returns so many random bytes.
            on_done: called once, when there is a session or an error. It may not block.
            on_end: see KcpSession.
        """
        DatagramSession.__init__(self)
        self._port = port
        self._address = address
        self._params = params
        self._make_core = make_core
        self._random = random
        self._on_done = on_done
        self._on_end = on_end
        self._controls = Controls(params.key, params.cipher)
        self._nonce = random(NONCE)
        self._conv = b""
        self._message = b""
        self._cookie_until = 0.0
        self._wait = FIRST_WAIT
        self._next = self._give_up = 0.0
        self.session: KcpSession | None = None
        self.error: TransportError | None = None

    def begin(self) -> None:
        """Start the port and say hello. With a stock peer there is a session at once, whether anybody listens or not."""
        self._port.start(self)
        if not self._params.cookie:
            conv = self._random(3) + b"\1"  # the last byte: stock peers may take 0 for none, or a sign for one
            self._open(Bare(), conv, b"")
            return
        self._give_up = self._port.now() + GIVE_UP
        self._say_hello()

    def cancel(self) -> None:
        """Be asked no more: whoever waited has left."""
        self._port.forget(self)

    # What the port calls

    def on_datagram(self, data: bytes, address: Address, now: float) -> None:
        """See DatagramProtocol."""
        if len(data) < HEADER:
            return
        session = self.session
        if not self._params.cookie or not Kind.HELLO <= data[4] <= Kind.RESET:
            if session is not None and session.conv == data[:4]:
                session.on_datagram(data, now)
            return
        control = self._controls.read(data)
        if control is None or control.nonce != self._nonce:
            return
        if session is not None:
            if session.conv == control.conv:
                session.on_control(control)
        elif self.error is None:
            self._on_answer(control, now)

    def on_error(self, error: OSError) -> None:
        """See DatagramProtocol. Before anything has come it is believed; a session that is established has its own limits."""
        number, said = error.errno or errno.ECONNREFUSED, error.strerror or str(error)
        if self.session is None:
            self._fail(number, said)
        elif not self.session.was_heard:
            self.session.fail(TransportError(number, said))

    # What the schedule calls

    def flush(self, now: float) -> float | None:
        """See DatagramSession."""
        if self.session is not None or self.error is not None:
            return None
        if now >= self._next:
            self._port.send(self._message, self._address)
            self._next = now + self._wait
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        return min(self._next, self._give_up)

    def on_deadline(self, now: float) -> None:
        """See DatagramSession."""
        if now >= self._give_up:
            what = "the same key and cipher" if self._params.key is not None else "no key, and no cookie=0"
            self._fail(errno.ETIMEDOUT, f"no answer within {GIVE_UP:g} seconds (is a server there, with {what}?)")
        elif self._cookie_until and now >= self._cookie_until:
            self._say_hello()

    def on_failure(self, error: Exception) -> None:
        """See DatagramSession."""
        self._fail(errno.EIO, f"the handshake failed: {error!r}")

    # The exchange

    def _say_hello(self) -> None:
        self._cookie_until = 0.0
        self._ask(Control(Kind.HELLO, bytes(4), self._nonce))

    def _ask(self, control: Control) -> None:
        self._message = self._controls.write(control)
        self._wait = FIRST_WAIT
        self._next = 0.0
        self._port.touch(self)

    def _on_answer(self, control: Control, now: float) -> None:
        if control.kind is Kind.COOKIE and not self._cookie_until:
            self._conv = control.conv
            self._cookie_until = now + COOKIE_LIFE - 1
            self._ask(Control(Kind.START, control.conv, self._nonce, control.extra))
        elif control.kind is Kind.ACCEPT and self._cookie_until and control.conv == self._conv:
            seal = make_seal(self._params, control.conv, self._nonce, control.extra, is_client=True)
            self._open(seal, control.conv, self._nonce)
        elif control.kind is Kind.REFUSE:
            said = "the server has too many sessions" if control.code == Code.FULL else "the server accepts no more sessions"
            self._fail(errno.ECONNREFUSED, said)

    def _open(self, seal: Seal, conv: bytes, nonce: bytes) -> None:
        parts = SessionParts(self._port, self._params, self._controls, overhead_of(self._params))
        core = self._make_core(int.from_bytes(conv, "little"), parts.tuning, parts.outbox)
        clock = int.from_bytes(self._random(4), "little")
        self.session = KcpSession(parts, core, seal, self._address, conv, nonce, clock, proven=True)
        self.session.on_end = self._on_end
        self._port.forget(self)
        self._port.touch(self.session)
        self._on_done()

    def _fail(self, number: int, said: str) -> None:
        if self.session is None and self.error is None:
            self.error = TransportError(number, said)
            self._port.forget(self)
            self._on_done()
