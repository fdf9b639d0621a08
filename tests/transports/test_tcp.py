"""TCP and the stream over a descriptor: what the conformance kit does not ask."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.exceptions import ConcurrentObjectUseError

from gws_gevent.exceptions import EndpointError, StreamClosed, TransportError
from gws_gevent.transports import registry
from gws_gevent.transports.base import DialSettings, Endpoint, ListenSettings
from gws_gevent.transports.tcp import SocketStream, TcpDialer, TcpListener
from tests.support import wait_until


@pytest.fixture
def pair() -> Iterator[tuple[SocketStream, SocketStream]]:
    one, two = (SocketStream.adopt(sock) for sock in socket.socketpair())
    yield one, two
    one.close()
    two.close()


@pytest.fixture
def tcp_pair(connected: Any) -> Iterator[tuple[SocketStream, SocketStream]]:
    listener = TcpListener("127.0.0.1:0")
    with connected(listener, lambda: TcpDialer(Endpoint.parse(listener.address)).dial()) as streams:
        yield streams


def parked(function: Any, *args: Any) -> Any:
    """Start a greenlet and let it reach the place where it waits."""
    started = gevent.spawn(_outcome, function, *args)
    gevent.sleep(0)
    gevent.sleep(0)
    assert not started.dead
    return started


def _outcome(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:
        return error


# --- The stream


def test_the_descriptor_outlives_close_until_its_waiters_have_left(pair: Any) -> None:
    ours, _ = pair
    number = ours.fileno()
    while ours.try_send(b"x" * 65536):
        pass
    reader, writer = parked(ours.recv_into, bytearray(10)), parked(ours.wait_writable)
    ours.close()
    assert ours.fileno() == -1
    os.fstat(number)  # its number cannot go to another connection yet
    gevent.joinall([reader, writer], timeout=5)
    assert isinstance(reader.value, StreamClosed)
    assert isinstance(writer.value, StreamClosed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_waiter_that_is_killed_after_close_gives_the_descriptor_back(pair: Any) -> None:
    ours, _ = pair
    number = ours.fileno()
    reader = parked(ours.recv_into, bytearray(10))
    reader.kill(block=False)
    ours.close()
    reader.join(timeout=5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_somebody_elses_switch_does_not_wake_a_reader(pair: Any) -> None:
    ours, theirs = pair
    buffer = bytearray(10)
    reader = parked(ours.recv_into, buffer)
    for value in ((), ("junk",), (None,)):
        gevent.get_hub().loop.run_callback(reader.switch, *value)
        gevent.sleep(0)
        assert not reader.dead
    theirs.send_all(b"real")
    reader.join(timeout=5)
    assert (reader.value, bytes(buffer[:4])) == (4, b"real")


def test_an_end_that_comes_with_the_data_is_not_missed(pair: Any) -> None:
    ours, theirs = pair
    theirs.send_all(b"all there is")
    theirs.close()
    buffer = bytearray(100)
    assert ours.recv_into(buffer) == 12  # shorter than the buffer, so the next one waits first
    with gevent.Timeout(5):
        assert ours.recv_into(buffer) == 0


def test_abort_resets_the_connection(tcp_pair: Any) -> None:
    ours, theirs = tcp_pair
    reader = parked(theirs.recv_into, bytearray(10))
    ours.abort()
    reader.join(timeout=5)
    assert isinstance(reader.value, TransportError)
    assert reader.value.errno == errno.ECONNRESET
    assert str(reader.value) == "[Errno 104] receive: Connection reset by peer"


def test_abort_resets_although_a_reader_waits(tcp_pair: Any) -> None:
    ours, theirs = tcp_pair
    here, there = parked(ours.recv_into, bytearray(10)), parked(theirs.recv_into, bytearray(10))
    ours.abort()
    gevent.joinall([here, there], timeout=5)
    assert isinstance(here.value, StreamClosed)
    assert there.value.errno == errno.ECONNRESET


def test_writing_to_a_peer_that_is_gone(tcp_pair: Any) -> None:
    ours, theirs = tcp_pair
    theirs.abort()
    with pytest.raises(TransportError) as caught:
        for _ in range(100):
            ours.send_all(b"x" * 1000)
            gevent.sleep(0.001)
    assert caught.value.errno in (errno.ECONNRESET, errno.EPIPE)
    assert not isinstance(caught.value, StreamClosed)
    ours.shutdown_write()  # nothing left to shut, which is no error


def test_many_parts_in_one_call(pair: Any) -> None:
    ours, theirs = pair
    parts = [b"%05d" % number for number in range(3000)]  # more than one sendmsg takes
    sent = 0
    while sent < 15000:
        taken = ours.try_send_parts(parts[sent // 5 :])
        assert taken % 5 == 0
        assert taken > 0
        sent += taken
    received = bytearray()
    buffer = bytearray(15000)
    while len(received) < 15000:
        received += buffer[: theirs.recv_into(buffer)]
    assert received == b"".join(parts)


def test_a_callback_is_forgotten_at_close(pair: Any) -> None:
    ours, theirs = pair
    while ours.try_send(b"x" * 65536):
        pass
    called: list[bool] = []
    ours.call_when_writable(lambda: called.append(True))
    ours.close()
    theirs.close()
    gevent.sleep(0.01)
    assert called == []
    with pytest.raises(StreamClosed):
        ours.call_when_writable(list)


def test_a_later_callback_replaces_an_earlier_one(pair: Any) -> None:
    ours, _ = pair
    called: list[int] = []
    ours.call_when_writable(lambda: called.append(1))
    ours.call_when_writable(lambda: called.append(2))
    wait_until(lambda: called, what="the callback")
    gevent.sleep(0.01)
    assert called == [2]


def test_another_thread_is_refused_before_it_can_disturb(pair: Any) -> None:
    ours, theirs = pair
    results: list[Any] = []

    def elsewhere() -> None:
        results.append(_outcome(ours.recv_into, bytearray(10)))
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert isinstance(results[0], ConcurrentObjectUseError)
    theirs.send_all(b"here")
    assert ours.recv_into(bytearray(10)) == 4


@pytest.mark.parametrize("module", [socket, gevent.socket])
def test_sockets_of_both_kinds_are_adopted(module: Any) -> None:
    one, two = module.socketpair()
    stream = SocketStream.adopt(one)
    assert one.fileno() == -1
    two.sendall(b"hello")
    buffer = bytearray(10)
    assert stream.recv_into(buffer) == 5
    assert stream.info("scheme") == "unix"
    stream.close()
    assert two.recv(1) == b""
    two.close()


# --- The borrowed socket


def test_the_borrowed_socket_sets_options_and_owns_nothing(tcp_pair: Any) -> None:
    ours, theirs = tcp_pair
    sock = ours.info("socket")
    assert isinstance(sock, gevent.socket.socket)
    assert sock is ours.info("socket")
    assert sock.fileno() == ours.fileno()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getpeername() == theirs.info("sockname") == ours.info("peername")
    sock.close()
    sock.close()
    assert sock.fileno() == -1
    ours.send_all(b"on")
    assert theirs.recv_into(bytearray(10)) == 2


def test_the_borrowed_socket_is_let_go_when_the_stream_closes(pair: Any) -> None:
    ours, _ = pair
    sock = ours.info("socket")
    ours.close()
    assert sock.fileno() == -1  # and not the number of somebody else's connection
    with pytest.raises(OSError, match="Bad file descriptor"):
        sock.send(b"x")


def test_a_stream_that_is_dropped_closes_its_descriptor_once() -> None:
    one, two = socket.socketpair()
    streams = [SocketStream.adopt(one)]
    number = streams[0].fileno()
    streams[0].info("socket")
    with pytest.warns(ResourceWarning, match="unclosed"):
        streams.clear()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    two.close()


# --- Listening and dialling


def test_both_ends_have_no_delay_unless_told_otherwise(connected: Any) -> None:
    for wanted in (True, False):
        listener = TcpListener("127.0.0.1:0", settings=ListenSettings(no_delay=wanted))
        dialer = lambda at=listener, wanted=wanted: TcpDialer(Endpoint.parse(at.address), DialSettings(no_delay=wanted)).dial()  # noqa: E731
        with connected(listener, dialer) as streams:
            for stream in streams:
                option = stream.info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert bool(option) is wanted
                assert stream.info("scheme") == "tcp"
                assert not os.get_inheritable(stream.fileno())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_host_means_every_address_of_both_families(host: str, connected: Any) -> None:
    listener = registry.listen(":0")
    assert isinstance(listener, TcpListener)
    with connected(listener, lambda: TcpDialer(Endpoint("tcp", host, listener.server_port or 0)).dial()) as (ours, _):
        assert ours.info("peername")[0] == host
        assert listener.address == f"tcp://[::]:{listener.server_port}"


def test_where_there_is_no_ipv6_no_host_means_every_ipv4_address(monkeypatch: pytest.MonkeyPatch, connected: Any) -> None:
    from gws_gevent.transports import accepting

    real = accepting._listening

    def listening(family: int, *args: Any) -> Any:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *args)

    monkeypatch.setattr(accepting, "_listening", listening)
    listener = registry.listen(":0")
    with connected(listener, lambda: TcpDialer(Endpoint("tcp", "127.0.0.1", listener.server_port)).dial()):  # type: ignore[attr-defined]
        assert listener.address.startswith("tcp://0.0.0.0:")


def test_both_wildcards_can_be_bound_side_by_side() -> None:
    four = registry.listen("tcp://0.0.0.0:0")
    four.start(lambda stream: stream.close())
    six = registry.listen(f"tcp://[::]:{four.server_port}")  # type: ignore[attr-defined]
    try:
        six.start(lambda stream: stream.close())
    finally:
        six.close()
        four.close()


def test_a_name_is_resolved_on_both_sides(connected: Any) -> None:
    listener = registry.listen("tcp://localhost:0")
    with connected(listener, lambda: registry.dialer(f"tcp://localhost:{listener.server_port}").dial()) as (ours, _):  # type: ignore[attr-defined]
        assert listener.address == f"tcp://127.0.0.1:{ours.info('peername')[1]}"


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("tcp://192.0.2.1:80", r"\[Errno 99\] listen on tcp://192\.0\.2\.1:80: Cannot assign requested address"),
        ("tcp://no-such-host.invalid:80", r"\[Errno -\d\] listen on tcp://no-such-host\.invalid:80: .*[Nn]ame.*"),
        (f"tcp://{'a' * 64}.invalid:80", r"\[Errno -\d\] listen on tcp://a{64}\.invalid:80: .*[Nn]ame.*"),
        ("tcp://a..invalid:80", r"\[Errno -\d\] listen on tcp://a\.\.invalid:80: .*[Nn]ame.*"),
    ],
)
def test_an_endpoint_that_cannot_be_bound_is_named_in_one_line(endpoint: str, message: str) -> None:
    listener = registry.listen(endpoint)
    with pytest.raises(TransportError, match=f"^{message}$"):
        listener.start(lambda stream: stream.close())
    listener.close()


def test_a_busy_port_is_named() -> None:
    first = registry.listen("tcp://127.0.0.1:0")
    first.start(lambda stream: stream.close())
    with pytest.raises(TransportError, match=rf"^\[Errno 98\] listen on {first.address}: Address already in use$"):
        registry.listen(first.address).start(lambda stream: stream.close())
    first.close()


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("tcp://127.0.0.1:1", r"\[Errno 111\] connect to tcp://127\.0\.0\.1:1: Connection refused"),
        ("tcp://no-such-host.invalid:80", r"\[Errno -\d\] connect to tcp://no-such-host\.invalid:80: .*[Nn]ame.*"),
        (f"tcp://{'a' * 64}.invalid:80", r"\[Errno -\d\] connect to tcp://a{64}\.invalid:80: .*[Nn]ame.*"),
        ("tcp://a..invalid:80", r"\[Errno -\d\] connect to tcp://a\.\.invalid:80: .*[Nn]ame.*"),
    ],
)
def test_an_endpoint_that_cannot_be_reached_is_named_in_one_line(endpoint: str, message: str) -> None:
    with pytest.raises(TransportError, match=f"^{message}$"):
        registry.dialer(endpoint).dial()


@pytest.mark.parametrize("endpoint", ["tcp://:80", "tcp://127.0.0.1:0", "tcp://127.0.0.1:80?nodelay=1"])
def test_an_endpoint_that_cannot_be_dialled_is_refused(endpoint: str) -> None:
    with pytest.raises(EndpointError):
        registry.dialer(endpoint)


def test_parameters_are_refused() -> None:
    with pytest.raises(EndpointError, match=r"tcp has no parameter mode, no_delay; it has none"):
        registry.listen("tcp://:80?no_delay=1&mode=600")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="fills a queue the Linux way")
def test_a_timeout_of_dial_leaves_nothing_behind() -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    crowd = [socket.socket() for _ in range(4)]
    for one in crowd:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        registry.dialer(f"tcp://127.0.0.1:{full.getsockname()[1]}").dial()
    gevent.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before
    for one in (full, *crowd):
        one.close()
