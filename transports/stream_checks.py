"""What a stream promises, one check each. `checks.py` is the way in.

Belongs here: the promises of `base.Stream` and `base.NonBlockingStream`, and what checks are made of. Does not belong here:
listeners, dialers, running the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.hub import get_hub

from gws_gevent.exceptions import StreamClosed, TransportError
from gws_gevent.transports.base import NonBlockingStream, Stream

__all__ = ["STREAM_CHECKS", "BrokenPromise", "Crew", "MakePair", "get", "need", "outcome", "receive"]

#: Seconds after which something that should have happened counts as not going to.
PATIENCE = 10.0
#: Seconds given to greenlets to reach the place where they wait.
MOMENT = 0.02
#: Bytes sent each way in the check of large transfers: more than any buffer on the way holds.
LARGE = 4 * 1024 * 1024
#: Bytes that a transport may hold for a peer that does not read: kernels and libraries stay well below.
MOST_HELD = 16 * 1024 * 1024

#: Makes a context manager that gives two connected streams, handshakes done, and closes them.
MakePair = Callable[[], AbstractContextManager[tuple[Stream, Stream]]]


class BrokenPromise(AssertionError):
    """A transport does not do what the contract says."""


# --- What the checks are made of ----------------------------------------------------------------------------------------------


def need(condition: object, otherwise: str) -> None:
    if not condition:
        raise BrokenPromise(otherwise)


class Crew:
    """Greenlets of one check: none survives it. Each returns what its function returned, or the exception it raised."""

    def __init__(self) -> None:
        self._greenlets: list[Any] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        gevent.killall(self._greenlets)

    def start(self, function: Callable[..., object], *args: Any) -> Any:
        started = gevent.spawn(outcome, function, *args)
        self._greenlets.append(started)
        gevent.sleep(MOMENT)
        return started


def outcome(function: Callable[..., object], *args: Any) -> object:
    try:
        return function(*args)
    except Exception as error:
        return error


def get(started: Any, doing: str) -> Any:
    started.join(timeout=PATIENCE / 2)
    need(started.dead, f"{doing} does not return")
    return started.value


def receive(stream: Stream, count: int) -> bytes:
    """Exactly `count` bytes, or fewer if the stream ends before."""
    received = bytearray()
    while len(received) < count:
        buffer = bytearray(min(65536, count - len(received)))
        got = stream.recv_into(buffer)
        need(0 <= got <= len(buffer), f"recv_into returned {got} for a buffer of {len(buffer)}")
        if got == 0:
            break
        received += buffer[:got]
    return bytes(received)


def _receive_to_end(stream: Stream) -> bytes:
    return receive(stream, MOST_HELD * 2)


def _pattern(count: int) -> bytes:
    """Bytes of which no stretch looks like its neighbours, so that what is lost, doubled or moved shows."""
    period = Random(6455).randbytes(65_521)
    return (period * (count // len(period) + 1))[:count]


def _fill(stream: Stream, sent: list[bytes]) -> None:
    """Send for ever, or until a fault; `sent` grows by what `send_all` has returned for."""
    at = 0
    while at < MOST_HELD:
        block = at.to_bytes(8, "big") * 2048
        stream.send_all(block)
        sent.append(block)
        at += len(block)


def _closed_error(result: object, doing: str) -> None:
    need(isinstance(result, StreamClosed), f"{doing} gave {result!r} instead of raising StreamClosed")


def _ended(result: object, doing: str, *, reset_will_do: bool) -> None:
    if result != 0 and not (reset_will_do and isinstance(result, TransportError)):
        raise BrokenPromise(f"{doing} gave {result!r} instead of 0{' or a TransportError' if reset_will_do else ''}")


# --- Promises of a stream -----------------------------------------------------------------------------------------------------


def bytes_arrive_in_order(make_pair: MakePair) -> None:
    """Bytes arrive once and in order, whatever the sizes of sends and receives."""
    data = _pattern(1500)

    def send(stream: Stream) -> None:
        for at in range(500):
            stream.send_all(data[at : at + 1])
        stream.send_all(bytearray(data[500:1000]))
        stream.send_all(memoryview(data)[1000:])

    with make_pair() as (ours, theirs), Crew() as crew:
        sender = crew.start(send, ours)
        received = bytearray()
        single = bytearray(1)
        while len(received) < 750:
            need(theirs.recv_into(memoryview(single)) == 1, "a receive of one byte did not return 1")
            received += single
        need(bytes(received) + receive(theirs, 750) == data, "what arrived is not what was sent")
        result = get(sender, "send_all")
        need(result is None, f"send_all gave {result!r}")


def large_transfers_run_both_ways_at_once(make_pair: MakePair) -> None:
    """Both sides can send and receive several megabytes at the same time."""
    data, back = _pattern(LARGE), _pattern(LARGE)[::-1]
    with make_pair() as (ours, theirs), Crew() as crew:
        senders = [crew.start(ours.send_all, data), crew.start(theirs.send_all, back)]
        readers = [crew.start(receive, theirs, LARGE), crew.start(receive, ours, LARGE)]
        for sender in senders:
            result = get(sender, "send_all of several megabytes")
            need(result is None, f"send_all gave {result!r}")
        need(get(readers[0], "recv_into") == data, "what arrived is not what was sent")
        need(get(readers[1], "recv_into") == back, "what came back is not what was sent")


def an_empty_send_does_nothing(make_pair: MakePair) -> None:
    """Sending nothing is no end of stream, and no error."""
    with make_pair() as (ours, theirs):
        ours.send_all(b"")
        ours.send_all(b"x")
        ours.send_all(bytearray())
        ours.send_all(b"y")
        need(receive(theirs, 2) == b"xy", "an empty send changed what arrives")


def the_end_is_seen_after_the_data(make_pair: MakePair) -> None:
    """After the peer has closed, what it had sent is read first, then 0 for ever."""
    with make_pair() as (ours, theirs):
        theirs.send_all(b"last words")
        theirs.close()
        need(receive(ours, 100) == b"last words", "what was sent before a close did not arrive")
        for _ in range(3):
            need(ours.recv_into(bytearray(10)) == 0, "a second receive after the end was not 0")


def half_close_leaves_the_other_way_open(make_pair: MakePair) -> None:
    """After shutdown_write the peer reads 0, and the other direction goes on."""
    with make_pair() as (ours, theirs):
        theirs.send_all(b"before")
        ours.send_all(b"request")
        ours.shutdown_write()
        ours.shutdown_write()
        need(receive(theirs, 100) == b"request", "what was sent before a half-close did not arrive")
        need(theirs.recv_into(bytearray(10)) == 0, "the end is not read twice")
        theirs.send_all(b" and after")
        theirs.close()
        need(receive(ours, 100) == b"before and after", "the direction that was not closed lost bytes")


def closing_twice_is_harmless(make_pair: MakePair) -> None:
    """close and abort are idempotent, in any order."""
    for first, second in (("close", "close"), ("close", "abort"), ("abort", "close"), ("abort", "abort")):
        with make_pair() as (ours, _theirs):
            getattr(ours, first)()
            getattr(ours, second)()


def close_wakes_a_waiting_reader(make_pair: MakePair) -> None:
    """close wakes a waiting reader with StreamClosed, and the peer reads 0."""
    with make_pair() as (ours, theirs), Crew() as crew:
        reader = crew.start(ours.recv_into, bytearray(10))
        there = crew.start(theirs.recv_into, bytearray(10))
        need(not reader.dead, "recv_into returned although nothing was sent")
        ours.close()
        _closed_error(get(reader, "recv_into after close"), "the waiting recv_into")
        _ended(get(there, "the peer's recv_into after close"), "the peer's recv_into", reset_will_do=False)


def abort_wakes_a_waiting_reader(make_pair: MakePair) -> None:
    """abort wakes a waiting reader with StreamClosed, and the peer reads 0 or an error."""
    with make_pair() as (ours, theirs), Crew() as crew:
        reader = crew.start(ours.recv_into, bytearray(10))
        there = crew.start(theirs.recv_into, bytearray(10))
        ours.abort()
        _closed_error(get(reader, "recv_into after abort"), "the waiting recv_into")
        _ended(get(there, "the peer's recv_into after abort"), "the peer's recv_into", reset_will_do=True)


def close_wakes_a_waiting_writer(make_pair: MakePair) -> None:
    """close and abort wake a waiting writer with StreamClosed."""
    for method in ("close", "abort"):
        with make_pair() as (ours, theirs), Crew() as crew:
            writer = crew.start(_fill, ours, [])
            need(not writer.dead, f"a writer whose peer does not read is not waiting: {writer.value!r}")
            getattr(ours, method)()
            _closed_error(get(writer, f"send_all after {method}"), f"the send_all waiting at {method}")
            theirs.abort()


def a_closed_stream_is_of_no_use(make_pair: MakePair) -> None:
    """After close or abort every use raises StreamClosed."""
    for method in ("close", "abort"):
        with make_pair() as (ours, _theirs):
            getattr(ours, method)()
            _closed_error(outcome(ours.recv_into, bytearray(10)), f"recv_into after {method}")
            _closed_error(outcome(ours.send_all, b"x"), f"send_all after {method}")
            if isinstance(ours, NonBlockingStream):
                _closed_error(outcome(ours.try_send, b"x"), f"try_send after {method}")
                _closed_error(outcome(ours.wait_writable), f"wait_writable after {method}")
            ours.info("peername")


def a_slow_peer_blocks_its_writer_only(make_pair: MakePair) -> None:
    """A peer that does not read blocks the greenlet that writes to it, after a bounded number of bytes, and no other."""
    with make_pair() as (ours, theirs), Crew() as crew:
        sent: list[bytes] = []
        writer = crew.start(_fill, ours, sent)
        seen = -1
        while seen != len(sent):
            seen = len(sent)
            gevent.sleep(MOMENT)  # that this returns at all shows that others run
        need(not writer.dead, f"{MOST_HELD} bytes were taken for a peer that reads none, or the writer failed: {writer.value!r}")
        theirs.send_all(b"the other way")
        need(receive(ours, 13) == b"the other way", "nothing can be received while a writer waits")
        count = sum(map(len, sent))
        need(receive(theirs, count) == b"".join(sent[: count // 16384]), "what arrived late is not what was sent")
        gevent.sleep(MOMENT)
        need(len(sent) > seen, "the writer does not go on once the peer reads")


def a_timeout_loses_nothing_received(make_pair: MakePair) -> None:
    """An exception thrown into a waiting reader leaves the stream usable and loses nothing."""
    with make_pair() as (ours, theirs), Crew() as crew:
        try:
            with gevent.Timeout(MOMENT):
                got = ours.recv_into(bytearray(10))
        except gevent.Timeout:
            pass
        else:
            raise BrokenPromise(f"recv_into returned {got} although nothing was sent")
        reader = crew.start(ours.recv_into, bytearray(10))
        reader.kill()
        theirs.send_all(b"still here")
        need(receive(ours, 10) == b"still here", "what came after a timeout did not arrive")
        ours.send_all(b"this way too")
        need(receive(theirs, 12) == b"this way too", "sending does not work after a timeout of a receive")


def a_timeout_cuts_a_send_cleanly(make_pair: MakePair) -> None:
    """An exception thrown into a waiting writer leaves a beginning of its bytes sent, and the stream usable."""
    data = _pattern(MOST_HELD)
    with make_pair() as (ours, theirs), Crew() as crew:
        writer = crew.start(ours.send_all, data)
        need(not writer.dead, f"send_all took {MOST_HELD} bytes for a peer that reads none: {writer.value!r}")
        writer.kill()
        reader = crew.start(_receive_to_end, theirs)
        ours.send_all(b"and on")
        ours.close()
        received = get(reader, "the peer's recv_into")
        need(isinstance(received, bytes), f"the peer's recv_into gave {received!r}")
        need(received.endswith(b"and on"), "what was sent after the timeout did not arrive")
        need(data.startswith(received[:-6]), "bytes in front of the timeout were lost, doubled or moved")


def a_second_reader_is_refused(make_pair: MakePair) -> None:
    """A second reader gets an error at once, and the first goes on waiting."""
    with make_pair() as (ours, theirs), Crew() as crew:
        buffer = bytearray(10)
        first = crew.start(ours.recv_into, buffer)
        second = get(crew.start(ours.recv_into, bytearray(10)), "a second recv_into")
        need(isinstance(second, Exception), f"a second recv_into gave {second!r}")
        theirs.send_all(b"first")
        need(get(first, "the first recv_into") == 5 and buffer[:5] == b"first", "the first reader lost its bytes to the second")


def the_hub_is_never_blocked(make_pair: MakePair) -> None:
    """In the hub a receive that would wait raises, and so does a send_all that could have to."""
    with make_pair() as (ours, theirs):
        for call in (lambda: ours.recv_into(bytearray(10)), lambda: ours.send_all(b"from the hub")):
            result = AsyncResult()
            get_hub().loop.run_callback(lambda call=call, result=result: result.set(outcome(call)))
            got = result.get(timeout=PATIENCE / 2)
            need(isinstance(got, Exception), f"a blocking call in the hub gave {got!r}")
        ours.send_all(b"ok")
        need(receive(theirs, 2) == b"ok", "the stream does not work after a call in the hub")


def streams_may_share_a_buffer(make_pair: MakePair) -> None:
    """recv_into lets nobody else run between filling the buffer and returning, so that many streams can share one."""
    shared = bytearray(4096)

    def read(stream: Stream, expected: bytes) -> object:
        while got := stream.recv_into(shared):
            if bytes(shared[:got]).strip(expected):
                return bytes(shared[:got])
        return None

    with make_pair() as (ours, theirs), Crew() as crew:
        readers = [crew.start(read, ours, b"o"), crew.start(read, theirs, b"t")]
        for _ in range(50):
            theirs.send_all(b"o" * 100)
            ours.send_all(b"t" * 100)
            gevent.sleep(0)
        gevent.sleep(MOMENT)
        need(not any(reader.dead for reader in readers), f"a reader found in the buffer {[reader.value for reader in readers]!r}")


def facts_are_told_by_name(make_pair: MakePair) -> None:
    """info knows the scheme, answers None to what does not apply, and lends the socket without giving it away."""
    with make_pair() as (ours, theirs):
        need(isinstance(ours.info("scheme"), str) and ours.info("scheme"), 'info("scheme") is no name')
        for key in ("peername", "sockname", "tls", "carrier"):
            ours.info(key)
        need(ours.info("no such key") is None, "info gave something for an unknown key")
        borrowed = ours.info("socket")
        if borrowed is not None:
            need(borrowed.getsockname() == ours.info("sockname"), 'info("socket") is another socket')
            borrowed.close()
            del borrowed
        ours.send_all(b"still ours")
        need(receive(theirs, 10) == b"still ours", "closing the borrowed socket closed the stream")


def writing_without_waiting(make_pair: MakePair) -> None:
    """try_send takes what fits, says so truly, never waits, and delivers without further calls (streams that have it)."""
    with make_pair() as (ours, theirs), Crew() as crew:
        if not isinstance(ours, NonBlockingStream):
            return
        data = _pattern(MOST_HELD)
        sent = ours.try_send_parts([data[:10], data[10:30], b"", data[30:100]])
        need(sent == 100, f"try_send_parts of 100 bytes on an idle stream took {sent}")
        idle = 0
        while idle < 4:
            idle += 1
            while got := ours.try_send(data[sent : sent + 65536]):
                sent, idle = sent + got, 0
                need(sent < MOST_HELD - 65536, f"try_send took {sent} bytes for a peer that reads none")
            gevent.sleep(MOMENT)  # where it is this process that sends, buffers on the way fill up meanwhile
        called = AsyncResult()
        ours.call_when_writable(lambda: called.set(gevent.getcurrent() is get_hub()))
        writer = crew.start(ours.wait_writable)
        need(not called.ready() and not writer.dead, "a full stream says that it takes bytes")
        need(receive(theirs, sent) == data[:sent], "not everything that try_send took arrived")
        result = get(writer, "wait_writable")
        need(result is None, f"wait_writable gave {result!r}")
        need(called.get(timeout=PATIENCE / 2), "call_when_writable did not call in the hub")
        need(ours.try_send(b"more") == 4, "try_send takes nothing although the stream is empty")
        need(receive(theirs, 4) == b"more", "what was sent after waiting did not arrive")


STREAM_CHECKS: tuple[Callable[[MakePair], None], ...] = (
    bytes_arrive_in_order,
    large_transfers_run_both_ways_at_once,
    an_empty_send_does_nothing,
    the_end_is_seen_after_the_data,
    half_close_leaves_the_other_way_open,
    closing_twice_is_harmless,
    close_wakes_a_waiting_reader,
    abort_wakes_a_waiting_reader,
    close_wakes_a_waiting_writer,
    a_closed_stream_is_of_no_use,
    a_slow_peer_blocks_its_writer_only,
    a_timeout_loses_nothing_received,
    a_timeout_cuts_a_send_cleanly,
    a_second_reader_is_refused,
    the_hub_is_never_blocked,
    streams_may_share_a_buffer,
    facts_are_told_by_name,
    writing_without_waiting,
)
