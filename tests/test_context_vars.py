"""Context variables: a connection's own are found wherever its handler is called, and those of a WSGI app where they are named."""

from __future__ import annotations

from contextvars import ContextVar, copy_context

import pytest
from greenlet import getcurrent, greenlet

from gws_gevent import Connection, EventHandler, Message, Server, ServerOptions, connect
from tests.pairs import paired
from tests.support import wait_until

USER: ContextVar[str] = ContextVar("user", default="nobody")
REQUEST: ContextVar[str] = ContextVar("request", default="none")


class Tells(EventHandler):
    """Sets USER in on_open and sends what it is wherever else.

    Attributes:
        greenlets: those that messages were handled in, in order.
    """

    def __init__(self) -> None:
        self.greenlets: list[greenlet] = []

    def on_open(self, conn: Connection) -> None:
        USER.set(f"user {conn.id}")

    def on_message(self, conn: Connection, message: Message) -> None:
        self.greenlets.append(getcurrent())
        if message.data == "submit":
            conn.submit(lambda: conn.send(f"submitted by {USER.get()}"))
            USER.set("somebody else")
        else:
            conn.send(USER.get())


def ask(conn: Connection) -> str:
    conn.send("")
    return str(conn.receive(timeout=5))


@pytest.mark.parametrize("parallel", [0, 3])
def test_handlers_find_what_on_open_set(parallel: int) -> None:
    with paired(Tells(), ServerOptions(parallel=parallel)) as pair:
        assert ask(pair.client) == "user 1"
        pair.client.send("submit")
        assert pair.client.receive(timeout=5) == "submitted by user 1"
        # A message handled beside others has a copy: what it sets is its own.
        assert ask(pair.client) == ("user 1" if parallel else "somebody else")
    assert USER.get() == "nobody"


def test_a_parked_connection_keeps_its_own() -> None:
    handler = Tells()
    server = Server(handler, ServerOptions(park_after=0.02))
    server.start("127.0.0.1:0")
    try:
        url = server.address.replace("tcp", "ws")
        with connect(url) as one, connect(url) as other:
            for _ in range(3):
                assert (ask(one), ask(other)) == ("user 1", "user 2")
                wait_until(lambda: all(used.dead for used in handler.greenlets), what="parking")
            assert len(set(handler.greenlets)) == 6
    finally:
        server.stop()


@pytest.mark.parametrize("value", ["user", USER, [3], [None]])
def test_a_wrong_list_is_named(value: object) -> None:
    with pytest.raises(ValueError, match="context_vars: "):
        ServerOptions(context_vars=value)  # type: ignore[arg-type]


def test_variables_and_names_are_taken() -> None:
    assert ServerOptions(context_vars=[USER, "request"]).context_vars == (USER, "request")
    assert REQUEST not in copy_context()
