"""The conformance kit: does a transport keep the promises of `base.py`? For our transports and for anybody's.

Belongs here: running checks, and those of listeners and dialers; usable from any test runner or none. Does not belong here: the
promises of streams (stream_checks.py), knowledge of a particular transport.

    check_transport(listen, dialer, "tcp://127.0.0.1:0")

runs everything; `check_stream_pair` checks two connected streams alone. `STREAM_CHECKS` and `TRANSPORT_CHECKS` hold the checks one
by one, for a test runner that wants them as separate tests: call `run_check`. A broken promise raises BrokenPromise, which
says which one. Streams are real and greenlets run meanwhile, so every wait is bounded by `stream_checks.PATIENCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.hub import get_hub

from gws_gevent.exceptions import TransportError
from gws_gevent.transports import stream_checks
from gws_gevent.transports.base import Dialer, Endpoint, Listener, Stream
from gws_gevent.transports.stream_checks import STREAM_CHECKS, BrokenPromise, Crew, MakePair, get, need, outcome, receive

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

Listen = Callable[[str], Listener]
MakeDialer = Callable[[str], Dialer]


def check_stream_pair(make_pair: MakePair, *, half_close: bool = True) -> None:
    """Check two connected streams, each in both roles.

    Args:
        make_pair: called for each check, as `with make_pair() as (ours, theirs):`.
        half_close: False for a transport that has no half-close, where `shutdown_write` is a no-op.
    """
    for check in STREAM_CHECKS:
        if half_close or check is not stream_checks.half_close_leaves_the_other_way_open:
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
        with gevent.Timeout(stream_checks.PATIENCE, BrokenPromise(f"not done after {stream_checks.PATIENCE:g} s")):
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
                theirs = accepted.get(timeout=stream_checks.PATIENCE)
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


# --- Promises of a listener and a dialer --------------------------------------------------------------------------------------


def an_address_can_be_dialled(listen: Listen, dialer: MakeDialer, endpoint: str) -> None:
    """After start, `address` is the real endpoint, and many can connect to it at the same time."""
    listener = listen(endpoint)
    here: list[object] = []

    def serve(stream: Stream) -> None:
        try:
            here.append(gevent.getcurrent() is not get_hub())
            stream.handshake()
            stream.send_all(receive(stream, 4))
        finally:
            stream.close()

    def call(number: int) -> bytes:
        stream = dialer(listener.address).dial()
        try:
            stream.send_all(b"%04d" % number)
            return receive(stream, 100)
        finally:
            stream.close()

    try:
        listener.start(serve)
        parsed = Endpoint.parse(listener.address)
        need(parsed.scheme == Endpoint.parse(endpoint).scheme, f"address is {listener.address!r}, of another scheme")
        need(parsed.port or not Endpoint.parse(endpoint).host or "memory" in endpoint, f"address {listener.address!r} has no port")
        with Crew() as crew:
            calls = [crew.start(call, number) for number in range(10)]
            for number, started in enumerate(calls):
                answer = get(started, "a dialled stream")
                need(answer == b"%04d" % number, f"a dialled stream gave {answer!r}")
        need(all(here) and len(here) == 10, "on_stream was not called once for each stream, in a greenlet")
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
        theirs = accepted.get(timeout=stream_checks.PATIENCE / 2)
        listener.stop_accepting()
        listener.stop_accepting()
        with Crew() as crew:
            crew.start(dial)  # refused, or left in a queue of the system's: both will do
        need(len(came) == 1, "another stream came after stop_accepting")
        dialled[0].send_all(b"on we go")
        need(receive(theirs, 8) == b"on we go", "stop_accepting disturbed a stream")
        refused = outcome(listen(listener.address).start, serve)
        need(isinstance(refused, TransportError), f"listening on a busy endpoint gave {refused!r} instead of a TransportError")
        need("\n" not in str(refused), "the error of a busy endpoint is longer than a line")
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
    refused = outcome(dialer(address).dial)
    need(isinstance(refused, TransportError), f"dialling a closed endpoint gave {refused!r} instead of a TransportError")
    again = listen(address)
    try:
        again.start(lambda stream: stream.close())
        need(again.address == address, f"listening on {address!r} again gave {again.address!r}")
    finally:
        again.close()


TRANSPORT_CHECKS: tuple[Callable[[Listen, MakeDialer, str], None], ...] = (
    an_address_can_be_dialled,
    accepting_can_stop,
    closing_gives_the_endpoint_back,
)
