"""Upgrading streams that somebody else accepted."""

from __future__ import annotations

from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.server import StreamServer

from gws_gevent import (
    Client,
    ClientOptions,
    Close,
    EventHandler,
    GwsError,
    HandshakeError,
    HandshakeRefused,
    ServerOptions,
    TransportError,
    Upgrader,
    connect,
)
from gws_gevent.transports.memory import memory_pair
from gws_gevent.transports.tcp import SocketStream
from tests.pairs import EchoHandler, Recorder, failing_with
from tests.support import wait_until


def test_a_server_of_gevents_own_upgrades_each_stream() -> None:
    handler = EchoHandler()
    upgrader = Upgrader(handler, ServerOptions(subprotocols=["a"]))
    states = []

    def handle(sock: Any, _address: Any) -> None:
        conn = upgrader.upgrade_stream(SocketStream.adopt(sock))
        states.append(conn.state.name)
        assert conn.request is not None
        states.append(conn.request.target)
        conn.read_loop()
        states.append(conn.state.name)

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    for _ in range(2):
        with connect(f"ws://127.0.0.1:{server.server_port}/x") as conn:
            conn.send("hello")
            assert conn.receive(timeout=5) == "hello"
    wait_until(lambda: len(states) == 6)
    server.stop()
    assert states == ["OPEN", "/x", "CLOSED"] * 2
    assert len(handler.infos) == 2


def test_a_refused_request_is_an_error_and_the_peer_is_told() -> None:
    ours, theirs = memory_pair()
    refusing = Upgrader(Recorder(), ServerOptions(origins=["https://here.example"]))
    upgrading = gevent.spawn(lambda: refusing.upgrade_stream(ours))
    with pytest.raises(HandshakeRefused) as refused:
        Client.from_stream(theirs, options=ClientOptions(headers={"Origin": "https://elsewhere.example"}))
    assert refused.value.status == 403
    with pytest.raises(HandshakeError, match="not upgraded"):
        upgrading.get(timeout=5)


def test_a_stream_that_fails_is_the_cause() -> None:
    ours, theirs = memory_pair()
    upgrading = gevent.spawn(lambda: Upgrader(Recorder()).upgrade_stream(ours))
    gevent.sleep(0)
    theirs.abort()
    with pytest.raises(HandshakeError) as failed:
        upgrading.get(timeout=5)
    assert isinstance(failed.value.__cause__, TransportError)


def test_a_stream_that_ends_before_a_request() -> None:
    ours, theirs = memory_pair()
    upgrading = gevent.spawn(lambda: Upgrader(Recorder()).upgrade_stream(ours))
    gevent.sleep(0)
    theirs.close()
    with pytest.raises(HandshakeError) as failed:
        upgrading.get(timeout=5)
    assert failed.value.__cause__ is None


def test_the_handshakes_deadline_holds_here_too() -> None:
    handler = Recorder()
    ours, theirs = memory_pair()
    upgrading = gevent.spawn(lambda: Upgrader(handler, ServerOptions(handshake_timeout=0.1)).upgrade_stream(ours))
    with pytest.raises(HandshakeError):
        upgrading.get(timeout=5)
    buffer = bytearray(1000)
    assert bytes(buffer[: theirs.recv_into(buffer)]).startswith(b"HTTP/1.1 408 ")
    theirs.close()
    assert handler.events == []


def test_on_close_is_not_called_without_on_open() -> None:
    handler = Recorder()
    ours, theirs = memory_pair()
    upgrading = gevent.spawn(lambda: Upgrader(handler).upgrade_stream(ours))
    client = Client.from_stream(theirs)
    conn = upgrading.get(timeout=5)
    conn.abort()
    assert handler.events == []
    assert not list(client)
    conn.read_loop()
    assert [event[0] for event in handler.events] == ["open", "close"]


def test_an_upgraded_connection_may_be_closed_before_its_read_loop() -> None:
    handler = Recorder()
    ours, theirs = memory_pair()
    upgrading = gevent.spawn(lambda: Upgrader(handler).upgrade_stream(ours))
    client = Client.from_stream(theirs)
    conn = upgrading.get(timeout=5)
    conn.write_close(4000)
    reading = gevent.spawn(list, client)
    conn.read_loop()
    assert reading.get(timeout=5) == []
    assert handler.infos[0].sent == Close(4000, "")
    assert handler.infos[0].clean


def test_a_function_as_handler_and_a_wrong_one() -> None:
    with pytest.raises(TypeError):
        Upgrader("echo")  # type: ignore[arg-type]
    ours, theirs = memory_pair()
    with pytest.raises(TypeError, match="needs a handler"):
        Upgrader().upgrade_stream(ours)
    serving = gevent.spawn(lambda: Upgrader(lambda conn: conn.send("hello")).upgrade_stream(ours).read_loop())
    assert list(Client.from_stream(theirs)) == ["hello"]
    serving.get(timeout=5)


@pytest.mark.parametrize("method", ["upgrade", "accept"])
def test_a_request_in_place_of_its_environ_is_told(method: str) -> None:
    with pytest.raises(TypeError, match=r"environ: .* in Flask and Django it is request\.environ"):
        getattr(Upgrader(EventHandler() if method == "upgrade" else None), method)(object())


def test_two_streams_at_once_with_one_upgrader() -> None:
    upgrader = Upgrader(EchoHandler())
    first, second = memory_pair(), memory_pair()
    failing = gevent.spawn(lambda: upgrader.upgrade_stream(first[0]))
    working = gevent.spawn(lambda: upgrader.upgrade_stream(second[0]).read_loop())
    gevent.sleep(0)
    first[1].abort()
    client = Client.from_stream(second[1])
    with pytest.raises(HandshakeError) as failed:
        failing.get(timeout=5)
    assert isinstance(failed.value.__cause__, GwsError)
    with client:
        client.send("hello")
        assert client.receive(timeout=5) == "hello"
    working.get(timeout=5)


def test_a_kill_of_the_greenlet_that_reads_ends_that_greenlet() -> None:
    near, far = memory_pair()
    handler = Recorder()
    went_on = []

    def serve() -> None:
        Upgrader(handler).upgrade_stream(near).read_loop()
        went_on.append(True)

    greenlet = gevent.spawn(serve)
    client = Client.from_stream(far)
    handler.open.get(timeout=5)
    greenlet.kill()
    handler.wait_closed()
    client.abort()
    assert isinstance(greenlet.value, gevent.GreenletExit)
    assert went_on == []


def test_what_escapes_on_close_leaves_no_connection_behind() -> None:
    near, far = memory_pair()
    timeout = gevent.Timeout(3)
    upgrader = Upgrader(failing_with(timeout, "on_close"))
    escaped = []

    def serve() -> None:
        conn = upgrader.upgrade_stream(near)
        try:
            conn.read_loop()
        except gevent.Timeout as error:
            escaped.append(error)

    greenlet = gevent.spawn(serve)
    Client.from_stream(far).close()
    greenlet.get(timeout=5)
    assert escaped == [timeout]
    assert upgrader.connections == frozenset()
