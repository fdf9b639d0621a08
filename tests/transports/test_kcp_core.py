"""The cores of the two KCP libraries behind one interface, their defects covered."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gws_gevent.transports.kcp import core as kcp_core
from gws_gevent.transports.kcp.core import HEADER, MAX_FRAGMENTS, Core, MakeCore, Outbox, Tuning, core_names, find_core
from tests.support import require_module

TUNING = Tuning(nodelay=1, interval=10, resend=2, nc=1, sndwnd=512, rcvwnd=512, mtu=1200, stream=True)
MESSAGES = Tuning(nodelay=1, interval=10, resend=2, nc=1, sndwnd=512, rcvwnd=512, mtu=1200, stream=False)


# siokcp has wheels up to 3.13, and nothing to build from.
SIOKCP = pytest.mark.skipif(sys.version_info >= (3, 14), reason="no siokcp for this Python")
NAMES = [pytest.param(name, marks=SIOKCP) if name == "siokcp" else name for name in core_names()]


@pytest.fixture(params=NAMES)
def make(request: pytest.FixtureRequest) -> MakeCore:
    require_module(request.param)
    return find_core(request.param)


class Line:
    """Two cores, and all that one of them puts out is received by the other."""

    def __init__(self, make: MakeCore, conv: int = 1, tuning: Tuning = TUNING) -> None:
        self.outbox = Outbox()
        self.ends = [make(conv, tuning, self.outbox) for _ in range(2)]
        self.time = 0xFFFFFF00  # it wraps in the middle
        for end in self.ends:
            end.update(self.time)

    def carry(self, rounds: int = 20) -> None:
        for _ in range(rounds):
            self.time = (self.time + 10) & 0xFFFFFFFF
            for ours, theirs in (self.ends, self.ends[::-1]):
                ours.update(self.time)
                ours.flush()
                datagrams = self.outbox.datagrams[:]
                self.outbox.datagrams.clear()
                assert all(theirs.receive(datagram) for datagram in datagrams)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.release()


def taken(core: Core) -> Iterator[bytes]:
    while core.next_size() >= 0:
        yield bytes(core.take())


@pytest.mark.parametrize("conv", [1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_bytes_arrive_whatever_the_conversation_number(make: MakeCore, conv: int) -> None:
    with Line(make, conv) as line:
        ours, theirs = line.ends
        ours.send(b"hello")
        line.carry(1)
        assert list(taken(theirs)) == [b"hello"]
        line.carry(1)
        assert ours.waiting() == 0
        assert ours.peer_window() == 511  # as it was while the message had not been taken


def test_a_stream_is_joined_and_messages_are_not(make: MakeCore) -> None:
    for tuning, arrived in ((TUNING, [b"abcdef"]), (MESSAGES, [b"abc", b"def"])):
        with Line(make, tuning=tuning) as line:
            for part in (b"abc", b"def"):
                line.ends[0].send(part)
            line.carry(1)
            assert list(taken(line.ends[1])) == arrived


def test_the_largest_message(make: MakeCore) -> None:
    data = os.urandom(MAX_FRAGMENTS * (TUNING.mtu - HEADER))
    with Line(make, tuning=MESSAGES) as line:
        line.ends[0].send(data)
        line.carry()
        assert list(taken(line.ends[1])) == [data]


@pytest.mark.parametrize("tuning", [TUNING, MESSAGES], ids=["stream", "messages"])
def test_the_end_is_an_empty_message(make: MakeCore, tuning: Tuning) -> None:
    with Line(make, tuning=tuning) as line:
        line.ends[0].send(b"last words")
        line.ends[0].send_end()
        line.carry()
        assert list(taken(line.ends[1])) == [b"last words", b""]
        assert line.ends[0].waiting() == 0


def test_the_window_closes_and_is_asked_for(make: MakeCore) -> None:
    with Line(make) as line:
        ours, theirs = line.ends
        for _ in range(10):
            ours.send(bytes(100 * 1176))
        line.carry()
        assert ours.peer_window() == 0
        assert sum(map(len, taken(theirs))) == 512 * 1176
        line.outbox.datagrams.clear()
        ours.ask_window()
        line.carry(1)
        assert ours.peer_window() == 512


def test_when_to_look_again(make: MakeCore) -> None:
    with Line(make) as line:
        line.ends[0].send(b"x")
        line.ends[0].flush()
        assert 0 <= line.ends[0].check(line.time) <= 10
        assert line.ends[0].check((line.time + 1000) & 0xFFFFFFFF) == 0


def test_what_is_released_gives_its_memory_back_and_may_be_released_again(make: MakeCore) -> None:
    def use(count: int) -> None:
        outbox = Outbox()
        for number in range(count):
            core = make(number, TUNING, outbox)
            core.update(1)
            core.send(bytes(3000))
            core.flush()
            core.release()
            core.release()
            outbox.datagrams.clear()

    use(500)
    gc.collect()
    before = _resident()
    use(3000)  # the package itself keeps 4.3 kB of each
    assert _resident() - before < 1_000_000


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(st.one_of(st.binary(min_size=HEADER, max_size=100), st.tuples(st.binary(min_size=20, max_size=20), st.binary()))))
def test_any_datagram_is_taken_or_refused(name: str, datagrams: list[bytes | tuple[bytes, bytes]]) -> None:
    require_module(name)
    with Line(find_core(name)) as line:
        ours, theirs = line.ends
        ours.send(b"x" * 2000)
        for given_ in datagrams:
            # Most would be refused for their first four bytes.
            data = given_ if isinstance(given_, bytes) else b"\1\0\0\0" + given_[0] + given_[1]
            ours.receive(data)
            ours.flush()
            list(taken(ours))
        line.outbox.datagrams.clear()
        assert theirs.next_size() == -1


@SIOKCP
def test_the_first_that_is_installed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    require_module("siokcp")
    assert find_core().__name__ == "_KcpCore"  # type: ignore[attr-defined]
    monkeypatch.setattr(kcp_core, "_is_understood", lambda _: False)
    assert find_core().__name__ == "_SiokcpCore"  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match=r"this version of the package kcp is not known: kcp 0\.1\.6 is"):
        find_core("kcp")
