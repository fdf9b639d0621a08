"""What a server tells, and how many it lets in: `on_upgrade`, `accept_limit`, `start_listeners`."""

from __future__ import annotations

import logging
import socket
from typing import Any

import gevent
import gevent.socket
import pytest

from gws_gevent import Connection, EventHandler, Request, Server, ServerOptions, Upgrader, WsgiSettings, connect
from tests.pairs import EchoHandler, serving, url_of
from tests.support import wait_until


class Tells(Server):
    """Remembers the path of each connection that was upgraded.

    Attributes:
        seen: in order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[str] = []
        self.fails = False

    def on_upgrade(self, conn: Connection, request: Request) -> None:
        if self.fails:
            raise RuntimeError("of the program's")
        self.seen.append(request.path)


@pytest.mark.parametrize("path", ["direct", "app"])
def test_each_upgrade_is_told(path: str) -> None:
    upgrader = Upgrader(EchoHandler())
    handler = EchoHandler() if path == "direct" else None
    server = Tells(handler, wsgi=upgrader.upgrade, wsgi_settings=WsgiSettings(log=None))
    server.start("127.0.0.1:0")
    try:
        for target in ("/one", "/two?q"):
            with connect(url_of(server, target)) as conn:
                conn.send("hi")
                assert conn.receive(timeout=5) == "hi"
        assert server.seen == ["/one", "/two"]
    finally:
        server.stop()


def test_what_it_raises_is_logged_and_the_connection_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    server = Tells(EchoHandler(), ServerOptions(logger=logging.getLogger("mine")))
    server.fails = True
    server.start("127.0.0.1:0")
    try:
        with connect(url_of(server)) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
    finally:
        server.stop()
    assert [record.getMessage().partition("] ")[2] for record in caplog.records] == ["on_upgrade failed"]


@pytest.mark.parametrize("endpoints", [("127.0.0.1:0",), ("127.0.0.1:0", "127.0.0.1:0")], ids=["one", "two"])
def test_above_accept_limit_others_wait_until_somebody_leaves(endpoints: tuple[str, ...]) -> None:
    with serving(EventHandler(), ServerOptions(accept_limit=2), *endpoints) as server:
        first = connect(url_of(server))
        # Who says nothing has a place as well.
        silent = gevent.socket.create_connection(("127.0.0.1", int(server.addresses[-1].rpartition(":")[2])))
        wait_until(lambda: len(server.connections) == 2, what="two connections")
        waiting = gevent.spawn(connect, url_of(server, which=len(endpoints) - 1))
        gevent.sleep(0.05)
        assert not waiting.ready()
        silent.close()
        second = waiting.get(timeout=5)
        assert len(server.connections) == 2
        first.close()
        second.close()


def test_sockets_that_listen_already_are_served() -> None:
    server = Server(EchoHandler())
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    server.start_listeners(*sockets)
    try:
        for which in range(2):
            with connect(url_of(server, which=which)) as conn:
                conn.send("hi")
                assert conn.receive(timeout=5) == "hi"
    finally:
        server.stop()


def test_on_upgrade_may_be_given_to_one_server() -> None:
    server, seen = Server(EchoHandler()), list[str]()
    server.on_upgrade = lambda conn, request: seen.append(request.path)  # type: ignore[method-assign]
    server.start("127.0.0.1:0")
    try:
        with connect(url_of(server, "/here")) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
    finally:
        server.stop()
    assert seen == ["/here"]
