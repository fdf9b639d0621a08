"""What `integrations.engineio.install` takes and changes, and the queue in front of a slow client."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.queue import JoinableQueue

from gws_gevent import ClientOptions, HandshakeRefused, ServerOptions, connect
from gws_gevent.integrations import engineio as ours
from tests.pairs import serving, url_of
from tests.support import require_module, wait_until

engineio = pytest.importorskip("engineio")
socketio = pytest.importorskip("socketio")
Packet = engineio.packet.Packet

KIB = 1024


def make_eio(**settings: Any) -> Any:
    return engineio.Server(async_mode="gevent", monitor_clients=False, **settings)


def test_only_the_server_given_changes() -> None:
    changed, other = make_eio(), make_eio()
    driver = dict(other._async)
    ours.install(changed)
    assert isinstance(changed.create_queue(), ours.PacketQueue)
    assert isinstance(changed._async["websocket"](print, changed), ours.WebSocket)
    assert other._async == driver
    assert type(other.create_queue()) is JoinableQueue


def test_every_kind_of_server() -> None:
    flask, flask_socketio = require_module("flask"), require_module("flask_socketio")
    sio = socketio.Server(async_mode="gevent", monitor_clients=False)
    extension = flask_socketio.SocketIO(flask.Flask("app"), async_mode="gevent", monitor_clients=False)
    for server, eio in ((sio, sio.eio), (extension, extension.server.eio)):
        ours.install(server)
        assert isinstance(eio.create_queue(), ours.PacketQueue)


def test_what_is_refused() -> None:
    flask_socketio = require_module("flask_socketio")
    with pytest.raises(ValueError, match="async_mode"):
        ours.install(engineio.Server(async_mode="threading", monitor_clients=False))
    with pytest.raises(ValueError, match="init_app"):
        ours.install(flask_socketio.SocketIO(async_mode="gevent"))
    for wrong in (engineio.AsyncServer(async_mode="asgi"), print, None):
        with pytest.raises(TypeError, match="needed"):
            ours.install(wrong)
    with pytest.raises(ValueError, match="slow_consumer"):
        ours.install(make_eio(), ServerOptions(slow_consumer="drop"))
    for size in (0, True, "1"):
        with pytest.raises(ValueError, match="queue_size"):
            ours.install(make_eio(), queue_size=size)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ServerOptions"):
        ours.install(make_eio(), {"origins": None})  # type: ignore[arg-type]


def make_queue(*, patience: float | None = None, attachments: bool = False) -> Any:
    return ours.PacketQueue(make_eio(), ours.QueueRules(10 * KIB, patience, attachments))


def text(size: int, letter: str = "x") -> Any:
    return Packet(engineio.packet.MESSAGE, letter * (size - ours.OVERHEAD))


def binary(size: int, letter: bytes = b"x") -> Any:
    return Packet(engineio.packet.MESSAGE, letter * (size - ours.OVERHEAD))


def test_one_packet_of_any_size_fits_and_the_count_is_exact() -> None:
    queue = make_queue()
    queue.put(text(100 * KIB))
    assert queue.waiting == 100 * KIB
    queue.get()
    queue.put(Packet(engineio.packet.MESSAGE, {"a": 1}))
    assert queue.waiting == ours.OVERHEAD + len('4{"a":1}')
    queue.put(None)
    queue.get()
    assert queue.get() is None
    assert queue.waiting == 0


def test_the_writer_does_not_take_the_whole_queue_at_once() -> None:
    eio = make_eio()
    ours.install(eio)
    client = engineio.socket.Socket(eio, "sid")
    sent = [text(60 * KIB) for _ in range(20)]
    for packet in sent:
        client.queue.put(packet)
    taken = [client.poll() for _ in range(4)]
    assert [len(packets) for packets in taken] == [5, 5, 5, 5]
    assert [packet for packets in taken for packet in packets] == sent
    assert client.queue.waiting == 0


def test_a_full_queue_ends_its_client() -> None:
    queue = make_queue()
    ended: list[bool] = []
    queue.on_overflow = lambda: ended.append(True)
    for _ in range(10):
        queue.put(text(KIB))
    queue.put(text(KIB))
    assert (queue.waiting, queue.qsize()) == (0, 0)
    queue.put(text(KIB))
    queue.put(None)  # Engine.IO's own sign for the end still comes through
    assert queue.get() is None
    wait_until(lambda: ended == [True])
    queue.task_done()
    assert queue.join(timeout=1)


def test_the_writer_gets_a_turn_first() -> None:
    queue, got = make_queue(), []
    writer = gevent.spawn(lambda: [got.append(queue.get()) for _ in range(100)])
    for _ in range(100):
        queue.put(text(4 * KIB))
    writer.get(timeout=5)
    assert len(got) == 100


def test_block_waits_for_room_and_then_ends_the_client() -> None:
    queue = make_queue(patience=5.0)
    for _ in range(10):
        queue.put(text(KIB))
    emitting = gevent.spawn(queue.put, text(KIB))
    gevent.sleep(0.01)
    assert not emitting.ready()
    queue.get()
    emitting.get(timeout=1)
    assert queue.waiting == 10 * KIB
    impatient = make_queue(patience=0.01)
    for _ in range(11):
        impatient.put(text(KIB))
    assert impatient.empty()


def test_nothing_comes_between_a_packet_and_its_attachments() -> None:
    queue = make_queue(patience=5.0, attachments=True)
    queue.put(text(10 * KIB))

    def emit(letter: str) -> None:
        queue.put(text(KIB, letter))
        queue.put(binary(40 * KIB, letter.encode()))
        queue.put(binary(40 * KIB, letter.encode()))

    emitting = [gevent.spawn(emit, letter) for letter in "abc"]
    gevent.sleep(0.01)
    letters = "".join(chr(data[0]) if isinstance(data, bytes) else data[0] for data in (queue.get().data for _ in range(10)))
    gevent.joinall(emitting, timeout=1, raise_error=True)
    assert letters == "xaaabbbccc"


def test_the_hub_never_waits() -> None:
    queue = make_queue(patience=5.0)
    done: list[int] = []

    def fill() -> None:
        for _ in range(11):
            queue.put(text(KIB))
        done.append(queue.qsize())

    gevent.get_hub().loop.run_callback(fill)
    wait_until(lambda: done)
    assert done == [0]


def test_a_client_that_does_not_poll_is_ended_too() -> None:
    eio, gone = make_eio(), []
    ours.install(eio, queue_size=10 * KIB)
    session = eio.sockets["one"] = engineio.socket.Socket(eio, "one")
    session.connected = True
    eio.on("disconnect", lambda sid, reason: gone.append((sid, reason)))
    for _ in range(20):
        eio.send("one", "x" * KIB)
    wait_until(lambda: gone == [("one", "transport error")])
    assert session.closed
    assert session.queue.waiting == 0


# Over a connection

ENGINE = "/engine.io/?EIO=4&transport="
QUIET = ClientOptions(ping_interval=None)


def test_a_message_above_max_http_buffer_size_is_refused_on_its_header() -> None:
    eio, gone = make_eio(max_http_buffer_size=1000, ping_interval=0.1, ping_timeout=0.1), []
    ours.install(eio)
    eio.on("disconnect", lambda sid, reason: gone.append(reason))
    with serving(None, wsgi=engineio.WSGIApp(eio)) as server, connect(url_of(server, ENGINE + "websocket"), options=QUIET) as conn:
        conn.receive(timeout=5)
        conn.send("4" + "x" * 1000)
        assert list(conn) == []
        assert conn.close_info is not None
        assert conn.close_info.code == 1009
        wait_until(lambda: gone == ["transport close"])


def test_a_client_that_has_gone_without_a_word_is_dropped() -> None:
    eio, gone = make_eio(ping_interval=0.1, ping_timeout=0.1), []
    ours.install(eio)
    eio.on("disconnect", lambda sid, reason: gone.append(reason))
    with serving(None, wsgi=engineio.WSGIApp(eio)) as server, connect(url_of(server, ENGINE + "websocket"), options=QUIET):
        wait_until(lambda: gone == ["transport close"])
        wait_until(lambda: not server.connections)


def test_a_refused_upgrade_is_answered() -> None:
    eio = make_eio(ping_interval=0.1, ping_timeout=0.1)
    ours.install(eio, ServerOptions(origins=["https://example.org"]))
    with serving(None, wsgi=engineio.WSGIApp(eio)) as server:
        for target in (ENGINE + "websocket", f"{ENGINE}websocket&sid={polling_session(eio)}"):
            with pytest.raises(HandshakeRefused) as refused:
                connect(url_of(server, target), options=QUIET)
            assert refused.value.status == 403


def polling_session(eio: Any) -> str:
    """The session of a client that has connected by polling."""
    session = eio.sockets["polling"] = engineio.socket.Socket(eio, "polling")
    session.connected = True
    return "polling"
