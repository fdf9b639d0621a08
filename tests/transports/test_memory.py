"""Streams inside the process: bounds, names, cost."""

from __future__ import annotations

import errno
import sys
import tracemalloc
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.exceptions import ConcurrentObjectUseError
from gevent.pool import Pool

from gws_gevent.exceptions import EndpointError, StreamClosed, TransportError
from gws_gevent.transports import registry
from gws_gevent.transports.base import ListenSettings
from gws_gevent.transports.memory import MemoryStream, memory_pair
from tests.support import wait_until


def test_the_capacity_is_exact() -> None:
    ours, theirs = memory_pair(10)
    assert ours.try_send(b"x" * 15) == 10
    assert ours.try_send(b"x") == 0
    assert theirs.recv_into(bytearray(3)) == 3
    assert ours.try_send(b"x" * 15) == 3
    assert theirs.recv_into(bytearray(100)) == 10
    with pytest.raises(ValueError, match="capacity: must be at least 1 byte"):
        memory_pair(0)


def test_a_hundred_thousand_pairs_are_cheap() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        pairs = [memory_pair() for _ in range(1000)]
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / len(pairs) < 500
    assert not hasattr(pairs[0][0], "__dict__")
    assert sys.getsizeof(pairs[0][0]) < 200


def test_a_buffer_lives_only_while_it_holds_something() -> None:
    ours, theirs = memory_pair()
    ours.send_all(b"x" * 1000)
    theirs.recv_into(bytearray(1000))
    assert theirs._inbox is None


def test_abort_throws_away_what_was_under_way() -> None:
    ours, theirs = memory_pair()
    ours.send_all(b"never read")
    ours.abort()
    for _ in range(2):
        with pytest.raises(TransportError) as caught:
            theirs.recv_into(bytearray(100))
        assert caught.value.errno == errno.ECONNRESET
    with pytest.raises(TransportError) as caught:
        theirs.send_all(b"x")
    assert caught.value.errno == errno.EPIPE


def test_a_writer_learns_that_its_peer_has_closed() -> None:
    ours, theirs = memory_pair(1)
    gevent.get_hub().loop.run_callback(theirs.close)
    with pytest.raises(TransportError, match="the peer has closed the stream"):
        ours.send_all(b"more than one byte")
    assert ours.recv_into(bytearray(1)) == 0


def test_nothing_is_sent_after_a_half_close() -> None:
    ours, theirs = memory_pair()
    ours.shutdown_write()
    with pytest.raises(TransportError, match="after shutdown_write"):
        ours.try_send(b"x")
    theirs.close()
    ours.close()
    for call in (ours.shutdown_write, ours.wait_writable, lambda: ours.call_when_writable(list)):
        with pytest.raises(StreamClosed):
            call()


def test_a_second_writer_is_refused() -> None:
    ours, theirs = memory_pair(1)
    writer = gevent.spawn(ours.send_all, b"abc")
    gevent.sleep(0)
    for call in (lambda: ours.send_all(b"x"), ours.wait_writable):
        with pytest.raises(ConcurrentObjectUseError):
            call()
    received = bytearray(1)
    for expected in b"abc":
        theirs.recv_into(received)
        assert received[0] == expected
    writer.get(timeout=5)


def test_a_stream_with_a_fault() -> None:
    class Faulty(MemoryStream):
        def recv_into(self, buffer: Any) -> int:
            raise TransportError("broken on purpose")

    ours, theirs = memory_pair(make=Faulty)
    assert type(theirs) is MemoryStream
    ours.send_all(b"x")
    with pytest.raises(TransportError, match="broken on purpose"):
        ours.recv_into(bytearray(1))


# --- Names


def test_a_name_is_known_while_it_is_listened_on() -> None:
    dialer = registry.dialer("memory:here")
    with pytest.raises(TransportError, match=r"^\[Errno 111\] connect to memory:here: nobody is listening there$"):
        dialer.dial()
    seen: list[Any] = []
    listener = registry.listen("memory://here")
    listener.start(seen.append)
    assert listener.address == "memory:here"
    ours = dialer.dial()
    wait_until(lambda: seen)
    assert ours.info("peername") == seen[0].info("peername") == "memory:here"
    listener.stop_accepting()
    with pytest.raises(TransportError, match="nobody is listening"):
        dialer.dial()
    listener.close()


@pytest.mark.parametrize("spawn", [gevent.spawn, Pool(1), 1], ids=["function", "pool", "number"])
def test_spawn(spawn: Any) -> None:
    leave = Event()
    kinds: list[type] = []

    def serve(stream: Any) -> None:
        kinds.append(type(gevent.getcurrent()))
        leave.wait()
        stream.close()

    listener = registry.listen("memory:spawning", ListenSettings(spawn=spawn))
    listener.start(serve)
    first = registry.dialer("memory:spawning").dial()
    wait_until(lambda: kinds)
    dialing = gevent.spawn(registry.dialer("memory:spawning").dial)
    gevent.sleep(0.01)
    assert dialing.dead is (spawn is gevent.spawn)  # a full pool makes the next one wait
    leave.set()
    second = dialing.get(timeout=5)
    for stream in (first, second):
        assert stream.recv_into(bytearray(1)) == 0
    assert kinds == [gevent.Greenlet] * 2
    listener.close()


def test_a_dial_that_is_given_up_while_it_waits_for_the_pool() -> None:
    pool = Pool(1)
    hold = Event()
    pool.spawn(hold.wait)
    listener = registry.listen("memory:full", ListenSettings(spawn=pool))
    listener.start(lambda stream: stream.close())
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        registry.dialer("memory:full").dial()
    hold.set()
    pool.join()
    listener.close()


def test_parameters_are_refused() -> None:
    for act in (registry.listen, registry.dialer):
        with pytest.raises(EndpointError, match="memory has no parameter capacity"):
            act("memory:x?capacity=1")
