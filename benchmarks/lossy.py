"""How late messages are on a line that loses packets: TCP, KCP and QUIC, in simulated time.

    python -m benchmarks.lossy
    python -m benchmarks.lossy --loss 0,5,20 --rtt 100 --jitter 0 --seconds 120

Belongs here: the traffic, the table. Does not belong here: how fast a transport is on a good line (datagrams.py); the model of TCP
and the same game on real sockets (examples/game_tick).

KCP and QUIC are this package's own, from their streams down to datagrams; the line, the clock and all waiting are
`transports/simulated.py`. TCP is a model (examples/game_tick/tcp_model.py), since a kernel's cannot be run in simulated time; where
it simplifies it is kind to TCP. What the processor needs is not in these figures, nor are WebSocket's 2 to 8 bytes.

Two kinds of traffic. "60 Hz": 200 bytes 60 times a second one way, 40 bytes as often the other way; what counts is how old the
200 bytes are when they arrive. "now and then": 200 bytes twice a second, each answered at once with as many; what counts is the
time until the answer is there.
"""

from __future__ import annotations

import argparse
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Protocol

from aioquic.quic.configuration import QuicConfiguration

from benchmarks.certificate import make_certificate
from examples.game_tick.tcp_model import SEGMENT, TcpConnection
from gws_gevent.transports import registry
from gws_gevent.transports.base import Endpoint, ListenSettings, TlsFiles
from gws_gevent.transports.kcp.client import KcpClient
from gws_gevent.transports.kcp.core import find_core
from gws_gevent.transports.kcp.params import client_params, server_params
from gws_gevent.transports.kcp.server import KcpServer
from gws_gevent.transports.kcp.stream import KcpStream
from gws_gevent.transports.quic.dialer import ClientConnection
from gws_gevent.transports.quic.listener import QuicListener
from gws_gevent.transports.simulated import Impairment, SimulatedNetwork

__all__ = ["main"]

SERVER, CLIENT = ("192.0.2.1", 4000), ("192.0.2.2", 50000)
#: Sides: who sends, and to whom. The server has side 0.
OURS, THEIRS = 0, 1
STATE, INPUT = 200, 40
SHARES = (0.5, 0.9, 0.99)
#: Called with the side that has received, how many bytes, and when.
OnBytes = Callable[[int, int, float], object]


class Pair(Protocol):
    """Two ends that are connected."""

    def now(self) -> float:
        """Return the simulated time."""

    def send(self, side: int, size: int) -> None:
        """Send so many bytes from a side."""

    def advance(self, until: float, on_bytes: OnBytes) -> None:
        """Let time pass."""


class TcpPair:
    """The model of TCP."""

    def __init__(self, line: Impairment, seed: int) -> None:
        self._now = 0.0
        self._connection = TcpConnection(line.loss, line.delay, line.jitter, Random(seed))

    def now(self) -> float:
        return self._now

    def send(self, side: int, size: int) -> None:
        assert size <= SEGMENT
        self._connection.send(side, size, size, self._now)

    def advance(self, until: float, on_bytes: OnBytes) -> None:
        while (moment := self._connection.next_event()) is not None and moment <= until:
            self._now = max(self._now, moment)
            for side, size in self._connection.run(self._now):
                on_bytes(side, size, self._now)
        self._now = until


class StreamPair:
    """Two streams over a simulated network. It was connected while nothing was lost."""

    def __init__(self, network: SimulatedNetwork, client: Any, accepted: list[Any], line: Impairment) -> None:
        client.try_send(b"!")  # a stream of QUIC begins with its first byte
        assert network.run(lambda: accepted and accepted[0].try_recv_into(bytearray(1)) == 1, seconds=30)
        self._network = network
        self._streams = (accepted[0], client)
        self._unsent = [b"", b""]
        self._buffer = bytearray(65536)
        network.impairment = line

    def now(self) -> float:
        return self._network.now()

    def send(self, side: int, size: int) -> None:
        self._unsent[side] += bytes(size)
        self._push(side)

    def _push(self, side: int) -> None:
        if self._unsent[side]:
            self._unsent[side] = self._unsent[side][self._streams[side].try_send(self._unsent[side]) :]

    def advance(self, until: float, on_bytes: OnBytes) -> None:
        def step() -> None:
            for side in (OURS, THEIRS):
                self._push(side)
                while (count := self._streams[side].try_recv_into(self._buffer)) > 0:
                    on_bytes(side, count, self._network.now())

        self._network.run(step, seconds=until - self._network.now())


def kcp(line: Impairment, seed: int, params: str) -> StreamPair:
    """Connect KCP."""
    network = SimulatedNetwork(Impairment(delay=line.delay, jitter=line.jitter), seed=seed)
    accepted: list[Any] = []
    random, port = Random(seed), network.port(SERVER)
    theirs, ours = server_params(Endpoint.parse(f"kcp://:1?{params}")), client_params(Endpoint.parse(f"kcp://h:1?{params}"))
    make_core = find_core(ours.core)
    port.start(KcpServer(port, theirs, make_core, random.randbytes, lambda session: accepted.append(KcpStream(session, SERVER))))
    client = KcpClient(network.port(CLIENT), SERVER, ours, make_core, random.randbytes, lambda: None)
    client.begin()
    assert network.run(lambda: client.session is not None, seconds=30)
    assert client.session is not None
    return StreamPair(network, KcpStream(client.session, CLIENT), accepted, line)


def quic(line: Impairment, seed: int, params: str) -> StreamPair:
    """Connect QUIC."""
    network = SimulatedNetwork(Impairment(delay=line.delay, jitter=line.jitter), seed=seed)
    accepted: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = ListenSettings(tls=TlsFiles(make_certificate(Path(folder))), spawn=lambda function, stream: function(stream))
        listener = registry.listen(f"quic://{SERVER[0]}:{SERVER[1]}", settings)
        assert isinstance(listener, QuicListener)
        listener.start_on(network.port(SERVER), accepted.append)
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["ws"], server_name="localhost", verify_mode=ssl.CERT_NONE)
    client = ClientConnection(network.port(CLIENT), SERVER, configuration, "connect")
    assert network.run(lambda: client.session.established, seconds=30)
    return StreamPair(network, client.open(), accepted, line)


def tick(pair: Pair, seconds: float) -> list[float]:
    """60 Hz; return the ages of what has arrived, in seconds."""
    sent: list[float] = []
    ages: list[float] = []
    received = 0

    def on_bytes(side: int, count: int, now: float) -> None:
        nonlocal received
        if side == THEIRS:
            received += count
            while len(ages) < received // STATE:
                ages.append(now - sent[len(ages)])

    began, number = pair.now(), 0
    for number in range(int(seconds * 60)):
        pair.advance(began + number / 60, on_bytes)
        sent.append(pair.now())
        pair.send(OURS, STATE)
        pair.send(THEIRS, INPUT)
    return _rest(pair, on_bytes, sent, ages)


def now_and_then(pair: Pair, seconds: float) -> list[float]:
    """Questions and answers; return the times until the answers, in seconds."""
    sent: list[float] = []
    taken: list[float] = []
    received = [0, 0]

    def on_bytes(side: int, count: int, now: float) -> None:
        before, received[side] = received[side] // STATE, received[side] + count
        for _ in range(received[side] // STATE - before):
            if side == THEIRS:
                pair.send(THEIRS, STATE)
            else:
                taken.append(now - sent[len(taken)])

    began, number = pair.now(), 0
    for number in range(int(seconds * 2)):
        pair.advance(began + number / 2, on_bytes)
        sent.append(pair.now())
        pair.send(OURS, STATE)
    return _rest(pair, on_bytes, sent, taken)


def _rest(pair: Pair, on_bytes: OnBytes, sent: list[float], found: list[float]) -> list[float]:
    """Wait for what has not arrived, up to a minute: what is not there then counts with the time it has waited."""
    for _ in range(600):
        if len(found) == len(sent):
            return found
        pair.advance(pair.now() + 0.1, on_bytes)
    return found + [pair.now() - one for one in sent[len(found) :]]


#: Names, and how to connect.
TRANSPORTS: dict[str, Callable[[Impairment, int], Pair]] = {
    "TCP (model)": TcpPair,
    "QUIC": lambda line, seed: quic(line, seed, ""),
    "KCP": lambda line, seed: kcp(line, seed, ""),
    "KCP, fast3": lambda line, seed: kcp(line, seed, "mode=fast3"),
}


def _row(name: str, columns: list[list[float]]) -> str:
    cells = []
    for values in columns:
        ordered = sorted(values)
        cells.append(" / ".join(f"{ordered[int(len(ordered) * share)] * 1000:,.0f}" for share in SHARES))
    return f"| {name} | {' | '.join(cells)} |"


def main(args: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lossy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loss", default="0,1,5,10,20", help="percent each way, separated by commas (0,1,5,10,20)")
    parser.add_argument("--rtt", type=float, default=60.0, help="milliseconds, without jitter (60)")
    parser.add_argument("--jitter", type=float, default=10.0, help="milliseconds, each way (10)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of simulated time at 60 Hz; ten times as many of the other (60)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the line (1)")
    known = parser.parse_args(args)
    losses = [float(one) for one in known.loss.split(",")]
    lines = [Impairment(loss=loss / 100, delay=known.rtt / 2000, jitter=known.jitter / 1000) for loss in losses]
    for title, traffic, seconds in (("60 Hz", tick, known.seconds), ("now and then", now_and_then, known.seconds * 10)):
        print(f"\n{title}: p50 / p90 / p99 in ms, round trip {known.rtt:g} ms, jitter {known.jitter:g} ms each way\n")
        print(f"| | {' | '.join(f'{loss:g} % loss' for loss in losses)} |\n|---|{'---:|' * len(losses)}", flush=True)
        for name, connect in TRANSPORTS.items():
            print(_row(name, [traffic(connect(line, known.seed), seconds) for line in lines]), flush=True)


if __name__ == "__main__":
    main()
