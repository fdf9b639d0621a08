"""Plain HTTP is gevent's pywsgi, unchanged: the same bytes to a stock server and to ours get the same answers."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.pywsgi import WSGIServer

from gws_gevent import EventHandler, Server, WsgiSettings
from gws_gevent.integrations.pywsgi import WSGIHandler

KEYS = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "SERVER_NAME", "SERVER_PROTOCOL", "CONTENT_TYPE",
    "CONTENT_LENGTH", "REMOTE_ADDR", "wsgi.url_scheme", "wsgi.input_terminated", "GATEWAY_INTERFACE", "SERVER_SOFTWARE",
    "wsgi.version", "wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once")  # fmt: skip


def app(environ: dict[str, Any], start_response: Any) -> Any:
    """Tells what it sees, in a way that the path chooses."""
    path = environ["PATH_INFO"]
    if path == "/fails":
        raise RuntimeError("the app fails")
    if path == "/fails-late":
        return fails_late(start_response)
    if path == "/unread":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"unread"]
    if path == "/lines":
        lines = list(environ["wsgi.input"])
        start_response("200 OK", [])
        return [repr(lines).encode()]
    if path == "/chunks":
        start_response("200 OK", [])
        return iter([b"one", b"", b"two"])
    if path == "/write":
        start_response("200 OK", [("Content-Length", "7")])(b"written")
        return []
    if path == "/204":
        start_response("204 No Content", [])
        return []
    if path == "/304":
        start_response("304 Not Modified", [("ETag", '"x"')])
        return []
    if path == "/close":
        start_response("200 OK", [("Connection", "close")])
        return [b"closing"]
    if path == "/nothing":
        return []
    body = environ["wsgi.input"].read()
    seen = [f"{key}={environ.get(key)!r}" for key in KEYS]
    seen += sorted(f"{key}={value!r}" for key, value in environ.items() if key.startswith("HTTP_"))
    text = "\n".join([*seen, repr(body)]).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Seen", "yes")])
    return [text]


def fails_late(start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"begun"
    raise RuntimeError("the app fails late")


HOST = b"Host: localhost:80\r\n"


def get(target: bytes = b"/", more: bytes = b"", version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    return method + b" " + target + b" HTTP/" + version + b"\r\n" + HOST + more + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n"
CORPUS: dict[str, bytes] = {
    **{f"method {name}": get(method=name.encode()) for name in ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE", "PROPFIND", "X")},
    "target": get(b"/a%20b%2F%C3%A9//c?x=%20&y=1?z"),
    "absolute target": get(b"http://example.org/a?b"),
    "OPTIONS *": get(b"*", method=b"OPTIONS"),
    "headers": get(more=b"X-One: a\r\nX-One: b\r\nX_Bad: no\r\nX-Latin: \xe9\r\nX-Empty:\r\nx-lower:  spaced  \r\n"),
    "cookies": get(more=b"Cookie: a=1\r\nCookie: b=2\r\n"),
    "content type": get(more=b"Content-Type: a/b; c=d\r\nContent-Length: 0\r\n", method=b"POST"),
    "body": get(more=b"Content-Length: 5\r\n", method=b"POST") + b"hello",
    "body in lines": get(b"/lines", b"Content-Length: 9\r\n", method=b"PUT") + b"one\ntwo\n\n",
    "body unread": get(b"/unread", b"Content-Length: 5\r\n", method=b"POST") + b"hello" + get(),
    "body too short": get(more=b"Content-Length: 50\r\n", method=b"POST") + b"hello",
    "chunked": get(more=CHUNKED, method=b"POST") + b"5\r\nhello\r\n3;ext=1\r\n a\n\r\n0\r\n\r\n",
    "chunked, trailers": get(more=CHUNKED, method=b"POST") + b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n" + get(),
    "chunked, lines": get(b"/lines", CHUNKED, method=b"POST") + b"5\r\nhe\nll\r\n2\r\no\n\r\n0\r\n\r\n",
    "chunked, unread": get(b"/unread", CHUNKED, method=b"POST") + b"5\r\nhello\r\n0\r\n\r\n" + get(),
    "chunked, malformed": get(more=CHUNKED, method=b"POST") + b"z\r\nhello\r\n0\r\n\r\n",
    "chunked, no size": get(more=CHUNKED, method=b"POST") + b"\r\nabc\r\n0\r\n\r\n",
    "chunked, too large a size": get(more=CHUNKED, method=b"POST") + b"f" * 16 + b"\r\nhello",
    "chunked, cut": get(more=CHUNKED, method=b"POST") + b"5\r\nhel",
    "chunked and a length": get(more=CHUNKED + b"Content-Length: 3\r\n", method=b"POST") + b"5\r\nhello\r\n0\r\n\r\n" + get(),
    "two lengths": get(more=b"Content-Length: 5\r\nContent-Length: 3\r\n", method=b"POST") + b"hello",
    "bad length": get(more=b"Content-Length: x\r\n", method=b"POST") + b"hello",
    "negative length": get(more=b"Content-Length: -1\r\n", method=b"POST") + b"hello",
    "HEAD with a length": get(more=b"Content-Length: 5\r\n", method=b"HEAD") + b"hello",
    "Expect": get(more=b"Expect: 100-continue\r\nContent-Length: 5\r\n", method=b"POST") + b"hello",
    "Expect, unread": get(b"/unread", b"Expect: 100-continue\r\nContent-Length: 5\r\n", method=b"POST") + b"hello",
    "Expect, something else": get(more=b"Expect: more\r\nContent-Length: 5\r\n", method=b"POST") + b"hello",
    "pipelined": get(b"/1") + get(b"/chunks") + get(b"/write") + get(b"/204") + get(b"/304") + get(b"/2"),
    "HEAD of chunks": get(b"/chunks", method=b"HEAD"),
    "closed by the client": get(more=b"Connection: close\r\n") + get(),
    "closed by the app": get(b"/close") + get(),
    "HTTP/1.0": get(version=b"1.0") + get(),
    "HTTP/1.0 kept alive": get(more=b"Connection: keep-alive\r\n", version=b"1.0") + get(version=b"1.0"),
    "HTTP/1.0 chunks": get(b"/chunks", version=b"1.0"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": get(version=b"2.0"),
    "HTTP/x": get(version=b"x"),
    "no version, POST": b"POST /\r\n\r\n",
    "one word": b"GET\r\n\r\n",
    "nothing": b"",
    "a blank line": b"\r\n" + get(),
    "line feeds": b"GET /lf HTTP/1.1\nHost: x\n\n" + get(),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": get(more=HOST),
    "no colon": get(more=b"broken\r\n"),
    "space before the colon": get(more=b"X-One : a\r\n"),
    "folded": get(more=b"X-One: a\r\n b\r\n"),
    "NUL": get(more=b"X-One: a\0b\r\n"),
    "bare CR": get(more=b"X-One: a\rb\r\n"),
    "cut in a head": b"GET / HTTP/1.1\r\nHost: x\r\nX-",
    "cut in the first line": b"GET / HT",
    "a long line": get(b"/" + b"a" * 9000),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "the app fails": get(b"/fails") + get(),
    "the app fails late": get(b"/fails-late") + get(),
    "the app says nothing": get(b"/nothing") + get(),
    "h2c": get(more=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
}  # fmt: skip

#: What is not answered at all.
SILENT = ("nothing",)
#: What gevent takes for the app's fault, with 500 and a traceback, and we for the client's.
CLIENTS_FAULT = ("body too short", "chunked, cut", "chunked, no size", "chunked, too large a size")
_ANSWERS_OF_FAULTS = (b"HTTP/1.1 500 ", b"HTTP/1.1 400 ")

_DATE = re.compile(rb"Date: [^\r]*")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, int]]:
    """Ports: gevent's server with its own handler, the same with ours, and our server with and without a handler of WebSockets."""
    stock = WSGIServer(("127.0.0.1", 0), app, log=None, error_log=None)
    mixed = WSGIServer(("127.0.0.1", 0), app, log=None, error_log=None, handler_class=WSGIHandler)
    quiet = WsgiSettings(log=None, error_log=None)
    bare = Server(wsgi=app, wsgi_settings=quiet)
    beside = Server(EventHandler(), wsgi=app, wsgi_settings=quiet)
    for server in (stock, mixed):
        server.start()
    for own in (bare, beside):
        own.start("127.0.0.1:0")
    ports = {"stock": stock.server_port, "mixed": mixed.server_port}
    ports |= {name: int(own.address.rpartition(":")[2]) for name, own in (("bare", bare), ("beside", beside))}
    yield ports
    for server in (stock, mixed):
        server.stop(1)
    for own in (bare, beside):
        own.stop(1)


def answers(port: int, request: bytes, piecewise: bool = False) -> bytes:
    """All that is answered to these bytes and the end of the stream."""
    found = b""
    with gevent.socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for at in range(0, len(request), 1 if piecewise else max(1, len(request))):
                sock.sendall(request[at : at + 1] if piecewise else request)
                gevent.sleep(0)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                found += piece
        except OSError:
            pass  # closed by a server that has said all it wants to
    return _DATE.sub(b"Date: then", found)


@pytest.mark.parametrize("name", CORPUS)
def test_the_same_answers(servers: dict[str, int], name: str, capfd: pytest.CaptureFixture[str]) -> None:
    expected = answers(servers["stock"], CORPUS[name])
    assert expected.startswith(b"HTTP/1.1 ") or name in SILENT
    printed = capfd.readouterr().err
    for other in ("mixed", "bare", "beside"):
        found = answers(servers[other], CORPUS[name])
        if name in CLIENTS_FAULT:
            assert "Traceback" in printed
            assert "Traceback" not in capfd.readouterr().err
            assert (expected[:13], found[:13]) == _ANSWERS_OF_FAULTS, other
        else:
            assert found == expected, other


PIECEWISE = ("body", "chunked", "Expect", "pipelined", "HTTP/1.0", "line feeds", "folded", "closed by the app")


@pytest.mark.parametrize("name", PIECEWISE)
def test_the_same_answers_to_bytes_that_come_one_by_one(servers: dict[str, int], name: str) -> None:
    expected = answers(servers["stock"], CORPUS[name])
    for other in ("mixed", "bare"):
        assert answers(servers[other], CORPUS[name], True) == expected, other
