"""Close codes over real sockets: what ends a connection, which code the peer reads, and who closes the transport first."""

from __future__ import annotations

import struct
from typing import Any

import gevent
import pytest

from gws_gevent import Broadcaster, Close, Connection, ConnectionClosed, Message, Opcode, ProtocolError
from tests.raw import Frame, RawClient, Recorder, frame, open_client, running, server_side, shrink_send_buffer, still_echoes
from tests.support import wait_until

SECRET = "the password of the database"
KIB = 1024


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


# What the peer does wrong

BAD_CODES = (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
GOOD_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)

PROTOCOL_ERRORS = {
    "unmasked text": frame(1, b"a", masked=False),
    "unmasked close": frame(8, masked=False),
    "unmasked and empty": frame(2, masked=False),
    "RSV1": frame(1, b"a", rsv=4),
    "RSV2": frame(1, b"a", rsv=2),
    "RSV3": frame(1, b"a", rsv=1),
    "RSV1 of a ping": frame(9, rsv=4),
    **{f"opcode {opcode}": frame(opcode, b"a") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "16-bit length of 125": frame(2, bytes(125), form=126),
    "16-bit length of 0": frame(2, b"", form=126),
    "64-bit length of 65535": frame(2, bytes(65535), form=127),
    "64-bit length of 1": frame(2, b"a", form=127),
    "length with its top bit set": frame(2, b"", length=1 << 63),
    "length of all ones": frame(2, b"", length=(1 << 64) - 1),
    "ping of 126 bytes": frame(9, bytes(126)),
    "ping with a 64-bit length": frame(9, b"", length=1 << 40),
    "pong of 126 bytes": frame(10, bytes(126)),
    "close of 126 bytes": frame(8, close_payload(1000, bytes(124))),
    "fragmented ping": frame(9, b"a", fin=False),
    "fragmented close": frame(8, close_payload(1000), fin=False),
    "continuation of nothing": frame(0, b"a"),
    "text inside a message": frame(1, b"a", fin=False) + frame(1, b"b"),
    "binary inside a message": frame(1, b"a", fin=False) + frame(2, b"b", fin=False),
    "close with half a code": frame(8, b"\x03"),
    **{f"close code {code}": frame(8, close_payload(code)) for code in BAD_CODES},
}  # fmt: skip

INVALID_DATA = {
    "text": frame(1, b"\xff"),
    "overlong": frame(1, b"\xc0\xaf"),
    "surrogate": frame(1, b"\xed\xa0\x80"),
    "beyond Unicode": frame(1, b"\xf4\x90\x80\x80"),
    "cut off": frame(1, b"a\xe2\x82"),
    "in the first fragment": frame(1, b"a\xff", fin=False),
    "in the last fragment": frame(1, b"a", fin=False) + frame(0, b"\xff"),
    "cut off by the last fragment": frame(1, b"\xe2", fin=False) + frame(0, b"\x82"),
    "before the frame has ended": frame(1, b"\xff" * 10, length=1000),
    "close reason": frame(8, close_payload(1000, b"\xff")),
}

TOO_BIG = {
    "declared": frame(2, b"", length=1001),
    "declared, 64 bits": frame(2, b"", length=1 << 62),
    "declared, the largest": frame(2, b"", length=(1 << 63) - 1),
    "declared text": frame(1, b"", length=1001),
    "sum of fragments": frame(2, bytes(600), fin=False) + frame(0, b"", length=401),
    "fragments": frame(2, b"a", fin=False) + frame(0, b"a", fin=False) * 10,
    "empty fragments": frame(2, b"", fin=False) + frame(0, b"", fin=False) * 10,
}


def check_failed(data: bytes, code: int, **options: Any) -> None:
    """`data` must be answered with a close frame of `code`, then an end of stream that waits for nothing from us."""
    handler = Recorder()
    with running(handler, **options) as (_, port):
        with open_client(port) as client:
            client.send(data)
            found, reason = client.read_close()
            assert found == code
            assert len(reason) <= 123
            reason.decode()
            client.read_end()
            # What we say now is read by nobody, and answered by nothing.
            client.send(frame(1, b"more"))
        info = handler.info()
        assert info.sent == Close(code, reason.decode())
        assert isinstance(info.error, ProtocolError)
        assert not info.clean
        still_echoes(port)


@pytest.mark.parametrize("name", PROTOCOL_ERRORS)
def test_a_protocol_error_is_closed_with_1002(name: str) -> None:
    check_failed(PROTOCOL_ERRORS[name], 1002)


@pytest.mark.parametrize("name", INVALID_DATA)
def test_bad_utf8_is_closed_with_1007(name: str) -> None:
    check_failed(INVALID_DATA[name], 1007)


@pytest.mark.parametrize("name", TOO_BIG)
def test_what_passes_a_limit_is_closed_with_1009(name: str) -> None:
    check_failed(TOO_BIG[name], 1009, read_max_payload_size=1000, max_fragments=10)


def test_what_just_meets_the_limits_is_served() -> None:
    with running(read_max_payload_size=1000, max_fragments=10) as (_, port), open_client(port) as client:
        client.send(frame(2, bytes(1000)))
        assert client.read_frame() == Frame(2, bytes(1000))
        client.send(frame(2, bytes(100), fin=False), frame(0, bytes(100), fin=False) * 8, frame(0, bytes(100)))
        assert client.read_frame() == Frame(2, bytes(1000))


def test_messages_before_the_error_are_still_answered() -> None:
    with running() as (_, port), open_client(port) as client:
        client.send(frame(1, b"one"), frame(9, b"two"), frame(1, b"th", fin=False), frame(0, b"ree"))
        client.send(frame(0, b"four"), frame(1, b"five"))
        assert client.read_frame() == Frame(1, b"one")
        assert client.read_frame() == Frame(10, b"two")
        assert client.read_frame() == Frame(1, b"three")
        assert client.read_close()[0] == 1002
        client.read_end()


# The peer closes


@pytest.mark.parametrize(
    "payload",
    [b"", *[close_payload(code) for code in GOOD_CODES]],
    ids=lambda payload: str(int.from_bytes(payload[:2], "big")) if payload else "empty",
)
def test_the_peers_close_code_comes_back_and_the_server_closes_first(payload: bytes) -> None:
    handler = Recorder()
    with running(handler) as (server, port):
        with open_client(port) as client:
            client.send(frame(8, payload + b"the reason" if payload else b""))
            assert client.read_frame() == Frame(8, payload)
            client.read_end()
            wait_until(lambda: not server.connections)
        info = handler.info()
        assert info.clean
        assert info.error is None
        code = int.from_bytes(payload, "big") if payload else 1005
        assert info.received == Close(code, "the reason" if payload else "")
        assert info.sent == Close(code, "")
        still_echoes(port)


def test_what_follows_the_peers_close_frame_is_ignored() -> None:
    handler = Recorder()
    with running(handler) as (_, port):
        with open_client(port) as client:
            client.send(frame(1, b"one"), frame(8, close_payload(1000)), frame(1, b"two"), frame(3), b"\xff" * 20)
            assert client.read_frame() == Frame(1, b"one")
            assert client.read_close() == (1000, b"")
            client.read_to_the_end()
            assert not client.buffer
        assert handler.info().clean


def test_a_close_frame_inside_a_fragmented_message_is_answered() -> None:
    with running() as (_, port), open_client(port) as client:
        client.send(frame(1, b"one", fin=False), frame(8, close_payload(3000)))
        assert client.read_close() == (3000, b"")
        client.read_end()


def test_the_end_of_the_stream_without_a_close_frame_is_not_clean() -> None:
    handler = Recorder()
    with running(handler) as (_, port):
        with open_client(port) as client:
            client.sock.shutdown(1)
            assert client.read_to_the_end() == b""
        info = handler.info()
        assert (info.clean, info.received, info.sent) == (False, None, None)


# The server's side closes


class Failing(Recorder):
    """Fails in the callback named in the message, or at once if that is its own name."""

    def __init__(self, at_once: str = "") -> None:
        super().__init__()
        self.at_once = at_once

    def fail(self, where: str) -> None:
        if where == self.at_once:
            raise RuntimeError(SECRET)

    def on_open(self, conn: Connection) -> None:
        super().on_open(conn)
        self.fail("on_open")

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.data == SECRET:
            raise RuntimeError(SECRET)
        super().on_message(conn, message)

    def on_ping(self, conn: Connection, payload: bytes) -> None:
        self.fail("on_ping")

    def on_pong(self, conn: Connection, payload: bytes) -> None:
        self.fail("on_pong")

    def on_close(self, conn: Connection, info: Any) -> None:
        super().on_close(conn, info)
        self.fail("on_close")


@pytest.mark.parametrize(
    ("where", "data"),
    [("on_open", b""), ("on_message", frame(1, SECRET.encode())), ("on_ping", frame(9)), ("on_pong", frame(10))],
)
@pytest.mark.parametrize("parallel", [0, 2])
def test_a_handlers_exception_closes_with_1011_and_no_text(
    where: str, data: bytes, parallel: int, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Failing(where)
    with running(handler, parallel=parallel) as (_, port):
        with open_client(port) as client:
            client.send(data)
            assert client.read_close() == (1011, b"")
            client.send(frame(8, close_payload(1011)))
            client.read_end()
        info = handler.info()
        assert info.sent == Close(1011, "")
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == SECRET
        handler.at_once = ""
        still_echoes(port)


def test_an_exception_of_on_close_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    handler = Failing("on_close")
    with running(handler) as (_, port):
        still_echoes(port)
        assert handler.info().clean
        still_echoes(port)
        wait_until(lambda: len(handler.closed) == 2)
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_an_exception_of_a_function_closes_with_1011() -> None:
    def function(conn: Connection) -> None:
        for message in conn:
            if message == "fail":
                raise RuntimeError(SECRET)
            conn.send(message)

    with running(function) as (_, port):
        with open_client(port) as client:
            client.echo()
            client.send(frame(1, b"fail"))
            assert client.read_close() == (1011, b"")
            client.send(frame(8, close_payload(1011)))
            client.read_end()
        still_echoes(port)


def test_a_function_that_returns_closes_with_1000() -> None:
    with running(lambda conn: conn.send(conn.receive())) as (_, port), open_client(port) as client:
        client.echo()
        assert client.read_close() == (1000, b"")
        client.send(frame(8, close_payload(1000)))
        client.read_end()


def test_a_stopping_server_closes_with_1001() -> None:
    handler = Recorder()
    with running(handler) as (server, port), open_client(port) as first, open_client(port) as second:
        first.echo()
        stopping = gevent.spawn(server.stop, 5.0)
        for client in (first, second):
            assert client.read_close() == (1001, b"")
            client.send(frame(8, close_payload(1001)))
            client.read_end()
        stopping.get(timeout=2.0)
        assert [info.clean for _, info in handler.closed] == [True, True]
        with pytest.raises(ConnectionRefusedError):
            RawClient(port)


@pytest.mark.slow
def test_a_peer_that_ignores_the_1001_is_aborted_when_the_time_is_up() -> None:
    handler = Recorder()
    with running(handler) as (server, port), open_client(port) as client:
        client.echo()
        server.stop(timeout=0.3)
        assert client.read_close() == (1001, b"")
        client.read_to_the_end()
        assert not client.buffer
        assert not handler.info().clean


@pytest.mark.slow
def test_a_peer_that_never_answers_our_close_frame_is_aborted_at_close_timeout() -> None:
    handler = Recorder()
    with running(handler, close_timeout=0.3) as (server, port):
        with open_client(port) as client:
            conn = server_side(server, client)
            conn.write_close(4000, "enough")
            assert client.read_close() == (4000, b"enough")
            with gevent.Timeout(3.0), pytest.raises(ConnectionResetError):
                client.sock.recv(1)
        info = handler.info()
        assert info.sent == Close(4000, "enough")
        assert not info.clean
        still_echoes(port)


@pytest.mark.slow
def test_a_failed_peer_that_stays_is_dropped_at_close_timeout() -> None:
    with running(close_timeout=0.3) as (server, port):
        with open_client(port) as client:
            client.send(frame(3))
            assert client.read_close()[0] == 1002
            wait_until(lambda: not server.connections, 3.0)
        still_echoes(port)


def test_close_frames_that_cross_are_one_closing_handshake() -> None:
    handler = Recorder()
    with running(handler) as (server, port):
        with open_client(port) as client:
            conn = server_side(server, client)
            client.send(frame(8, close_payload(1000, b"bye")))
            conn.write_close(4000, "enough")
            assert client.read_close() == (4000, b"enough")
            client.read_end()
        info = handler.info()
        assert info.clean
        assert (info.sent, info.received) == (Close(4000, "enough"), Close(1000, "bye"))


# Slow consumers


class Flooding(Recorder):
    """Queues messages without waiting until told not to.

    Attributes:
        queued: messages that were queued.
        told: what the callbacks were told, in order.
    """

    def __init__(self, first: int, size: int) -> None:
        super().__init__()
        self.first = first
        self.size = size
        self.queued = 0
        self.told: list[Exception | None] = []

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.data != "flood":
            super().on_message(conn, message)
            return
        shrink_send_buffer(conn)
        with pytest.raises(ConnectionClosed):
            while True:
                size = self.size if self.queued else self.first
                conn.write_async(Opcode.BINARY, self.queued.to_bytes(4, "big") + bytes(size - 4), self.told.append)
                self.queued += 1


def read_numbered(client: RawClient) -> tuple[list[int], tuple[int | None, bytes]]:
    """Read numbered messages up to a close frame: the numbers, and its code and reason."""
    numbers: list[int] = []
    while True:
        found = client.read_frame()
        if found.opcode == 8:
            return numbers, (int.from_bytes(found.payload[:2], "big"), found.payload[2:])
        assert found.opcode == 2
        assert not any(found.payload[4:])
        numbers.append(int.from_bytes(found.payload[:4], "big"))


@pytest.mark.parametrize(
    ("first", "size"), [(600 * KIB, 50 * KIB), (600 * KIB, 100), (1000, 1000), (10_000, 10_000), (3 * KIB * KIB, 100)]
)
def test_a_slow_consumer_is_closed_with_1008_behind_the_frame_that_has_begun(first: int, size: int) -> None:
    handler = Flooding(first, size)
    with running(handler, write_queue_size=KIB * KIB) as (_, port):
        with open_client(port, receive_buffer=4096) as client:
            client.send(frame(1, b"flood"))
            wait_until(lambda: handler.opened and handler.opened[0].close_info)
            (conn,) = handler.opened
            # What is left is at most the frame that has begun and the close frame.
            assert conn.buffered_amount <= max(first, size) + 200
            numbers, close = read_numbered(client)
            assert numbers == list(range(len(numbers)))
            assert len(numbers) < handler.queued or handler.queued == 1
            assert close == (1008, b"too slow")
            client.send(frame(8, close_payload(1008)))
            client.read_end()
        info = handler.info()
        assert info.sent == Close(1008, "too slow")
        wait_until(lambda: len(handler.told) == handler.queued)
        assert all(error is None or isinstance(error, ConnectionClosed) for error in handler.told)
        assert handler.told.count(None) <= len(numbers)
        still_echoes(port)


@pytest.mark.slow
def test_a_slow_consumer_that_goes_on_not_reading_is_aborted_at_close_timeout() -> None:
    handler = Flooding(600 * KIB, 50 * KIB)
    with running(handler, write_queue_size=KIB * KIB, close_timeout=0.3) as (server, port):
        with open_client(port, receive_buffer=4096) as client:
            client.send(frame(1, b"flood"))
            wait_until(lambda: handler.closed, 3.0)
            assert not handler.info().clean
            assert not server.connections
        still_echoes(port)


def test_policy_drop_leaves_the_newest_out_and_the_connection_open() -> None:
    returned = []

    class Dropping(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            if message.data == "flood":
                shrink_send_buffer(conn)
                for number in range(60):
                    returned.append(conn.write_async(Opcode.BINARY, number.to_bytes(4, "big") + bytes(50 * KIB)))
            else:
                super().on_message(conn, message)

    with running(Dropping(), write_queue_size=KIB * KIB, slow_consumer="drop") as (_, port):
        with open_client(port, receive_buffer=4096) as client:
            client.send(frame(1, b"flood"), frame(8, close_payload(1000)))
            numbers, close = read_numbered(client)
            assert close == (1000, b"")
            client.read_end()
        kept = returned.index(False)
        assert kept >= 20
        assert numbers == list(range(kept))
        assert returned == [True] * kept + [False] * (60 - kept)


def test_policy_block_waits_and_loses_nothing() -> None:
    largest = []

    class Blocking(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            shrink_send_buffer(conn)
            for number in range(60):
                assert conn.write_async(Opcode.BINARY, number.to_bytes(4, "big") + bytes(50 * KIB))
                largest.append(conn.buffered_amount)

    with running(Blocking(), write_queue_size=200 * KIB, slow_consumer="block") as (_, port):
        with open_client(port, receive_buffer=4096) as client:
            client.send(frame(1, b"flood"), frame(8, close_payload(1000)))
            numbers, close = read_numbered(client)
            assert numbers == list(range(60))
            assert close == (1000, b"")
            client.read_end()
        assert max(largest) <= 200 * KIB + 200


# Too much in the whole server


def test_above_max_buffered_the_largest_offender_alone_is_closed_with_1013() -> None:
    with running(max_buffered=200 * KIB) as (server, port):
        with open_client(port) as small, open_client(port) as large, open_client(port) as other:
            small.send(frame(2, bytes(40 * KIB), fin=False))
            wait_until(lambda: server_side(server, small).held >= 40 * KIB)
            large.send(frame(2, bytes(120 * KIB), length=KIB * KIB))
            wait_until(lambda: server_side(server, large).held >= 120 * KIB)
            other.send(frame(2, bytes(60 * KIB), fin=False))
            assert large.read_close()[0] == 1013
            wait_until(lambda: server_side(server, large).held == 0)
            # What the offender held counts no longer.
            other.send(frame(0, bytes(40 * KIB), fin=False))
            small.send(frame(0, b""))
            assert small.read_frame() == Frame(2, bytes(40 * KIB))
            other.send(frame(0, b""))
            assert other.read_frame() == Frame(2, bytes(100 * KIB))
            large.send(bytes(KIB))
            large.read_end()
        still_echoes(port)


@pytest.mark.parametrize("write", ["write_async", "write_message", "broadcast"])
def test_what_is_queued_behind_unsent_output_counts_at_once(write: str) -> None:
    class Talking(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            shrink_send_buffer(conn)
            for _ in range(40):
                if write == "broadcast":
                    Broadcaster(Opcode.BINARY, bytes(100 * KIB)).broadcast([conn])
                else:
                    getattr(conn, write)(Opcode.BINARY, bytes(100 * KIB))
                # Long enough for the drain greenlet to wait for a peer that takes nothing.
                gevent.sleep(0.002)
                most.append(conn.held)

    most: list[int] = []
    much = 64 * KIB * KIB
    with running(
        Talking(), max_buffered=700 * KIB, write_high_water=much, write_queue_size=much, close_timeout=0.1
    ) as (server, port):
        with open_client(port, receive_buffer=4096) as client:
            client.send(frame(1, b"talk"))
            wait_until(lambda: not server.connections)
        assert max(most) <= 700 * KIB
        assert server._service is not None
        assert server._service.buffered == 0


def test_unsent_output_counts_towards_max_buffered() -> None:
    class Talking(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            if message.data == "talk":
                shrink_send_buffer(conn)
                conn.write_async(Opcode.BINARY, bytes(1000 * KIB))
            else:
                super().on_message(conn, message)

    with running(Talking(), max_buffered=700 * KIB) as (_, port):
        with open_client(port, receive_buffer=4096) as client, open_client(port) as other:
            client.send(frame(1, b"talk"))
            assert client.read_frame() == Frame(2, bytes(1000 * KIB))
            assert client.read_close()[0] == 1013
            client.send(frame(8, close_payload(1013)))
            client.read_end()
            other.echo()
        still_echoes(port)
