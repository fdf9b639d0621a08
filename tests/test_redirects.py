"""Redirects: where they lead, what goes along, and where they end."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from gws_gevent import (
    ClientOptions,
    Connection,
    EventHandler,
    HandshakeRefused,
    Refusal,
    Request,
    Server,
    TransportError,
    client_context,
    connect,
)
from gws_gevent.handshake import Headers
from gws_gevent.http_head import ResponseHead
from gws_gevent.redirects import headers_after, is_redirect, next_url
from gws_gevent.urls import parse_url
from tests.pairs import Recorder
from tests.support import wait_until


def to(location: str, status: int = 302) -> ResponseHead:
    return ResponseHead(status, Headers([("Location", location)]))


def led(url: str, location: str) -> str:
    found = next_url(parse_url(url), to(location))
    assert found.path == parse_url(url).path
    return f"{found.scheme}://{found.host_header}{found.target}"


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("/there", "ws://h:81/there"),
        ("there?b", "ws://h:81/a/there?b"),
        ("../x/./y", "ws://h:81/x/y"),
        ("?q=2", "ws://h:81/a/b?q=2"),
        ("/there#fragment", "ws://h:81/there"),
        ("", "ws://h:81/a/b?q=1"),
        ("//other/x", "ws://other/x"),
        ("ws://other:82/x", "ws://other:82/x"),
        ("http://other/x", "ws://other/x"),
        ("https://other/x", "wss://other/x"),
        ("wss://h:81/x", "wss://h:81/x"),
        ("HTTPS://other", "wss://other/"),
        ("/ü", "ws://h:81/%C3%BC"),
    ],
)
def test_where_a_redirect_leads(location: str, place: str) -> None:
    assert led("ws://h:81/a/b?q=1", location) == place


def test_a_unix_socket_redirects_within_itself() -> None:
    assert led("ws+unix:/run/x.sock:/a", "/b") == "ws+unix://localhost/b"
    for location in ("ws://other/", "//other/"):
        with pytest.raises(HandshakeRefused, match="no place for a WebSocket"):
            led("ws+unix:/run/x.sock:/a", location)


@pytest.mark.parametrize("location", ["ws://h/", "http://h/"])
def test_never_from_tls_to_none(location: str) -> None:
    with pytest.raises(HandshakeRefused, match="not encrypted") as refused:
        led("wss://h/", location)
    assert refused.value.status == 302
    assert refused.value.headers["location"] == location


def test_without_a_scheme_tls_stays() -> None:
    assert led("wss://h/", "//other/x") == "wss://other/x"


@pytest.mark.parametrize("location", ["ftp://h/", "ws://", "ws://h:99999/", "http://[::1/", "javascript:x()", "ws+unix:/x", "/a b"])
def test_what_is_no_place_for_a_websocket(location: str) -> None:
    with pytest.raises(HandshakeRefused, match="no place for a WebSocket"):
        led("ws://h/", location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_statuses_that_redirect(status: int) -> None:
    assert is_redirect(to("/x", status))
    assert not is_redirect(ResponseHead(status, Headers()))


@pytest.mark.parametrize("status", [101, 200, 201, 300, 304, 305, 306, 401, 503])
def test_the_statuses_that_do_not(status: int) -> None:
    assert not is_redirect(to("/x", status))


SECRET = {"Authorization": "Bearer x", "cookie": "a=b", "X-Api-Key": "k", "User-Agent": "me", "Origin": "https://o"}


@pytest.mark.parametrize("location", ["/x", "?x", "//h:81/x", "http://h:81/x"])
def test_credentials_stay_with_the_origin(location: str) -> None:
    old = parse_url("ws://anna:secret@h:81/")
    new = next_url(old, to(location))
    assert (new.username, new.password) == ("anna", "secret")
    assert headers_after(SECRET, old, new) == SECRET


@pytest.mark.parametrize("location", ["ws://other:81/", "ws://h:82/", "wss://h:81/", "ws://anna:secret@other/", "ws://sub.h:81/"])
def test_another_origin_gets_no_credentials(location: str) -> None:
    old = parse_url("ws://anna:secret@h:81/")
    new = next_url(old, to(location))
    assert (new.username, new.password, new.authorization) == (None, None, None)
    assert headers_after(SECRET, old, new) == {"User-Agent": "me", "Origin": "https://o"}


# With servers


class Guide(EventHandler):
    """Redirects /to?PLACE there, /loop to itself; greets at any other path, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def route(self, request: Request) -> EventHandler:
        self.requests.append(request)
        if request.path == "/to":
            raise Refusal(302, headers={"Location": request.query})
        if request.path == "/loop":
            raise Refusal(307, "round and round", {"Location": "/loop"})
        return self

    def on_open(self, conn: Connection) -> None:
        assert conn.request is not None
        conn.send(conn.request.target)


@contextmanager
def guiding(*endpoints: str) -> Iterator[tuple[str, Guide]]:
    guide = Guide()
    with Server(on_request=guide.route) as server:
        server.start(*endpoints or ("127.0.0.1:0",))
        yield server.address.replace("tcp:", "ws:").replace("tls:", "wss:"), guide


def test_a_redirect_is_followed() -> None:
    with guiding() as (url, guide), connect(f"{url}/to?/there%3Fx") as conn:
        assert conn.receive(timeout=5) == "/there%3Fx"
        assert [request.target for request in guide.requests] == ["/to?/there%3Fx", "/there%3Fx"]
        # Each request has a key of its own.
        assert len({request.headers["sec-websocket-key"] for request in guide.requests}) == 2


def test_to_another_server_and_back_without_credentials() -> None:
    with guiding() as (url, guide), guiding() as (other, away):
        start = url.replace("://", "://anna:secret@")
        options = ClientOptions(headers={"Cookie": "a=b", "User-Agent": "me"})
        with connect(f"{start}/to?{other}/to?{url}/end", options=options) as conn:
            assert conn.receive(timeout=5) == "/end"
        first, last = guide.requests
        (middle,) = away.requests
        assert first.headers["authorization"] == "Basic " + base64.b64encode(b"anna:secret").decode()
        assert first.headers["cookie"] == "a=b"
        for request in (middle, last):
            assert "authorization" not in request.headers
            assert "cookie" not in request.headers
            assert request.headers["user-agent"] == "me"
        assert middle.headers["host"] == other.partition("//")[2]


def test_from_none_to_tls_but_never_back(tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    ca, both = str(tmp_path / "ca.pem"), str(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA).private_key_and_cert_chain_pem.write_to_path(both)
    with guiding() as (plain, _), guiding(f"tls://127.0.0.1:0?cert={both}&key={both}") as (secure, _):
        secure = secure.partition("?")[0].removesuffix("/")
        with connect(f"{plain}/to?{secure}/end", ssl_context=client_context(ca)) as conn:
            assert conn.receive(timeout=5) == "/end"
            assert conn.stream.info("scheme") == "tls"
        with pytest.raises(HandshakeRefused, match="not encrypted"):
            connect(f"{secure}/to?{plain}/end", ssl_context=client_context(ca))
        # A server name that is pinned is so everywhere.
        with pytest.raises(TransportError, match=r"certificate"):
            connect(f"{plain}/to?{secure}/end", ssl_context=client_context(ca), server_name="chat.example")


def test_a_loop_ends() -> None:
    with guiding() as (url, guide), pytest.raises(HandshakeRefused, match=r"more than 3 redirects .*'/loop'") as refused:
        connect(f"{url}/loop", options=ClientOptions(max_redirects=3))
    assert refused.value.status == 307
    assert len(guide.requests) == 4


def test_redirects_that_are_not_wanted() -> None:
    with guiding() as (url, guide), pytest.raises(HandshakeRefused, match="round and round") as refused:
        connect(f"{url}/loop", options=ClientOptions(max_redirects=0))
    assert (refused.value.status, refused.value.headers["location"], refused.value.body) == (307, "/loop", b"round and round")
    assert len(guide.requests) == 1


def test_a_unix_socket_redirects(tmp_path: Path) -> None:
    with guiding(f"unix:{tmp_path}/x.sock") as (_, guide), connect(f"ws+unix:{tmp_path}/x.sock:/to?/there") as conn:
        assert conn.receive(timeout=5) == "/there"
        assert len(guide.requests) == 2


def test_a_handler_is_opened_once() -> None:
    client = Recorder()
    with guiding() as (url, _):
        conn = connect(f"{url}/to?/there", client)
        wait_until(lambda: client.messages)
        conn.close()
        client.wait_closed()
    assert [event[0] for event in client.events] == ["open", "message", "close"]
