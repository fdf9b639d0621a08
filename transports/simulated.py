"""A network that is not there: seeded loss, delay, reordering, duplication and bit flips, and a clock that runs as fast as it can.

Belongs here: what may happen to a datagram on its way, ports without sockets. Does not belong here: protocols, real sockets.

For tests of protocols on top of `datagram.py`: hours pass in seconds, and a seed gives the same run again.

    network = SimulatedNetwork(Impairment(loss=0.2, delay=0.02, jitter=0.05), seed=1)
    server = network.port(("192.0.2.1", 4433))
    client = network.port(("192.0.2.2", 50000))
    server.start(ServerProtocol(server))
    client.start(ClientProtocol(client))
    network.run(until=lambda: client_is_done, seconds=60)

No greenlet waits in simulated time: a test uses what streams have for callers that do not wait, `try_send` and `try_recv_into`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

from gws_gevent.transports.datagram import Address, DatagramPort, DatagramProtocol
from gws_gevent.transports.schedule import DatagramSession, Schedule

__all__ = ["Impairment", "SimulatedNetwork", "SimulatedPort"]

log = logging.getLogger("gws_gevent.transports")


@dataclass(frozen=True, slots=True)
class Impairment:
    """What a network does to datagrams. Shares are from 0 to 1, times in seconds.

    Attributes:
        loss: share that does not arrive.
        duplicate: share that arrives twice.
        flip: share in which one bit is changed.
        delay: one way.
        jitter: each datagram is late by another 0 to `jitter`, so that later ones overtake it.
        rate: bytes per second; what is sent faster queues up. None: no limit.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    flip: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None

    def copies(self, data: bytes, random: Random) -> Iterator[tuple[float, bytes]]:
        """Yield (seconds until it arrives, what arrives) for each copy of a datagram."""
        for _ in range(1 + (random.random() < self.duplicate)):
            if random.random() < self.loss:
                continue
            arrives = data
            if data and random.random() < self.flip:
                changed = bytearray(data)
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
                arrives = bytes(changed)
            yield self.delay + random.random() * self.jitter, arrives


class SimulatedNetwork:
    """Ports by their addresses, and what is on its way between them.

    Attributes:
        impairment: may be changed at any time, for datagrams sent from then on.
        sent: datagrams that were given to `send`.
        delivered: those that arrived somewhere, copies included.
        bytes_sent: by the address that sent them.
    """

    def __init__(self, impairment: Impairment | None = None, *, seed: int = 0) -> None:
        self.impairment = impairment or Impairment()
        self.random = Random(seed)
        self.sent = 0
        self.delivered = 0
        self.bytes_sent: dict[Address, int] = {}
        self._now = 1000.0
        self._ports: dict[Address, SimulatedPort] = {}
        self._on_the_way: list[tuple[float, int, bytes, Address, Address]] = []
        self._free_at: dict[Address, float] = {}
        self.schedule = Schedule(lambda: None)

    def port(self, address: Address) -> SimulatedPort:
        """Make a port; its address must not be in use."""
        if address in self._ports:
            raise ValueError(f"{address!r} is in use")
        port = self._ports[address] = SimulatedPort(self, address)
        return port

    def now(self) -> float:
        """Return the simulated time."""
        return self._now

    def carry(self, data: bytes, source: Address, target: Address) -> None:
        """Send one datagram from anywhere, such as a forged one."""
        self.sent += 1
        self.bytes_sent[source] = self.bytes_sent.get(source, 0) + len(data)
        leaves = self._now
        if self.impairment.rate is not None:
            leaves = max(leaves, self._free_at.get(source, leaves)) + len(data) / self.impairment.rate
            self._free_at[source] = leaves
        for late, arrives in self.impairment.copies(data, self.random):
            heappush(self._on_the_way, (leaves + late, self.sent, arrives, source, target))

    def run(self, until: Callable[[], object] = lambda: False, *, seconds: float) -> bool:
        """Let time pass until `until()` is true, or for `seconds`; return whether it became true.

        `until` is asked after each moment at which something happened: it may also write and read.
        """
        end = self._now + seconds
        while True:
            self._flush()
            if until():
                return True
            self._flush()
            moment = self._next_moment()
            if moment is None or moment > end:
                self._now = end
                return bool(until())
            self._now = max(self._now, moment)
            self._deliver()

    def _flush(self) -> None:
        while self.schedule.run(self._now):
            pass

    def _next_moment(self) -> float | None:
        moments = [self._on_the_way[0][0]] if self._on_the_way else []
        deadline = self.schedule.next_deadline()
        if deadline is not None:
            moments.append(deadline)
        return min(moments, default=None)

    def _deliver(self) -> None:
        while self._on_the_way and self._on_the_way[0][0] <= self._now:
            _, _, data, source, target = heappop(self._on_the_way)
            port = self._ports.get(target)
            if port is not None and port.protocol is not None:
                self.delivered += 1
                try:
                    port.protocol.on_datagram(data, source, self._now)
                except Exception as error:
                    log.error("a datagram from %s was dropped: %r", source, error, exc_info=error)

    def close(self, port: SimulatedPort) -> None:
        """Called by the port."""
        if self._ports.get(port.local_address) is port:
            del self._ports[port.local_address]


class SimulatedPort(DatagramPort):
    """A port of a simulated network.

    Attributes:
        local_address: where its datagrams come from; set it to another one and the peer sees a migration (RFC 9000 section 9).
    """

    def __init__(self, network: SimulatedNetwork, address: Address) -> None:
        self.network = network
        self.local_address = address
        self.protocol: DatagramProtocol | None = None

    def start(self, protocol: DatagramProtocol) -> None:
        self.protocol = protocol

    def now(self) -> float:
        return self.network.now()

    def send(self, data: bytes, address: Address) -> None:
        if self.network._ports.get(self.local_address) is self:
            self.network.carry(data, self.local_address, address)

    def touch(self, session: DatagramSession) -> None:
        self.network.schedule.touch(session)

    def forget(self, session: DatagramSession) -> None:
        self.network.schedule.forget(session)

    def move(self, address: Address) -> None:
        """Have another address from now on, as after a change from one network to another."""
        self.network.close(self)
        self.local_address = address
        self.network._ports[address] = self

    def close(self) -> None:
        self.protocol = None
        self.network.close(self)
