"""The KCP sessions of one listening port: which datagram belongs to which, and who may begin one.

Belongs here: the table of sessions, the server's side of the exchange of cookies, stock peers, limits, what has ended. Does not
belong here: sockets and greenlets (endpoints.py), a session's life (session.py).

A session is found by (address, conversation number). A server that wants cookies keeps nothing of anybody who has not shown one; a
server that takes stock peers (`cookie=0`) begins a session with a datagram that holds KCP's first segment, and bounds what it sends
there.
What has ended is remembered for a while, so that nothing that comes late opens it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gws_gevent.transports.datagram import Address, DatagramPort, DatagramProtocol
from gws_gevent.transports.kcp.cipher import Bare, Seal, Sealed, Summed
from gws_gevent.transports.kcp.cookie import COOKIE_LIFE, NONCE, Code, Control, Controls, Cookies, Kind
from gws_gevent.transports.kcp.core import HEADER, MakeCore
from gws_gevent.transports.kcp.params import KcpParams
from gws_gevent.transports.kcp.session import KcpSession, SessionParts
from gws_gevent.transports.newcomers import Newcomers

__all__ = ["KcpServer", "make_seal", "overhead_of"]

#: Seconds that an ended session is remembered: no cookie is good for longer, and a stock peer's packets are no longer under way.
REMEMBERED: Final = COOKIE_LIFE + 5.0
REMEMBERED_STOCK: Final = 60.0
#: Ended sessions that are remembered; the oldest are forgotten above.
MOST_REMEMBERED: Final = 65536
#: Sessions of stock peers that have acknowledged nothing yet.
MOST_UNPROVEN: Final = 1000
#: What begins all conversations: PUSH, any fragment and window, any time, sequence number 0.
_PUSH: Final = 81


def overhead_of(params: KcpParams) -> int:
    """Return the bytes that protect each datagram."""
    if not params.cookie:
        return Bare.overhead
    return Summed.overhead if params.key is None else Sealed.overhead


def make_seal(params: KcpParams, conv: bytes, client_nonce: bytes, server_nonce: bytes, *, is_client: bool) -> Seal:
    """Return what protects the datagrams of a session that began with an exchange of cookies."""
    if params.key is None:
        return Summed(client_nonce, server_nonce, is_client=is_client)
    return Sealed(params.key, params.cipher, conv, client_nonce, server_nonce, is_client=is_client)


class KcpServer(DatagramProtocol):
    """All sessions of a port.

    Attributes:
        sessions: by (address, conversation number), those that linger included.
        newcomers: datagrams of whoever has no session.
        accepts: new ones may begin.
        refused: starts that a limit has refused.
    """

    def __init__(
        self,
        port: DatagramPort,
        params: KcpParams,
        make_core: MakeCore,
        random: Callable[[int], bytes],
        on_session: Callable[[KcpSession], object],
        on_empty: Callable[[], object] = lambda: None,
    ) -> None:
        """Take a port that is not started yet.

        Args:
            random: returns so many random bytes.
            on_session: called with each new session. It may not block.
            on_empty: called when the last session has ended.
        """
        self._port = port
        self._params = params
        self._make_core = make_core
        self._random = random
        self._on_session = on_session
        self._on_empty = on_empty
        self._controls = Controls(params.key, params.cipher)
        self._cookies = Cookies(random)
        self._parts = SessionParts(port, params, self._controls, overhead_of(params))
        self._of_address: dict[str, int] = {}
        self._unproven = 0
        self._ended: dict[tuple[Address, bytes], bytes] = {}
        self._ended_at: deque[tuple[float, tuple[Address, bytes]]] = deque()
        self.sessions: dict[tuple[Address, bytes], KcpSession] = {}
        self.newcomers = Newcomers(self._serve_newcomer, port.touch, port.now)
        self.accepts = True
        self.refused = 0

    def on_datagram(self, data: bytes, address: Address, now: float) -> None:
        """See DatagramProtocol."""
        if len(data) < HEADER:
            return
        session = self.sessions.get((address, data[:4]))
        if session is None:
            self.newcomers.add(data, address)
            return
        self.newcomers.heard_at = now
        if not self._is_control(data):
            session.on_datagram(data, now)
        elif (control := self._controls.read(data)) is not None:
            self._on_control(control, session, address, now)

    def _is_control(self, data: bytes) -> bool:
        return self._params.cookie and Kind.HELLO <= data[4] <= Kind.RESET

    def _serve_newcomer(self, data: bytes, address: Address, now: float) -> None:
        conv = data[:4]
        session = self.sessions.get((address, conv))
        if session is not None:
            self.on_datagram(data, address, now)  # it has begun with a datagram before this one
        elif not self._params.cookie:
            self._begin_stock(data, address, now)
        elif not self._is_control(data):
            self._tell_gone(conv, address, now)
        elif (control := self._controls.read(data)) is not None:
            self._on_control(control, None, address, now)

    def leave(self) -> None:
        """Nobody new will come, and nobody is left."""
        self._port.forget(self.newcomers)

    def _on_control(self, control: Control, session: KcpSession | None, address: Address, now: float) -> None:
        if control.kind is Kind.HELLO:
            refusal = self._refusal(address)
            if refusal:
                self._refuse(control, refusal, address)
                return
            conv = self._new_conv()
            cookie = self._cookies.make(address, conv, control.nonce, now)
            self._send(Control(Kind.COOKIE, conv, control.nonce, cookie), address)
        elif control.kind is Kind.START:
            self._on_start(control, session, address, now)
        elif session is not None:
            session.on_control(control)

    def _on_start(self, control: Control, session: KcpSession | None, address: Address, now: float) -> None:
        if session is not None:
            if session.accept is not None and session.nonce == control.nonce:
                self._port.send(session.accept, address)  # the first one was lost
            return
        if not self._cookies.is_right(control.extra, address, control.conv, control.nonce, now):
            return
        if self._has_ended((address, control.conv), now):
            return
        refusal = self._refusal(address)
        if refusal:
            self._refuse(control, refusal, address)
            return
        nonce = self._random(NONCE)
        seal = make_seal(self._params, control.conv, control.nonce, nonce, is_client=False)
        session = self._add(seal, address, control.conv, control.nonce, proven=True)
        session.accept = self._controls.write(Control(Kind.ACCEPT, control.conv, control.nonce, nonce))
        self._port.send(session.accept, address)
        self._on_session(session)

    def _begin_stock(self, data: bytes, address: Address, now: float) -> None:
        if not _begins_conversation(data) or self._has_ended((address, data[:4]), now):
            return
        if self._refusal(address) or self._unproven >= MOST_UNPROVEN:
            self.refused += 1  # there is no way to tell
            return
        session = self._add(Bare(), address, data[:4], b"", proven=False)
        session.on_datagram(data, now)
        self._on_session(session)

    def _add(self, seal: Seal, address: Address, conv: bytes, nonce: bytes, *, proven: bool) -> KcpSession:
        parts = self._parts
        core = self._make_core(int.from_bytes(conv, "little"), parts.tuning, parts.outbox)
        clock = int.from_bytes(self._random(4), "little")
        session = KcpSession(parts, core, seal, address, conv, nonce, clock, proven=proven)
        session.on_end = self._on_end
        session.on_proof = self._on_proof
        self.sessions[address, conv] = session
        self._of_address[address[0]] = self._of_address.get(address[0], 0) + 1
        self._unproven += not proven
        self._port.touch(session)
        return session

    def _on_proof(self) -> None:
        self._unproven -= 1

    def _on_end(self, session: KcpSession) -> None:
        key = session.address, session.conv
        del self.sessions[key]
        left = self._of_address[session.address[0]] - 1
        if left:
            self._of_address[session.address[0]] = left
        else:
            del self._of_address[session.address[0]]
        now = self._port.now()
        self._forget(now)
        self._ended[key] = session.nonce
        self._ended_at.append((now, key))
        if not self.sessions:
            self._on_empty()

    def _refusal(self, address: Address) -> int:
        if not self.accepts:
            return Code.CLOSED
        params = self._params
        if len(self.sessions) >= params.sessions or self._of_address.get(address[0], 0) >= params.sessions_per_address:
            return Code.FULL
        return Code.NONE

    def _refuse(self, control: Control, code: int, address: Address) -> None:
        self.refused += 1
        self._send(Control(Kind.REFUSE, control.conv, control.nonce, code=code), address)

    def _tell_gone(self, conv: bytes, address: Address, now: float) -> None:
        nonce = self._ended.get((address, conv))
        if nonce:
            self._send(Control(Kind.RESET, conv, nonce, code=Code.GONE), address)

    def _has_ended(self, key: tuple[Address, bytes], now: float) -> bool:
        self._forget(now)
        return key in self._ended

    def _forget(self, now: float) -> None:
        before = now - (REMEMBERED if self._params.cookie else REMEMBERED_STOCK)
        ended = self._ended_at
        while ended and (ended[0][0] < before or len(ended) >= MOST_REMEMBERED):
            self._ended.pop(ended.popleft()[1], None)

    def _new_conv(self) -> bytes:
        while True:
            conv = self._random(4)
            if conv != b"\0\0\0\0":
                return conv

    def _send(self, control: Control, address: Any) -> None:
        self._port.send(self._controls.write(control), address)


def _begins_conversation(data: bytes) -> bool:
    """Whether a segment of a stock peer's datagram is the first of all. A later one may come first: it will be sent again."""
    at = 0
    conv = data[:4]
    while at + HEADER <= len(data) and data[at : at + 4] == conv:
        if data[at + 4] == _PUSH and data[at + 12 : at + 16] == b"\0\0\0\0":
            return True
        at += HEADER + int.from_bytes(data[at + 20 : at + 24], "little")
    return False
