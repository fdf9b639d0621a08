"""Names with several addresses: their order, attempts beside each other, and that nothing stays of those that lost."""

from __future__ import annotations

import errno
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import gevent
import pytest

from gws_gevent.exceptions import TransportError
from gws_gevent.transports import happy_eyeballs, registry, tcp
from gws_gevent.transports.base import DialSettings, Endpoint, ListenSettings, TlsFiles
from gws_gevent.transports.happy_eyeballs import connect_to_first, first_to_answer, interleaved
from gws_gevent.transports.tcp import TcpDialer
from gws_gevent.transports.tls_contexts import client_context
from tests.support import free_port, require_module
from tests.transports.conftest import Certificates

V4, V6 = socket.AF_INET, socket.AF_INET6
Address = tuple[int, tuple[str, int]]


@contextmanager
def listening(count: int = 1, family: int = V4) -> Iterator[list[socket.socket]]:
    """Sockets that take connections."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.socket(family))
            one.bind(("::1" if family == V6 else "127.0.0.1", 0))
            one.listen(16)
            found.append(one)
        yield found


@contextmanager
def black_hole() -> Iterator[Address]:
    """An address whose connections hang: a listener with a full queue."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            assert one.connect_ex(full.getsockname()) in (0, errno.EINPROGRESS)
        yield at(full)


def at(listener: socket.socket) -> Address:
    return listener.family, listener.getsockname()


def nobody() -> Address:
    return V4, ("127.0.0.1", free_port())


def won(*addresses: Address) -> tuple[str, int]:
    with closing(connect_to_first(addresses)) as sock:
        assert not sock.getblocking()
        found: tuple[str, int] = sock.getpeername()
        return found


def test_families_take_turns() -> None:
    a, b, c = ((V6, (f"::{n}", 1)) for n in (1, 2, 3))
    x, y = ((V4, (f"10.0.0.{n}", 1)) for n in (1, 2))
    assert interleaved([a, b, c, x, y]) == [a, x, b, y, c]
    assert interleaved([x, a, b, c]) == [x, a, b, c]
    assert interleaved([x, x, a, x]) == [x, a]
    assert interleaved([]) == []


def test_one_address() -> None:
    with listening() as (one,):
        assert won(at(one)) == one.getsockname()


def test_the_first_that_answers_is_the_only_one_tried() -> None:
    with listening(2) as (one, other):
        assert won(at(one), at(other)) == one.getsockname()
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()


def test_after_a_failure_the_next_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happy_eyeballs, "ATTEMPT_DELAY", 20.0)
    with listening() as (one,):
        assert won(nobody(), nobody(), at(one)) == one.getsockname()


@pytest.mark.slow
def test_an_address_that_hangs_holds_the_next_up_for_a_quarter_of_a_second() -> None:
    with black_hole() as hole, listening() as (one,):
        began = time.monotonic()
        assert won(hole, at(one)) == one.getsockname()
        assert happy_eyeballs.ATTEMPT_DELAY * 0.9 <= time.monotonic() - began < 2


def test_a_late_answer_still_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happy_eyeballs, "ATTEMPT_DELAY", 0.01)
    with black_hole() as hole, listening() as (one,):
        # The attempt in between fails while the first still hangs.
        assert won(hole, nobody(), at(one)) == one.getsockname()


def test_a_family_that_this_machine_does_not_have() -> None:
    with listening() as (one,):
        assert won((99, ("::1", 1)), at(one)) == one.getsockname()


def test_nobody_answers() -> None:
    with pytest.raises(ConnectionRefusedError):
        connect_to_first([nobody(), nobody()])
    with pytest.raises(OSError, match="no address"):
        connect_to_first([])


def test_a_timeout_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # The fixture of every test looks at the descriptors.
    monkeypatch.setattr(happy_eyeballs, "ATTEMPT_DELAY", 0.01)
    with black_hole() as one, black_hole() as other, pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        connect_to_first([one, other])


def test_the_hub_goes_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_hole() as hole, pytest.raises(gevent.Timeout):
        turns = gevent.spawn(lambda: [gevent.sleep(0.001) for _ in range(10)])
        with gevent.Timeout(0.2):
            connect_to_first([hole])
    assert turns.ready()


def test_a_dialer_races_all_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happy_eyeballs, "ATTEMPT_DELAY", 0.01)
    with black_hole() as hole, listening() as (one,):
        monkeypatch.setattr(tcp, "resolve", lambda host, port: [hole, at(one)])
        stream = TcpDialer(Endpoint("tcp", "chat.example", 80)).dial()
        assert stream.info("peername") == one.getsockname()
        assert stream.info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        stream.close()
        monkeypatch.setattr(tcp, "resolve", lambda host, port: [nobody(), nobody()])
        with pytest.raises(TransportError, match=r"connect to tcp://chat\.example:80: Connection refused") as refused:
            TcpDialer(Endpoint("tcp", "chat.example", 80)).dial()
        assert refused.value.errno == errno.ECONNREFUSED


def test_ipv6_first_and_ipv4_where_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with listening(1, V6) as (six,):
            with listening() as (four,):
                assert won(at(six), at(four))[0] == "::1"
            broken = at(six)
        with listening() as (four,):
            assert won(broken, at(four))[0] == "127.0.0.1"
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


@contextmanager
def silent_first(monkeypatch: pytest.MonkeyPatch, scheme: str, port: int) -> Iterator[socket.socket]:
    """A name with two addresses, of which the first takes datagrams and answers nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        choices = [(V4, silent.getsockname()), (V4, ("127.0.0.1", port))]
        # By its full name: `quic.dialer` is a function of the package, too.
        module = sys.modules["gws_gevent.transports." + ("quic.dialer" if scheme == "quic" else "kcp.endpoints")]
        monkeypatch.setattr(module, "resolve", lambda host, port: choices)
        yield silent


@pytest.mark.parametrize("scheme", ["quic", "kcp"])
def test_datagram_transports_do_not_wait_for_an_address_that_is_silent(
    scheme: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_module("aioquic" if scheme == "quic" else "kcp")
    tls = TlsFiles(certificates.both) if scheme == "quic" else None
    context = client_context(certificates.ca)
    listener = registry.listen(f"{scheme}://127.0.0.1:0", ListenSettings(tls=tls))
    listener.start(lambda stream: stream.close())
    try:
        port = Endpoint.parse(listener.address).port
        with silent_first(monkeypatch, scheme, port):
            settings = DialSettings(ssl_context=context, server_name="localhost")
            dialer = registry.dialer(f"{scheme}://two.example:{port}", settings)
            begun = time.monotonic()
            streams = gevent.joinall([gevent.spawn(dialer.dial) for _ in range(3)], timeout=5)
            assert [one.value.info("peername")[1] for one in streams] == [port] * 3
            assert time.monotonic() - begun >= happy_eyeballs.ATTEMPT_DELAY, "the first one had its time"
            if scheme == "quic":
                pool = sys.modules["gws_gevent.transports.quic.dialer"]._pool()  # type: ignore[attr-defined]
                assert [one.load for found in pool.connections.values() for one in found if one.session.error is None] == [3]
            for one in streams:
                one.value.close()
    finally:
        listener.close()


def test_an_answer_that_is_a_refusal_ends_all_attempts() -> None:
    tried: list[str] = []

    def attempt(address: tuple[int, str]) -> str:
        tried.append(address[1])
        if address[1] == "slow":
            gevent.sleep(60)
        if address[1] == "broken":
            raise ValueError("a mistake of ours")
        raise TransportError(errno.ECONNREFUSED if address[1] == "down" else None, address[1])  # type: ignore[arg-type]

    def ask(*names: str) -> str:
        tried.clear()
        return first_to_answer([(V4, name) for name in names], attempt, lambda _: None)

    with pytest.raises(TransportError, match="second"):
        ask("down", "down", "second")
    assert tried == ["down", "down", "second"]
    with pytest.raises(TransportError, match="TLS failed"):
        ask("down", "TLS failed", "never")
    assert "never" not in tried
    with pytest.raises(ValueError, match="a mistake"):
        ask("slow", "broken", "never")
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        ask("slow", "slow")


def test_what_answers_too_late_is_discarded() -> None:
    discarded: list[str] = []
    both = gevent.event.Event()

    def attempt(address: tuple[int, str]) -> str:
        both.wait() if address[1] == "first" else both.set()
        return address[1]

    assert first_to_answer([(V4, "first"), (V4, "second")], attempt, discarded.append) in ("first", "second")
    assert len(discarded) <= 1
