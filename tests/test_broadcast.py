"""Broadcaster: one encoding, each connection by itself, callbacks, failures, policies, giving way, the hub and other threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent.event import Event
from gevent.monkey import get_original

from gws_gevent import (
    Broadcaster,
    ClientOptions,
    Connection,
    ConnectionClosed,
    EventHandler,
    MessageTooLarge,
    Opcode,
    PermessageDeflate,
    Server,
    ServerOptions,
    TlsFiles,
    TransportError,
    Upgrader,
    WriteQueueFull,
    broadcast,
    client_context,
    connect,
)
from gws_gevent.extensions.deflate import Deflate
from gws_gevent.frames import frame_header
from gws_gevent.transports.memory import MemoryStream, memory_pair
from tests.pairs import Pair, Recorder, paired
from tests.raw import Frame, RawClient, open_client, request, server_side, shrink_send_buffer
from tests.raw import running as running_raw
from tests.support import wait_until
from tests.test_threads import hold_the_hub, in_thread
from tests.test_writing import in_hub

TEXT, BINARY = Opcode.TEXT, Opcode.BINARY
get_ident = get_original("threading", "get_ident")


class Encodings:
    """Counts what is encoded for broadcasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        header = frame_header

        def counted(*args: Any) -> bytes:
            self.count += 1
            return header(*args)

        monkeypatch.setattr(broadcast, "frame_header", counted)


@contextmanager
def pairs(count: int, options: ServerOptions | None = None, **more: Any) -> Iterator[list[Pair]]:
    with ExitStack() as stack:
        yield [stack.enter_context(paired(Recorder(), options, **more)) for _ in range(count)]


@contextmanager
def crowd(count: int, **options: Any) -> Iterator[tuple[Server, list[RawClient]]]:
    """A server and its clients over TCP."""
    with running_raw(EventHandler(), **options) as (server, port), ExitStack() as stack:
        yield server, [stack.enter_context(open_client(port)) for _ in range(count)]


class Told:
    """A callback that remembers what it was told of each connection."""

    def __init__(self) -> None:
        self.errors: list[tuple[Any, Exception | None]] = []

    def __call__(self, conn: Any, error: Exception | None) -> None:
        self.errors.append((conn, error))

    def kinds(self) -> dict[Any, str]:
        assert len({conn for conn, _ in self.errors}) == len(self.errors), "a connection was told of twice"
        return {conn: type(error).__name__ for conn, error in self.errors}


# Everybody gets it, encoded once


@pytest.mark.parametrize("transport", ["memory", "tcp"])
@pytest.mark.parametrize(("opcode", "data"), [(TEXT, "é" * 10), (BINARY, b"x" * 20_000), (TEXT, ""), (BINARY, b"\xff")])
def test_everybody_gets_it_and_it_is_encoded_once(
    transport: str, opcode: Opcode, data: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    encodings, told = Encodings(monkeypatch), Told()
    payload = data.encode() if isinstance(data, str) else data
    if transport == "memory":
        with pairs(10) as all_pairs:
            conns = [pair.server for pair in all_pairs]
            assert Broadcaster(opcode, data).broadcast(conns, told) == {}
            assert [pair.client.receive(timeout=5) for pair in all_pairs] == [data] * 10
            wait_until(lambda: len(told.errors) == 10)
    else:
        with crowd(10) as (server, clients):
            wait_until(lambda: len(server.connections) == 10)
            conns = list(server.connections)
            assert Broadcaster(opcode, data).broadcast(server.connections, told) == {}
            assert [client.read_frame() for client in clients] == [Frame(opcode, payload)] * 10
            wait_until(lambda: len(told.errors) == 10)
    assert told.kinds() == dict.fromkeys(conns, "NoneType")
    assert encodings.count == 1


def test_everybody_gets_it_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ours = authority.issue_cert("localhost")
    ours.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    ours.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    files = TlsFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    context = client_context(str(tmp_path / "ca.pem"))
    told = Told()
    with running_raw(EventHandler(), tls=files) as (server, port), ExitStack() as stack:
        clients = [
            stack.enter_context(connect(f"wss://127.0.0.1:{port}/", ssl_context=context, server_name="localhost")) for _ in range(3)
        ]
        wait_until(lambda: len(server.connections) == 3)
        for data in (b"small", bytes(500_000)):
            told.errors.clear()
            conns = list(server.connections)
            assert Broadcaster(BINARY, data).broadcast(conns, told) == {}
            assert [client.receive(timeout=5) for client in clients] == [data] * 3
            wait_until(lambda: len(told.errors) == 3)
            assert told.kinds() == dict.fromkeys(conns, "NoneType")


@pytest.mark.slow
def test_ten_thousand_get_it_and_it_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    upgrader = Upgrader(EventHandler(), ServerOptions(ping_interval=None))
    conns: list[Connection] = []
    peers: list[MemoryStream] = []
    for _ in range(10_000):
        ours, theirs = memory_pair()
        theirs.send_all(request())
        conns.append(upgrader.upgrade_stream(ours))
        peers.append(theirs)
    buffer = bytearray(64 * 1024)
    for peer in peers:
        assert buffer[: peer.recv_into(buffer)].startswith(b"HTTP/1.1 101 ")
    encodings, told = Encodings(monkeypatch), Told()
    sender = Broadcaster(BINARY, bytes(range(256)) * 50)
    try:
        assert sender.broadcast(conns, told) == {}
        for peer in peers:
            assert buffer[: peer.recv_into(buffer)] == sender.message.frame
        wait_until(lambda: len(told.errors) == 10_000)
        assert set(told.kinds().values()) == {"NoneType"}
        assert encodings.count == 1
    finally:
        for conn in conns:
            conn.abort()


def test_one_broadcaster_can_be_used_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encodings = Encodings(monkeypatch)
    with pairs(3) as all_pairs:
        hello = Broadcaster(TEXT, "hello")
        for _ in range(3):
            assert hello.broadcast(pair.server for pair in all_pairs) == {}
        for pair in all_pairs:
            assert [pair.client.receive(timeout=5) for _ in range(3)] == ["hello"] * 3
    assert encodings.count == 1


@pytest.mark.parametrize("run", [lambda send: send(), in_hub, in_thread], ids=["a greenlet", "the hub", "a thread"])
def test_it_is_compressed_once_for_all_that_have_agreed_on_the_same(
    run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compressions: list[int] = []
    compress_alone = Deflate.compress_alone

    def counted(self: Deflate, payload: Any, always: bool = False) -> bytes | None:
        compressions.append(self.bits)
        return compress_alone(self, payload, always)

    monkeypatch.setattr(Deflate, "compress_alone", counted)
    takeover = PermessageDeflate(server_context_takeover=True, client_context_takeover=True)
    kinds = [None, PermessageDeflate(), PermessageDeflate(), takeover, PermessageDeflate(server_max_window_bits=9), None]
    text = "the same words again and again; " * 100
    with ExitStack() as stack:
        pairs = []
        for kind in kinds:
            ours, theirs = ServerOptions(permessage_deflate=kind), ClientOptions(permessage_deflate=kind)
            pairs.append(stack.enter_context(paired(Recorder(), ours, None, theirs)))
        conns = [pair.server for pair in pairs]
        for end in ("one", "two"):  # the second is for those whose context has to go on without the first
            assert run(partial(Broadcaster(TEXT, text + end).broadcast, conns)) == {}
            assert [pair.client.receive(timeout=5) for pair in pairs] == [text + end] * len(pairs)
            for pair in pairs:
                pair.server.send(text)
                assert pair.client.receive(timeout=5) == text
    # Twice for 15 bits and for 9 in each broadcast; what each server sends by itself is compressed by itself.
    assert compressions.count(15) == 2 * (1 + 2)
    assert compressions.count(9) == 2 * (1 + 1)


def test_connections_of_clients_get_frames_with_keys_of_their_own() -> None:
    handlers = [Recorder(), Recorder()]
    with paired(handlers[0], client_handler=Recorder()) as one, paired(handlers[1], client_handler=Recorder()) as two:
        assert Broadcaster(TEXT, "to the servers").broadcast([one.client, two.client]) == {}
        wait_until(lambda: all(handler.messages == ["to the servers"] for handler in handlers))


@pytest.mark.parametrize(
    ("opcode", "data", "error", "said"),
    [
        (TEXT, b"\xff", UnicodeDecodeError, "invalid start byte"),
        (TEXT, 5, TypeError, "a TEXT message is str or UTF-8 in bytes, not int"),
        (BINARY, "x", TypeError, "a BINARY message is bytes, not str"),
        (Opcode.PING, b"", ValueError, "a message is TEXT or BINARY"),
        (3, b"", ValueError, "a message is TEXT or BINARY, not 3"),
    ],
)
def test_what_is_no_message_is_refused_at_once(opcode: int, data: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Broadcaster(opcode, data)


def test_text_may_be_given_as_utf8_as_to_every_other_writer() -> None:
    with pairs(1) as all_pairs:
        assert Broadcaster(TEXT, "\u00e4".encode()).broadcast([all_pairs[0].server]) == {}
        assert all_pairs[0].client.receive(timeout=5) == "\u00e4"


def test_one_connection_in_place_of_several_is_refused() -> None:
    # It can be iterated over, and would wait for messages.
    with pairs(1) as all_pairs, pytest.raises(TypeError, match="a broadcast goes to several connections, such as a list of them"):
        Broadcaster(TEXT, "x").broadcast(all_pairs[0].server)


def test_nobody() -> None:
    told = Told()
    assert Broadcaster(TEXT, "x").broadcast([], told) == {}
    gevent.sleep(0)
    assert told.errors == []


def test_it_stands_in_line_with_other_writes() -> None:
    with paired(Recorder(), capacity=1000) as pair:
        pair.server.write_async(BINARY, b"1" * 5000)
        Broadcaster(TEXT, "2").broadcast([pair.server])
        pair.server.send("3")
        assert [pair.client.receive(timeout=5) for _ in range(3)] == [b"1" * 5000, "2", "3"]


def test_it_waits_behind_a_message_in_fragments_and_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encodings, told, half, go_on = Encodings(monkeypatch), Told(), Event(), Event()

    def pieces() -> Iterator[str]:
        yield "one "
        yield "two "
        half.set()
        go_on.wait(5)
        yield "three"

    with paired(Recorder()) as pair:
        streaming = gevent.spawn(pair.server.write_stream, TEXT, pieces())
        half.wait(5)
        assert Broadcaster(BINARY, b"x" * 10_000).broadcast([pair.server], told) == {}
        assert pair.server.buffered_amount >= 10_000
        go_on.set()
        assert [pair.client.receive(timeout=5) for _ in range(2)] == ["one two three", b"x" * 10_000]
        streaming.get(timeout=5)
        wait_until(lambda: told.errors == [(pair.server, None)])
        assert pair.server.buffered_amount == 0
    assert encodings.count == 1


# Failures


class Broken(MemoryStream):
    """Fails with whatever a plugin may raise."""

    __slots__ = ("error",)

    def try_send(self, data: Any) -> int:
        error = getattr(self, "error", None)
        if error is not None:
            raise error
        return super().try_send(data)


@pytest.mark.parametrize("callback", [False, True])
def test_a_connection_that_fails_stops_nobody_and_is_reported(callback: bool) -> None:
    told = Told()
    with pairs(2) as good, pairs(3, make=Broken) as bad, paired(Recorder(), ServerOptions(write_max_payload_size=3)) as small:
        bad[0].server.abort()
        bad[1].stream.error = RuntimeError("of a plugin")
        bad[2].stream.error = TransportError("gone")
        one, two = good
        conns = [pair.server for pair in (one, *bad, small, two)]
        failed = Broadcaster(TEXT, "hello").broadcast(conns, told if callback else None)
        assert [pair.client.receive(timeout=5) for pair in good] == ["hello"] * 2
        expected = {
            bad[0].server: "ConnectionClosed", bad[1].server: "RuntimeError", small.server: "MessageTooLarge",
        }  # fmt: skip
        found = {conn: type(error).__name__ for conn, error in failed.items()}
        if callback:
            wait_until(lambda: len(told.errors) == 6)
            kinds = told.kinds()
            assert isinstance(dict(told.errors)[bad[2].server], TransportError | ConnectionClosed)
            assert [kinds[conn.server] for conn in good] == ["NoneType"] * 2
            assert {conn: kinds[conn] for conn in expected} == expected
        else:
            assert found == {**expected, bad[2].server: "ConnectionClosed"}
        assert isinstance(failed[small.server], MessageTooLarge)
        bad[1].stream.error = None


@pytest.mark.parametrize("callback", [None, lambda conn, error: None])
def test_what_is_no_connection_is_reported_and_stops_nobody(callback: Any) -> None:
    with paired(Recorder()) as pair:
        members: Any = [None, pair.server, "somebody"]
        failed = Broadcaster(Opcode.TEXT, "x").broadcast(members, callback)
        assert {one: type(error) for one, error in failed.items()} == {None: TypeError, "somebody": TypeError}
        assert pair.client.receive(timeout=5) == "x"
        gevent.sleep(0)


def test_an_exception_in_a_callback_reaches_the_hub_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, traceback: errors.append(value))
    told = Told()

    def callback(conn: Any, error: Exception | None) -> None:
        told(conn, error)
        raise wrong

    wrong = RuntimeError("in a callback")
    with crowd(3) as (server, clients):
        wait_until(lambda: len(server.connections) == 3)
        Broadcaster(TEXT, "x").broadcast(server.connections, callback)
        wait_until(lambda: len(told.errors) == 3)
        assert [client.read_frame() for client in clients] == [Frame(1, b"x")] * 3
    assert errors == [wrong] * 3


def test_a_callback_may_block_and_broadcast() -> None:
    with crowd(2) as (server, clients):
        wait_until(lambda: len(server.connections) == 2)

        def callback(conn: Any, error: Exception | None) -> None:
            gevent.sleep(0)
            Broadcaster(TEXT, "again").broadcast([conn])

        Broadcaster(TEXT, "once").broadcast(server.connections, callback)
        for client in clients:
            assert [client.read_frame().payload for _ in range(2)] == [b"once", b"again"]


def test_a_callback_is_told_when_the_transport_has_all_of_it_and_not_before() -> None:
    told = Told()
    with paired(Recorder(), capacity=1000) as pair:
        assert Broadcaster(BINARY, b"x" * 50_000).broadcast([pair.server], told) == {}
        gevent.sleep(0.005)
        assert told.errors == []
        assert pair.server.buffered_amount > 40_000
        assert pair.client.receive(timeout=5) == b"x" * 50_000
        wait_until(lambda: told.errors == [(pair.server, None)])
        assert pair.server.buffered_amount == 0


def test_a_callback_learns_that_the_connection_ended_first() -> None:
    told = Told()
    with paired(Recorder(), capacity=1000) as pair:
        assert Broadcaster(BINARY, b"x" * 50_000).broadcast([pair.server], told) == {}
        pair.server.abort()
        wait_until(lambda: told.errors)
        assert told.kinds() == {pair.server: "ConnectionClosed"}


# Slow consumers

POLICIES = {"close": ConnectionClosed, "drop": WriteQueueFull}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_policy_is_applied_and_reported(policy: Any) -> None:
    options = ServerOptions(slow_consumer=policy, write_queue_size=5000)
    with paired(Recorder(), options, capacity=1000) as slow, paired(Recorder(), options) as fast:
        for number in range(5):
            assert Broadcaster(BINARY, bytes([number]) * 1000).broadcast([slow.server, fast.server]) == {}
        told = Told()
        failed = Broadcaster(BINARY, b"6" * 1000).broadcast([slow.server, fast.server], told)
        assert {conn: type(error) for conn, error in failed.items()} == {slow.server: POLICIES[policy]}
        assert slow.server.buffered_amount <= 5000 + 100
        wait_until(lambda: len(told.errors) == 2)
        assert told.kinds() == {slow.server: POLICIES[policy].__name__, fast.server: "NoneType"}
        assert [fast.client.receive(timeout=5) for _ in range(6)][-1] == b"6" * 1000
        if policy == "drop":
            assert [slow.client.receive(timeout=5) for _ in range(5)] == [bytes([number]) * 1000 for number in range(5)]
        else:
            with pytest.raises(ConnectionClosed) as closed:
                for _ in range(5):
                    slow.client.receive(timeout=5)
            assert closed.value.info.received is not None
            assert closed.value.info.received.code == 1008


def test_with_the_policy_block_it_waits_for_the_slow_when_all_others_have_theirs() -> None:
    options = ServerOptions(slow_consumer="block", write_queue_size=5000)
    told = Told()
    with paired(Recorder(), options, capacity=1000) as slow, paired(Recorder(), options) as fast:
        slow.server.write_async(BINARY, b"1" * 5900)
        sending = gevent.spawn(Broadcaster(BINARY, b"2" * 1000).broadcast, [slow.server, fast.server], told)
        assert fast.client.receive(timeout=5) == b"2" * 1000
        gevent.sleep(0)
        assert not sending.dead
        assert slow.server.buffered_amount <= 5000
        assert [slow.client.receive(timeout=5) for _ in range(2)] == [b"1" * 5900, b"2" * 1000]
        assert sending.get(timeout=5) == {}
        wait_until(lambda: len(told.errors) == 2)
        assert set(told.kinds().values()) == {"NoneType"}


def test_with_the_policy_block_it_learns_that_the_slow_one_has_gone() -> None:
    options = ServerOptions(slow_consumer="block", write_queue_size=5000)
    told = Told()
    with paired(Recorder(), options, capacity=1000) as slow:
        slow.server.write_async(BINARY, b"1" * 5900)
        sending = gevent.spawn(Broadcaster(BINARY, b"2" * 1000).broadcast, [slow.server], told)
        gevent.sleep(0)
        slow.server.abort()
        assert {type(error) for error in sending.get(timeout=5).values()} == {ConnectionClosed}
        wait_until(lambda: told.kinds() == {slow.server: "ConnectionClosed"})


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["close", "drop", "block"])
def test_a_stalled_reader_among_a_thousand_delays_nobody(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have each message before the next is sent; the stalled one's queue stays in its bound."""
    bound, size, rounds = 64 * 1024, 8 * 1024, 40
    encodings = Encodings(monkeypatch)
    with crowd(1000, slow_consumer=policy, write_queue_size=bound, write_timeout=None, ping_interval=None) as (server, clients):
        wait_until(lambda: len(server.connections) == 1000)
        stalled = server_side(server, clients[500])
        shrink_send_buffer(stalled)
        readers = clients[:500] + clients[501:]
        sender = Broadcaster(BINARY, bytes(size))
        reported: list[type[Exception]] = []
        blocked: list[Any] = []
        for number in range(rounds):
            sending = gevent.spawn(sender.broadcast, server.connections)
            for client in readers:
                assert client.read_frame().payload == sender.message.payload, number
            assert stalled.buffered_amount <= bound + 100
            if policy == "block" and not sending.ready():
                gevent.sleep(0)
            if not sending.ready():
                blocked.append(sending)
                break
            failed = sending.get()
            assert set(failed) <= {stalled}
            reported += [type(error) for error in failed.values()]
            if failed and policy == "close":
                break
        if policy == "block":
            assert len(blocked) == 1
            clients[500].close()
            assert list(blocked[0].get(timeout=10)) in ([stalled], [])
        elif policy == "drop":
            assert set(reported) == {WriteQueueFull}
            assert len(reported) > 5
        else:
            assert reported == [ConnectionClosed]
            assert stalled.close_info is not None
            assert stalled.close_info.sent is not None
            assert stalled.close_info.sent.code == 1008
        stalled.abort()
    assert encodings.count == 1


# Turns, the hub, other threads


def test_a_large_broadcast_lets_others_run_now_and_then() -> None:
    """A stream that takes a while for each send; the longest time without the loop is that of a turn and a few of those."""
    pause = 0.0002

    class Slow(MemoryStream):
        __slots__ = ()

        def try_send(self, data: Any) -> int:
            until = time.perf_counter() + pause
            while time.perf_counter() < until:
                pass
            return super().try_send(data)

    with pairs(100, make=Slow) as all_pairs:
        looks = 0
        stop = Event()

        def look() -> None:
            nonlocal looks
            while not stop.is_set():
                looks += 1
                gevent.sleep(0)

        looking = gevent.spawn(look)
        gevent.sleep(0)
        before = looks
        Broadcaster(TEXT, "x").broadcast(pair.server for pair in all_pairs)
        # A hundred sends look at the clock six times, and each time the turn is over.
        assert looks - before >= 6
        stop.set()
        looking.join(5)
        assert [pair.client.receive(timeout=5) for pair in all_pairs] == ["x"] * 100


def test_connections_may_come_and_go_meanwhile() -> None:
    conns: set[Any] = set()

    class Leaving(MemoryStream):
        __slots__ = ()

        def try_send(self, data: Any) -> int:
            conns.clear()
            return super().try_send(data)

    with pairs(3) as all_pairs, paired(Recorder(), make=Leaving) as leaving:
        conns.update(pair.server for pair in (*all_pairs, leaving))
        assert Broadcaster(TEXT, "x").broadcast(conns) == {}
        assert conns == set()
        assert [pair.client.receive(timeout=5) for pair in (*all_pairs, leaving)] == ["x"] * 4


@pytest.mark.parametrize("policy", ["close", "drop", "block"])
def test_in_the_hub_nothing_waits(policy: Any) -> None:
    options = ServerOptions(slow_consumer=policy, write_queue_size=5000)
    told = Told()
    with paired(Recorder(), options, capacity=1000) as slow, pairs(100) as fast:
        slow.server.write_async(BINARY, b"1" * 5900)
        conns = [slow.server, *(pair.server for pair in fast)]
        failed = in_hub(lambda: Broadcaster(BINARY, b"2" * 1000).broadcast(conns, told))
        assert [type(error) for error in failed.values()] == [ConnectionClosed if policy == "close" else WriteQueueFull]
        assert [pair.client.receive(timeout=5) for pair in fast] == [b"2" * 1000] * 100
        wait_until(lambda: len(told.errors) == 101)
        assert told.kinds()[slow.server] == ("ConnectionClosed" if policy == "close" else "WriteQueueFull")


@pytest.mark.parametrize("run", [in_thread, hold_the_hub], ids=["the hub runs", "the hub is held"])
@pytest.mark.parametrize("policy", ["close", "drop", "block"])
def test_from_another_thread_nothing_waits(run: Callable[[Any], Any], policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encodings, told = Encodings(monkeypatch), Told()
    threads: set[int] = set()

    def callback(conn: Any, error: Exception | None) -> None:
        threads.add(get_ident())
        told(conn, error)

    options = ServerOptions(slow_consumer=policy, write_queue_size=5000)
    with paired(Recorder(), options, capacity=1000) as slow, pairs(20) as fast, paired(Recorder()) as gone:
        slow.server.write_async(BINARY, b"1" * 5900)
        gone.server.abort()
        conns = [slow.server, gone.server, *(pair.server for pair in fast)]
        failed = run(lambda: Broadcaster(BINARY, b"2" * 1000).broadcast(conns, callback))
        assert {conn: type(error) for conn, error in failed.items()} == {gone.server: ConnectionClosed}
        assert [pair.client.receive(timeout=5) for pair in fast] == [b"2" * 1000] * 20
        wait_until(lambda: len(told.errors) == 22)
        kinds = told.kinds()
        assert kinds.pop(slow.server) == ("ConnectionClosed" if policy == "close" else "WriteQueueFull")
        assert kinds.pop(gone.server) == "ConnectionClosed"
        assert set(kinds.values()) == {"NoneType"}
        # Whoever is told is told where the connections live.
        assert threads == {get_ident()}
    assert encodings.count == 1


def test_another_threads_broadcasts_have_a_bound() -> None:
    with paired(Recorder(), ServerOptions(write_queue_size=5000)) as pair:

        def send() -> list[type[Exception]]:
            sender = Broadcaster(BINARY, b"x" * 1000)
            return [type(error) for _ in range(8) for error in sender.broadcast([pair.server]).values()]

        assert hold_the_hub(send) == [WriteQueueFull] * 3
        assert [pair.client.receive(timeout=5) for _ in range(5)] == [b"x" * 1000] * 5
