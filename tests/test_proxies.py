"""Which proxy: URLs of proxies, the environment's variables, and what they leave out."""

from __future__ import annotations

import pytest

from gws_gevent import EndpointError
from gws_gevent.proxies import Proxy, choose_proxy, parse_proxy
from gws_gevent.urls import parse_url

HTTP = {"http_proxy": "http://web:3128", "https_proxy": "http://tls:3128"}


def chosen(url: str, **environ: str) -> str | None:
    found = choose_proxy(parse_url(url), True, environ)
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy:3128", Proxy("http", "proxy", 3128)),
        ("http://proxy:3128/", Proxy("http", "proxy", 3128)),
        ("HTTP://Proxy", Proxy("http", "proxy", 80)),
        ("proxy:3128", Proxy("http", "proxy", 3128)),
        ("socks5://10.0.0.1", Proxy("socks5", "10.0.0.1", 1080)),
        ("socks5h://[::1]", Proxy("socks5h", "::1", 1080)),
        ("socks5h://[::1]:80", Proxy("socks5h", "::1", 80)),
        ("socks://proxy", Proxy("socks5h", "proxy", 1080)),
        ("http://anna:pass%20word@proxy:80", Proxy("http", "proxy", 80, "anna", "pass word")),
        ("anna@proxy:80", Proxy("http", "proxy", 80, "anna")),
        ("https://proxy", Proxy("https", "proxy", 443)),
    ],
)
def test_urls_of_proxies(text: str, proxy: Proxy) -> None:
    assert parse_proxy(text) == proxy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://proxy", "a proxy is http://HOST:PORT"),
        ("socks4://proxy", "a proxy is http://HOST:PORT, https://HOST:PORT, socks5://HOST:PORT or socks5h://HOST:PORT, not socks4"),
        ("https://proxy/path", "without a path"),
        ("http://", "the host is missing"),
        ("http://proxy:99999", "a port is 1 to 65535"),
        ("http://proxy/path", "without a path"),
        ("http://pro xy", "no spaces"),
        ("", "the host is missing"),
    ],
)
def test_what_is_no_proxy(text: str, said: str) -> None:
    with pytest.raises(EndpointError, match=said):
        parse_proxy(text)


def test_a_password_is_not_shown() -> None:
    with pytest.raises(EndpointError) as error:
        parse_proxy("ftp://anna:secret@proxy")
    assert "secret" not in str(error.value)
    proxy = parse_proxy("http://anna:secret@proxy")
    assert "secret" not in repr(proxy) + str(proxy)
    assert proxy.authorization == "Basic YW5uYTpzZWNyZXQ="
    assert parse_proxy("http://proxy").authorization is None


def test_each_scheme_has_its_variables() -> None:
    assert chosen("ws://h/", **HTTP) == "http://web:3128"
    assert chosen("wss://h/", **HTTP) == "http://tls:3128"
    assert chosen("ws://h/", **HTTP, ws_proxy="http://own:1") == "http://own:1"
    assert chosen("wss://h/", **HTTP, ws_proxy="http://own:1") == "http://tls:3128"
    assert chosen("wss://h/", **HTTP, wss_proxy="http://own:1") == "http://own:1"
    assert chosen("ws://h/", all_proxy="socks5://any") == "socks5://any:1080"
    assert chosen("ws://h/", all_proxy="socks5://any", http_proxy="web:1") == "http://web:1"
    assert chosen("ws://h/", socks_proxy="any", all_proxy="web:1") == "socks5h://any:1080"
    assert chosen("ws://h/") is None


def test_variables_in_upper_case() -> None:
    assert chosen("ws://h/", HTTP_PROXY="web:1") == "http://web:1"
    assert chosen("ws://h/", HTTP_PROXY="web:1", http_proxy="small:1") == "http://small:1"
    # In a CGI program that variable is a header of whoever sent the request.
    assert chosen("ws://h/", HTTP_PROXY="web:1", REQUEST_METHOD="GET") is None
    assert chosen("wss://h/", HTTPS_PROXY="web:1", REQUEST_METHOD="GET") == "http://web:1"
    assert chosen("ws://h/", HTTP_PROXY="web:1", NO_PROXY="h") is None


def test_an_empty_variable_says_nothing() -> None:
    assert chosen("ws://h/", http_proxy="", all_proxy="web:1") == "http://web:1"
    assert chosen("ws://h/", http_proxy=" ") is None


def test_a_variable_that_cannot_be_used_is_named() -> None:
    with pytest.raises(EndpointError, match="the environment's https_proxy: "):
        chosen("wss://h/", https_proxy="ftp://x")


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("ws://h/", "*"),
        ("ws://h/", "other, h"),
        ("ws://h/", "other h"),
        ("ws://H.example.org/", "example.org"),
        ("ws://h.example.org/", ".Example.org"),
        ("ws://h.example.org/", "*.example.org"),
        ("ws://example.org/", ".example.org"),
        ("ws://h:81/", "h:81"),
        ("ws://10.1.2.3/", "10.0.0.0/8"),
        ("ws://10.1.2.3/", "10.1.2.3"),
        ("ws://10.1.2.3:81/", "10.1.2.3:81"),
        ("ws://[fd00::1]/", "fd00::/8"),
        ("ws://[fd00::1]/", "fd00::1"),
        ("ws://[fd00::1]:81/", "[fd00::1]:81"),
    ],
)
def test_no_proxy(url: str, no_proxy: str) -> None:
    assert chosen(url, http_proxy="web:1", no_proxy=no_proxy) is None


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("ws://h/", ""),
        ("ws://h/", ",, ."),
        ("ws://h/", "hh"),
        ("ws://badexample.org/", "example.org"),
        ("ws://example.org.evil/", "example.org"),
        ("ws://h:82/", "h:81"),
        ("ws://11.1.2.3/", "10.0.0.0/8"),
        ("ws://110.1.2.3/", "10.1.2.3"),
        ("ws://h/", "10.0.0.0/8"),
        ("ws://10.1.2.3/", "10.0.0.0/99"),
        ("ws://[fd00::1]:82/", "[fd00::1]:81"),
    ],
)
def test_no_proxy_is_about_others(url: str, no_proxy: str) -> None:
    assert chosen(url, http_proxy="web:1", no_proxy=no_proxy) == "http://web:1"


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_this_machine_is_reached_without_a_proxy_unless_one_is_named(host: str) -> None:
    assert chosen(f"ws://{host}/", all_proxy="web:1") is None
    assert choose_proxy(parse_url(f"ws://{host}/"), "web:1", {}) == Proxy("http", "web", 1)


def test_a_proxy_that_is_named_comes_before_the_environment() -> None:
    url = parse_url("ws://h/")
    assert choose_proxy(url, "socks5://own", {**HTTP, "no_proxy": "*"}) == Proxy("socks5", "own", 1080)
    assert choose_proxy(url, None, HTTP) is None
    assert choose_proxy(url, False, HTTP) is None


def test_other_transports_go_through_no_proxy() -> None:
    url = parse_url("ws+unix:/run/x.sock:/")
    assert choose_proxy(url, True, {"all_proxy": "web:1"}) is None
    with pytest.raises(EndpointError, match="does not go through proxies"):
        choose_proxy(url, "http://web:1", {})


def test_something_else_is_no_proxy() -> None:
    with pytest.raises(TypeError, match="a proxy is the text of its URL"):
        choose_proxy(parse_url("ws://h/"), 5, {})  # type: ignore[arg-type]
