"""A client's URL in its parts, and what is wrong with one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gws_gevent.exceptions import EndpointError
from gws_gevent.handshake import make_key, parse_request, request_head
from gws_gevent.urls import WebSocketUrl, parse_url


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "target", "host_header"),
    [
        ("ws://example.com", "ws", "example.com", 80, "/", "example.com"),
        ("wss://example.com/", "wss", "example.com", 443, "/", "example.com"),
        ("WS://Example.COM:3001/Chat?Room=1", "ws", "example.com", 3001, "/Chat?Room=1", "example.com:3001"),
        ("ws://example.com:443/", "ws", "example.com", 443, "/", "example.com:443"),
        ("wss://example.com:443/", "wss", "example.com", 443, "/", "example.com"),
        ("ws://example.com:/x", "ws", "example.com", 80, "/x", "example.com"),
        ("ws://example.com?q", "ws", "example.com", 80, "/?q", "example.com"),
        ("ws://h//x?a?b=/@:", "ws", "h", 80, "//x?a?b=/@:", "h"),
        ("ws://a_b.example./", "ws", "a_b.example.", 80, "/", "a_b.example."),
        ("ws://127.0.0.1:65535/", "ws", "127.0.0.1", 65535, "/", "127.0.0.1:65535"),
        ("ws://[::1]", "ws", "::1", 80, "/", "[::1]"),
        ("ws://[2001:DB8:0::1]:1/x", "ws", "2001:db8::1", 1, "/x", "[2001:db8::1]:1"),
        ("ws://[fe80::1%25eth0]:2/", "ws", "fe80::1%eth0", 2, "/", "[fe80::1]:2"),
        ("wss://bücher.example/ü?ß", "wss", "xn--bcher-kva.example", 443, "/%C3%BC?%C3%9F", "xn--bcher-kva.example"),
        ("ws://h/%C3%BC%zz", "ws", "h", 80, "/%C3%BC%zz", "h"),
        ("ws+kcp://h:5/x", "ws+kcp", "h", 5, "/x", "h:5"),
        ("ws+quic://h/", "ws+quic", "h", 443, "/", "h"),
        ("ws+h3://h/", "ws+h3", "h", 443, "/", "h"),
        ("wss+h3://h/x", "wss+h3", "h", 443, "/x", "h"),
    ],
)
def test_host_and_port(url: str, scheme: str, host: str, port: int, target: str, host_header: str) -> None:
    found = parse_url(url)
    assert found == WebSocketUrl(scheme, host, port, "", target)
    assert found.host_header == host_header
    assert found.secure is (scheme.startswith("wss") or scheme in ("ws+quic", "ws+h3"))
    assert found.authorization is None


@pytest.mark.parametrize(
    ("url", "path", "target"),
    [
        ("ws+unix:/run/app.sock:/chat?x=1:2", "/run/app.sock", "/chat?x=1:2"),
        ("ws+unix:///run/app.sock:/chat", "/run/app.sock", "/chat"),
        ("WS+UNIX:/Run/App.sock", "/Run/App.sock", "/"),
        ("ws+unix:/run/app.sock:?x", "/run/app.sock", "/?x"),
        ("ws+unix:./app.sock:/", "./app.sock", "/"),
        ("ws+unix:@name:/x", "@name", "/x"),
        ("ws+unix:/a%3Ab%20c%25:/%20", "/a:b c%", "/%20"),
        ("ws+unix:/é:/é", "/é", "/%C3%A9"),
    ],
)
def test_unix_sockets(url: str, path: str, target: str) -> None:
    found = parse_url(url)
    assert found == WebSocketUrl("ws+unix", "localhost", 0, path, target)
    assert (found.host_header, found.secure) == ("localhost", False)


@pytest.mark.parametrize(
    ("user", "username", "password", "authorization"),
    [
        ("user:pass", "user", "pass", "Basic dXNlcjpwYXNz"),
        ("user", "user", None, "Basic dXNlcjo="),
        ("user:", "user", "", "Basic dXNlcjo="),
        ("u%40:p:%3A%40", "u@", "p::@", "Basic dUA6cDo6QA=="),
        (":p", "", "p", "Basic OnA="),
        ("%C3%A9:%C3%A9", "é", "é", "Basic w6k6w6k="),
    ],
)
def test_user_and_password(user: str, username: str, password: str | None, authorization: str) -> None:
    found = parse_url(f"ws://{user}@h:1/@")
    assert (found.username, found.password, found.authorization) == (username, password, authorization)
    assert (found.host, found.port, found.target) == ("h", 1, "/@")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "begins with ws://"),
        ("example.com", "begins with ws://"),
        ("//example.com", "begins with ws://"),
        ("http://h/", r"begins with ws:// or wss://, or names a transport, as ws\+quic:// does"),
        ("http://h:1/x?a=b:c", r"did you mean ws://h:1/x\?a=b:c\?$"),
        ("HTTPS://u:secret@h/", r"did you mean wss://\.\.\.@h/\?$"),
        ("tcp://h:1", r"did you mean ws://h:1\?$"),
        ("unix:/run/x.sock", r"did you mean ws\+unix:/run/x\.sock\?$"),
        ("quic://h:1", r"did you mean ws\+quic://h:1\?$"),
        ("wsx://h/", "begins with ws://"),
        ("ws+://h/", "begins with ws://"),
        ("ws:h", "begins with ws://"),
        ("ws:/h", "begins with ws://"),
        ("wss+h3:h", r"begins with wss\+h3://"),
        ("ws://h/#", "no fragment"),
        ("ws://h/#x", "no fragment"),
        ("ws+unix:/a:/#x", "no fragment"),
        ("ws://h/ x", "no spaces"),
        (" ws://h/", "no spaces"),
        ("ws://h/\r\nX: y", "no spaces"),
        ("ws://h/\n", "no spaces"),
        ("ws://h/\0", "no spaces"),
        ("ws://h/\x85", "no spaces"),
        ("ws://h\\@evil/", "no spaces, backslashes"),
        ("ws://h/\udc80", "no spaces"),
        ("ws://", "the host is missing"),
        ("ws:///x", "the host is missing"),
        ("ws://:80/", "the host is missing"),
        ("ws://u@/", "the host is missing"),
        ("ws://h:0/", "a port is 1 to 65535, not '0'"),
        ("ws://h:65536/", "a port is 1 to 65535"),
        ("ws://h:1234567890/", "a port is 1 to 65535"),
        ("ws://h:x/", "a port is 1 to 65535"),
        ("ws://h:+1/", "a port is 1 to 65535"),
        ("ws://h:١/", "a port is 1 to 65535"),
        ("ws://::1/", "in brackets"),
        ("ws://[::1/", "in brackets"),
        ("ws://[::1]x/", "in brackets"),
        ("ws://[::1]:x/", "a port is"),
        ("ws://[1.2.3.4]/", "not an IPv6 address"),
        ("ws://[::1%25é]/", "not an IPv6 address"),
        ("ws://[]/", "not an IPv6 address"),
        ("ws://a..b/", "not a host name"),
        ("ws://.a/", "not a host name"),
        ("ws://a,b/", "not a host name"),
        ("ws://a%20b/", "not a host name"),
        ("ws://-a/", "not a host name"),
        ("ws://℀.com/", "not a host name"),
        ("ws://" + "é" * 80 + "/", "not a host name"),
        ("ws://a@b@c/", "%40"),
        ("ws://a%3Ab:c@h/", "no colon"),
        ("ws+unix:", "ws\\+unix:/path/of/socket:/target"),
        ("ws+unix::/x", "ws\\+unix:/path/of/socket:/target"),
        ("ws+unix:@:/x", "ws\\+unix:/path/of/socket:/target"),
        ("ws+unix:/a:b", "ws\\+unix:/path/of/socket:/target"),
        ("ws+unix:/a?b", "ws\\+unix:/path/of/socket:/target"),
        ("ws+unix:/a%00b:/", "ws\\+unix:/path/of/socket:/target"),
        ("ws+unix://host/a:/", "ws\\+unix:/path/of/socket:/target"),
        ("wss+unix:/a:/", "no TLS over Unix sockets"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(EndpointError, match=message) as caught:
        parse_url(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rest", ["h:x/", "h/ ", "h/#", "", "a..b/", "[::1/", "x@h/"])
def test_errors_show_no_password(rest: str) -> None:
    with pytest.raises(EndpointError) as caught:
        parse_url(f"ws://user:secret@{rest}")
    assert "secret" not in str(caught.value)


def test_a_url_in_a_log_shows_no_password() -> None:
    found = parse_url("ws://user:secret@h/")
    assert "secret" not in repr(found)
    with pytest.raises(FrozenInstanceError):
        found.host = "x"  # type: ignore[misc]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab:/?[]@%25.1\\ #é\r\n\0-+"), max_size=20), st.sampled_from(["ws://", "ws+unix:", "wss+x://", ""]))
def test_what_is_accepted_makes_a_valid_request(rest: str, start: str) -> None:
    with suppress(EndpointError):
        found = parse_url(start + rest)
        request = parse_request(request_head(found.target, found.host_header, make_key()))
        assert request.target == found.target
        assert request.host == found.host_header
        assert len(request.headers) == 5
