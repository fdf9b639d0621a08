"""The conformance kit finds the fault in streams and listeners that are broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from gws_gevent.exceptions import StreamClosed
from gws_gevent.transports import checks, memory, stream_checks, tcp
from gws_gevent.transports.base import DialSettings, Endpoint, Listener, ListenSettings
from gws_gevent.transports.memory import MemoryStream, memory_pair


class DropsAByte(MemoryStream):
    def try_send(self, data: Any) -> int:
        super().try_send(data[1:])
        return len(data)


class TakesEverything(MemoryStream):
    def try_send(self, data: Any) -> int:
        self._capacity = 1 << 40
        return super().try_send(data)


class LiesAboutWhatItTook(MemoryStream):
    def try_send(self, data: Any) -> int:
        super().try_send(data)
        return len(data)


class EndsOnAnEmptySend(MemoryStream):
    def send_all(self, data: Any) -> None:
        super().send_all(data)
        if not data:
            self.shutdown_write()


class EndsOnlyOnce(MemoryStream):
    def recv_into(self, buffer: Any) -> int:
        got = super().recv_into(buffer)
        if got == 0:
            self._ended = False
        return got


class ClosesBothWays(MemoryStream):
    def shutdown_write(self) -> None:
        self.close()


class ClosesOnce(MemoryStream):
    def close(self) -> None:
        if self._closed:
            raise StreamClosed("already closed")
        super().close()


class ForgetsItsReader(MemoryStream):
    def _wake_reader_soon(self) -> None:
        if not self._closed:
            super()._wake_reader_soon()


class ForgetsItsWriter(MemoryStream):
    def _wake_writer_soon(self) -> None:
        if not self._closed:
            super()._wake_writer_soon()


class ClosesQuietly(MemoryStream):
    def send_all(self, data: Any) -> None:
        if not self._closed:
            super().send_all(data)


class LosesWhatCameAfterATimeout(MemoryStream):
    def recv_into(self, buffer: Any) -> int:
        try:
            got = super().recv_into(buffer)
        except BaseException:
            self.interrupted = True
            raise
        return super().recv_into(buffer) if vars(self).pop("interrupted", False) else got


class RepeatsAfterATimeout(MemoryStream):
    def send_all(self, data: Any) -> None:
        try:
            super().send_all(data)
        except gevent.GreenletExit:
            assert self._peer is not None
            assert self._peer._inbox is not None
            self._peer._inbox += b"again"
            raise


class TakesASecondReader(MemoryStream):
    def recv_into(self, buffer: Any) -> int:
        while self._reader is not None:
            gevent.sleep(0.001)
        return super().recv_into(buffer)


class SwitchesWithAFullBuffer(MemoryStream):
    def recv_into(self, buffer: Any) -> int:
        got = super().recv_into(buffer)
        gevent.sleep(0.001)
        return got


class WaitsInTheHub(MemoryStream):
    def recv_into(self, buffer: Any) -> int:
        return 0 if gevent.getcurrent() is gevent.get_hub() else super().recv_into(buffer)


class KnowsNoUnknownFacts(MemoryStream):
    def info(self, key: str) -> Any:
        return {"scheme": "memory", "peername": "", "sockname": "", "tls": None, "carrier": None, "socket": None}[key]


BROKEN_STREAMS: list[tuple[type[MemoryStream], Callable[..., None]]] = [
    (DropsAByte, stream_checks.bytes_arrive_in_order),
    (DropsAByte, stream_checks.large_transfers_run_both_ways_at_once),
    (TakesEverything, stream_checks.a_slow_peer_blocks_its_writer_only),
    (TakesEverything, stream_checks.writing_without_waiting),
    (LiesAboutWhatItTook, stream_checks.writing_without_waiting),
    (EndsOnAnEmptySend, stream_checks.an_empty_send_does_nothing),
    (EndsOnlyOnce, stream_checks.the_end_is_seen_after_the_data),
    (ClosesBothWays, stream_checks.half_close_leaves_the_other_way_open),
    (ClosesOnce, stream_checks.closing_twice_is_harmless),
    (ForgetsItsReader, stream_checks.close_wakes_a_waiting_reader),
    (ForgetsItsReader, stream_checks.abort_wakes_a_waiting_reader),
    (ForgetsItsWriter, stream_checks.close_wakes_a_waiting_writer),
    (ClosesQuietly, stream_checks.a_closed_stream_is_of_no_use),
    (LosesWhatCameAfterATimeout, stream_checks.a_timeout_loses_nothing_received),
    (RepeatsAfterATimeout, stream_checks.a_timeout_cuts_a_send_cleanly),
    (TakesASecondReader, stream_checks.a_second_reader_is_refused),
    (WaitsInTheHub, stream_checks.the_hub_is_never_blocked),
    (SwitchesWithAFullBuffer, stream_checks.streams_may_share_a_buffer),
    (KnowsNoUnknownFacts, stream_checks.facts_are_told_by_name),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN_STREAMS, ids=lambda value: value.__name__)
def test_a_broken_stream_is_caught(broken: type[MemoryStream], check: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_checks, "PATIENCE", 0.2)

    @contextmanager
    def make_pair() -> Iterator[tuple[Any, Any]]:
        ours, theirs = memory_pair(make=broken)
        try:
            yield ours, theirs
        finally:
            theirs.close()
            MemoryStream.close(ours)

    with pytest.raises(checks.BrokenPromise) as caught:
        checks.run_check(check, make_pair)
    promise = (check.__doc__ or "").split("\n")[0]
    assert str(caught.value).startswith(f"{promise} ({check.__name__}): ")


def test_every_check_of_a_stream_has_something_that_it_catches() -> None:
    assert {check for _, check in BROKEN_STREAMS} == set(checks.STREAM_CHECKS)


class SaysPortZero(tcp.TcpListener):
    def start(self, on_stream: Any = None) -> None:
        super().start(on_stream)
        self.address = str(self.endpoint)


class NeverStops(memory.MemoryListener):
    def stop_accepting(self) -> None:
        pass


class KeepsItsName(memory.MemoryListener):
    def close(self) -> None:
        self.stop_accepting()


class IgnoresBusyNames(memory.MemoryListener):
    def start(self, on_stream: Any) -> None:
        memory._listeners().pop(self.endpoint.host, None)
        super().start(on_stream)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (SaysPortZero, checks.an_address_can_be_dialled),
        (NeverStops, checks.accepting_can_stop),
        (IgnoresBusyNames, checks.accepting_can_stop),
        (KeepsItsName, checks.closing_gives_the_endpoint_back),
    ],
    ids=lambda value: value.__name__,
)
def test_a_broken_listener_is_caught(broken: type[Listener], check: Callable[..., None], request: pytest.FixtureRequest) -> None:
    request.addfinalizer(memory._listeners().clear)
    module: Any = tcp if issubclass(broken, tcp.TcpListener) else memory

    def listen(text: str) -> Listener:
        return broken(Endpoint.parse(text), settings=ListenSettings())  # type: ignore[call-arg]

    def dialer(text: str) -> Any:
        return module.dialer(Endpoint.parse(text), DialSettings())

    with pytest.raises(checks.BrokenPromise):
        checks.run_check(check, listen, dialer, "tcp://127.0.0.1:0" if module is tcp else "memory:broken")


def test_a_fault_of_any_kind_is_a_broken_promise() -> None:
    def check(_: object) -> None:
        """Nothing ever goes wrong."""
        raise KeyError("something")

    with pytest.raises(checks.BrokenPromise, match=r"Nothing ever goes wrong\. \(check\): unexpected KeyError\('something'\)"):
        checks.run_check(check, None)
