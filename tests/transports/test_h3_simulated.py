"""HTTP/3 in simulated time: peers who ask for much, and what is kept for them. No socket is open, and nothing waits."""

from __future__ import annotations

from typing import Any

import pylsqpack
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import encode_frame

from gws_gevent.transports.quic.dialer import ClientConnection
from gws_gevent.transports.quic.stream import HELD, SHARED
from tests.quic_world import WINDOW, World
from tests.transports.conftest import Certificates

HEADERS = 0x01
KiB = 1024
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/")]


def section(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return a HEADERS frame."""
    return encode_frame(HEADERS, pylsqpack.Encoder().encode(0, fields)[1])


class H3World(World):
    """A server of HTTP/3, and clients who say what they like on their streams."""

    def __init__(self, cert: str, params: str = "") -> None:
        super().__init__(cert, endpoint=f"h3://192.0.2.1:4433?{params}")
        self.streams: list[Any] = []
        self.listener._acceptor._on_stream = self.streams.append  # type: ignore[union-attr]

    def peer(self) -> ClientConnection:
        """Return a connection; nothing is written on it but what the test writes."""
        client, _ = self.connect(alpn_protocols=["h3"])
        return client

    def say(self, client: ClientConnection, data: bytes, *, end: bool = False) -> int:
        """Write on a new stream; return its id."""
        core = client.session.core
        stream_id = core.get_next_available_stream_id()
        core.send_stream_data(stream_id, data, end_stream=end)
        client.session.touch()
        return stream_id

    def requests(self) -> Any:
        """What runs on the server's first connection."""
        return next(iter(self.server.sessions)).application

    def kept(self) -> int:
        """Bytes that the server's first connection keeps of what has come."""
        core = next(iter(self.server.sessions)).core
        late: int = sum(stream.receiver.highest_offset - stream.receiver._buffer_start for stream in core._streams.values())
        requests = self.requests()
        unread: int = sum(requests.unread().values())
        return late + unread


def test_header_sections_that_never_end_are_kept_up_to_a_mebibyte(certificates: Certificates) -> None:
    world = H3World(certificates.both)
    client = world.peer()
    begun = bytes([HEADERS]) + encode_uint_var(32_000) + bytes(31_000)
    ids = [world.say(client, begun) for _ in range(100)]
    world.run(seconds=20)
    assert 900 * KiB < world.kept() <= 4 * WINDOW
    for stream_id in ids:
        client.session.core.reset_stream(stream_id, 0x10C)
    client.session.touch()
    world.run(seconds=20)
    for stream in world.streams:
        stream.abort()
    world.run(seconds=20)
    assert world.kept() == 0
    world.say(client, section(GET), end=True)
    before = len(world.streams)
    assert world.run(lambda: len(world.streams) > before, seconds=5), "what is reset is forgotten, and gives its room back"


def test_data_that_never_ends_on_a_refused_request_stops_at_its_window(certificates: Certificates) -> None:
    world = H3World(certificates.both)
    client = world.peer()
    core = client.session.core
    stream_id = world.say(client, section([(b":method", b"CONNECT"), *GET[1:], (b":protocol", b"x")]))  # 501
    world.run(lambda: core._streams[stream_id].receiver.is_finished, seconds=5)
    core._streams[stream_id].sender.reset_pending = False  # it does not do what it is asked to
    core._streams[stream_id].sender._reset_error_code = None
    for _ in range(40):
        core.send_stream_data(stream_id, encode_frame(0x00, bytes(64 * KiB)))
        client.session.touch()
        world.run(seconds=0.5)
    session = next(iter(world.server.sessions))
    assert 64 * KiB < session.core._local_max_data.used < 2 * WINDOW
    assert world.kept() == 0


def test_a_peer_that_never_reads_is_sent_its_windows_and_little_is_kept_for_it(certificates: Certificates) -> None:
    world = H3World(certificates.both)
    client = world.peer()
    client.session.core.grant = lambda unread: None  # type: ignore[method-assign]
    for _ in range(100):
        world.say(client, section(GET), end=True)
    assert world.run(lambda: len(world.streams) == 100, seconds=10)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
    for stream in world.streams:
        stream.try_recv_into(bytearray(4096))
        stream.try_send(head)
    written = 0

    def pour() -> bool:
        nonlocal written
        for stream in world.streams:
            written += stream.try_send(bytes(16 * KiB))
        return False

    world.run(pour, seconds=5)
    requests = world.requests()
    assert requests.held <= SHARED + HELD + 100 * 4 * KiB <= 1.2 * 1024 * KiB
    assert written <= 4 * WINDOW + requests.held
