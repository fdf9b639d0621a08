"""What Server and connect take as a place, and what they say to something else."""

from __future__ import annotations

from typing import Any

import pytest

from gws_gevent import Connection, EndpointError, EventHandler, Message, Server, connect, serve
from tests.support import free_port


def echo(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


@pytest.mark.parametrize("pair", [True, False], ids=["a pair", "a port"])
def test_gevents_forms_of_an_address_are_taken(pair: bool) -> None:
    port = free_port()
    with Server(echo) as server:
        server.start(("127.0.0.1", port) if pair else port)
        assert server.address == (f"tcp://127.0.0.1:{port}" if pair else f"tcp://[::]:{port}")
        with connect(f"ws://127.0.0.1:{port}/") as conn:
            conn.send("hello")
            assert conn.receive(timeout=5) == "hello"


@pytest.mark.parametrize("act", [Server(echo).start, Server(echo).run, lambda: serve(echo)], ids=["start", "run", "serve"])
def test_at_least_one_endpoint_is_needed(act: Any) -> None:
    with pytest.raises(TypeError, match="at least one endpoint is needed, such as"):
        act()


@pytest.mark.parametrize("wrong", [None, 3.5, b":0", ("127.0.0.1", "0"), EventHandler()])
def test_something_else_is_no_endpoint(wrong: Any) -> None:
    server = Server(echo)
    for act in (server.start, server.run, lambda it: serve(echo, it), lambda it: server.run_tls(it, "cert.pem")):
        with pytest.raises(TypeError, match="an endpoint is HOST:PORT"):
            act(wrong)
    assert server.addresses == []


def test_nothing_is_bound_if_a_later_endpoint_is_wrong() -> None:
    server = Server(echo)
    with pytest.raises(EndpointError, match="did you mean :1"):
        server.start("127.0.0.1:0", "1")
    assert server.addresses == []


@pytest.mark.parametrize("wrong", [None, 3001, ("127.0.0.1", 3001), b"ws://127.0.0.1/"])
def test_a_url_is_a_text(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"a URL is a text such as 'ws://127\.0\.0\.1:3001/', not "):
        connect(wrong)


def test_a_wrong_handler_is_told_before_anything_is_dialled() -> None:
    with pytest.raises(TypeError, match="a handler is an instance"):
        connect("ws://127.0.0.1:1/", EventHandler)  # type: ignore[arg-type]


def test_a_message_that_is_sent_back_whole_is_told_what_to_send() -> None:
    told: list[str] = []

    class Whole(EventHandler):
        def on_message(self, conn: Connection, message: Message) -> None:
            with pytest.raises(TypeError) as caught:
                conn.send(message)  # type: ignore[arg-type]
            told.append(str(caught.value))
            conn.send(message.data)

    with Server(Whole()) as server:
        server.start("127.0.0.1:0")
        with connect(server.address.replace("tcp", "ws")) as conn:
            conn.send("x")
            assert conn.receive(timeout=5) == "x"
    assert told == ["a message is str or bytes, not Message; send its data"]


def test_a_method_that_is_written_for_asyncio_is_refused_with_its_class() -> None:
    with pytest.raises(TypeError, match=r"Asynchronous\.on_message must be a plain method"):

        class Asynchronous(EventHandler):
            async def on_message(self, conn: Connection, message: Message) -> None:  # type: ignore[override]
                ...

    with pytest.raises(TypeError, match=r"Generating\.on_open must be a plain method"):

        class Generating(EventHandler):
            def on_open(self, conn: Connection) -> Any:
                yield conn


def test_a_server_has_a_handler_or_on_request() -> None:
    with pytest.raises(TypeError, match="a server needs a handler, on_request, or a WSGI app"):
        Server()
    with pytest.raises(TypeError, match="give a handler or on_request, not both"):
        Server(echo, on_request=lambda request: echo)
    with pytest.raises(TypeError, match=r"on_request is a function that takes a Request, not \{\}"):
        Server(on_request={})  # type: ignore[arg-type]
