"""The accept loop: a StreamServer to its users, with raw greenlets, back-off and bounds."""

from __future__ import annotations

import errno
import logging
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from greenlet import getcurrent, greenlet

from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports import registry
from gws_gevent.transports.base import Endpoint, ListenSettings
from gws_gevent.transports.tcp import TcpListener
from gws_gevent.transports.unix import UnixListener
from tests.support import wait_until


@pytest.fixture
def listening() -> Iterator[Callable[..., TcpListener]]:
    """Return a function that makes a listener on a free port and starts it; what it accepts is in `.seen`."""
    made: list[Any] = []

    def make(on_stream: Any = None, **kwargs: Any) -> TcpListener:
        listener: Any = TcpListener("127.0.0.1:0", **kwargs)
        listener.seen = []
        made.append(listener)
        listener.start(on_stream or listener.seen.append)
        return listener  # type: ignore[no-any-return]

    yield make
    for listener in made:
        listener.stop()
        for stream in listener.seen:
            stream.close()


@pytest.fixture
def connect() -> Iterator[Callable[[TcpListener], Any]]:
    made: list[Any] = []

    def make(listener: TcpListener) -> Any:
        made.append(gevent.socket.create_connection(("127.0.0.1", listener.server_port)))
        return made[-1]

    yield make
    for sock in made:
        sock.close()


def count(listener: Any, expected: int) -> None:
    wait_until(lambda: len(listener.seen) >= expected, what=f"{expected} streams")
    gevent.sleep(0.01)
    assert len(listener.seen) == expected


# --- As a StreamServer


@pytest.mark.parametrize(
    "where", [("127.0.0.1", 0), "127.0.0.1:0", "tcp://127.0.0.1:0", Endpoint("tcp", "127.0.0.1", 0), ("", 0), 0, ":0"], ids=repr
)
def test_it_is_made_like_a_stream_server(where: Any) -> None:
    with TcpListener(where, lambda stream: stream.close(), backlog=5, spawn=Pool(3)) as listener:
        assert isinstance(listener, StreamServer)
        assert not listener.started
        listener.start()
        assert listener.started
        assert not listener.closed
        assert listener.server_host in ("127.0.0.1", "::")
        assert listener.address.endswith(f":{listener.server_port}")
        with gevent.socket.create_connection(("127.0.0.1", listener.server_port)) as sock:
            assert sock.recv(1) == b""
    assert listener.closed


@pytest.mark.parametrize("where", [3.5, None, "unix:/tmp/x", "tls://:80", "nonsense"], ids=repr)
def test_what_is_no_endpoint_is_refused(where: Any) -> None:
    with pytest.raises((TypeError, EndpointError)):
        TcpListener(where, lambda stream: stream.close())


def test_a_handle_is_needed() -> None:
    listener = TcpListener("127.0.0.1:0")
    with pytest.raises(TypeError, match="'handle' must be provided"):
        listener.start()


def test_serve_forever_until_stop() -> None:
    listener = TcpListener("127.0.0.1:0", lambda stream: stream.close())
    server = gevent.spawn(listener.serve_forever)
    wait_until(lambda: listener.started)
    listener.stop()
    server.join(timeout=5)
    assert server.successful()


@pytest.mark.parametrize("module", [socket, gevent.socket])
def test_an_existing_socket_is_used_and_owned(module: Any, connect: Any) -> None:
    sock = module.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(5)
    port = sock.getsockname()[1]
    listener = registry.listen_on_socket(sock)
    assert isinstance(listener, TcpListener)
    assert listener.address == f"tcp://127.0.0.1:{port}"
    listener.start(lambda stream: stream.close())
    assert connect(listener).recv(1) == b""
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with pytest.raises(TransportError, match="has been closed"):
        listener.start(lambda stream: stream.close())
    sock.close()


def test_an_existing_unix_socket(tmp_path: Any) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    listener = registry.listen_on_socket(sock)
    assert isinstance(listener, UnixListener)
    listener.start(lambda stream: stream.close())
    assert (listener.address, listener.server_host, listener.server_port) == (f"unix:{tmp_path}/s", None, None)
    stream = registry.dialer(listener.address).dial()
    assert stream.recv_into(bytearray(1)) == 0
    stream.close()
    listener.close()
    assert (tmp_path / "s").exists()  # whoever made it removes it


def test_a_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket() as sock:
        with pytest.raises(TransportError, match="does not listen"):
            TcpListener(sock, lambda stream: stream.close()).start()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel the Linux way")
def test_the_backlog_is_as_told(listening: Any) -> None:
    for kwargs, expected in (
        ({}, 1024),
        ({"backlog": 7}, 7),
        ({"settings": ListenSettings(backlog=9)}, 9),
        ({"settings": ListenSettings(backlog=9), "backlog": 7}, 7),
    ):
        facts = listening(**kwargs).socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
        (backlog,) = struct.unpack_from("I", facts, 28)  # tcpi_sacked, which for a listening socket holds the backlog
        assert backlog == min(expected, int(Path("/proc/sys/net/core/somaxconn").read_text()))


# --- Greenlets


def test_a_stream_gets_a_raw_greenlet_without_a_frame_below_its_own(listening: Any, connect: Any) -> None:
    found: list[Any] = []

    def on_stream(stream: Any) -> None:
        found.append((type(getcurrent()), sys._getframe().f_back))
        stream.close()

    connect(listening(on_stream)).recv(1)
    assert found == [(greenlet, None)]


def test_what_escapes_from_a_greenlet_ends_that_one_only(listening: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent.get_hub(), "exception_stream", output := StringIO())

    def on_stream(stream: Any) -> None:
        try:
            stream.recv_into(bytearray(1))
            raise ValueError("a mistake")
        finally:
            stream.close()

    def at_once(stream: Any) -> None:
        stream.close()
        raise ValueError("an early mistake")

    for function, said in ((on_stream, "a mistake"), (at_once, "an early mistake")):
        listener = listening(function)
        for _ in range(3):
            sock = connect(listener)
            sock.sendall(b"x")
            assert sock.recv(1) == b""
        wait_until(lambda said=said: output.getvalue().count(f"ValueError: {said}") == 3, what="three reports")


def test_spawn_may_be_a_function(listening: Any, connect: Any) -> None:
    kinds: list[type] = []

    def on_stream(stream: Any) -> None:
        kinds.append(type(getcurrent()))
        stream.close()

    connect(listening(on_stream, settings=ListenSettings(spawn=gevent.spawn))).recv(1)
    assert kinds == [gevent.Greenlet]


def test_a_spawn_that_fails_closes_the_stream_and_backs_off(listening: Any, connect: Any) -> None:
    errors: list[Exception] = []
    calls: list[Any] = []

    def spawn(function: Any, stream: Any) -> None:
        calls.append(stream)
        if len(calls) == 1:
            raise RuntimeError("no more greenlets")
        function(stream)

    listener = listening(lambda stream: stream.close(), settings=ListenSettings(spawn=spawn, on_error=errors.append))
    with pytest.raises(ConnectionResetError):
        connect(listener).recv(1)
    assert connect(listener).recv(1) == b""
    assert [str(error) for error in errors] == ["no more greenlets"]


def test_a_full_pool_stops_accepting_until_there_is_room(listening: Any, connect: Any) -> None:
    leave = Event()

    def on_stream(stream: Any) -> None:
        listener.seen.append(stream)
        leave.wait()

    pool = Pool(2)
    listener = listening(on_stream, settings=ListenSettings(spawn=pool))
    for _ in range(3):
        connect(listener)
    count(listener, 2)
    assert listener.full()
    leave.set()
    count(listener, 3)
    leave.clear()
    connect(listener)
    connect(listener)
    count(listener, 5)
    connect(listener)
    assert listener.full()
    listener.stop(timeout=0.01)
    assert len(pool) == 0  # stop killed those that did not come to an end


def test_stop_accepting_holds_although_the_pool_empties(listening: Any, connect: Any) -> None:
    leave = Event()

    def on_stream(stream: Any) -> None:
        listener.seen.append(stream)
        leave.wait()

    listener = listening(on_stream, spawn=Pool(1))
    connect(listener)
    count(listener, 1)
    connect(listener)
    listener.stop_accepting()
    leave.set()
    gevent.sleep(0.02)
    assert len(listener.seen) == 1
    listener.start_accepting()
    count(listener, 2)


def test_one_accept_per_wake_up_still_gets_all(listening: Any, connect: Any) -> None:
    listener = listening()
    listener.max_accept = 1
    for _ in range(5):
        connect(listener)
    count(listener, 5)


# --- Errors of accept


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors the Linux way")
def test_running_out_of_descriptors_backs_off_and_recovers(listening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent.get_hub(), "exception_stream", output := StringIO())
    errors: list[Any] = []
    listener = listening(settings=ListenSettings(on_error=errors.append))
    client = gevent.socket.socket()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = socket.socket()
    try:
        number = lowest_free.fileno()
        lowest_free.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, limits[1]))
        client.connect(("127.0.0.1", listener.server_port))
        wait_until(lambda: len(errors) >= 3, what="three failures")
        assert listener.delay >= 0.08  # doubled each time
        assert listener.seen == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    count(listener, 1)
    assert listener.delay == listener.min_delay
    client.close()
    assert {type(error) for error in errors} == {TransportError}
    assert {error.errno for error in errors} == {errno.EMFILE}
    assert str(errors[0]) == f"[Errno 24] accept on {listener.address}: Too many open files"
    assert output.getvalue() == ""


def failing(listener: Any, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
    """Let the next accepts fail with these errors, whatever waits."""
    real = listener.do_read
    left = list(errors)

    def do_read() -> Any:
        if left:
            raise left.pop(0)
        return real()

    monkeypatch.setattr(listener, "do_read", do_read)


def test_without_on_error_a_failure_is_one_line_in_the_log(
    listening: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listener = listening()
    failing(listener, monkeypatch, OSError(errno.ENFILE, "Too many open files in system"))
    with caplog.at_level(logging.ERROR, "gws_gevent.transports"):
        connect(listener)
        count(listener, 1)
    (record,) = caplog.records
    assert record.getMessage() == f"[Errno 23] accept on {listener.address}: Too many open files in system: trying again in 0.01 s"
    assert record.exc_info is None


def test_a_connection_that_died_in_the_queue_is_skipped(listening: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    listener = listening(settings=ListenSettings(on_error=errors.append))
    failing(listener, monkeypatch, OSError(errno.ECONNABORTED, "Software caused connection abort"))
    connect(listener)
    count(listener, 1)
    assert errors == []


def test_a_listening_socket_that_is_broken_ends_the_listener(listening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    listener = listening(settings=ListenSettings(on_error=errors.append))
    failing(listener, monkeypatch, OSError(errno.EINVAL, "Invalid argument"))
    # The kernel completes this one before the listener runs and resets it.
    with socket.create_connection(("127.0.0.1", listener.server_port)):
        wait_until(lambda: listener.closed)
    assert [error.errno for error in errors] == [errno.EINVAL]


def test_a_failure_of_ours_backs_off_too(listening: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    listener = listening(settings=ListenSettings(on_error=errors.append))
    failing(listener, monkeypatch, ValueError("ours"))
    connect(listener)
    count(listener, 1)
    assert [str(error) for error in errors] == ["ours"]


def test_stop_accepting_holds_during_a_back_off(listening: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    listener = listening(settings=ListenSettings(on_error=errors.append))
    failing(listener, monkeypatch, OSError(errno.EMFILE, "Too many open files"))
    connect(listener)
    wait_until(lambda: errors)
    listener.stop_accepting()
    gevent.sleep(0.03)
    assert listener.seen == []


def test_a_stream_that_cannot_be_made_leaves_no_descriptor(listening: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    listener = listening(settings=ListenSettings(on_error=errors.append))
    monkeypatch.setattr(listener, "make_stream", lambda sock: 1 / 0)
    sock = connect(listener)
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: errors)
        raise errors[0]
    assert sock.recv(1) == b""
