"""Beginnings, ends and limits of KCP sessions, and what strangers can make a server do, in simulated time."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gws_gevent.exceptions import TransportError
from gws_gevent.transports.kcp.cookie import COOKIE_LIFE, Control, Controls, Kind
from gws_gevent.transports.kcp.core import HEADER
from gws_gevent.transports.kcp.server import REMEMBERED, REMEMBERED_STOCK
from gws_gevent.transports.simulated import Impairment, SimulatedPort
from tests.support import require_module
from tests.transports.kcp_net import BAD_LINE, CLIENT, SERVER, KcpNet

OTHER = ("192.0.2.3", 60000)
LOST = Impairment(loss=1.0)
QUIET = Impairment(delay=0.01)


def read(stream: Any, size: int = 100) -> bytes | None:
    """Read once; None: there is nothing."""
    buffer = bytearray(size)
    count = stream.try_recv_into(buffer)
    return bytes(buffer[:count]) if count >= 0 else None


def write(net: KcpNet, stream: Any, data: bytes) -> None:
    """Write all, as soon as it is taken."""
    sent = 0

    def all_taken() -> bool:
        nonlocal sent
        sent += stream.try_send(data[sent:]) if sent < len(data) else 0
        return sent == len(data)

    assert net.run(all_taken, seconds=5)


def fill(net: KcpNet, stream: Any) -> int:
    """Write until nothing more is taken, however long the network is given; return the bytes."""
    total, seen = 0, -1
    while seen != total:
        seen = total
        while count := stream.try_send(bytes(65536)):
            total += count
        net.run(seconds=5)
    return total


class Stranger:
    """Sends what it likes from any address, and hears what comes back."""

    def __init__(self, net: KcpNet, address: Any = OTHER) -> None:
        self.network = net.network
        self.address = address
        self.heard: list[bytes] = []
        net.network.port(address).start(self)  # type: ignore[arg-type]

    def on_datagram(self, data: bytes, address: Any, now: float) -> None:
        self.heard.append(data)

    def send(self, data: bytes) -> None:
        self.network.carry(data, self.address, SERVER)

    def say(self, *control: Any) -> None:
        self.send(Controls(None, "aes-256-gcm").write(Control(*control)))

    def cookie(self, net: KcpNet) -> Control:
        """Say hello, and return what the server answers."""
        self.heard.clear()
        self.say(Kind.HELLO, bytes(4), b"n" * 16)
        net.run(lambda: self.heard)
        answer = Controls(None, "aes-256-gcm").read(self.heard[-1])
        assert answer is not None
        assert answer.kind is Kind.COOKIE
        return answer


def push(conv: bytes, sn: int, data: bytes, una: int = 0, ts: int = 0) -> bytes:
    """A segment of KCP with data."""
    return conv + bytes((81, 0, 128, 0)) + b"".join(n.to_bytes(4, "little") for n in (ts, sn, una, len(data))) + data


# --- Ends


@pytest.mark.parametrize("params", ["", "cookie=0"])
def test_what_was_written_before_a_close_arrives_and_both_sides_forget(params: str) -> None:
    net = KcpNet(BAD_LINE if not params else Impairment(0.2, 0.05, 0, 0.01, 0.05), 3, params)
    ours, theirs = net.pair()
    data = Random(1).randbytes(90_000)
    assert ours.try_send(data) == len(data)
    ours.close()
    received = bytearray()

    def at_end() -> bool:
        while (got := read(theirs, 5000)) is not None:
            if not got:
                return True
            received.extend(got)
        return False

    assert net.run(at_end)
    assert received == data
    assert read(theirs) == b""
    theirs.close()
    assert net.run(lambda: not net.server.sessions and ours._session.has_ended)
    assert ours._session.error is None


def test_one_direction_ends_and_the_other_goes_on() -> None:
    net = KcpNet(BAD_LINE, 4)
    ours, theirs = net.pair()
    ours.try_send(b"question")
    ours.shutdown_write()
    with pytest.raises(TransportError, match="after shutdown_write"):
        ours.try_send(b"more")
    assert net.run(lambda: read(theirs) == b"question")
    assert net.run(lambda: read(theirs) == b"")
    assert theirs.try_send(b"answer") == 6
    theirs.close()
    assert net.run(lambda: read(ours) == b"answer")
    assert net.run(lambda: read(ours) == b"")
    ours.close()
    assert net.run(lambda: not net.server.sessions and ours._session.has_ended)


def test_a_closed_session_waits_for_its_acknowledgement_and_not_for_ever() -> None:
    net = KcpNet(QUIET, params="linger=5&no-progress=60")
    ours, theirs = net.pair()
    net.run(seconds=1)
    theirs.try_send(b"nobody will get this")
    net.network.impairment = LOST
    theirs.close()
    net.run(seconds=4.9)
    assert len(net.server.sessions) == 1
    net.run(seconds=0.2)
    assert not net.server.sessions
    ours.abort()


def test_an_end_that_nobody_acknowledges_is_not_waited_for_long() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    net.run(seconds=1)
    ours.abort()
    net.network.impairment = LOST
    theirs.close()
    net.run(seconds=2.1)
    assert not net.server.sessions


def test_who_writes_to_a_peer_that_has_closed_is_told() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    theirs.try_send(b"bye")
    theirs.close()
    assert net.run(lambda: not net.server.sessions)
    net.run(seconds=1)
    with pytest.raises(TransportError) as caught:
        ours.try_send(b"are you there?")
    assert caught.value.errno == errno.EPIPE
    assert read(ours) == b"bye"
    assert read(ours) == b""
    ours.close()
    assert ours._session.has_ended


def test_who_missed_that_is_told_again_for_what_it_writes() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    net.run(seconds=1)
    net.network.impairment = LOST
    theirs.abort()
    net.network.impairment = QUIET
    net.run(seconds=1)
    ours.try_send(b"are you there?")

    def is_told() -> bool:
        try:
            return read(ours) is not None
        except TransportError as error:
            return error.errno == errno.ECONNRESET

    assert net.run(is_told, seconds=2)
    ours.close()


def test_an_abort_is_an_error_at_the_other_side_and_leaves_nothing() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    ours.try_send(bytes(100_000))
    ours.abort()
    assert ours._session.has_ended
    net.run(seconds=1)
    assert not net.server.sessions
    for use in (lambda: read(theirs), lambda: theirs.try_send(b"x")):
        with pytest.raises(TransportError, match="the peer aborted the session") as caught:
            use()
        assert caught.value.errno == errno.ECONNRESET


def test_a_reset_that_was_not_meant_for_this_session_is_ignored() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    session = net.sessions[0]
    stranger = Stranger(net)
    forged = Controls(None, "aes-256-gcm").write(Control(Kind.RESET, session.conv, b"guess of a nonce", code=3))
    net.network.carry(forged, CLIENT, SERVER)
    stranger.say(Kind.RESET, session.conv, session.nonce, b"", 3)  # another address
    net.run(seconds=1)
    assert session.error is None
    ours.try_send(b"still here")
    assert net.run(lambda: read(theirs) == b"still here")


def test_nothing_that_comes_late_opens_a_closed_session_again() -> None:
    net = KcpNet(QUIET)
    recorded: list[bytes] = []
    deliver = net.server.on_datagram
    net.server.on_datagram = lambda data, address, now: (recorded.append(data), deliver(data, address, now))[1]  # type: ignore[method-assign, func-returns-value, assignment, return-value]
    ours, theirs = net.pair()
    ours.try_send(b"pay 5")
    assert net.run(lambda: read(theirs) == b"pay 5")
    ours.close()
    theirs.close()
    assert net.run(lambda: not net.server.sessions)
    again = recorded[:]
    assert {data[4] for data in again} >= {Kind.HELLO, Kind.START, 81}
    for _ in range(3):
        for data in again:
            net.network.carry(data, CLIENT, SERVER)
        net.run(seconds=REMEMBERED - 5)
    assert len(net.accepted) == 1
    assert not net.server.sessions


def test_a_stock_peers_late_packets_open_nothing_either() -> None:
    net = KcpNet(QUIET, params="cookie=0")
    stranger = Stranger(net, CLIENT)
    first = push(b"\1\2\3\4", 0, b"hello")
    stranger.send(first)
    net.run(seconds=0.1)
    net.accepted[0].abort()
    net.run(lambda: not net.server.sessions)
    for _ in range(10):
        stranger.send(first)
        stranger.send(push(b"\1\2\3\4", 1, b"more"))
        net.run(seconds=REMEMBERED_STOCK / 11)
    assert len(net.accepted) == 1
    stranger.send(push(b"\1\2\3\5", 7, b"the middle of something"))
    net.run(seconds=1)
    assert len(net.accepted) == 1
    stranger.send(push(b"\1\2\3\5", 0, b"another conversation"))
    net.run(seconds=0.1)
    assert len(net.accepted) == 2


# --- Peers that do not read, or are not there


def test_a_peer_that_does_not_read_stops_its_writer_and_holds_little() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    taken = fill(net, theirs)
    assert taken <= (128 + 256) * 1176
    before = net.network.sent
    net.run(seconds=600)
    assert theirs.try_send(b"x") == 0
    assert theirs._session.error is None
    assert net.network.sent - before < 600 * 5  # it is asked twice a second whether it reads
    received = 0

    def reads_all() -> bool:
        nonlocal received
        while got := read(ours, 65536):
            received += len(got)
        return received == taken

    assert net.run(reads_all, seconds=2)
    assert theirs.try_send(bytes(100_000)) == 100_000


def test_a_window_that_opens_is_seen_soon_even_if_word_of_it_is_lost() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    fill(net, theirs)
    net.network.impairment = LOST
    while read(ours, 65536):
        pass
    net.run(seconds=0.05)
    net.network.impairment = QUIET
    assert net.run(lambda: theirs.try_send(b"x"), seconds=1.2)  # KCP by itself asks after 7 seconds


@pytest.mark.parametrize("params", ["", "cookie=0"])
def test_a_peer_that_vanishes_with_something_to_acknowledge_is_given_up(params: str) -> None:
    net = KcpNet(QUIET, params=params)
    ours, theirs = net.pair()
    write(net, theirs, b"welcome")
    assert net.run(lambda: read(ours) == b"welcome")
    net.run(seconds=5)
    net.network.impairment = LOST
    theirs.try_send(b"hello?")
    net.run(seconds=11.9)
    assert theirs._session.error is None
    net.run(seconds=0.2)
    with pytest.raises(TransportError, match="the peer has acknowledged nothing for 12 seconds") as caught:
        read(theirs)
    assert caught.value.errno == errno.ETIMEDOUT
    assert not net.server.sessions
    ours.abort()


def test_a_peer_that_vanishes_in_silence_is_given_up_and_one_that_is_silent_is_not() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    before = net.network.sent
    net.run(seconds=3600)
    assert theirs._session.error is ours._session.error is None
    # The client asks every 20 seconds and is answered.
    assert net.network.sent - before <= 2 * 3600 / 20 + 2
    net.network.impairment = LOST
    net.run(seconds=61)
    for stream in (ours, theirs):
        with pytest.raises(TransportError, match="nothing has come for 60 seconds"):
            read(stream)
    assert not net.server.sessions


def test_one_direction_that_is_cut_is_no_progress() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    carry = net.network.carry
    net.network.carry = lambda data, source, target: source == SERVER or carry(data, source, target)  # type: ignore[method-assign, assignment, return-value, func-returns-value]
    theirs.try_send(b"lost")
    for _ in range(11):
        ours.try_send(b"I am here")
        net.run(seconds=1)
    assert theirs._session.error is None
    net.run(seconds=2)
    for stream in (ours, theirs):
        with pytest.raises(TransportError, match="acknowledged nothing for 12 seconds"):
            stream.try_send(b"x")


# --- Beginnings


def test_no_session_until_the_cookie_returns_and_the_answers_are_smaller_than_the_questions() -> None:
    net = KcpNet(QUIET)
    stranger = Stranger(net)
    cookie = stranger.cookie(net)
    assert (len(net.server.sessions), len(net.accepted)) == (0, 0)
    assert net.network.bytes_sent[SERVER] < net.network.bytes_sent[OTHER]
    stranger.say(Kind.START, cookie.conv, b"n" * 16, b"x" * 16)
    stranger.say(Kind.START, b"\1\1\1\1", b"n" * 16, cookie.extra)
    stranger.say(Kind.START, cookie.conv, b"m" * 16, cookie.extra)
    elsewhere = Controls(None, "aes-256-gcm").write(Control(Kind.START, cookie.conv, b"n" * 16, cookie.extra))
    net.network.carry(elsewhere, CLIENT, SERVER)
    net.run(seconds=1)
    assert not net.accepted
    stranger.say(Kind.START, cookie.conv, b"n" * 16, cookie.extra)
    stranger.say(Kind.START, cookie.conv, b"n" * 16, cookie.extra)
    net.run(seconds=1)
    assert len(net.accepted) == 1
    assert stranger.heard[-1] == stranger.heard[-2]  # the same ACCEPT: the first one may have been lost
    cookie = stranger.cookie(net)
    net.run(seconds=COOKIE_LIFE + 1)
    stranger.say(Kind.START, cookie.conv, b"n" * 16, cookie.extra)
    net.run(seconds=1)
    assert len(net.accepted) == 1


def test_twenty_thousand_hellos_from_anywhere_leave_nothing_behind() -> None:
    net = KcpNet()
    hello = Controls(None, "aes-256-gcm").write(Control(Kind.HELLO, bytes(4), b"n" * 16))
    tracemalloc.start()
    try:
        for number in range(20_000):
            net.server.on_datagram(hello, (f"198.51.{number >> 8 & 255}.{number & 255}", 1 + number), net.port.now())
            net.network.schedule.run(net.port.now())
            if number == 1000:
                net.network._on_the_way.clear()
                net.network.bytes_sent.clear()
                before = tracemalloc.get_traced_memory()[0]
            net.network._on_the_way.clear()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert not net.server.sessions
    assert grown < 10_000
    assert net.network.bytes_sent[SERVER] < 19_000 * len(hello)


def test_what_a_spoofed_start_of_a_stock_peer_draws_is_at_most_three_times_as_much() -> None:
    net = KcpNet(QUIET, params="cookie=0")
    request = push(b"\1\2\3\4", 0, bytes(150))
    net.network.carry(request, OTHER, SERVER)
    net.run(lambda: net.accepted)
    theirs = net.accepted[0]
    assert 0 < fill(net, theirs) < 3 * len(request)
    # Acknowledgements that the spoofer makes up: by number, and of all numbers at once. He does not know when we sent.
    for number in range(100):
        forged = b"\1\2\3\4" + bytes((82, 0, 128, 0)) + b"".join(n.to_bytes(4, "little") for n in (number * 977, 0, 200, 0))
        net.network.carry(forged, OTHER, SERVER)
    net.run(seconds=60)
    assert net.network.bytes_sent[SERVER] <= 3 * net.network.bytes_sent[OTHER]
    assert not net.server.sessions
    with pytest.raises(TransportError, match="the peer has acknowledged nothing within 10 seconds"):
        read(theirs)


def test_a_stock_peer_that_acknowledges_gets_all() -> None:
    net = KcpNet(QUIET, params="cookie=0")
    ours, theirs = net.pair()
    write(net, theirs, bytes(100_000))
    received = 0

    def reads_all() -> bool:
        nonlocal received
        while got := read(ours, 65536):
            received += len(got)
        return received == 100_000

    assert net.run(reads_all, seconds=5)
    assert theirs._session._unproven is None
    net.run(seconds=30)
    assert theirs._session.error is None


def test_spoofed_starts_of_stock_peers_are_bounded_in_number() -> None:
    net = KcpNet(QUIET, params="cookie=0")
    for number in range(1500):
        net.server.on_datagram(push(b"\1\2\3\4", 0, b"x"), (f"198.51.{number >> 8}.{number & 255}", 1), net.port.now())
        net.network.schedule.run(net.port.now())
    assert len(net.server.sessions) == 1000
    assert net.server.refused == 500
    net.run(seconds=15)
    assert not net.server.sessions
    ours, theirs = net.pair()
    write(net, theirs, b"welcome")
    assert net.run(lambda: read(ours) == b"welcome")


@pytest.mark.parametrize(
    ("limit", "addresses"),
    [
        ("sessions=2", [("192.0.2.2", 1), ("192.0.2.3", 1), ("192.0.2.4", 1)]),
        ("sessions-per-address=2", [("192.0.2.2", number) for number in (1, 2, 3)]),
    ],
)
def test_limits_of_sessions(limit: str, addresses: list[Any]) -> None:
    net = KcpNet(QUIET, server_only=limit)
    streams = [net.dial(address) for address in addresses[:2]]
    client, port = net.client(addresses[2])
    assert net.run(lambda: client.error is not None)
    assert client.error is not None
    assert client.error.errno == errno.ECONNREFUSED
    assert client.error.strerror == "the server has too many sessions"
    streams[0].close()
    net.accepted[0].close()
    assert net.run(lambda: len(net.server.sessions) == 1)
    port.close()
    net.dial(addresses[2])
    assert len(net.server.sessions) == 2


def test_a_server_that_accepts_no_more_says_so() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    net.server.accepts = False
    client, _ = net.client(OTHER)
    assert net.run(lambda: client.error is not None)
    assert client.error is not None
    assert client.error.strerror == "the server accepts no more sessions"
    ours.try_send(b"on we go")
    assert net.run(lambda: read(theirs) == b"on we go")


def test_without_the_key_there_is_no_answer_at_all(tmp_path: Path) -> None:
    require_module("cryptography")
    for name, digit in (("right", "a"), ("wrong", "b")):
        (tmp_path / name).write_text(digit * 64)
    net = KcpNet(QUIET, params=f"key-file={tmp_path}/right")
    others = (f"key-file={tmp_path}/wrong", f"key-file={tmp_path}/right&cipher=chacha20-poly1305", "", "cookie=0")
    for number, params in enumerate(others):
        client, _ = net.client(("192.0.2.9", 1 + number), params)
        if client.session is not None:
            client.session.try_send(b"GET / HTTP/1.1")
        net.run(seconds=11)
        if client.session is None:
            assert client.error is not None
            assert client.error.errno == errno.ETIMEDOUT
            assert str(client.error.strerror).startswith("no answer within 10 seconds (is a server there, with ")
        assert SERVER not in net.network.bytes_sent
    ours, theirs = net.pair()
    ours.try_send(b"secret")
    assert net.run(lambda: read(theirs) == b"secret")


def test_an_encrypted_session_shows_nothing_of_what_it_carries(tmp_path: Path) -> None:
    require_module("cryptography")
    (tmp_path / "key").write_text("c" * 64)
    net = KcpNet(QUIET, params=f"key-file={tmp_path}/key")
    seen: list[bytes] = []
    carry = net.network.carry
    net.network.carry = lambda data, source, target: (seen.append(data), carry(data, source, target))[1]  # type: ignore[method-assign, assignment, return-value, func-returns-value]
    ours, theirs = net.pair()
    ours.try_send(b"attack at dawn " * 50)
    assert net.run(lambda: read(theirs, 1000) == b"attack at dawn " * 50)
    assert not any(b"dawn" in data for data in seen)
    assert max(map(len, seen)) <= 1200


@pytest.mark.parametrize("params", ["", "cookie=0", "mtu=600", "stream=0"])
def test_no_datagram_is_larger_than_mtu(params: str) -> None:
    net = KcpNet(QUIET, params=params)
    sizes: list[int] = []
    carry = net.network.carry
    net.network.carry = lambda data, source, target: (sizes.append(len(data)), carry(data, source, target))[1]  # type: ignore[method-assign, assignment, return-value, func-returns-value]
    ours, _ = net.pair()
    ours.try_send(bytes(50_000))
    net.run(seconds=1)
    assert max(sizes) == (600 if "mtu" in params else 1200)


def test_garbage_of_every_kind_ends_nothing() -> None:
    net = KcpNet(QUIET)
    ours, theirs = net.pair()
    random, conv = Random(7), net.sessions[0].conv
    for _ in range(20_000):
        data = random.randbytes(random.choice((0, 3, 23, 24, 28, 44, 68, 200)))
        kind = random.randrange(4)
        if kind and len(data) > 5:
            data = conv + bytes((random.choice((81, 82, 83, 84, *range(0xC0, 0xC8), 0xE0)),)) + data[5:]
        if kind == 3 and len(data) >= HEADER:
            data = data[:20] + (len(data) - HEADER).to_bytes(4, "little") + data[HEADER:]
        net.server.on_datagram(data, CLIENT if random.randrange(2) else OTHER, net.port.now())
    net.run(seconds=1)
    assert len(net.server.sessions) == len(net.accepted) == 1
    ours.try_send(b"all the same")
    assert net.run(lambda: read(theirs) == b"all the same")


def test_a_client_takes_no_answer_that_is_not_for_it() -> None:
    net = KcpNet(QUIET)
    net.server.on_datagram = lambda data, address, now: None  # type: ignore[method-assign]
    client, port = net.client()
    assert isinstance(port, SimulatedPort)
    controls = Controls(None, "aes-256-gcm")
    for kind, extra in ((Kind.COOKIE, b"e" * 16), (Kind.ACCEPT, b"e" * 16), (Kind.REFUSE, b"")):
        net.network.carry(controls.write(Control(kind, b"\1\1\1\1", b"not your nonce !", extra)), SERVER, CLIENT)
    net.network.carry(controls.write(Control(Kind.ACCEPT, b"\1\1\1\1", client._nonce, b"e" * 16)), SERVER, CLIENT)
    net.run(seconds=1)
    assert client.session is client.error is None
    net.run(seconds=10)
    assert client.error is not None
