"""UDP for protocols with sessions: one socket, one greenlet that reads, one heap of deadlines, one fine timer.

Belongs here: real ports, and the greenlet that serves all ports of a hub. Does not belong here: any one protocol (quic.py, kcp.py),
when a session is asked (schedule.py), simulated ports for tests (simulated.py).

How a protocol plugs in
-----------------------
Three objects play together. None of them waits, sleeps or looks at a clock: `now` is passed in, seconds of `port.now()`.

* A `DatagramPort` is where datagrams come in and go out. `listening_port(endpoint)` binds one for a server,
  `connected_port(endpoint)` makes one for a client, `SimulatedNetwork.port(address)` one for tests.
* A `DatagramProtocol` is the protocol's own, one per port. Its `on_datagram` finds the session that a datagram belongs to, or makes
  one, or drops the datagram; it feeds the session and calls `port.touch(session)`.
* A `DatagramSession` is one conversation. Its `flush(now)` sends what is due with `port.send(data, address)` and returns the time
  of its next deadline; `on_deadline(now)` is called then. `port.forget(session)` when it has ended.

    port = listening_port(Endpoint.parse("kcp://127.0.0.1:0"))
    port.start(MyProtocol(port))      # datagrams come from now on
    ...
    port.close()                      # after the last session has said goodbye: nothing is sent afterwards

All of this is called in one greenlet of the hub, `Pump`, so a session needs no locks, and may log. What the application calls
(a stream's `try_send`) runs in other greenlets of the same hub: it changes the session's state and calls `port.touch(session)`, and
the pump flushes once per turn of the loop however many writes there were. A session wakes a waiting reader or writer with
`loop.run_callback`, never by switching to it.

An exception out of `on_datagram` costs that datagram; one out of a session ends that session (`on_failure`).
"""

from __future__ import annotations

import _socket
import errno
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Final
from weakref import WeakSet

from gevent.hub import get_hub
from greenlet import greenlet

from gws_gevent.exceptions import EndpointError
from gws_gevent.transports.accepting import resolve
from gws_gevent.transports.base import Endpoint, as_transport_error
from gws_gevent.transports.fine_timer import FineTimer
from gws_gevent.transports.schedule import DatagramSession, Schedule

__all__ = [
    "DatagramPort",
    "DatagramProtocol",
    "DatagramSession",
    "UdpPort",
    "connected_port",
    "listening_port",
]

log = logging.getLogger("gws_gevent.transports")

#: What recvfrom and getsockname give: (host, port), or with IPv6 (host, port, flow, scope).
Address = Any

#: Datagrams read from one port before other greenlets get a turn.
BATCH: Final = 64
#: Bytes of the largest datagram there is.
LARGEST: Final = 65536
#: Bytes that the kernel is asked to queue for a socket: what arrives while Python does something else for 20 ms.
RECEIVE_BUFFER: Final = 4 * 1024 * 1024

#: Errors of a send that say nothing of the peer: there is no room now, or the datagram is too large.
_FULL: Final = {errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE, errno.EPERM}

# <linux/in.h>, <linux/in6.h>: set "don't fragment" and leave the size of datagrams to the protocol.
_MTU_DISCOVER: Final = {_socket.AF_INET: (_socket.IPPROTO_IP, 10), _socket.AF_INET6: (_socket.IPPROTO_IPV6, 23)}
_PROBE: Final = 3


class DatagramProtocol(ABC):
    """What a protocol does with the datagrams of one port."""

    @abstractmethod
    def on_datagram(self, data: bytes, address: Address, now: float) -> None:
        """A datagram has come. It may be anything, from anybody."""

    def on_error(self, error: OSError) -> None:
        """A connected port: the system says that the peer cannot be reached (ECONNREFUSED: nobody listens there).

        Anybody on the way can make it say so. A session that is established may wait for its own timeout instead.
        """


class DatagramPort(ABC):
    """Datagrams in and out, a clock, and the sessions that have to be asked.

    Attributes:
        local_address: as the socket module gives it.
    """

    local_address: Address

    @abstractmethod
    def start(self, protocol: DatagramProtocol) -> None:
        """Give what arrives to `protocol` from now on."""

    @abstractmethod
    def now(self) -> float:
        """Return the time in seconds, on the clock of all `now` arguments."""

    @abstractmethod
    def send(self, data: bytes, address: Address) -> None:
        """Send one datagram, or lose it: never waits and never raises. A connected port ignores the address."""

    @abstractmethod
    def touch(self, session: DatagramSession) -> None:
        """Have `session.flush` called: after this batch of datagrams, or in this turn of the loop."""

    @abstractmethod
    def forget(self, session: DatagramSession) -> None:
        """Call the session no more."""

    def share_address(self) -> None:
        """Let somebody else bind the same address while this port lives on for the sessions it has."""

    @abstractmethod
    def close(self) -> None:
        """Give the socket back. Idempotent. Sessions are not asked: they have to be forgotten before."""


class Pump:
    """The greenlet that serves all ports of a hub. It lives while there are ports.

    Watchers and the timer only wake it, in the hub: what it calls may log, and a log handler may have to wait. It runs when all
    watchers of a turn of the loop have been called, so that what has come is read before any deadline is looked at.
    """

    def __init__(self) -> None:
        self._hub = get_hub()
        self.schedule = Schedule(self._wake_soon)
        self._timer = FineTimer(self._hub.loop, self._wake_soon)
        self._ready: deque[UdpPort] = deque()
        self._buffer = bytearray(LARGEST)
        self._ports: set[UdpPort] = set()
        self._is_waiting = False
        self._is_called = False
        self._greenlet = greenlet(self._run, self._hub)
        self._hub.loop.run_callback(self._greenlet.switch)
        _all_pumps.add(self)

    def add(self, port: UdpPort) -> None:
        self._ports.add(port)

    def remove(self, port: UdpPort) -> None:
        self._ports.discard(port)
        if not self._ports:
            _pumps_of(self._hub).pop("pump", None)
            self._timer.close()
            self._wake_soon()

    def abandon(self) -> None:
        """In a forked child: sockets, timer and sessions are its parent's. Two who go on with one session would ruin it."""
        for port in list(self._ports):
            port.leave()
        self._ports.clear()
        _pumps_of(self._hub).pop("pump", None)
        self._timer.close()

    def is_ready(self, port: UdpPort) -> None:
        """In the hub: there is something to read."""
        self._ready.append(port)
        if not self._is_waiting:
            port.pause()
        self._wake_soon()

    def _wake_soon(self) -> None:
        if self._is_waiting and not self._is_called:
            self._is_called = True
            self._hub.loop.run_callback(self._wake)

    def _wake(self) -> None:
        self._is_called = False
        if self._is_waiting:
            self._is_waiting = False
            self._greenlet.switch()

    def _run(self) -> None:
        hub, schedule = self._hub, self.schedule
        while self._ports:
            is_behind = False
            while self._ready:
                is_behind |= self._ready.popleft().read(self._buffer)
            more = schedule.run(time.monotonic(), is_behind=is_behind)
            if self._ports:
                self._timer.set(schedule.next_deadline())
            if self._ready:
                continue  # it has become ready while something above waited
            self._is_waiting = True
            if more or not self._ports:
                self._wake_soon()
            while self._is_waiting:
                hub.switch()


_all_pumps: WeakSet[Pump] = WeakSet()


def _pumps_of(hub: Any) -> dict[str, Pump]:
    """The pump of a hub, if there is one: it lives with the hub, like all that its ports share."""
    found: dict[str, Pump] = hub.__dict__.setdefault("_gws_gevent_datagram_pump", {})
    return found


def _forked() -> None:
    for pump in list(_all_pumps):
        pump.abandon()
    _all_pumps.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def current_pump() -> Pump:
    """Return the pump of this hub, which is made if there is none."""
    pumps = _pumps_of(get_hub())
    pump = pumps.get("pump")
    if pump is None:
        pump = pumps["pump"] = Pump()
    return pump


class UdpPort(DatagramPort):
    """A UDP socket. It belongs to the hub that made it.

    Attributes:
        lost: datagrams that the system did not take.
    """

    def __init__(self, sock: _socket.socket, *, connected: bool) -> None:
        """Take over a bound or connected UDP socket."""
        sock.setblocking(False)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, RECEIVE_BUFFER)
        _dont_fragment(sock)
        self._socket: _socket.socket | None = sock
        self._is_connected = connected
        self._is_paused = False
        self._protocol: DatagramProtocol | None = None
        self.local_address = sock.getsockname()
        self.lost = 0
        self._pump = current_pump()
        self._pump.add(self)
        self._schedule = self._pump.schedule
        self._watcher: Any = get_hub().loop.io(sock.fileno(), 1)

    def start(self, protocol: DatagramProtocol) -> None:
        self._protocol = protocol
        self._watcher.start(self._pump.is_ready, self)

    def now(self) -> float:
        return time.monotonic()

    def send(self, data: bytes, address: Address) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            if self._is_connected:
                sock.send(data)
            else:
                sock.sendto(data, address)
        except OSError as error:
            # A full buffer, a route that is gone: to the protocol it is a datagram lost like any other.
            self.lost += 1
            if self._is_connected and error.errno not in _FULL:
                self._tell(error)

    def touch(self, session: DatagramSession) -> None:
        self._schedule.touch(session)

    def forget(self, session: DatagramSession) -> None:
        self._schedule.forget(session)

    def share_address(self) -> None:
        if self._socket is not None and sys.platform == "linux":
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)

    def again(self, address: Address) -> UdpPort:
        """A connected port: return another one to the same peer, from whatever address this machine has now; an OSError."""
        family = _socket.AF_INET6 if len(self.local_address) == 4 else _socket.AF_INET
        return UdpPort(_connected_to(family, address), connected=True)

    def close(self) -> None:
        if self._socket is not None:
            self.leave()
            self._pump.remove(self)

    # What the pump calls.

    def read(self, buffer: bytearray) -> bool:
        """Give up to BATCH datagrams to the protocol; True: there may be more."""
        protocol, sock = self._protocol, self._socket
        now = time.monotonic()
        is_behind = True
        with memoryview(buffer) as view:
            for _ in range(BATCH):
                if sock is None or protocol is None:
                    return False
                try:
                    count, address = sock.recvfrom_into(view)
                except BlockingIOError:
                    is_behind = False
                    break
                except OSError as error:
                    if self._is_connected:
                        self._tell(error)
                    if self._socket is None:
                        return False
                    continue
                try:
                    protocol.on_datagram(bytes(view[:count]), address, now)
                except Exception as error:
                    log.error("a datagram from %s was dropped: %r", address, error, exc_info=error)
                sock = self._socket
        if self._is_paused:
            self._is_paused = False
            self._watcher.start(self._pump.is_ready, self)
        return is_behind

    def pause(self) -> None:
        """The pump is busy: no more calls until it has read."""
        self._is_paused = True
        self._watcher.stop()

    def leave(self) -> None:
        """Stop watching, and close the descriptor."""
        sock, self._socket, self._protocol = self._socket, None, None
        if sock is not None:
            self._watcher.stop()
            self._watcher.close()
            sock.close()

    def _tell(self, error: OSError) -> None:
        if self._protocol is None:
            return
        try:
            self._protocol.on_error(error)
        except Exception as failure:
            log.error("what the system said of %s could not be used: %r", self.local_address, failure, exc_info=failure)


def listening_port(endpoint: Endpoint) -> UdpPort:
    """Bind a UDP port for a server.

    Raises:
        TransportError: it cannot be bound; the message names the endpoint.
    """
    try:
        return UdpPort(_bound(endpoint), connected=False)
    except OSError as error:
        raise as_transport_error(error, f"listen on {endpoint}") from error


def connected_port(endpoint: Endpoint, choice: tuple[int, Address] | None = None) -> tuple[UdpPort, Address]:
    """Make a UDP port for a client and connect it; return the port and the address it leads to.

    Args:
        choice: (family, address), one of those that `accepting.resolve` gave. None: the first one of the endpoint's host.

    Raises:
        EndpointError: the endpoint has no host or no port.
        TransportError: the name cannot be resolved, or there is no way to the address.
    """
    if not endpoint.host or not endpoint.port:
        raise EndpointError(f"{str(endpoint)!r}: to connect, a host and a port are needed")
    try:
        family, address = choice if choice is not None else resolve(endpoint.host, endpoint.port)[0]
        return UdpPort(_connected_to(family, address), connected=True), address
    except OSError as error:
        raise as_transport_error(error, f"connect to {endpoint}") from error


def _connected_to(family: int, address: Address) -> _socket.socket:
    sock = _socket.socket(family, _socket.SOCK_DGRAM)
    try:
        sock.connect(address)
        return sock
    except BaseException:
        sock.close()
        raise


def _bound(endpoint: Endpoint) -> _socket.socket:
    choices: list[tuple[int, Address]]
    if endpoint.host:
        choices = sorted(resolve(endpoint.host, endpoint.port), key=lambda choice: choice[0] != _socket.AF_INET)
    else:
        choices = [(_socket.AF_INET6, ("::", endpoint.port))] if _socket.has_ipv6 else []
        choices.append((_socket.AF_INET, ("0.0.0.0", endpoint.port)))
    for family, address in choices[:-1]:
        try:
            return _bound_to(family, address, endpoint.host)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return _bound_to(*choices[-1], endpoint.host)


def _bound_to(family: int, address: Address, host: str) -> _socket.socket:
    sock = _socket.socket(family, _socket.SOCK_DGRAM)
    try:
        if family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1 if host else 0)
        if sys.platform == "linux" and address[1]:
            # Two sockets may have one address if both say so. Ours says so while it binds, and again in `share_address`.
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0)
        else:
            sock.bind(address)
        return sock
    except BaseException:
        sock.close()
        raise


def _dont_fragment(sock: _socket.socket) -> None:
    if sys.platform != "linux":
        return
    for family, (level, option) in _MTU_DISCOVER.items():
        if family == _socket.AF_INET or sock.family == family:
            try:
                sock.setsockopt(level, option, _PROBE)
            except OSError:
                pass
