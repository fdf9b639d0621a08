"""The bridge between transports: the handshake on its way through, bytes both ways, ends, deadlines, limits."""

from __future__ import annotations

import socket as plain_socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
import trustme

from gws_gevent import (
    Bridge,
    BridgeOptions,
    ClientOptions,
    HandshakeRefused,
    ListenSettings,
    PermessageDeflate,
    Refusal,
    Request,
    Response,
    Server,
    ServerOptions,
    TlsFiles,
    client_context,
    connect,
)
from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.base import DialSettings
from gws_gevent.transports.registry import dialer
from tests.pairs import EchoHandler
from tests.raw import ACCEPT, RawClient, request
from tests.support import free_port, require_module, wait_until

#: A target's answer to a request of `tests.raw`.
SWITCHED = b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n" % ACCEPT.encode()


class Talker(EchoHandler):
    """An echo that also remembers the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def on_open(self, conn: Any) -> None:
        self.requests.append(conn.request)
        super().on_open(conn)


@contextmanager
def bridged(
    target: str,
    listen: str = "127.0.0.1:0",
    options: BridgeOptions | None = None,
    settings: ListenSettings | None = None,
    dial: DialSettings | None = None,
) -> Iterator[Bridge]:
    bridge = Bridge(target, options, dial)
    bridge.start(listen, settings=settings)
    try:
        yield bridge
    finally:
        bridge.stop(0.2)
        assert bridge.connections == 0


@contextmanager
def echo_behind(
    options: BridgeOptions | None = None, server: ServerOptions | None = None
) -> Iterator[tuple[Bridge, Talker]]:
    talker = Talker()
    with Server(talker, server) as behind:
        behind.start("127.0.0.1:0")
        with bridged(behind.address, options=options) as bridge:
            yield bridge, talker


@contextmanager
def target(serve: Any) -> Iterator[str]:
    """A TCP server that is nobody's WebSocket: `serve(socket)` in a greenlet for each connection."""
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)

        def accept() -> None:
            while True:
                sock, _ = listening.accept()
                workers.append(gevent.spawn(served, sock))

        def served(sock: Any) -> None:
            with sock:
                serve(sock)

        workers = [gevent.spawn(accept)]
        try:
            yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            gevent.killall(workers)


def url_of(bridge: Bridge, path: str = "/") -> str:
    scheme, _, place = bridge.addresses[0].partition(":")
    return {"tcp": "ws", "tls": "wss", "kcp": "ws+kcp"}.get(scheme, f"wss+{scheme}") + f":{place}{path}"


def port_of(bridge: Bridge) -> int:
    return int(bridge.addresses[0].rpartition(":")[2])


def taken(client: RawClient, count: int) -> bytes:
    """Bytes that have come, or come now."""
    while len(client.buffer) < count:
        client.buffer += client.sock.recv(100_000) or pytest.fail("the stream has ended")
    found = bytes(client.buffer[:count])
    del client.buffer[:count]
    return found


# Passing through


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    ours = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    ours.private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
    return folder


@pytest.mark.parametrize(
    ("near", "far"),
    [
        *((near, far) for near in ("tcp", "tls", "unix") for far in ("tcp", "tls", "unix", "memory")),
        *(("tcp", "quic"), ("quic", "unix"), ("tcp", "h3"), ("h3", "tcp"), ("h3", "h3"), ("h3", "quic"), ("quic", "h3")),
        *(("tcp", "kcp"), ("kcp", "unix"), ("h3", "kcp")),
    ],
)
def test_messages_cross_between_any_two_transports(near: str, far: str, certificates: Path, tmp_path: Path) -> None:
    if "quic" in (near, far) or "h3" in (near, far):
        require_module("aioquic")
    if "kcp" in (near, far):
        require_module("kcp")
    places = {name: f"{name}://127.0.0.1:0" for name in ("tcp", "tls", "quic", "h3", "kcp")} | {"memory": "memory:behind"}
    settings = ListenSettings(tls=TlsFiles(str(certificates / "cert.pem")))
    context = client_context(str(certificates / "ca.pem"))
    options = PermessageDeflate(server_context_takeover=True)
    talker = Talker()
    with Server(talker, ServerOptions(permessage_deflate=options, subprotocols=["b"])) as server:
        server.start(places.get(far, f"unix:{tmp_path}/far"), settings=settings)
        listen, dial = places.get(near, f"unix:{tmp_path}/near"), DialSettings(ssl_context=context)
        with bridged(server.address, listen, settings=settings, dial=dial) as bridge:
            url = f"ws+unix:{tmp_path}/near:/some?where" if near == "unix" else url_of(bridge, "/some?where")
            mine = ClientOptions(permessage_deflate=options, subprotocols=["a", "b"], headers={"X-Mine": "yes"})
            with connect(url, options=mine, ssl_context=context if near in ("tls", "quic", "h3") else None) as conn:
                assert conn.subprotocol == "b"
                assert conn.extensions
                for message in ("text", b"\0\xff", "", "x" * 300_000, bytes(range(256)) * 4000):
                    conn.send(message)
                    assert conn.receive(timeout=5) == message
            assert conn.close_info is not None
            assert (conn.close_info.code, conn.close_info.clean) == (1000, True)
            assert talker.wait_closed().clean
    assert talker.requests[0].target == "/some?where"
    assert talker.requests[0].headers.get("x-mine") == "yes"


def test_many_connections_at_once_each_get_their_own_bytes() -> None:
    with echo_behind() as (bridge, _):

        def talk(number: int) -> None:
            with connect(url_of(bridge)) as conn:
                for size in (1, 1000, 100_000):
                    conn.send(bytes([number]) * size)
                    assert conn.receive(timeout=10) == bytes([number]) * size

        for worker in [gevent.spawn(talk, number) for number in range(30)]:
            worker.get()
        wait_until(lambda: bridge.connections == 0)


def test_bytes_that_come_with_the_request_and_with_the_answer_arrive() -> None:
    def serve(sock: Any) -> None:
        while not (received := sock.recv(1000)).endswith(b"\r\n\r\n"):
            pass
        assert b"hello" not in received  # held back until the upgrade is there
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + SWITCHED + b"well, ")
        sock.sendall(sock.recv(1000))

    with target(serve) as place, bridged(place) as bridge, RawClient(port_of(bridge)) as client:
        client.send(request("/") + b"hello")
        assert client.read_answer().status == 101
        assert client.read_to_the_end() == b"well, hello"


def test_the_client_is_told_of_on_request_and_never_believed() -> None:
    forged = {"X-Forwarded-For": "10.9.9.9", "Forwarded": "for=10.9.9.9", "X-Real-IP": "10.9.9.9"}
    for tell, expected in ((False, []), (True, ["127.0.0.1"])):
        trusting = ServerOptions(trusted_proxies=["127.0.0.1"])
        with echo_behind(BridgeOptions(forwarded=tell), trusting) as (bridge, talker):
            with connect(url_of(bridge), options=ClientOptions(headers=forged)) as conn:
                conn.send("x")
                conn.receive(timeout=5)
            headers = talker.requests[0].headers
            assert headers.get_all("x-forwarded-for") == expected
            assert headers.get("x-forwarded-proto") == ("http" if tell else None)
            assert "forwarded" not in headers
            assert "x-real-ip" not in headers


# Refusals


def test_the_targets_refusal_passes_with_its_whole_body() -> None:
    body = "sorry " * 20_000

    def route(request: Request) -> Any:
        if request.path == "/page":
            return Response(200, body, {"Content-Type": "text/html"})
        raise Refusal(403, body, {"X-Why": "because"})

    with Server(on_request=route) as server:
        server.start("127.0.0.1:0")
        with bridged(server.address) as bridge:
            for path, status in (("/", 403), ("/page", 200)):
                with RawClient(port_of(bridge)) as client:
                    client.send(request(path))
                    answer = client.read_answer()
                    assert answer.status == status
                    assert answer.body == body.encode()
                    assert answer.headers["connection"] == "close"
            with pytest.raises(HandshakeRefused) as caught:
                connect(url_of(bridge))
            assert caught.value.headers.get("x-why") == "because"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"\x16\x03\x01", 400),
        (request("/", "X: " + "y" * 20_000), 431),
        (request("/", "Content-Length: 9") + b"GET / HTT", 400),
    ],
)
def test_what_is_no_handshake_does_not_reach_the_target(sent: bytes, status: int) -> None:
    reached: list[Any] = []
    with target(reached.append) as place, bridged(place) as bridge, RawClient(port_of(bridge)) as client:
        client.send(sent)
        assert client.read_answer().status == status
    assert reached == []


@pytest.mark.parametrize("host", ["127.0.0.1", "", "[::1]"])
def test_a_bridge_to_itself_is_a_508(host: str, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with bridged(f"tcp://{host or 'localhost'}:{port}", f"tcp://{host}:{port}") as bridge:
        for _ in range(2):
            with pytest.raises(HandshakeRefused) as caught:
                connect(f"ws://{host or '127.0.0.1'}:{port}/")
            assert caught.value.status == 508
        wait_until(lambda: bridge.connections == 0)
        assert not bridge._asking
    assert caplog.text.count("this is the bridge itself") == 2


def test_a_target_that_is_down_is_a_502() -> None:
    with bridged(f"tcp://127.0.0.1:{free_port()}") as bridge, pytest.raises(HandshakeRefused) as caught:
        connect(url_of(bridge))
    assert caught.value.status == 502
    assert "cannot be reached" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"SSH-2.0-OpenSSH\r\n", 502),
        (b"", 502),
        (b"HTTP/1.1 101 Switch", 502),
        (b"HTTP/1.1 101 " + b"x" * 200_000, 502),
        (None, 504),
    ],
)
def test_a_target_that_speaks_no_http_is_a_502_and_one_that_hangs_a_504(said: bytes | None, status: int) -> None:
    def serve(sock: Any) -> None:
        sock.recv(10_000)
        if said is None:
            sock.recv(1)
        else:
            sock.sendall(said)

    options = BridgeOptions(target_timeout=0.2)
    with target(serve) as place, bridged(place, options=options) as bridge, pytest.raises(HandshakeRefused) as caught:
        connect(url_of(bridge))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("before", "after"), [(b"Upgrade: websocket", b"Upgrade: h2c"), (b"Upgrade: websocket\r\n", b""), (b"Accept: s", b"Accept: t")]
)
def test_a_target_that_switches_to_another_protocol_gets_no_tunnel(before: bytes, after: bytes) -> None:
    behind: list[bytes] = []
    ended: list[bool] = []

    def serve(sock: Any) -> None:
        while not sock.recv(1000).endswith(b"\r\n\r\n"):
            pass
        sock.sendall(SWITCHED.replace(before, after))
        with suppress(ConnectionResetError):
            behind.append(sock.recv(1000))
        ended.append(True)

    with target(serve) as place, bridged(place) as bridge, RawClient(port_of(bridge)) as client:
        client.send(request("/", upgrade="h2c, websocket") + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.read_answer().status == 502
        wait_until(lambda: ended)
    assert not b"".join(behind)


def test_a_client_that_sends_no_request_is_a_408() -> None:
    with echo_behind(BridgeOptions(handshake_timeout=0.1)) as (bridge, _), RawClient(port_of(bridge)) as client:
        client.send(b"GET / HT")
        assert client.read_answer().status == 408


def test_more_than_max_connections_are_a_503_and_the_next_gets_in_when_one_has_left() -> None:
    # The raw client says nothing, and takes no place.
    with echo_behind(BridgeOptions(max_connections=1)) as (bridge, _), RawClient(port_of(bridge)):
        with connect(url_of(bridge)):
            with pytest.raises(HandshakeRefused) as caught:
                connect(url_of(bridge))
            assert caught.value.status == 503

        def gets_in() -> bool:
            try:
                connect(url_of(bridge)).close()
            except HandshakeRefused:
                return False
            return True

        wait_until(gets_in)


def test_pages_of_other_origins_stay_outside() -> None:
    with echo_behind(BridgeOptions(origins=["https://good.example"])) as (bridge, _):
        connect(url_of(bridge), options=ClientOptions(headers={"Origin": "https://good.example"})).close()
        with pytest.raises(HandshakeRefused) as caught:
            connect(url_of(bridge), options=ClientOptions(headers={"Origin": "https://evil.example"}))
        assert caught.value.status == 403


# Ends


def upgraded(sock: Any) -> bytes:
    """A target's side of the handshake; return what came behind the request."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += sock.recv(1000)
    sock.sendall(SWITCHED)
    return received.partition(b"\r\n\r\n")[2]


@contextmanager
def carried(serve: Any, options: BridgeOptions | None = None) -> Iterator[tuple[Bridge, RawClient]]:
    """A client that has been upgraded through a bridge; `serve(socket)` goes on behind it."""

    def whole(sock: Any) -> None:
        upgraded(sock)
        serve(sock)

    with target(whole) as place, bridged(place, options=options) as bridge, RawClient(port_of(bridge)) as client:
        client.send(request())
        client.read_answer()
        yield bridge, client


def read_all(sock: Any) -> bytes:
    received = bytearray()
    while piece := sock.recv(100_000):
        received += piece
    return bytes(received)


def test_a_half_close_passes_and_the_other_way_stays_open() -> None:
    def serve(sock: Any) -> None:
        received = read_all(sock)
        gevent.sleep(0.05)
        sock.sendall(b"you said " + received)

    with carried(serve) as (bridge, client):
        client.send(b"all of it")
        client.sock.shutdown(plain_socket.SHUT_WR)
        assert client.read_to_the_end() == b"you said all of it"
        wait_until(lambda: bridge.connections == 0)


def test_the_targets_half_close_passes_too() -> None:
    heard = []

    def serve(sock: Any) -> None:
        sock.sendall(b"that was all")
        sock.shutdown(plain_socket.SHUT_WR)
        heard.append(read_all(sock))

    with carried(serve) as (bridge, client):
        assert client.read_to_the_end() == b"that was all"
        client.send(b"and yet")
        client.sock.shutdown(plain_socket.SHUT_WR)
        wait_until(lambda: heard == [b"and yet"])
        wait_until(lambda: bridge.connections == 0)


def test_after_one_end_the_other_side_has_close_timeout() -> None:
    def serve(sock: Any) -> None:
        sock.shutdown(plain_socket.SHUT_WR)
        assert sock.recv(1) == b""

    with carried(serve, BridgeOptions(close_timeout=0.2)) as (bridge, client):
        assert client.read_to_the_end() == b""  # and we never close
        wait_until(lambda: bridge.connections == 0)


def test_when_one_side_is_reset_the_other_is_closed() -> None:
    ended = []

    def serve(sock: Any) -> None:
        ended.append(read_all(sock))

    with carried(serve) as (bridge, client):
        client.send(b"last words")
        client.reset()
        wait_until(lambda: bridge.connections == 0)
        wait_until(lambda: ended)


def test_what_the_target_said_before_it_was_reset_arrives() -> None:
    def serve(sock: Any) -> None:
        sock.sendall(b"goodbye")
        assert sock.recv(1) == b"!"
        sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with carried(serve) as (bridge, client):
        assert taken(client, 7) == b"goodbye"
        client.send(b"!")
        assert client.read_to_the_end() == b""
        wait_until(lambda: bridge.connections == 0)


@pytest.mark.slow
def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    def serve(sock: Any) -> None:
        while piece := sock.recv(100):
            sock.sendall(piece)

    with carried(serve, BridgeOptions(idle_timeout=0.4)) as (bridge, client):
        for _ in range(8):
            gevent.sleep(0.1)
            client.send(b"x")
            assert taken(client, 1) == b"x"
        with pytest.raises(OSError):
            read_all(client.sock)
        wait_until(lambda: bridge.connections == 0)


@pytest.mark.slow
def test_a_side_that_reads_nothing_holds_the_other_back_and_is_dropped_at_write_timeout() -> None:
    sent = [0]

    def serve(sock: Any) -> None:
        try:
            while True:
                sent[0] += sock.send(bytes(100_000))
        except OSError:
            pass

    with carried(serve, BridgeOptions(write_timeout=0.5)) as (bridge, _):
        wait_until(lambda: sent[0] > 0)
        wait_until(lambda: bridge.connections == 0)
        assert sent[0] < 20_000_000  # what the kernel's buffers hold, on both hops


@pytest.mark.slow
def test_a_slow_reader_is_not_dropped() -> None:
    total, buffer = 400_000, bytearray(10_000)

    def serve(sock: Any) -> None:
        upgraded(sock)
        sock.sendall(bytes(total))

    # In memory, for what the kernel's buffers hold would hide how slow the reader is.
    with target(serve) as place, bridged(place, "memory:slow", BridgeOptions(write_timeout=0.3)):
        stream = dialer("memory:slow").dial()
        stream.send_all(request())
        received = 0
        while count := stream.recv_into(buffer):
            received += count
            gevent.sleep(0.03)
        stream.close()
        assert received > total


# Start and stop


@pytest.mark.slow
def test_stop_lets_connections_end_by_themselves_and_then_closes_them() -> None:
    talker = Talker()
    with Server(talker) as server:
        server.start("127.0.0.1:0")
        bridge = Bridge(server.address)
        bridge.start("127.0.0.1:0")
        first, second = connect(url_of(bridge)), connect(url_of(bridge))
        with RawClient(port_of(bridge)) as silent:
            stopping = gevent.spawn(bridge.stop, 0.5)
            wait_until(lambda: not bridge.addresses)
            assert silent.read_to_the_end() == b""
            first.send("still here")
            assert first.receive(timeout=5) == "still here"
            first.close()
            assert first.close_info is not None
            assert first.close_info.clean
            stopping.get()
            assert bridge.connections == 0
            assert not second.close_info or not second.close_info.clean
            second.abort()


def test_stop_does_not_wait_for_a_target_that_hangs() -> None:
    with target(lambda sock: sock.recv(100_000) and sock.recv(1)) as place:
        bridge = Bridge(place, BridgeOptions(target_timeout=60))
        bridge.start("127.0.0.1:0")
        with RawClient(port_of(bridge)) as client:
            client.send(request())
            wait_until(lambda: bridge.connections == 1)
            gevent.sleep(0.02)
            bridge.stop(0.05)
            assert bridge.connections == 0


def test_a_failed_start_leaves_nothing_bound() -> None:
    bridge = Bridge("tcp://127.0.0.1:1")
    with plain_socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TransportError):
        bridge.start("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}")
    assert bridge.addresses == []
    with pytest.raises(TypeError, match="at least one endpoint"):
        bridge.start()


def test_wrong_arguments() -> None:
    with pytest.raises(EndpointError):
        Bridge("tcp://127.0.0.1")
    with pytest.raises(EndpointError, match="no transport serves"):
        Bridge("nope://a:1")
    with pytest.raises(ValueError, match="idle_timeout"):
        BridgeOptions(idle_timeout=0)
    with pytest.raises(ValueError, match="trusted_proxies"):
        BridgeOptions(trusted_proxies=["x"])
    with pytest.raises(TypeError, match="BridgeOptions"):
        Bridge("tcp://127.0.0.1:1", ServerOptions())  # type: ignore[arg-type]
