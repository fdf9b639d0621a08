"""HTTP/3: with a client on aioquic's public interface, with our own, and with those who break the rules."""

from __future__ import annotations

import json
import random
import socket
import sys
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.ssl import PROTOCOL_TLS_CLIENT, SSLContext

from benchmarks.flooding import noise, quic_initial, whole_initial
from gws_gevent import (
    ClientOptions,
    CloseCode,
    Connection,
    ConnectionClosed,
    EventHandler,
    HandshakeRefused,
    ListenSettings,
    Message,
    Opcode,
    PermessageDeflate,
    Refusal,
    Request,
    Response,
    Server,
    ServerOptions,
    TlsFiles,
    TransportError,
    client_context,
    connect,
)
from gws_gevent.transports import registry
from gws_gevent.transports.base import DialSettings
from tests.raw import RawTlsClient, frame
from tests.support import require_module, run_program, run_server_process, wait_until

require_module("aioquic")
from gws_gevent.transports import h3 as our_h3  # noqa: E402
from tests.h3_client import CONNECT, H3Client  # noqa: E402

PLAIN = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/page")]


class Echo(EventHandler):
    def on_message(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)


class App:
    """A server's `on_request`, which remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Any:
        self.requests.append(request)
        if request.path == "/page":
            return Response(200, "a page " * 1000, {"Content-Type": "text/html"})
        if request.path == "/forbidden":
            raise Refusal(403, "not you\n", {"X-Why": "because"})
        return Echo() if request.path == "/" else None


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App, certificates: Any) -> Iterator[Server]:
    options = ServerOptions(subprotocols=["chat"], permessage_deflate=PermessageDeflate())
    with Server(on_request=app, options=options) as server:
        server.start("h3://127.0.0.1:0?streams=20", settings=ListenSettings(tls=TlsFiles(certificates.cert, certificates.key)))
        yield server
    assert not server.connections


@pytest.fixture
def peer(server: Server) -> Iterator[H3Client]:
    with H3Client(port_of(server)) as client:
        yield client


def port_of(server: Server) -> int:
    return int(server.address.rpartition(":")[2])


def changed(*more: tuple[bytes, bytes], without: bytes = b"", **others: bytes) -> list[tuple[bytes, bytes]]:
    values = {b":" + name.encode(): value for name, value in others.items()}
    return [(name, values.get(name, value)) for name, value in CONNECT if name != without] + list(more)


def echoes(client: H3Client, stream_id: int, text: bytes) -> None:
    before = len(client.data.get(stream_id, b""))
    client.send(stream_id, frame(Opcode.TEXT, text))
    client.until(lambda: len(client.data.get(stream_id, b"")) >= before + 2 + len(text))
    assert client.data[stream_id][before:] == bytes([0x81, len(text)]) + text


# aioquic's client


def test_it_opens_a_websocket(peer: H3Client, app: App) -> None:
    stream_id = peer.request(changed((b"sec-websocket-protocol", b"a, chat"), (b"origin", b"https://localhost")))
    status, headers = peer.answer(stream_id)
    assert status == 200
    assert headers == {"sec-websocket-protocol": "chat"}
    echoes(peer, stream_id, b"hello")
    other = peer.request(CONNECT)
    assert peer.answer(other)[0] == 200
    echoes(peer, other, b"on the same connection")
    peer.send(stream_id, frame(Opcode.CLOSE, b"\x03\xe8"))
    assert peer.body(stream_id).endswith(b"\x88\x02\x03\xe8")
    echoes(peer, other, b"still here")
    assert [request.headers.get("origin") for request in app.requests] == ["https://localhost", None]
    assert app.requests[0].host == "localhost"


def test_frames_that_come_with_the_request_are_not_lost(peer: H3Client) -> None:
    assert peer.h3 is not None
    stream_id = peer.quic.get_next_available_stream_id()
    peer.h3.send_headers(stream_id, CONNECT)
    peer.h3.send_data(stream_id, frame(Opcode.TEXT, b"early"), False)
    peer.flush()
    peer.until(lambda: peer.data.get(stream_id) == b"\x81\x05early")


def test_plain_requests_go_to_on_request(peer: H3Client, app: App) -> None:
    get = peer.request(PLAIN, b"")
    assert peer.answer(get) == (200, {"content-type": "text/html", "content-length": "7000"})
    assert peer.body(get) == b"a page " * 1000
    post = peer.request([(b":method", b"POST"), *PLAIN[1:3], (b":path", b"/nowhere"), (b"cookie", b"a=b")], b"x" * 100_000)
    assert peer.answer(post)[0] == 404
    assert peer.body(post) == b"There is nothing here.\n"
    websocket = peer.request(PLAIN[:3] + [(b":path", b"/")], b"")
    assert peer.answer(websocket)[0] == 426
    assert [request.method for request in app.requests] == ["GET", "POST", "GET"]
    assert app.requests[1].headers.get("cookie") == "a=b"


def test_a_refused_websocket(peer: H3Client) -> None:
    stream_id = peer.request(changed(path=b"/forbidden"))
    status, headers = peer.answer(stream_id)
    assert (status, headers["x-why"], peer.body(stream_id)) == (403, "because", b"not you\n")
    page = peer.request(changed(path=b"/page"))
    assert peer.answer(page)[0] == 400  # 200 would open a WebSocket


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (changed(without=b":protocol"), 405),
        (changed(protocol=b"connect-udp"), 501),
        (changed(path=b"nowhere"), 400),
        (changed((b"host", b"other.example")), 400),
        (changed((b"sec-websocket-version", b"8")), 426),
        (changed((b"bad(name", b"x")), 400),
        (changed((b"x", b"y" * 20_000)), 431),
        (changed((b"x", b"y" * 60_000)), 431),
        (changed(*[(b"x", b"y")] * 200), 431),
        (changed(*[(b"accept-encoding", b"gzip, deflate, br")] * 30_000), 431),
    ],
)
def test_one_clear_refusal_for_each_mistake(peer: H3Client, fields: list[tuple[bytes, bytes]], status: int) -> None:
    good = peer.request(CONNECT)
    bad = peer.request(fields)
    assert peer.answer(bad)[0] == status
    assert peer.body(bad)
    peer.answer(good)
    echoes(peer, good, b"and the others go on")


# Who breaks the rules


def on_a_new_stream(client: H3Client, data: bytes, *, unidirectional: bool = False) -> None:
    stream_id = client.quic.get_next_available_stream_id(is_unidirectional=unidirectional)
    client.quic.send_stream_data(stream_id, data)
    client.flush()


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda peer: on_a_new_stream(peer, b"\x00\x02hi"), 0x105),  # DATA before HEADERS
        (lambda peer: on_a_new_stream(peer, b"\x01\x03\x00\x00\xff"), 0x200),  # QPACK that decodes to nothing
        (lambda peer: peer.request([(b":method", b"GET"), (b":nonsense", b"x"), *PLAIN[1:]]), 0x10E),
        (lambda peer: peer.request([*PLAIN, (b":method", b"GET")]), 0x10E),
        (lambda peer: peer.request([*PLAIN, (b"Upper", b"x")]), 0x10E),
        (lambda peer: peer.request([*PLAIN, (b"connection", b"close")]), 0x10E),
        (lambda peer: peer.request([*PLAIN, (b"x", b"a\r\nb: c")]), 0x10E),
        (lambda peer: on_a_new_stream(peer, b"\x00\x04\x01a", unidirectional=True), 0x103),  # a second control stream
        (lambda peer: peer.quic.send_stream_data(2, b"\x0d\x80\x10\x00\x00" + b"x" * 40_000), 0x107),  # a long MAX_PUSH_ID
        (lambda peer: peer.quic.send_stream_data(6, b"\x3f\xe1\x1f\xc0\x01x"), 0x201),  # a dynamic table that we do not have
    ],
)
def test_who_breaks_http_3_loses_the_connection_and_nobody_else_does(server: Server, break_it: Any, code: int) -> None:
    with H3Client(port_of(server)) as good, H3Client(port_of(server)) as bad:
        stream_id = good.request(CONNECT)
        good.answer(stream_id)
        assert bad.answer(bad.request(CONNECT))[0] == 200
        break_it(bad)
        bad.flush()
        wait_until(lambda: bad.over, 5, "the end of the connection")
        assert bad.over.error_code == code
        echoes(good, stream_id, b"nothing happened")
        wait_until(lambda: len(server.connections) == 1)


@pytest.mark.slow
def test_bytes_at_random_end_their_own_connection_at_most(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with H3Client(port_of(server)) as good:
        stream_id = good.request(CONNECT)
        good.answer(stream_id)
        for seed in range(40):
            source = random.Random(seed)
            with H3Client(port_of(server)) as bad:
                for _ in range(8):
                    kind = source.choice([b"", b"\x00", b"\x01", b"\x04", b"\x21", b"\x40\x41", b"\x02", b"\x03"])
                    data = kind + source.randbytes(source.choice([1, 3, 20, 2000]))
                    on_a_new_stream(bad, data, unidirectional=source.random() < 0.2)
                gevent.sleep(0.005)
        echoes(good, stream_id, b"untouched")
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


def test_a_header_section_that_never_ends_is_refused_on_its_length(peer: H3Client) -> None:
    on_a_new_stream(peer, b"\x01\xc0\x00\x00\x00\x10\x00\x00\x00abc")
    peer.until(lambda: peer.headers.get(0))
    assert peer.answer(0)[0] == 431
    assert peer.stops[0] == 0x100


def test_streams_opened_and_reset_in_a_loop_leave_nothing(server: Server, peer: H3Client) -> None:
    good = peer.request(CONNECT)
    peer.answer(good)
    for round in range(300):
        stream_id = peer.request(CONNECT)
        if round % 3 == 0:
            peer.quic.reset_stream(stream_id, 0x10C)
        elif round % 3 == 1:
            peer.answer(stream_id)
            peer.quic.reset_stream(stream_id, 0x10C)
            peer.quic.stop_stream(stream_id, 0x10C)
        else:
            peer.quic.stop_stream(stream_id, 0x10C)
            peer.quic.reset_stream(stream_id, 0x10C)
        peer.flush()
        gevent.sleep(0)
    wait_until(lambda: len(server.connections) == 1)
    listener: Any = server._listeners[0]
    (session,) = listener.server.sessions
    wait_until(lambda: len(session.application) == 1)
    assert set(session.application.h3._stream) <= {good, 2, 6, 10, 3, 7, 11}
    echoes(peer, good, b"all the while")


@pytest.mark.parametrize("kind", ["noise", "starts", "initials"])
def test_a_flood_leaves_nothing_and_an_open_websocket_goes_on(kind: str, server: Server, peer: H3Client) -> None:
    good = peer.request(CONNECT)
    peer.answer(good)
    make = {"noise": noise, "starts": quic_initial, "initials": lambda _: whole_initial("h3")}[kind]
    source = random.Random(1)
    flood = [make(source) for _ in range(100)] * 20
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number, data in enumerate(flood):
            sock.sendto(data, ("127.0.0.1", port_of(server)))
            if number % 50 == 49:
                echoes(peer, good, b"%d" % number)
    listener: Any = server._listeners[0]
    quic = listener.server
    wait_until(lambda: not len(quic.newcomers))
    half_open = quic.admission.half_open
    assert 0 < half_open <= quic.admission.limits.retry if kind == "initials" else half_open == 0
    assert len(quic.sessions) == 1 + half_open


def test_a_request_that_never_comes_is_timed_out(app: App, certificates: Any) -> None:
    settings = ListenSettings(tls=TlsFiles(certificates.cert, certificates.key))
    with Server(on_request=app, options=ServerOptions(handshake_timeout=0.2)) as server:
        server.start("h3://127.0.0.1:0", settings=settings)
        with H3Client(port_of(server)) as peer:
            on_a_new_stream(peer, b"\x01")
            wait_until(lambda: server.connections)
            wait_until(lambda: not server.connections)
            peer.until(lambda: peer.headers.get(0) or peer.resets.get(0))


# Our own client


@pytest.fixture
def url(server: Server) -> str:
    return server.address.replace("h3:", "wss+h3:")


@pytest.fixture
def context(certificates: Any) -> Any:
    return client_context(certificates.ca)


def test_our_client(url: str, context: Any) -> None:
    options = ClientOptions(subprotocols=["chat"], permessage_deflate=PermessageDeflate(), headers={"X-Mine": "yes"})
    conns = [connect(f"{url}/", options=options, ssl_context=context) for _ in range(3)]
    assert len({conn.stream._table for conn in conns}) == 1  # type: ignore[attr-defined]
    for conn in conns:
        assert conn.stream.info("scheme") == "h3"
        assert (conn.subprotocol, bool(conn.extensions)) == ("chat", True)
        for message in ("text", b"\0", "x" * 200_000, bytes(500_000)):
            conn.send(message)
            assert conn.receive(timeout=10) == message
    for conn in conns:
        conn.close()
        assert conn.close_info is not None
        assert conn.close_info.clean


@pytest.mark.parametrize(("path", "status"), [("/forbidden", 403), ("/page", 400), ("/nowhere", 404)])
def test_our_client_is_refused(url: str, context: Any, path: str, status: int) -> None:
    with pytest.raises(HandshakeRefused) as caught:
        connect(url + path, ssl_context=context)
    assert caught.value.status == status
    assert caught.value.body


def test_a_server_that_does_not_do_websocket_says_so(
    server: Server, url: str, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = our_h3.H3Core._get_local_settings

    def without(core: Any) -> dict[int, int]:
        return {key: value for key, value in settings(core).items() if key != 8}

    monkeypatch.setattr(our_h3.H3Core, "_get_local_settings", without)
    with pytest.raises(TransportError, match="the server opens no WebSockets over HTTP/3"):
        connect(url + "/", ssl_context=context)


def test_our_client_and_an_answer_that_is_too_long(app: App, certificates: Any, context: Any) -> None:
    options = ServerOptions(response_headers={"x": "y" * 60_000})
    with Server(Echo(), options=options) as server:
        server.start("h3://127.0.0.1:0", settings=ListenSettings(tls=TlsFiles(certificates.cert, certificates.key)))
        with pytest.raises(TransportError, match="reset"):
            connect(server.address.replace("h3:", "wss+h3:"), ssl_context=context)


def test_a_stopping_server_says_1001(server: Server, url: str, context: Any) -> None:
    conn = connect(url + "/", ssl_context=context)
    stopping = gevent.spawn(server.stop)
    with pytest.raises(ConnectionClosed) as caught:
        conn.receive(timeout=5)
    assert caught.value.info.code == CloseCode.GOING_AWAY
    stopping.get()


def test_a_stopping_server_says_goaway_and_late_requests_may_be_tried_elsewhere(server: Server, peer: H3Client) -> None:
    peer.answer(peer.request(CONNECT))
    control = b""
    listener: Any = server._listeners[0]
    (session,) = listener.server.sessions
    send = session.core.send_stream_data

    def sent(stream_id: int, data: bytes, end_stream: bool = False) -> None:
        nonlocal control
        control += data if stream_id == 3 else b""
        send(stream_id, data, end_stream)

    session.core.send_stream_data = sent
    late = peer.quic.get_next_available_stream_id()
    assert peer.h3 is not None
    peer.h3.send_headers(late, CONNECT)  # under way while the server stops
    stopping = gevent.spawn(server.stop)
    wait_until(lambda: control)
    assert control == b"\x07\x01\x04"  # GOAWAY: stream 4 and later ones are not served
    peer.flush()
    peer.until(lambda: late in peer.resets)
    assert peer.resets[late] == 0x10B  # H3_REQUEST_REJECTED
    peer.send(0, frame(Opcode.CLOSE, b"\x03\xe9"))
    stopping.get()
    wait_until(lambda: peer.over)
    assert peer.over.error_code == 0x100  # H3_NO_ERROR


def test_our_client_opens_another_connection_after_goaway(url: str, server: Server, context: Any) -> None:
    first = connect(f"{url}/", ssl_context=context)
    listener: Any = server._listeners[0]
    (session,) = listener.server.sessions
    session.say_going_away()
    table: Any = first.stream._table  # type: ignore[attr-defined]
    wait_until(lambda: table.is_full)
    with connect(f"{url}/", ssl_context=context) as second:
        assert second.stream._table is not table  # type: ignore[attr-defined]
    first.send("on the old one")
    assert first.receive(timeout=5) == "on the old one"
    first.close()


def test_an_error_of_http_3_is_not_taken_for_one_of_tls(url: str, server: Server, context: Any) -> None:
    conn = connect(f"{url}/", ssl_context=context)
    listener: Any = server._listeners[0]
    (session,) = listener.server.sessions
    session.close(TransportError("too much"), 0x107, "enough")
    stream: Any = conn.stream
    wait_until(lambda: stream._table.session.error)
    assert "application error 0x107 (enough)" in str(stream._table.session.error)
    with pytest.raises(ConnectionClosed):
        conn.receive(timeout=5)


def test_a_peer_that_never_reads_holds_less_than_a_mebibyte(certificates: Any) -> None:
    written = [0]

    def pour(conn: Connection) -> None:
        while True:
            conn.send(bytes(64 * 1024))
            written[0] += 64 * 1024

    with Server(pour, ServerOptions(write_timeout=0.5)) as server:
        server.start("h3://127.0.0.1:0", settings=ListenSettings(tls=TlsFiles(certificates.cert, certificates.key)))
        stream = registry.dialer(server.address, DialSettings(ssl_context=client_context(certificates.ca))).dial()
        stream.send_all(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        wait_until(lambda: written[0] and not server.connections)  # write_timeout
        assert written[0] < 1024 * 1024
        stream.abort()


@pytest.mark.slow
def test_connect_and_bench_on_the_command_line(certificates: Any) -> None:
    base = [sys.executable, "-m", "gws_gevent"]
    bind = ["--bind", "h3://127.0.0.1:0", "--cert", certificates.cert, "--key", certificates.key]
    with run_server_process([*base[1:], "serve", *bind]) as server:
        url = server.address.replace("h3:", "wss+h3:") + "/echo"
        said = run_program([*base, "connect", url, "--ca", certificates.ca, "--once"], stdin="hello\n")
        assert (said.status, said.output, said.errors) == (0, "hello\n", "")
        load = ["--connections", "5", "--duration", "0.3", "--check", "--json"]
        measured = run_program([*base, "bench", url, "--ca", certificates.ca, *load])
        assert (measured.status, json.loads(measured.output)["errors"]) == (0, {})
        wrong = run_program([*base, "connect", url, "--once"], stdin="hello\n")
        assert wrong.status == 2
        # Above it may stand what a library thinks of the system's authorities.
        assert wrong.errors.splitlines()[-1].startswith(f"gws-gevent: {url}: connect to {server.address}: TLS failed: ")


@pytest.mark.slow
def test_without_aioquic_one_line_says_what_to_install() -> None:
    program = "import sys; sys.modules['aioquic'] = None; from gws_gevent.cli import main; sys.exit(main(sys.argv[1:]))"
    told = "gws-gevent: the transport 'h3' needs an extra: pip install 'gws_gevent[quic]'\n"
    listen = "h3://127.0.0.1:0?cert=x&key=y"
    bridge = ["bridge", "--listen", "127.0.0.1:0", "--to", "h3://127.0.0.1:1"]
    for args, flag in ((["serve", "--bind", listen], ""), (bridge, "--to ")):
        finished = run_program([sys.executable, "-c", program, *args])
        assert (finished.status, finished.errors) == (2, told.replace("the transport", f"{flag}the transport"))


# Beside TCP


def test_tls_says_where_http_3_is(app: App, certificates: Any) -> None:
    settings = ListenSettings(tls=TlsFiles(certificates.cert, certificates.key))
    context = client_context(certificates.ca)

    def alt_svc(server: Server, path: str, scheme: str) -> str | None:
        place = next(address for address in server.addresses if address.startswith(scheme))
        url = place.replace("tls:", "wss:").replace("tcp:", "ws:").replace("h3:", "wss+h3:") + path
        with pytest.raises(HandshakeRefused) as caught:
            connect(url, ssl_context=context if scheme != "tcp" else None)
        return caught.value.headers.get("alt-svc")

    with Server(on_request=app) as server:
        server.start("tls://127.0.0.1:0", "tcp://127.0.0.1:0", settings=settings)
        assert alt_svc(server, "/page", "tls") is None
        server.start("h3://127.0.0.1:0", settings=settings)
        port = server.addresses[2].rpartition(":")[2]
        assert alt_svc(server, "/page", "tls") == f'h3=":{port}"; ma=86400'
        assert alt_svc(server, "/page", "tcp") is None
        assert alt_svc(server, "/page", "h3") is None
        with connect(server.addresses[0].replace("tls:", "wss:") + "/", ssl_context=context) as conn:
            conn.send("as ever")
            assert conn.receive(timeout=5) == "as ever"


def test_a_wsgi_app_is_served_over_http_3_too(certificates: Any) -> None:
    seen: list[Any] = []

    def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["wsgi.url_scheme"], environ["HTTP_HOST"], len(body)))
        own = [("Alt-Svc", "clear")] if environ["PATH_INFO"] == "/own" else []
        start_response("200 OK", [("Content-Type", "text/plain"), *own])
        return [b"from ", b"the app"]

    settings = ListenSettings(tls=TlsFiles(certificates.cert, certificates.key))
    with Server(Echo(), wsgi=wsgi) as server:
        server.start("h3://127.0.0.1:0", "tls://127.0.0.1:0", settings=settings)
        port = port_of(server)
        with H3Client(port) as peer:
            get = peer.request(PLAIN, b"")
            assert (peer.answer(get)[0], peer.body(get)) == (200, b"from the app")
            post = peer.request([(b":method", b"POST"), *PLAIN[1:]], b"x" * 50_000)
            assert (peer.answer(post)[0], peer.body(post)) == (200, b"from the app")
            websocket = peer.request(CONNECT)
            assert peer.answer(websocket)[0] == 200
            echoes(peer, websocket, b"beside it")
        context = SSLContext(PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificates.ca)
        tls_port = int(server.addresses[1].rpartition(":")[2])
        for path, expected in (("/", f'h3=":{port}"; ma=86400'), ("/own", "clear")):
            with RawTlsClient(tls_port, context) as client:
                client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                assert client.read_answer().headers["alt-svc"] == expected
    assert seen[:2] == [("GET", "/page", "https", "localhost", 0), ("POST", "/page", "https", "localhost", 50_000)]
