"""A QUIC server and a client in a simulated network, for tests without sockets and without waiting.

Belongs here: making them, moving bytes between them. Does not belong here: tests.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from aioquic.quic.configuration import QuicConfiguration

from gws_gevent.exceptions import TransportError
from gws_gevent.transports import registry
from gws_gevent.transports.base import ListenSettings, TlsFiles
from gws_gevent.transports.quic.dialer import ClientConnection
from gws_gevent.transports.quic.listener import QuicListener
from gws_gevent.transports.quic.stream import QuicStream
from gws_gevent.transports.simulated import Impairment, SimulatedNetwork, SimulatedPort

__all__ = ["SERVER", "Echo", "Transfer", "World"]

SERVER = ("192.0.2.1", 4433)
WINDOW = 256 * 1024


class Echo:
    """Sends back what comes, on streams that are asked and never waited for."""

    def __init__(self) -> None:
        self.streams: list[QuicStream] = []
        self.held: dict[QuicStream, bytes] = {}

    def accept(self, stream: Any) -> None:
        self.streams.append(stream)

    def step(self) -> None:
        for stream in list(self.streams):
            try:
                self._step(stream)
            except TransportError:
                stream.abort()
                self.streams.remove(stream)

    def _step(self, stream: QuicStream) -> None:
        buffer = bytearray(65536)
        while True:
            held = self.held.pop(stream, b"")
            if held:
                left = held[stream.try_send(held) :]
                if left:
                    self.held[stream] = left
                    return
            got = stream.try_recv_into(buffer)
            if got < 0:
                return
            if got == 0:
                stream.close()
                self.streams.remove(stream)
                return
            self.held[stream] = bytes(buffer[:got])


class Transfer:
    """Sends bytes on one stream, ends it, and reads to its end.

    Attributes:
        received: what came back.
        error: what went wrong; None: nothing did.
        done: it has come to an end of either kind.
    """

    def __init__(self, stream: QuicStream, data: bytes) -> None:
        self.stream = stream
        self.received = bytearray()
        self.error: TransportError | None = None
        self.done = False
        self._data = memoryview(data)

    def step(self) -> None:
        if self.done:
            return
        try:
            self._step()
        except TransportError as error:
            self.error = error
            self.done = True
            self.stream.abort()

    def _step(self) -> None:
        if self._data:
            self._data = self._data[self.stream.try_send(self._data[:65536]) :]
            if not self._data:
                self.stream.shutdown_write()
        buffer = bytearray(65536)
        while (got := self.stream.try_recv_into(buffer)) > 0:
            self.received += buffer[:got]
        if got == 0:
            self.done = True
            self.stream.close()


class World:
    """A simulated network with a server in it.

    Attributes:
        network, listener: these.
        echo: what serves the streams.
    """

    def __init__(
        self, cert: str, impairment: Impairment | None = None, *, seed: int = 0, endpoint: str = "quic://192.0.2.1:4433"
    ) -> None:
        self.network = SimulatedNetwork(impairment, seed=seed)
        self.echo = Echo()
        settings = ListenSettings(tls=TlsFiles(cert), spawn=lambda function, stream: function(stream))
        listener = registry.listen(endpoint, settings)
        assert isinstance(listener, QuicListener)
        self.listener = listener
        self.server_port = self.network.port(SERVER)
        listener.start_on(self.server_port, self.echo.accept)
        self._clients = 0

    @property
    def server(self) -> Any:
        return self.listener.server

    def client(self, address: Any = None, **configuration: Any) -> tuple[ClientConnection, SimulatedPort]:
        """Make a client at an address of its own, and its port."""
        self._clients += 1
        port = self.network.port(address or (f"198.51.100.{self._clients % 250}", 1024 + self._clients))
        settings: dict[str, Any] = {
            "is_client": True,
            "alpn_protocols": ["ws"],
            "server_name": "localhost",
            "verify_mode": ssl.CERT_NONE,
            "max_data": 4 * WINDOW,
            "max_stream_data": WINDOW,
        }
        client = ClientConnection(port, SERVER, QuicConfiguration(**settings | configuration), f"connect from {port.local_address}")
        return client, port

    def run(self, until: Callable[[], object] = lambda: False, seconds: float = 60.0) -> bool:
        """Let time pass; the echo works meanwhile."""

        def step() -> object:
            self.echo.step()
            return until()

        return self.network.run(step, seconds=seconds)

    def connect(self, address: Any = None, **configuration: Any) -> tuple[ClientConnection, SimulatedPort]:
        """Make a client and wait for its handshake."""
        client, port = self.client(address, **configuration)
        assert self.run(lambda: client.session.established)
        return client, port
