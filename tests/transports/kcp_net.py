"""KCP servers and clients in simulated time, for the tests of KCP.

Belongs here: what several of them share. Does not belong here: tests; real sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from gws_gevent.transports.base import Endpoint
from gws_gevent.transports.kcp.client import KcpClient
from gws_gevent.transports.kcp.core import find_core
from gws_gevent.transports.kcp.params import client_params, server_params
from gws_gevent.transports.kcp.server import KcpServer
from gws_gevent.transports.kcp.session import KcpSession
from gws_gevent.transports.kcp.stream import KcpStream
from gws_gevent.transports.simulated import Impairment, SimulatedNetwork, SimulatedPort

__all__ = ["BAD_LINE", "CLIENT", "SERVER", "KcpNet"]

SERVER = ("192.0.2.1", 4000)
CLIENT = ("192.0.2.2", 50000)
#: 20 % loss each way, up to 50 ms late and so out of order, some twice, some with a bit changed.
BAD_LINE = Impairment(loss=0.2, duplicate=0.05, flip=0.02, delay=0.01, jitter=0.05)


@dataclass
class KcpNet:
    """A server on a simulated network, and the clients that it gets.

    Attributes:
        accepted: the server's streams, in order.
        sessions: their sessions.
    """

    impairment: Impairment = field(default_factory=Impairment)
    seed: int = 0
    params: str = ""
    server_only: str = ""

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.network = SimulatedNetwork(self.impairment, seed=self.seed)
        self.port = self.network.port(SERVER)
        parsed = server_params(Endpoint.parse(f"kcp://:1?{self.params}&{self.server_only}"))
        self.accepted: list[KcpStream] = []
        self.sessions: list[KcpSession] = []
        self.server = KcpServer(self.port, parsed, find_core(parsed.core), self.random.randbytes, self._on_session)
        self.port.start(self.server)

    def _on_session(self, session: KcpSession) -> None:
        self.sessions.append(session)
        self.accepted.append(KcpStream(session, SERVER))

    def client(self, address: Any = CLIENT, params: str | None = None) -> tuple[KcpClient, SimulatedPort]:
        """Begin a client."""
        port = self.network.port(address)
        parsed = client_params(Endpoint.parse(f"kcp://h:1?{self.params if params is None else params}"))
        client = KcpClient(port, SERVER, parsed, find_core(parsed.core), self.random.randbytes, lambda: None)
        client.begin()
        return client, port

    def dial(self, address: Any = CLIENT) -> KcpStream:
        """Return a client's stream, its handshake done."""
        client, _ = self.client(address)
        assert self.run(lambda: client.session is not None or client.error is not None)
        assert client.session is not None, client.error
        return KcpStream(client.session, address)

    def pair(self, address: Any = CLIENT) -> tuple[KcpStream, KcpStream]:
        """Return a client's stream and the server's, both ready. A server of stock peers gets a first byte, which is read."""
        count = len(self.accepted)
        ours = self.dial(address)
        if not ours._session.nonce:
            ours.try_send(b"!")
        assert self.run(lambda: len(self.accepted) > count)
        theirs = self.accepted[-1]
        if not ours._session.nonce:
            assert self.run(lambda: theirs.try_recv_into(bytearray(1)) == 1)
        return ours, theirs

    def run(self, until: Callable[[], object] = lambda: False, seconds: float = 60.0) -> bool:
        """Let time pass."""
        return self.network.run(until, seconds=seconds)
