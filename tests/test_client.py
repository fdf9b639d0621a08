"""The client: what connect asks for, what it raises, and what it leaves behind when it fails."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.server import StreamServer

from gws_gevent import (
    Client,
    ClientOptions,
    Close,
    Connection,
    ConnectionClosed,
    EndpointError,
    GwsError,
    HandshakeError,
    HandshakeRefused,
    Message,
    MessageTooLarge,
    Reconnect,
    ServerOptions,
    TransportError,
    answers,
    connect,
    runtime,
)
from gws_gevent.transports.memory import memory_pair
from tests.pairs import EchoHandler, Recorder, paired, serving, url_of
from tests.support import free_port, wait_until


@contextmanager
def answering(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """Serve raw answers: `answer(head)` returns what is sent before the stream is closed, None to say nothing and stay."""
    heads: list[bytes] = []

    def handle(sock: Any, _address: Any) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = sock.recv(65536)
            if not piece:
                return
            head += piece
        heads.append(head)
        said = answer(head)
        if said is None:
            sock.recv(1)
        else:
            sock.sendall(said)
            sock.shutdown(1)
            sock.recv(65536)

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        yield f"ws://127.0.0.1:{server.server_port}/"
    finally:
        server.stop(timeout=1)


def accept_of(head: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept for a request."""
    (key,) = (line[19:] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: "))
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def switching(head: bytes, *more: bytes, accept: bytes | None = None) -> bytes:
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
    lines += [b"Sec-WebSocket-Accept: " + (accept or accept_of(head)), *more, b"", b""]
    return b"\r\n".join(lines)


def test_the_request_has_what_was_asked_for() -> None:
    heads: list[bytes] = []

    def answer(head: bytes) -> bytes:
        heads.append(head)
        return switching(head, b"Sec-WebSocket-Protocol: b") + b"\x81\x05hello\x88\x02\x03\xe8"

    options = ClientOptions(headers={"X-One": "1", "User-Agent": "a test"}, subprotocols=["a", "b"])
    with answering(answer) as url:
        conn = connect(url.replace("://", "://anna:pass%20word@") + "path?query=ü", options=options)
        assert conn.subprotocol == "b"
        # Frames that came with the answer are not lost.
        assert list(conn) == ["hello"]
        assert conn.close_info is not None
        assert conn.close_info.received == Close(1000, "")
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /path?query=%C3%BC HTTP/1.1"
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    assert headers["x-one"] == "1"
    assert headers["user-agent"] == "a test"
    assert headers["sec-websocket-protocol"] == "a, b"
    assert headers["sec-websocket-version"] == "13"
    assert headers["host"] == url[5:-1]
    assert headers["authorization"] == "Basic " + base64.b64encode(b"anna:pass word").decode()
    assert len(base64.b64decode(headers["sec-websocket-key"])) == 16


def test_an_authorization_header_of_ones_own_comes_before_the_urls() -> None:
    heads: list[bytes] = []

    def answer(head: bytes) -> bytes:
        heads.append(head)
        return switching(head)

    with answering(answer) as url:
        connect(url.replace("://", "://a:b@"), options=ClientOptions(headers={"authorization": "Bearer x"})).abort()
    assert heads[0].lower().count(b"authorization:") == 1
    assert b"Bearer x" in heads[0]


def test_nobody_listens() -> None:
    with pytest.raises(TransportError) as refused:
        connect(f"ws://127.0.0.1:{free_port()}/")
    assert isinstance(refused.value, OSError)
    assert refused.value.errno is not None


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(TransportError, match=r"nowhere\.invalid"):
        connect("ws://nowhere.invalid/")


@pytest.mark.parametrize("url", ["http://localhost/", "ws://", "ws://host:port/", "localhost", "ws://h/#fragment", "ws+unix:"])
def test_a_wrong_url(url: str) -> None:
    with pytest.raises(EndpointError):
        connect(url)


def test_a_refusal_carries_status_headers_and_body() -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\nX-Why: because\r\n\r\nnot youand more"
    with answering(lambda head: answer) as url, pytest.raises(HandshakeRefused) as refused:
        connect(url)
    assert refused.value.status == 403
    assert list(refused.value.headers) == [("content-length", "7"), ("x-why", "because")]
    assert refused.value.body == b"not you"
    assert str(refused.value) == "the server answered 403 instead of 101: not you"


def test_a_refusals_body_is_bounded() -> None:
    answer = b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    with answering(lambda head: answer) as url, pytest.raises(HandshakeRefused) as refused:
        connect(url)
    assert refused.value.body == b"x" * 4096


REFUSED = b"HTTP/1.1 503 Busy\r\n"
BODIES: dict[str, tuple[bytes, bytes]] = {
    "none": (b"Content-Length: 0\r\n\r\n", b""),
    "a length": (b"Content-Length: 4\r\n\r\nbusyness", b"busy"),
    "in chunks": (b"Transfer-Encoding: chunked\r\n\r\n3\r\nvery\r\n"[:-3] + b"\r\n2\r\n b\r\n0\r\n\r\n", b"ver b"),
    "to the end": (b"\r\nbusy, until we close", b"busy, until we close"),
    "cut off": (b"Content-Length: 9\r\n\r\nbus", b"bus"),
    "malformed chunks": (b"Transfer-Encoding: chunked\r\n\r\n3\r\nbus\r\nnonsense", b"bus"),
    "large chunks": (b"Transfer-Encoding: chunked\r\n\r\nffff\r\n" + b"x" * 0xFFFF + b"\r\n0\r\n\r\n", b"x" * 4096),
    "an offer to upgrade": (b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 4\r\n\r\nbusy", b"busy"),
}


@pytest.mark.parametrize("what", BODIES)
def test_bodies_of_refusals(what: str) -> None:
    sent, body = BODIES[what]
    with answering(lambda head: REFUSED + sent) as url, pytest.raises(HandshakeRefused) as refused:
        connect(url)
    assert refused.value.body == body


def test_a_refusal_has_no_body_by_its_status() -> None:
    with answering(lambda head: b"HTTP/1.1 304 x\r\n\r\nnot a body") as url, pytest.raises(HandshakeRefused) as refused:
        connect(url)
    assert refused.value.body == b""


def test_a_body_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BODY_TIMEOUT", 0.05)

    def answer(sock: Any) -> None:
        sock.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nbusy")

    with talking(answer) as url, pytest.raises(HandshakeRefused, match="503 instead of 101: busy") as refused:
        connect(url)
    assert refused.value.body == b"busy"
    # A deadline that passes meanwhile changes nothing about it.
    monkeypatch.setattr(answers, "BODY_TIMEOUT", 60)
    with talking(answer) as url, pytest.raises(HandshakeRefused, match="503 instead of 101"):
        connect(url, options=ClientOptions(handshake_timeout=0.1))


def test_interim_responses_are_skipped_and_bounded() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    with answering(lambda head: interim * 2 + switching(head)) as url:
        connect(url).abort()
    with answering(lambda head: interim * 20 + switching(head)) as url, pytest.raises(HandshakeError, match="interim"):
        connect(url)


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda head: b"",
    "half a head": lambda head: switching(head)[:60],
    "no HTTP": lambda head: b"hello there\r\n\r\n",
    "another accept": lambda head: switching(head, accept=b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    "no accept": lambda head: b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "no upgrade": lambda head: switching(head).replace(b"Upgrade: websocket\r\n", b""),
    "another upgrade": lambda head: switching(head).replace(b"websocket", b"h2c"),
    "no connection": lambda head: switching(head).replace(b"Connection: Upgrade\r\n", b""),
    "a subprotocol nobody offered": lambda head: switching(head, b"Sec-WebSocket-Protocol: x"),
    "an extension nobody offered": lambda head: switching(head, b"Sec-WebSocket-Extensions: permessage-deflate"),
    "a head without end": lambda head: b"HTTP/1.1 101 x\r\n" + b"X: " + b"y" * 100_000,
}


@pytest.mark.parametrize("what", WRONG)
def test_answers_that_are_wrong(what: str) -> None:
    with answering(WRONG[what]) as url, pytest.raises(HandshakeError):
        connect(url)


def test_an_answer_that_does_not_come() -> None:
    with answering(lambda head: None) as url:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.1 seconds"):
            connect(url, options=ClientOptions(handshake_timeout=0.1))
        assert 0.1 <= time.monotonic() - began < 2


@contextmanager
def talking(talk: Callable[[Any], object]) -> Iterator[str]:
    """Serve `talk(sock)`; the connection then stays open until the client closes it."""

    def handle(sock: Any, _address: Any) -> None:
        talk(sock)
        while sock.recv(65536):
            pass

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        yield f"ws://127.0.0.1:{server.server_port}/"
    finally:
        server.stop(timeout=1)


HALVES: dict[str, tuple[str, bytes, str]] = {
    "no answer": ("ws", b"", "still waiting for the answer of 127"),
    "half a head": ("ws", b"HTTP/1.1 101 Switch", "still waiting for the answer of 127"),
    "TLS": ("wss", b"", "still connecting to 127"),
    "interim answers": ("ws", b"HTTP/1.1 103 x\r\n\r\n", "still waiting for the answer of 127"),
}


@pytest.mark.parametrize("what", HALVES)
def test_the_deadline_holds_whatever_hangs(what: str) -> None:
    scheme, said, still = HALVES[what]
    with talking(lambda sock: sock.sendall(said)) as url, pytest.raises(TimeoutError, match=still):
        connect(url.replace("ws", scheme), options=ClientOptions(handshake_timeout=0.2))


@pytest.mark.slow
def test_one_deadline_for_all_redirects() -> None:
    with talking(lambda sock: None) as silent:
        with answering(lambda head: f"HTTP/1.1 302 x\r\nLocation: {silent}\r\n\r\n".encode()) as url:
            with pytest.raises(TimeoutError, match=f"still waiting for the answer of {silent[5:-1]}"):
                connect(url, options=ClientOptions(handshake_timeout=0.5))


def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *_: gevent.sleep(60))
    with pytest.raises(TimeoutError, match=r"still connecting to chat\.example"):
        connect("ws://chat.example/", options=ClientOptions(handshake_timeout=0.1), proxy=None)


def test_a_timeout_of_the_callers_own_goes_through() -> None:
    with answering(lambda head: None) as url, pytest.raises(gevent.Timeout) as raised, gevent.Timeout(0.05) as own:
        connect(url)
    assert raised.value is own


def test_the_server_hangs_up_at_once() -> None:
    server = StreamServer(("127.0.0.1", 0), lambda sock, address: None)
    server.start()
    with pytest.raises((HandshakeError, TransportError)):
        connect(f"ws://127.0.0.1:{server.server_port}/")
    server.stop()


def test_a_handler_runs_in_a_greenlet_of_its_own() -> None:
    client = Recorder()
    with serving(EchoHandler()) as server:
        conn = connect(url_of(server), client)
        # connect has returned although nobody has read yet.
        conn.send("hello")
        wait_until(lambda: client.messages == ["hello"])
        conn.close()
        assert client.infos[0].clean if client.infos else client.wait_closed().clean
    assert client.events[0] == ("open",)


def test_what_a_handler_reads_nobody_else_may() -> None:
    """Before its greenlet has run, while it waits, and while one of its callbacks blocks."""

    class Busy(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            if message.data == "block":
                go_on.wait(5)
            elif message.data == "receive":
                self.events.append(("message", conn.receive(timeout=5)))

    go_on = Event()
    handler = Busy()
    with serving(EchoHandler()) as server:
        conn = connect(url_of(server), handler)
        reads = (conn.receive, conn.receive_stream, lambda: conn.receive(timeout=1), lambda: next(conn))
        for state in ("not begun", "waiting", "blocked"):
            for read in reads:
                with pytest.raises(GwsError, match=r"by its handler|another greenlet is reading"):
                    read()
            if state == "waiting":
                conn.send("block")
                wait_until(lambda: handler.messages)
            else:
                handler.open.get(timeout=5)
        go_on.set()
        conn.send("receive")
        conn.send("received")
        wait_until(lambda: len(handler.messages) == 3)
        conn.close()
        for read in reads[:3]:
            with pytest.raises(ConnectionClosed):
                read()
    assert handler.messages == ["block", "receive", "received"]
    assert handler.infos[0].clean


def test_a_function_as_a_clients_handler() -> None:
    said: list[Any] = []

    def talk(conn: Any) -> None:
        conn.send("hello")
        said.append(conn.receive())

    server_side = EchoHandler()
    with serving(server_side) as server:
        connect(url_of(server), talk)
        assert server_side.wait_closed().received == Close(1000, "")
    assert said == ["hello"]


def test_a_unix_socket(tmp_path: Path) -> None:
    def tell(conn: Any) -> None:
        conn.send(conn.request.target)

    with serving(tell, None, f"unix:{tmp_path}/ws.sock") as server:
        with connect(f"ws+unix:{tmp_path}/ws.sock:/the/target?x") as conn:
            assert list(conn) == ["/the/target?x"]
        assert server.addresses == [f"unix:{tmp_path}/ws.sock"]


def test_localhost_by_name() -> None:
    with serving(EchoHandler(), None, "localhost:0") as server:
        with connect(f"ws://localhost:{server.address.rpartition(':')[2]}") as conn:
            conn.send("hello")
            assert conn.receive(timeout=5) == "hello"


def test_from_stream() -> None:
    ours, theirs = memory_pair()
    opening = gevent.spawn(lambda: Client.from_stream(theirs, "ws://example.com:81/target?x"))
    buffer = bytearray(65536)
    head = bytes(buffer[: ours.recv_into(buffer)])
    assert head.startswith(b"GET /target?x HTTP/1.1\r\nHost: example.com:81\r\n")
    ours.send_all(switching(head) + b"\x81\x02hi")
    conn = opening.get(timeout=5)
    assert conn.receive(timeout=5) == "hi"
    conn.abort()
    ours.close()


def test_from_stream_aborts_the_stream_when_it_fails() -> None:
    ours, theirs = memory_pair()
    opening = gevent.spawn(lambda: Client.from_stream(theirs))
    buffer = bytearray(65536)
    ours.recv_into(buffer)
    ours.send_all(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(HandshakeRefused):
        opening.get(timeout=5)
    with pytest.raises(TransportError):
        ours.recv_into(buffer)
    ours.close()


def test_from_stream_has_a_deadline() -> None:
    ours, theirs = memory_pair()
    with pytest.raises(TimeoutError, match=r"within 0\.1 seconds; still waiting for the answer of localhost"):
        Client.from_stream(theirs, options=ClientOptions(handshake_timeout=0.1))
    with pytest.raises(TransportError):
        ours.recv_into(bytearray(1000))
        ours.recv_into(bytearray(1000))
    ours.close()


@pytest.mark.parametrize("wrong", [{"ssl_context": 5}, {"ssl_context": True}, {"server_name": b"localhost"}])
def test_arguments_of_another_kind_are_named_before_anything_is_opened(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    for open_one in (connect, Reconnect):
        with pytest.raises(TypeError, match=f"^{name}: must be .*, not {value!r}$"):
            open_one("wss://127.0.0.1:1/", **wrong)


def test_from_stream_follows_no_redirect() -> None:
    ours, theirs = memory_pair()
    opening = gevent.spawn(lambda: Client.from_stream(theirs))
    ours.recv_into(bytearray(65536))
    ours.send_all(b"HTTP/1.1 302 x\r\nLocation: /there\r\nContent-Length: 5\r\n\r\nthere")
    with pytest.raises(HandshakeRefused, match="302 instead of 101: there"):
        opening.get(timeout=5)
    ours.close()


def test_from_stream_sends_the_urls_password() -> None:
    ours, theirs = memory_pair()
    opening = gevent.spawn(lambda: Client.from_stream(theirs, "ws://anna:secret@h/"))
    buffer = bytearray(65536)
    assert b"\r\nAuthorization: Basic YW5uYTpzZWNyZXQ=\r\n" in buffer[: ours.recv_into(buffer)]
    ours.close()
    with pytest.raises(HandshakeError):
        opening.get(timeout=5)


# Clients


def test_connections_with_the_same_options_share_a_client() -> None:
    options = ClientOptions()
    clients = runtime.current().clients
    with serving(EchoHandler()) as server:
        one, other = (connect(url_of(server), Recorder(), options) for _ in range(2))
        assert one.id != other.id
        assert set(clients[id(options)].connections) == {one, other}
        # Equal is not the same: who wants limits of its own has options of its own.
        third = connect(url_of(server), options=ClientOptions())
        assert third not in clients[id(options)].connections
        one.close()
        other.close()
        third.close()
        wait_until(lambda: not clients)


def test_a_client_that_could_not_connect_is_forgotten() -> None:
    for _ in range(3):
        with pytest.raises(TransportError):
            connect(f"ws://127.0.0.1:{free_port()}/", options=ClientOptions())
        with pytest.raises(EndpointError):
            connect("http://127.0.0.1/", options=ClientOptions())
        with pytest.raises(TypeError):
            connect("ws://127.0.0.1/", 5, ClientOptions())  # type: ignore[arg-type]
    assert not runtime.current().clients


def test_a_client_of_ones_own() -> None:
    client = Client(ClientOptions(subprotocols=["a"]))
    with serving(EchoHandler(), ServerOptions(subprotocols=["a"])) as server:
        conns = [client.connect(url_of(server)) for _ in range(3)]
        assert len({conn.id for conn in [*conns, *server.connections]}) == 6, "also over clients and servers"
        assert {conn.subprotocol for conn in conns} == {"a"}
        assert set(client.connections) == set(conns)
        for conn in conns:
            conn.close()
        assert not client.connections
        assert not runtime.current().clients


def test_limits_of_the_client() -> None:
    options = ClientOptions(read_max_payload_size=1000, write_max_payload_size=500)
    with paired(EchoHandler(), ServerOptions(), client_options=options) as pair:
        with pytest.raises(MessageTooLarge):
            pair.client.send(b"x" * 501)
        pair.server.send(b"x" * 1000)
        pair.server.send(b"x" * 1001)
        assert pair.client.receive(timeout=5) == b"x" * 1000
        with pytest.raises(ConnectionClosed):
            pair.client.receive(timeout=5)
        pair.greenlet.join(5)
        assert pair.server.close_info is not None
        assert pair.server.close_info.code == 1009


def test_a_masked_frame_from_the_server_is_a_protocol_error() -> None:
    with answering(lambda head: switching(head) + b"\x81\x81\x00\x00\x00\x00x") as url:
        conn = connect(url)
        assert list(conn) == []
        assert conn.close_info is not None
        assert conn.close_info.sent is not None
        assert conn.close_info.sent.code == 1002
