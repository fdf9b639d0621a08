"""Context variables: a connection's own are found wherever its handler is called, and those of a WSGI app where they are named."""

from __future__ import annotations

import gc
import weakref
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer
from greenlet import getcurrent, greenlet

from gws_gevent import Connection, EventHandler, Message, Server, ServerOptions, Upgrader, WsgiSettings, connect
from gws_gevent.integrations.pywsgi import WSGIHandler
from tests.pairs import paired, serving, url_of
from tests.support import require_module, wait_until

USER: ContextVar[Any] = ContextVar("user", default="nobody")
REQUEST: ContextVar[Any] = ContextVar("request", default="none")


class Tells(EventHandler):
    """Sets USER in on_open, to how many it has met, and sends what it is wherever else.

    Attributes:
        greenlets: those that messages were handled in, in order.
    """

    def __init__(self) -> None:
        self.greenlets: list[greenlet] = []
        self._met = 0

    def on_open(self, conn: Connection) -> None:
        self._met += 1
        USER.set(f"user {self._met}")

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


# From a WSGI app to the connection


class Large:
    """What an app keeps in a context variable and nobody else is to keep."""


class Looks(EventHandler):
    """Sends what the context variables are in on_open, and again for each message."""

    def on_open(self, conn: Connection) -> None:
        conn.send(f"{USER.get()} {REQUEST.get()}")

    def on_message(self, conn: Connection, message: Message) -> None:
        conn.send(f"{USER.get()} {REQUEST.get()}")


class App:
    """Sets both variables, the one to something large, and upgrades with an option that names the other."""

    def __init__(self, **named: Any) -> None:
        self.upgrader = Upgrader(Looks(), ServerOptions(**named))
        self.large: weakref.ref[Large] | None = None

    def __call__(self, environ: Any, start_response: Any) -> Any:
        large = Large()
        self.large = weakref.ref(large)
        REQUEST.set(large)
        USER.set(environ["QUERY_STRING"])
        return self.upgrader.upgrade(environ, start_response)

    def check(self, url: str) -> None:
        with connect(url + "?ann") as conn:
            assert conn.receive(timeout=5) == "ann none"
            gc.collect()
            assert self.large is not None
            assert self.large() is None, "a live connection keeps what the app has set"
            assert ask(conn) == "ann none"


@pytest.mark.parametrize("name", [USER, "user"])
def test_those_that_are_named_reach_the_handler_and_no_other_is_kept(name: Any) -> None:
    app = App(context_vars=[name, "there is none of that name"])
    with serving(None, wsgi=app, wsgi_settings=WsgiSettings(log=None)) as server:
        app.check(url_of(server))
    assert USER not in copy_context()


def test_under_a_server_of_gevents_own_with_our_handler() -> None:
    app = App(context_vars=[USER])
    server = WSGIServer(("127.0.0.1", 0), app, handler_class=WSGIHandler, log=None)
    server.start()
    try:
        app.check(f"ws://127.0.0.1:{server.server_port}/")
    finally:
        server.stop(timeout=1)


def test_without_names_none_reaches_it() -> None:
    app = App()
    with serving(None, wsgi=app, wsgi_settings=WsgiSettings(log=None)) as server, connect(url_of(server) + "?ann") as conn:
        assert conn.receive(timeout=5) == "nobody none"


def test_from_one_connection_to_the_next_nothing_stays() -> None:
    app = App(context_vars=[USER], parallel=2, park_after=0.02)
    with serving(None, wsgi=app, wsgi_settings=WsgiSettings(log=None)) as server:
        with connect(url_of(server) + "?ann") as ann, connect(url_of(server) + "?bob") as bob:
            assert (ann.receive(timeout=5), bob.receive(timeout=5)) == ("ann none", "bob none")
            for _ in range(2):
                assert (ask(ann), ask(bob)) == ("ann none", "bob none")


def test_in_flask_what_a_before_request_sets() -> None:
    flask = require_module("flask")
    app = flask.Flask(__name__)
    upgrader = Upgrader(Looks(), ServerOptions(context_vars=[USER]))
    app.before_request(lambda: USER.set("of " + flask.request.args["name"]) and None)
    app.add_url_rule("/ws", "ws", lambda: upgrader.upgrade(flask.request.environ), websocket=True)
    with serving(None, wsgi=app, wsgi_settings=WsgiSettings(log=None)) as server, connect(url_of(server, "/ws?name=ann")) as conn:
        assert conn.receive(timeout=5) == "of ann none"


def test_on_the_direct_path_what_authorize_sets_is_the_connections() -> None:
    def authorize(request: Any, session: Any) -> bool:
        USER.set("somebody known")
        return True

    with serving(Looks(), ServerOptions(authorize=authorize)) as server, connect(url_of(server)) as conn:
        assert conn.receive(timeout=5) == "somebody known none"


# The option


@pytest.mark.parametrize("value", ["user", USER, [3], [None]])
def test_a_wrong_list_is_named(value: object) -> None:
    with pytest.raises(ValueError, match="context_vars: "):
        ServerOptions(context_vars=value)  # type: ignore[arg-type]


def test_variables_and_names_are_taken() -> None:
    assert ServerOptions(context_vars=[USER, "request"]).context_vars == (USER, "request")
    assert REQUEST not in copy_context()
