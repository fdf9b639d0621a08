"""The conformance kit: does a transport keep the promises of `base.py`? For our transports and for anybody's.

Belongs here: one check per promise, usable from any test runner or none. Does not belong here: knowledge of a particular transport.

    check_transport(listen, dialer, "tcp://127.0.0.1:0")

runs everything; `check_stream_pair` checks two connected streams alone. `STREAM_CHECKS` and `TRANSPORT_CHECKS` hold the checks one
by one, for a test runner that wants them as separate tests: call `run_check`. A broken promise raises BrokenPromise, which
says which one. Streams are real and greenlets run meanwhile, so every wait is bounded by `PATIENCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.hub import get_hub

from gws_gevent.exceptions import StreamClosed, TransportError
from gws_gevent.transports.base import Dialer, Endpoint, Listener, NonBlockingStream, Stream

__all__ = [
    "STREAM_CHECKS",
    "TRANSPORT_CHECKS",
    "BrokenPromise",
    "MakePair",
    "check_stream_pair",
    "check_transport",
    "pair_factory",
    "run_check",
    "swapped",
]

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
Listen = Callable[[str], Listener]
MakeDialer = Callable[[str], Dialer]


class BrokenPromise(AssertionError):
    """A transport does not do what the contract says."""


def check_stream_pair(make_pair: MakePair, *, half_close: bool = True) -> None:
    """Check two connected streams, each in both roles.

    Args:
        make_pair: called for each check, as `with make_pair() as (ours, theirs):`.
        half_close: False for a transport that has no half-close, where `shutdown_write` is a no-op.
    """
    for check in STREAM_CHECKS:
        if half_close or check is not half_close_leaves_the_other_way_open:
            run_check(check, make_pair)
            run_check(check, swapped(make_pair))


def check_transport(listen: Listen, dialer: MakeDialer, endpoint: str, *, half_close: bool = True) -> None:
    """Check a listener and a dialer, and then the streams they make.

    Args:
        listen: makes a listener on the text of an endpoint, not started.
        dialer: makes a dialer to a listener's `address`.
        endpoint: something free to listen on, such as "tcp://127.0.0.1:0".
        half_close: as in `check_stream_pair`.
    """
    for check in TRANSPORT_CHECKS:
        run_check(check, listen, dialer, endpoint)
    check_stream_pair(pair_factory(listen, dialer, endpoint), half_close=half_close)


def run_check(check: Callable[..., None], *args: Any) -> None:
    """Run one check in bounded time; anything that goes wrong is a BrokenPromise that begins with the check's own sentence."""
    promise = (check.__doc__ or check.__name__).split("\n")[0]
    try:
        with gevent.Timeout(PATIENCE, BrokenPromise(f"not done after {PATIENCE:g} s")):
            check(*args)
    except Exception as error:
        detail = str(error) if isinstance(error, BrokenPromise) else f"unexpected {error!r}"
        raise BrokenPromise(f"{promise} ({check.__name__}): {detail}") from error


def swapped(make_pair: MakePair) -> MakePair:
    """Return a `make_pair` with the two roles exchanged."""

    @contextmanager
    def make() -> Iterator[tuple[Stream, Stream]]:
        with make_pair() as (ours, theirs):
            yield theirs, ours

    return make


def pair_factory(listen: Listen, dialer: MakeDialer, endpoint: str) -> MakePair:
    """Return a `make_pair` that listens, dials and gives (dialled stream, accepted stream)."""

    @contextmanager
    def make() -> Iterator[tuple[Stream, Stream]]:
        listener = listen(endpoint)
        accepted = AsyncResult()
        try:
            listener.start(lambda stream: _hand_over(stream, accepted))
            ours = dialer(listener.address).dial()
            try:
                theirs = accepted.get(timeout=PATIENCE)
                try:
                    yield ours, theirs
                finally:
                    theirs.close()
            finally:
                ours.close()
        finally:
            listener.close()

    return make


def _hand_over(stream: Stream, accepted: Any) -> None:
    try:
        stream.handshake()
        accepted.set(stream)
    except Exception as error:
        stream.close()
        accepted.set_exception(error)


# --- What the checks are made of ----------------------------------------------------------------------------------------------


def _need(condition: object, otherwise: str) -> None:
    if not condition:
        raise BrokenPromise(otherwise)


class _Crew:
    """Greenlets of one check: none survives it. Each returns what its function returned, or the exception it raised."""

    def __init__(self) -> None:
        self._greenlets: list[Any] = []

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        gevent.killall(self._greenlets)

    def start(self, function: Callable[..., object], *args: Any) -> Any:
        started = gevent.spawn(_outcome, function, *args)
        self._greenlets.append(started)
        gevent.sleep(MOMENT)
        return started


def _outcome(function: Callable[..., object], *args: Any) -> object:
    try:
        return function(*args)
    except Exception as error:
        return error


def _get(started: Any, doing: str) -> Any:
    started.join(timeout=PATIENCE / 2)
    _need(started.dead, f"{doing} does not return")
    return started.value


def _receive(stream: Stream, count: int) -> bytes:
    """Exactly `count` bytes, or fewer if the stream ends before."""
    received = bytearray()
    while len(received) < count:
        buffer = bytearray(min(65536, count - len(received)))
        got = stream.recv_into(buffer)
        _need(0 <= got <= len(buffer), f"recv_into returned {got} for a buffer of {len(buffer)}")
        if got == 0:
            break
        received += buffer[:got]
    return bytes(received)


def _receive_to_end(stream: Stream) -> bytes:
    return _receive(stream, MOST_HELD * 2)


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
    _need(isinstance(result, StreamClosed), f"{doing} gave {result!r} instead of raising StreamClosed")


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

    with make_pair() as (ours, theirs), _Crew() as crew:
        sender = crew.start(send, ours)
        received = bytearray()
        single = bytearray(1)
        while len(received) < 750:
            _need(theirs.recv_into(memoryview(single)) == 1, "a receive of one byte did not return 1")
            received += single
        _need(bytes(received) + _receive(theirs, 750) == data, "what arrived is not what was sent")
        result = _get(sender, "send_all")
        _need(result is None, f"send_all gave {result!r}")


def large_transfers_run_both_ways_at_once(make_pair: MakePair) -> None:
    """Both sides can send and receive several megabytes at the same time."""
    data, back = _pattern(LARGE), _pattern(LARGE)[::-1]
    with make_pair() as (ours, theirs), _Crew() as crew:
        senders = [crew.start(ours.send_all, data), crew.start(theirs.send_all, back)]
        readers = [crew.start(_receive, theirs, LARGE), crew.start(_receive, ours, LARGE)]
        for sender in senders:
            result = _get(sender, "send_all of several megabytes")
            _need(result is None, f"send_all gave {result!r}")
        _need(_get(readers[0], "recv_into") == data, "what arrived is not what was sent")
        _need(_get(readers[1], "recv_into") == back, "what came back is not what was sent")


def an_empty_send_does_nothing(make_pair: MakePair) -> None:
    """Sending nothing is no end of stream, and no error."""
    with make_pair() as (ours, theirs):
        ours.send_all(b"")
        ours.send_all(b"x")
        ours.send_all(bytearray())
        ours.send_all(b"y")
        _need(_receive(theirs, 2) == b"xy", "an empty send changed what arrives")


def the_end_is_seen_after_the_data(make_pair: MakePair) -> None:
    """After the peer has closed, what it had sent is read first, then 0 for ever."""
    with make_pair() as (ours, theirs):
        theirs.send_all(b"last words")
        theirs.close()
        _need(_receive(ours, 100) == b"last words", "what was sent before a close did not arrive")
        for _ in range(3):
            _need(ours.recv_into(bytearray(10)) == 0, "a second receive after the end was not 0")


def half_close_leaves_the_other_way_open(make_pair: MakePair) -> None:
    """After shutdown_write the peer reads 0, and the other direction goes on."""
    with make_pair() as (ours, theirs):
        theirs.send_all(b"before")
        ours.send_all(b"request")
        ours.shutdown_write()
        ours.shutdown_write()
        _need(_receive(theirs, 100) == b"request", "what was sent before a half-close did not arrive")
        _need(theirs.recv_into(bytearray(10)) == 0, "the end is not read twice")
        theirs.send_all(b" and after")
        theirs.close()
        _need(_receive(ours, 100) == b"before and after", "the direction that was not closed lost bytes")


def closing_twice_is_harmless(make_pair: MakePair) -> None:
    """close and abort are idempotent, in any order."""
    for first, second in (("close", "close"), ("close", "abort"), ("abort", "close"), ("abort", "abort")):
        with make_pair() as (ours, _theirs):
            getattr(ours, first)()
            getattr(ours, second)()


def close_wakes_a_waiting_reader(make_pair: MakePair) -> None:
    """close wakes a waiting reader with StreamClosed, and the peer reads 0."""
    with make_pair() as (ours, theirs), _Crew() as crew:
        reader = crew.start(ours.recv_into, bytearray(10))
        there = crew.start(theirs.recv_into, bytearray(10))
        _need(not reader.dead, "recv_into returned although nothing was sent")
        ours.close()
        _closed_error(_get(reader, "recv_into after close"), "the waiting recv_into")
        _ended(_get(there, "the peer's recv_into after close"), "the peer's recv_into", reset_will_do=False)


def abort_wakes_a_waiting_reader(make_pair: MakePair) -> None:
    """abort wakes a waiting reader with StreamClosed, and the peer reads 0 or an error."""
    with make_pair() as (ours, theirs), _Crew() as crew:
        reader = crew.start(ours.recv_into, bytearray(10))
        there = crew.start(theirs.recv_into, bytearray(10))
        ours.abort()
        _closed_error(_get(reader, "recv_into after abort"), "the waiting recv_into")
        _ended(_get(there, "the peer's recv_into after abort"), "the peer's recv_into", reset_will_do=True)


def close_wakes_a_waiting_writer(make_pair: MakePair) -> None:
    """close and abort wake a waiting writer with StreamClosed."""
    for method in ("close", "abort"):
        with make_pair() as (ours, theirs), _Crew() as crew:
            writer = crew.start(_fill, ours, [])
            _need(not writer.dead, f"a writer whose peer does not read is not waiting: {writer.value!r}")
            getattr(ours, method)()
            _closed_error(_get(writer, f"send_all after {method}"), f"the send_all waiting at {method}")
            theirs.abort()


def a_closed_stream_is_of_no_use(make_pair: MakePair) -> None:
    """After close or abort every use raises StreamClosed."""
    for method in ("close", "abort"):
        with make_pair() as (ours, _theirs):
            getattr(ours, method)()
            _closed_error(_outcome(ours.recv_into, bytearray(10)), f"recv_into after {method}")
            _closed_error(_outcome(ours.send_all, b"x"), f"send_all after {method}")
            if isinstance(ours, NonBlockingStream):
                _closed_error(_outcome(ours.try_send, b"x"), f"try_send after {method}")
                _closed_error(_outcome(ours.wait_writable), f"wait_writable after {method}")
            ours.info("peername")


def a_slow_peer_blocks_its_writer_only(make_pair: MakePair) -> None:
    """A peer that does not read blocks the greenlet that writes to it, after a bounded number of bytes, and no other."""
    with make_pair() as (ours, theirs), _Crew() as crew:
        sent: list[bytes] = []
        writer = crew.start(_fill, ours, sent)
        seen = -1
        while seen != len(sent):
            seen = len(sent)
            gevent.sleep(MOMENT)  # that this returns at all shows that others run
        _need(not writer.dead, f"{MOST_HELD} bytes were taken for a peer that reads none, or the writer failed: {writer.value!r}")
        theirs.send_all(b"the other way")
        _need(_receive(ours, 13) == b"the other way", "nothing can be received while a writer waits")
        count = sum(map(len, sent))
        _need(_receive(theirs, count) == b"".join(sent[: count // 16384]), "what arrived late is not what was sent")
        gevent.sleep(MOMENT)
        _need(len(sent) > seen, "the writer does not go on once the peer reads")


def a_timeout_loses_nothing_received(make_pair: MakePair) -> None:
    """An exception thrown into a waiting reader leaves the stream usable and loses nothing."""
    with make_pair() as (ours, theirs), _Crew() as crew:
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
        _need(_receive(ours, 10) == b"still here", "what came after a timeout did not arrive")
        ours.send_all(b"this way too")
        _need(_receive(theirs, 12) == b"this way too", "sending does not work after a timeout of a receive")


def a_timeout_cuts_a_send_cleanly(make_pair: MakePair) -> None:
    """An exception thrown into a waiting writer leaves a beginning of its bytes sent, and the stream usable."""
    data = _pattern(MOST_HELD)
    with make_pair() as (ours, theirs), _Crew() as crew:
        writer = crew.start(ours.send_all, data)
        _need(not writer.dead, f"send_all took {MOST_HELD} bytes for a peer that reads none: {writer.value!r}")
        writer.kill()
        reader = crew.start(_receive_to_end, theirs)
        ours.send_all(b"and on")
        ours.close()
        received = _get(reader, "the peer's recv_into")
        _need(isinstance(received, bytes), f"the peer's recv_into gave {received!r}")
        _need(received.endswith(b"and on"), "what was sent after the timeout did not arrive")
        _need(data.startswith(received[:-6]), "bytes in front of the timeout were lost, doubled or moved")


def a_second_reader_is_refused(make_pair: MakePair) -> None:
    """A second reader gets an error at once, and the first goes on waiting."""
    with make_pair() as (ours, theirs), _Crew() as crew:
        buffer = bytearray(10)
        first = crew.start(ours.recv_into, buffer)
        second = _get(crew.start(ours.recv_into, bytearray(10)), "a second recv_into")
        _need(isinstance(second, Exception), f"a second recv_into gave {second!r}")
        theirs.send_all(b"first")
        _need(_get(first, "the first recv_into") == 5 and buffer[:5] == b"first", "the first reader lost its bytes to the second")


def the_hub_is_never_blocked(make_pair: MakePair) -> None:
    """In the hub a receive that would wait raises, and so does a send_all that could have to."""
    with make_pair() as (ours, theirs):
        for call in (lambda: ours.recv_into(bytearray(10)), lambda: ours.send_all(b"from the hub")):
            result = AsyncResult()
            get_hub().loop.run_callback(lambda call=call, result=result: result.set(_outcome(call)))
            got = result.get(timeout=PATIENCE / 2)
            _need(isinstance(got, Exception), f"a blocking call in the hub gave {got!r}")
        ours.send_all(b"ok")
        _need(_receive(theirs, 2) == b"ok", "the stream does not work after a call in the hub")


def streams_may_share_a_buffer(make_pair: MakePair) -> None:
    """recv_into lets nobody else run between filling the buffer and returning, so that many streams can share one."""
    shared = bytearray(4096)

    def read(stream: Stream, expected: bytes) -> object:
        while got := stream.recv_into(shared):
            if bytes(shared[:got]).strip(expected):
                return bytes(shared[:got])
        return None

    with make_pair() as (ours, theirs), _Crew() as crew:
        readers = [crew.start(read, ours, b"o"), crew.start(read, theirs, b"t")]
        for _ in range(50):
            theirs.send_all(b"o" * 100)
            ours.send_all(b"t" * 100)
            gevent.sleep(0)
        gevent.sleep(MOMENT)
        _need(not any(reader.dead for reader in readers), f"a reader found in the buffer {[reader.value for reader in readers]!r}")


def facts_are_told_by_name(make_pair: MakePair) -> None:
    """info knows the scheme, answers None to what does not apply, and lends the socket without giving it away."""
    with make_pair() as (ours, theirs):
        _need(isinstance(ours.info("scheme"), str) and ours.info("scheme"), 'info("scheme") is no name')
        for key in ("peername", "sockname", "tls", "carrier"):
            ours.info(key)
        _need(ours.info("no such key") is None, "info gave something for an unknown key")
        borrowed = ours.info("socket")
        if borrowed is not None:
            _need(borrowed.getsockname() == ours.info("sockname"), 'info("socket") is another socket')
            borrowed.close()
            del borrowed
        ours.send_all(b"still ours")
        _need(_receive(theirs, 10) == b"still ours", "closing the borrowed socket closed the stream")


def writing_without_waiting(make_pair: MakePair) -> None:
    """try_send takes what fits, says so truly, never waits, and delivers without further calls (streams that have it)."""
    with make_pair() as (ours, theirs), _Crew() as crew:
        if not isinstance(ours, NonBlockingStream):
            return
        data = _pattern(MOST_HELD)
        sent = ours.try_send_parts([data[:10], data[10:30], b"", data[30:100]])
        _need(sent == 100, f"try_send_parts of 100 bytes on an idle stream took {sent}")
        while got := ours.try_send(data[sent : sent + 65536]):
            sent += got
            _need(sent < MOST_HELD - 65536, f"try_send took {sent} bytes for a peer that reads none")
        called = AsyncResult()
        ours.call_when_writable(lambda: called.set(gevent.getcurrent() is get_hub()))
        writer = crew.start(ours.wait_writable)
        _need(not called.ready() and not writer.dead, "a full stream says that it takes bytes")
        _need(_receive(theirs, sent) == data[:sent], "not everything that try_send took arrived")
        result = _get(writer, "wait_writable")
        _need(result is None, f"wait_writable gave {result!r}")
        _need(called.get(timeout=PATIENCE / 2), "call_when_writable did not call in the hub")
        _need(ours.try_send(b"more") == 4, "try_send takes nothing although the stream is empty")
        _need(_receive(theirs, 4) == b"more", "what was sent after waiting did not arrive")


# --- Promises of a listener and a dialer --------------------------------------------------------------------------------------


def an_address_can_be_dialled(listen: Listen, dialer: MakeDialer, endpoint: str) -> None:
    """After start, `address` is the real endpoint, and many can connect to it at the same time."""
    listener = listen(endpoint)
    here: list[object] = []

    def serve(stream: Stream) -> None:
        try:
            here.append(gevent.getcurrent() is not get_hub())
            stream.handshake()
            stream.send_all(_receive(stream, 4))
        finally:
            stream.close()

    def call(number: int) -> bytes:
        stream = dialer(listener.address).dial()
        try:
            stream.send_all(b"%04d" % number)
            return _receive(stream, 100)
        finally:
            stream.close()

    try:
        listener.start(serve)
        parsed = Endpoint.parse(listener.address)
        _need(parsed.scheme == Endpoint.parse(endpoint).scheme, f"address is {listener.address!r}, of another scheme")
        _need(parsed.port or not Endpoint.parse(endpoint).host or "memory" in endpoint, f"address {listener.address!r} has no port")
        with _Crew() as crew:
            calls = [crew.start(call, number) for number in range(10)]
            for number, started in enumerate(calls):
                answer = _get(started, "a dialled stream")
                _need(answer == b"%04d" % number, f"a dialled stream gave {answer!r}")
        _need(all(here) and len(here) == 10, "on_stream was not called once for each stream, in a greenlet")
    finally:
        listener.close()


def accepting_can_stop(listen: Listen, dialer: MakeDialer, endpoint: str) -> None:
    """After stop_accepting no more streams come, those that exist go on, and the endpoint is still held."""
    listener = listen(endpoint)
    dialled: list[Stream] = []
    came: list[Stream] = []
    accepted = AsyncResult()

    def serve(stream: Stream) -> None:
        came.append(stream)
        _hand_over(stream, accepted)

    def dial() -> None:
        dialled.append(dialer(listener.address).dial())

    try:
        listener.start(serve)
        dial()
        theirs = accepted.get(timeout=PATIENCE / 2)
        listener.stop_accepting()
        listener.stop_accepting()
        with _Crew() as crew:
            crew.start(dial)  # refused, or left in a queue of the system's: both will do
        _need(len(came) == 1, "another stream came after stop_accepting")
        dialled[0].send_all(b"on we go")
        _need(_receive(theirs, 8) == b"on we go", "stop_accepting disturbed a stream")
        refused = _outcome(listen(listener.address).start, serve)
        _need(isinstance(refused, TransportError), f"listening on a busy endpoint gave {refused!r} instead of a TransportError")
        _need("\n" not in str(refused), "the error of a busy endpoint is longer than a line")
    finally:
        listener.close()
        for stream in (*dialled, *came):
            stream.close()


def closing_gives_the_endpoint_back(listen: Listen, dialer: MakeDialer, endpoint: str) -> None:
    """After close nobody can connect, close again is harmless, and the same endpoint can be listened on again."""
    listener = listen(endpoint)
    listener.start(lambda stream: stream.close())
    address = listener.address
    listener.close()
    listener.close()
    listener.stop_accepting()
    refused = _outcome(dialer(address).dial)
    _need(isinstance(refused, TransportError), f"dialling a closed endpoint gave {refused!r} instead of a TransportError")
    again = listen(address)
    try:
        again.start(lambda stream: stream.close())
        _need(again.address == address, f"listening on {address!r} again gave {again.address!r}")
    finally:
        again.close()


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
TRANSPORT_CHECKS: tuple[Callable[[Listen, MakeDialer, str], None], ...] = (
    an_address_can_be_dialled,
    accepting_can_stop,
    closing_gives_the_endpoint_back,
)
