"""KCP over a network with loss, delay, reordering, duplication and bit flips, in simulated time."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from gws_gevent.exceptions import TransportError
from gws_gevent.transports.kcp.stream import KcpStream
from gws_gevent.transports.simulated import Impairment
from tests.support import require_module
from tests.transports.kcp_net import BAD_LINE, KcpNet

KINDS = ["", "mode=normal", "mode=fast3", "stream=0", "mtu=600&sndwnd=128&rcvwnd=128", "key", "chacha", "stock", "stock&stream=0"]


class Transfer:
    """One direction: writes in pieces of random size, ends, and checks at the other side that every byte came in order."""

    def __init__(self, source: KcpStream, target: KcpStream, data: bytes, random: Random) -> None:
        self.source, self.target, self.data, self.random = source, target, data, random
        self.sent = 0
        self.received = bytearray()
        self.has_ended = False

    def go_on(self) -> None:
        """Write and read what is possible now."""
        while self.sent < len(self.data):
            count = self.source.try_send(self.data[self.sent : self.sent + self.random.choice((1, 50, 1176, 1177, 9000, 60000))])
            self.sent += count
            if not count:
                break
            if self.sent == len(self.data):
                self.source.shutdown_write()
        buffer = bytearray(self.random.choice((7, 1176, 30000)))
        for _ in range(self.random.choice((0, 1, 5, 100))):  # now and then nothing is read
            count = self.target.try_recv_into(buffer)
            if count == 0:
                self.has_ended = True
            if count <= 0:
                break
            self.received += buffer[:count]


def params_of(kind: str, folder: Path) -> str:
    if kind in ("key", "chacha"):
        require_module("cryptography")
        file = folder / "key"
        file.write_text("0123456789abcdef" * 4)
        return f"key-file={file}" + ("&cipher=chacha20-poly1305" if kind == "chacha" else "")
    return kind.replace("stock", "cookie=0")


def line_of(kind: str) -> Impairment:
    """The bad line. What is changed on the way to a stock peer is dropped by the check sum of UDP, so there it counts as lost."""
    if kind.startswith("stock"):
        return Impairment(BAD_LINE.loss + BAD_LINE.flip, BAD_LINE.duplicate, 0, BAD_LINE.delay, BAD_LINE.jitter)
    return BAD_LINE


def run_transfers(seed: int, folder: Path, size: int) -> str:
    """Move bytes both ways over the bad line; return "whole", or "error" if a side failed in a clean way."""
    random = Random(seed)
    kind = KINDS[seed % len(KINDS)]
    net = KcpNet(line_of(kind), seed, params_of(kind, folder))
    ours, theirs = net.pair()
    there = Transfer(ours, theirs, random.randbytes(size), random)
    back = Transfer(theirs, ours, random.randbytes(size), random)
    failed = False

    def both_ended() -> bool:
        nonlocal failed
        try:
            there.go_on()
            back.go_on()
        except TransportError:
            failed = True
        return failed or (there.has_ended and back.has_ended)

    assert net.run(both_ended, seconds=600), f"seed {seed}: neither whole nor failed after ten minutes"
    for one in (there, back):
        assert one.data.startswith(one.received), f"seed {seed}, {kind}: what arrived is not what was sent"
        assert failed or one.received == one.data, f"seed {seed}, {kind}: the end came before the last byte"
    ours.close()
    theirs.close()
    net.run(lambda: not net.server.sessions, seconds=120)
    assert not net.server.sessions, f"seed {seed}, {kind}: the session was not forgotten"
    return "error" if failed else "whole"


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_every_byte_in_order_on_a_bad_line(seed: int, tmp_path: Path) -> None:
    assert run_transfers(seed, tmp_path, 60_000) == "whole"


@pytest.mark.soak
def test_a_thousand_runs_on_a_bad_line(tmp_path: Path) -> None:
    outcomes = [run_transfers(seed, tmp_path, 60_000) for seed in range(1000)]
    assert outcomes.count("whole") == 1000
