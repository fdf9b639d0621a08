"""Connections through proxies: CONNECT and SOCKS5, and proxies that refuse, hang or close."""

from __future__ import annotations

import ssl
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import gevent.ssl
import pytest
import trustme

from gws_gevent import (
    ClientOptions,
    Connection,
    EndpointError,
    ListenSettings,
    MissingExtra,
    Opcode,
    ProxyError,
    Server,
    TlsFiles,
    TransportError,
    client_context,
    connect,
)
from tests.pairs import EchoHandler, serving
from tests.proxies import http_proxy, silent_server, socks_proxy
from tests.support import free_port, require_module

KINDS = pytest.mark.parametrize("kind", ["http", "socks5", "socks5h"])


@contextmanager
def proxy_of(kind: str, *args: Any, **more: Any) -> Iterator[tuple[str, Any]]:
    """A running proxy and its URL."""
    if kind != "http":
        require_module("python_socks")
    with (http_proxy if kind == "http" else socks_proxy)(*args, **more) as between:
        yield f"{kind}://{between.place}", between


@contextmanager
def echoing() -> Iterator[str]:
    """An echo server: "host:port"."""
    with serving(EchoHandler()) as server:
        yield server.address.partition("//")[2]


def assert_echo(conn: Connection) -> None:
    with conn:
        for data in ("hello", b"x" * 200_000):
            conn.send(data)
            assert conn.receive(timeout=5) == data


@KINDS
def test_a_connection_through_a_proxy(kind: str) -> None:
    with echoing() as place, proxy_of(kind) as (proxy, between):
        conn = connect(f"ws://{place}/", proxy=proxy)
        assert conn.stream.info("peername")[1] == int(proxy.rpartition(":")[2])
        assert_echo(conn)
        host, port = place.split(":")
        if kind == "http":
            assert between.heads == [f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n"]
        else:
            assert between.heads == [(host, int(port))]


@KINDS
def test_who_resolves_a_name(kind: str) -> None:
    with echoing() as place, proxy_of(kind) as (proxy, between):
        port = place.partition(":")[2]
        assert_echo(connect(f"ws://localhost:{port}/", proxy=proxy))
        (asked,) = between.heads
        if kind == "http":
            assert asked.startswith(f"CONNECT localhost:{port} ")
        else:
            assert (asked[0] == "localhost") == (kind == "socks5h")


@KINDS
def test_tls_inside_of_a_tunnel(kind: str, tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("chat.example", key_type=trustme.KeyType.ECDSA)
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    context = client_context(str(tmp_path / "ca.pem"))
    with Server(EchoHandler()) as server, proxy_of(kind) as (proxy, between):
        server.start("tls://127.0.0.1:0", settings=ListenSettings(tls=TlsFiles(str(tmp_path / "both.pem"))))
        url = server.address.replace("tls:", "wss:")
        for _ in range(2):
            conn = connect(url, ssl_context=context, server_name="chat.example", proxy=proxy)
            assert conn.stream.info("scheme") == "tls"
            assert_echo(conn)
        with pytest.raises(TransportError, match="certificate"):
            connect(url, ssl_context=context, proxy=proxy)
        assert len(between.heads) == 3


@dataclass
class Certified:
    """What is needed to speak TLS as 127.0.0.1, and to trust it."""

    files: TlsFiles
    server: Any
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    folder = tmp_path_factory.mktemp("certified")
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    files = TlsFiles(str(folder / "both.pem"))
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # the standard library's would block the hub
    context.load_cert_chain(files.cert)
    return Certified(files, context, client_context(str(folder / "ca.pem")))


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_a_proxy_that_is_spoken_to_inside_of_tls(secure: bool, certified: Certified) -> None:
    login = "Basic " + b64encode(b"anna:secret").decode()
    with Server(EchoHandler()) as server, http_proxy(login=login, ssl_context=certified.server) as between:
        server.start("tls://127.0.0.1:0" if secure else "127.0.0.1:0", settings=ListenSettings(tls=certified.files))
        url = server.address.replace("tls:", "wss:").replace("tcp:", "ws:")
        for _ in range(3):
            with connect(url, ssl_context=certified.client, proxy=f"https://anna:secret@{between.place}") as conn:
                assert conn.stream.info("peername")[1] == int(between.place.rpartition(":")[2])
                for size in (5, 3_000_000):  # more than both TLS layers and the sockets take at once
                    conn.send(b"x" * size)
                    assert conn.receive(timeout=10) == b"x" * size
                # The connection of a reader that is slow: what does not fit waits in both layers.
                for _ in range(20):
                    conn.write_async(Opcode.BINARY, b"y" * 40_000)
                assert [len(conn.receive(timeout=10)) for _ in range(20)] == [40_000] * 20
        conn = connect(url, ssl_context=certified.client, proxy=f"https://anna:secret@{between.place}")
        conn.send(b"z" * 3_000_000)
        conn.abort()
        assert len(between.heads) == 4


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_faults_of_a_proxy_inside_of_tls(secure: bool, certified: Certified) -> None:
    url = f"{'wss' if secure else 'ws'}://example.invalid/"
    with http_proxy(ssl_context=certified.server, fault=lambda sock: sock.sendall(b"HTTP/1.1 502 No\r\n\r\n")) as between:
        with pytest.raises(ProxyError, match=r"answered 502 to CONNECT example\.invalid") as refused:
            connect(url, ssl_context=certified.client, proxy=f"https://{between.place}")
        assert refused.value.status == 502
    with http_proxy(ssl_context=certified.server) as between, pytest.raises(ProxyError, match=r"cannot be reached: .*certificate"):
        connect(url, proxy=f"https://{between.place}")
    with http_proxy() as between, pytest.raises(ProxyError, match="cannot be reached"):
        connect(url, ssl_context=certified.client, options=ClientOptions(handshake_timeout=1), proxy=f"https://127.0.0.1:{free_port()}")
    with silent_server() as place, pytest.raises(TimeoutError, match=f"connecting to .* through https://{place}"):
        connect(url, options=ClientOptions(handshake_timeout=0.2), proxy=f"https://{place}")


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_a_user_name_and_a_password(kind: str) -> None:
    login: Any = "Basic YW5uYTpwYXNzIHdvcmQ=" if kind == "http" else (b"anna", b"pass word")
    with echoing() as place, proxy_of(kind, login=login) as (proxy, _):
        assert_echo(connect(f"ws://{place}/", proxy=proxy.replace("//", "//anna:pass%20word@")))
        with pytest.raises(ProxyError) as refused:
            connect(f"ws://{place}/", proxy=proxy.replace("//", "//anna:secret@"))
        assert "secret" not in str(refused.value)
        with pytest.raises(ProxyError, match="password" if kind == "http" else "authentication") as without:
            connect(f"ws://{place}/", proxy=proxy)
        assert without.value.status == (407 if kind == "http" else None)


def test_the_servers_password_is_not_the_proxys() -> None:
    with echoing() as place, http_proxy() as between:
        connect(f"ws://anna:secret@{place}/", proxy=f"http://{between.place}").abort()
        assert "uthorization" not in between.heads[0]


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with echoing() as place, proxy_of("socks5h") as (proxy, between):
        monkeypatch.setenv("http_proxy", proxy)
        url = f"ws://chat.example:{place.partition(':')[2]}/"
        assert_echo(connect(url))
        assert between.heads[0][0] == "chat.example"
        monkeypatch.setenv("no_proxy", "example")
        with pytest.raises(TransportError, match=r"chat\.example"):
            connect(url)
        # This machine is nobody's business but ours.
        monkeypatch.delenv("no_proxy")
        assert_echo(connect(f"ws://{place}/"))
        assert len(between.heads) == 1


def test_an_ipv6_address() -> None:
    def refuse(sock: Any) -> None:
        sock.sendall(b"HTTP/1.1 502 No\r\n\r\n")

    with http_proxy(refuse) as between, pytest.raises(ProxyError, match=r"502 to CONNECT \[2001:db8::1\]:80"):
        connect("ws://[2001:db8::1]/", proxy=between.place)
    assert between.heads[0].startswith("CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n")


# Proxies that do not do what they are for


def saying(*pieces: bytes) -> Callable[[Any], None]:
    def fault(sock: Any) -> None:
        for piece in pieces:
            sock.sendall(piece)

    return fault


HTTP_FAULTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "refuses": (saying(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nNo"), "answered 403 to CONNECT"),
    "cannot reach it": (saying(b"HTTP/1.0 502 Bad Gateway\r\n\r\n"), "answered 502 to CONNECT"),
    "redirects": (saying(b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1/\r\n\r\n"), "answered 302 to CONNECT"),
    "upgrades": (saying(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"), "answered 101 to CONNECT"),
    "closes": (saying(), "gave no answer to CONNECT .*closed the stream"),
    "closes in the middle": (saying(b"HTTP/1.1 200 O"), "gave no answer to CONNECT .*closed the stream"),
    "is no proxy": (saying(b"220 mail.example ESMTP\r\n"), "gave no answer to CONNECT .*not HTTP"),
    "never ends its head": (saying(b"HTTP/1.1 200 x\r\n", b"X: " + b"y" * 100_000), "gave no answer to CONNECT .*(pass|broke)"),
    "talks too soon": (saying(b"HTTP/1.1 200 x\r\n\r\nhello"), "sent 5 bytes before"),
    "interim answers only": (saying(b"HTTP/1.1 100 x\r\n\r\n" * 20), "gave no answer to CONNECT .*interim"),
}


@pytest.mark.parametrize("what", HTTP_FAULTS)
def test_http_proxies_with_faults(what: str) -> None:
    fault, said = HTTP_FAULTS[what]
    with http_proxy(fault) as between, pytest.raises(ProxyError, match=said) as caught:
        connect("ws://chat.example/", proxy=between.place)
    assert str(caught.value).startswith(f"the proxy http://{between.place} ")
    assert "\n" not in str(caught.value)


SOCKS_FAULTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "closes": (saying(), "did not connect to chat.example:80"),
    "closes in the middle": (saying(b"\x05"), "did not connect to chat.example:80"),
    "wants another login": (saying(b"\x05\xff"), "did not connect to chat.example:80"),
    "is no proxy": (saying(b"HTTP/1.1 400 x\r\n\r\n"), "did not connect to chat.example:80"),
    "another version": (saying(b"\x04\x00"), "did not connect to chat.example:80"),
    "nonsense behind its greeting": (saying(b"\x05\x00", b"\x05\x00\x00\x09"), "did not connect to chat.example:80"),
    "a name without end": (saying(b"\x05\x00", b"\x05\x00\x00\x03\xff"), "did not connect to chat.example:80"),
}


@pytest.mark.parametrize("what", SOCKS_FAULTS)
def test_socks_proxies_with_faults(what: str) -> None:
    fault, said = SOCKS_FAULTS[what]
    with proxy_of("socks5h", fault) as (proxy, _), pytest.raises(ProxyError, match=said) as caught:
        connect("ws://chat.example/", proxy=proxy)
    assert str(caught.value).startswith(f"the proxy {proxy} ")


@pytest.mark.parametrize("reply", [1, 2, 5, 8, 99])
def test_replies_of_socks(reply: int) -> None:
    with proxy_of("socks5h", reply=reply) as (proxy, _):
        with pytest.raises(ProxyError, match=r"did not connect to chat\.example:80") as caught:
            connect("ws://chat.example/", proxy=proxy)
    assert caught.value.status == (None if reply == 99 else reply)


@pytest.mark.parametrize(("name", "password"), [("ü", "x"), ("x" * 300, "x"), ("x", "y" * 300)])
def test_a_login_that_socks_cannot_carry(name: str, password: str) -> None:
    with proxy_of("socks5h", login=(b"", b"")) as (proxy, _), pytest.raises(ProxyError, match="cannot be asked"):
        connect("ws://chat.example/", proxy=proxy.replace("//", f"//{name}:{password}@"))


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_a_proxy_that_resets(kind: str) -> None:
    def reset(sock: Any) -> None:
        sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with proxy_of(kind, reset) as (proxy, _), pytest.raises(ProxyError):
        connect("ws://chat.example/", proxy=proxy)


@KINDS
def test_a_proxy_that_is_not_there(kind: str) -> None:
    proxy = f"{kind}://127.0.0.1:{free_port()}"
    with pytest.raises(ProxyError, match=f"the proxy {proxy} cannot be reached: .*refused") as caught:
        connect("ws://127.0.0.1:1/", proxy=proxy)
    assert caught.value.errno is not None
    assert isinstance(caught.value, TransportError)


@KINDS
def test_a_server_that_is_not_there(kind: str) -> None:
    with proxy_of(kind) as (proxy, _), pytest.raises(ProxyError):
        connect(f"ws://127.0.0.1:{free_port()}/", proxy=proxy)


@KINDS
@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_a_proxy_that_hangs_meets_the_deadline(kind: str, secure: bool) -> None:
    with silent_server() as place:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.1 seconds; still connecting to 127\.0\.0\.1:1 through \w+://127"):
            connect(f"ws{'s' * secure}://127.0.0.1:1/", options=ClientOptions(handshake_timeout=0.1), proxy=f"{kind}://{place}")
        assert time.monotonic() - began < 2


@KINDS
def test_the_hub_goes_on_while_a_proxy_hangs(kind: str) -> None:
    turns = 0

    def count() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0.005)
            turns += 1

    counter = gevent.spawn(count)
    with silent_server() as place, pytest.raises(TimeoutError):
        connect("ws://127.0.0.1:1/", options=ClientOptions(handshake_timeout=0.2), proxy=f"{kind}://{place}")
    counter.kill()
    assert turns > 5


@pytest.mark.slow
@KINDS
def test_a_server_that_hangs_behind_a_proxy_meets_the_deadline(kind: str) -> None:
    with silent_server() as place, proxy_of(kind) as (proxy, _):
        for scheme, still in (("ws", "waiting for the answer of"), ("wss", "connecting to")):
            with pytest.raises(TimeoutError, match=rf"within 0\.5 seconds; still {still} "):
                connect(f"{scheme}://{place}/", options=ClientOptions(handshake_timeout=0.5), proxy=proxy)


# Arguments


@pytest.mark.parametrize(("proxy", "error"), [("ftp://x", EndpointError), ("http://", EndpointError), (7, TypeError)])
def test_proxies_that_cannot_be_used(proxy: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        connect("ws://127.0.0.1:1/", proxy=proxy)


def test_a_unix_socket_has_no_proxy() -> None:
    with pytest.raises(EndpointError, match="does not go through proxies"):
        connect("ws+unix:/run/x.sock:/", proxy="http://127.0.0.1:1")


@pytest.mark.parametrize("kind", ["socks5", "socks5h"])
def test_without_the_extra_it_is_said_what_to_install(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(MissingExtra, match=r"gws_gevent\[proxy\]"):
        connect("ws://127.0.0.1:1/", proxy=f"{kind}://127.0.0.1:1")


def test_a_redirect_goes_through_the_proxy_too() -> None:
    with echoing() as place, http_proxy() as between:

        def away(sock: Any) -> None:
            sock.sendall(f"HTTP/1.1 302 x\r\nLocation: ws://{place}/\r\n\r\n".encode())

        with http_proxy(away) as first:
            # A server that redirects, in the shape of a proxy: it answers any head.
            assert_echo(connect(f"ws://{first.place}/", proxy=between.place))
        assert len(between.heads) == 2

