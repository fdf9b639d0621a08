"""Events and the life of a connection: what is called, in which order, how often, and how each end is told."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event
from greenlet import getcurrent

from gws_gevent import (
    Client,
    ClientOptions,
    Close,
    CloseCode,
    Connection,
    ConnectionClosed,
    EventHandler,
    GwsError,
    Message,
    Opcode,
    ServerOptions,
    SessionStorage,
    TransportError,
    Upgrader,
    connect,
)
from gws_gevent.frames import State, frame_header
from gws_gevent.transports.memory import memory_pair
from tests.pairs import EchoHandler, Pair, Recorder, failing_with, paired, serving, url_of
from tests.support import wait_until


@pytest.fixture
def hub_errors(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What reaches the hub's error handler."""
    errors: list[BaseException] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, traceback: errors.append(value))
    return errors


# Events


def test_events_come_in_order_and_in_the_connections_greenlet() -> None:
    greenlets = set()

    class Watching(Recorder):
        def on_open(self, conn: Any) -> None:
            greenlets.add(getcurrent())
            super().on_open(conn)

        def on_message(self, conn: Any, message: Message) -> None:
            greenlets.add(getcurrent())
            assert message.opcode is (Opcode.TEXT if isinstance(message.data, str) else Opcode.BINARY)
            super().on_message(conn, message)

        def on_close(self, conn: Any, info: Any) -> None:
            greenlets.add(getcurrent())
            super().on_close(conn, info)

    handler = Watching()
    with paired(handler) as pair:
        pair.client.write_text("text ✓")
        pair.client.write_ping(b"are you there")
        pair.client.write_binary(b"\x00\xff")
        pair.client.write_pong(b"unasked")
        pair.client.close(1000, "done")
        handler.wait_closed()
    assert handler.events[:-1] == [
        ("open",),
        ("message", "text ✓"),
        ("ping", b"are you there"),
        ("message", b"\x00\xff"),
        ("pong", b"unasked"),
    ]
    (info,) = handler.infos
    assert (info.received, info.sent, info.error, info.clean) == (Close(1000, "done"), Close(1000, ""), None, True)
    assert len(greenlets) == 1


@pytest.mark.parametrize("payload", [b"", b"x" * 125])
def test_a_handler_that_overrides_nothing_answers_pings_with_their_payload(payload: bytes) -> None:
    client = Recorder()
    with paired(EventHandler(), client_handler=client) as pair:
        pair.client.write_text("dropped without an error")
        pair.client.write_ping(payload)
        wait_until(lambda: len(client.events) == 2)
        assert client.events[1] == ("pong", payload)
        pair.client.close()
        assert pair.client.close_info is not None
        assert pair.client.close_info.clean


def test_a_handler_that_answers_no_ping_sends_no_pong() -> None:
    class Silent(Recorder):
        def on_ping(self, conn: Any, payload: bytes) -> None:
            conn.write_text(f"ping {payload!r}")

    client = Recorder()
    with paired(Silent(), client_handler=client) as pair:
        pair.client.write_ping(b"1")
        wait_until(lambda: client.messages)
        pair.client.close()
    assert [event[0] for event in client.events] == ["open", "message", "close"]


def test_on_open_may_write_and_read_before_the_first_event() -> None:
    class Greeting(Recorder):
        def on_open(self, conn: Any) -> None:
            super().on_open(conn)
            conn.write_text("who is there?")
            self.events.append(("name", conn.receive(timeout=5)))

    handler = Greeting()
    with paired(handler) as pair:
        assert pair.client.receive(timeout=5) == "who is there?"
        pair.client.write_text("Anna")
        pair.client.write_text("hello")
        wait_until(lambda: handler.messages)
    assert handler.events[:3] == [("open",), ("name", "Anna"), ("message", "hello")]


# Each end, and on_close once

ENDS: dict[str, tuple[Callable[[Pair], Any], int, int | None, type[BaseException] | None]] = {
    "the peer closes": (lambda pair: pair.client.close(4000), 4000, 4000, None),
    "the peer aborts": (lambda pair: pair.client.abort(), 1006, None, TransportError),
    "the peer's stream ends": (lambda pair: pair.client.stream.close(), 1006, None, None),
    "closed by us": (lambda pair: pair.server.close(4001), 4001, 4001, None),
    "a close frame from us": (lambda pair: pair.server.write_close(4001), 4001, 4001, None),
    "aborted by us": (lambda pair: pair.server.abort(), 1006, None, None),
    "killed": (lambda pair: pair.server.kill(), 1006, None, gevent.GreenletExit),
    "killed as a greenlet": (lambda pair: pair.greenlet.kill(), 1006, None, gevent.GreenletExit),
}


@pytest.mark.parametrize("how", ENDS)
def test_on_close_is_called_once(how: str) -> None:
    end, received, sent, error = ENDS[how]
    handler = Recorder()
    with paired(handler, client_handler=Recorder()) as pair:
        handler.open.get(timeout=5)
        end(pair)
        info = handler.wait_closed()
        pair.greenlet.join(5)
        assert pair.greenlet.dead
        assert pair.server.closed
        pair.server.close()
        pair.server.abort()
        pair.server.kill()
    assert len(handler.infos) == 1
    assert info is pair.server.close_info
    assert info.code == received
    assert (info.sent.code if info.sent else None) == sent
    assert info.error is None if error is None else isinstance(info.error, error)
    assert info.clean is (sent is not None)


def test_a_kill_tells_the_peer_nothing() -> None:
    client = Recorder()
    with paired(Recorder(), client_handler=client) as pair:
        pair.server.kill()
        info = client.wait_closed()
    assert (info.received, info.code, info.clean) == (None, 1006, False)
    assert client.events == [("open",), ("close", info)]


def test_a_kill_while_the_handler_works_aborts_too() -> None:
    working, client = Event(), Recorder()

    class Working(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            working.set()
            Event().wait()

    handler = Working()
    with paired(handler, client_handler=client) as pair:
        pair.client.write_text("work")
        working.wait(5)
        pair.server.kill()
        assert client.wait_closed().code == 1006
        assert isinstance(handler.wait_closed().error, gevent.GreenletExit)


@pytest.mark.parametrize("event", ["on_open", "on_message", "on_ping", "on_pong"])
@pytest.mark.parametrize("error", [RuntimeError("secret"), gevent.Timeout(3)], ids=["exception", "timeout"])
def test_an_exception_closes_its_connection_with_1011(
    event: str, error: BaseException, caplog: pytest.LogCaptureFixture, hub_errors: list[BaseException]
) -> None:
    handler = failing_with(error, event)
    with paired(handler) as pair:
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.write_text("message")
            pair.client.write_ping(b"ping")
            pair.client.write_pong(b"pong")
            pair.client.receive(timeout=5)
        info = handler.wait_closed()
    assert closed.value.info.received == Close(1011, "")
    assert len(handler.infos) == 1
    assert info.sent == Close(1011, "")
    assert [event[0] for event in handler.events].count(event[3:]) == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert hub_errors == ([] if isinstance(error, Exception) else [error])


def test_an_exception_in_on_close_is_logged_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("in on_close")
    handler = failing_with(error, "on_close")
    with serving(handler) as server:
        for _ in range(2):
            with connect(url_of(server)) as conn:
                conn.write_text("hello")
        wait_until(lambda: len(handler.infos) == 2)
        wait_until(lambda: not server.connections)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error, error]


def test_an_exception_ends_no_other_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(EchoHandler):
        def on_message(self, conn: Any, message: Message) -> None:
            if message.data == "bad":
                raise ValueError(message.data)
            super().on_message(conn, message)

    with serving(Picky()) as server, connect(url_of(server)) as good, connect(url_of(server)) as bad:
        bad.write_text("bad")
        with pytest.raises(ConnectionClosed):
            bad.receive(timeout=5)
        good.write_text("good")
        assert good.receive(timeout=5) == "good"
        with connect(url_of(server)) as fresh:
            fresh.write_text("fresh")
            assert fresh.receive(timeout=5) == "fresh"
    assert len(caplog.records) == 1


def test_a_function_that_raises_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    def fail(conn: Any) -> None:
        conn.receive()
        raise RuntimeError("in a function")

    with paired(fail) as pair:
        pair.client.write_text("go")
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=5)
    assert closed.value.info.received == Close(1011, "")
    assert len(caplog.records) == 1


def test_a_connection_closed_that_escapes_a_handler_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    class Chatty(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            super().on_message(conn, message)
            conn.write_close(4000)
            conn.write_text("too late")

    handler = Chatty()
    with paired(handler) as pair:
        pair.client.write_text("go")
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=5)
        handler.wait_closed()
    assert closed.value.info.received == Close(4000, "")
    assert not caplog.records


def test_without_recovery_the_exception_also_reaches_the_hub(
    caplog: pytest.LogCaptureFixture, hub_errors: list[BaseException]
) -> None:
    error = RuntimeError("not recovered")
    handler = failing_with(error)
    with paired(handler, ServerOptions(recovery=False), client_handler=Recorder()) as pair:
        pair.client.write_text("go")
        info = handler.wait_closed()
    assert hub_errors == [error]
    assert info.sent == Close(1011, "")


def test_log_records_carry_the_connections_id_and_peer(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("a.logger.of.its.own")
    handler = failing_with(RuntimeError("logged"))
    with serving(handler, ServerOptions(logger=logger)) as server:
        connect(url_of(server), Recorder()).write_text("go")
        handler.wait_closed()
    (record,) = caplog.records
    assert record.name == logger.name
    served: Any = handler.open.get()
    assert record.__dict__["connection"] == served.id
    assert record.__dict__["peer"] == served.remote_address
    assert f"{served.id} 127.0.0.1:{served.remote_address[1]}" in record.getMessage()


# Closing


def test_close_in_the_handler_returns_when_the_handshake_is_done() -> None:
    states = []

    class Closing(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            super().on_message(conn, message)
            conn.close(4002, "enough")
            states.append((conn.closed, conn.close_info.clean))

    handler = Closing()
    with paired(handler) as pair:
        pair.client.write_text("first")
        pair.client.write_text("second")
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=5)
        handler.wait_closed()
    assert closed.value.info.received == Close(4002, "enough")
    assert states == [(True, True)]
    assert handler.messages == ["first"]


def test_close_from_another_greenlet_waits_for_the_end() -> None:
    handler = Recorder()
    with paired(handler, client_handler=Recorder()) as pair:
        closers = [gevent.spawn(pair.server.close, 4003) for _ in range(3)]
        assert len(gevent.joinall(closers, timeout=5)) == 3
        assert pair.server.closed
        assert handler.wait_closed().sent == Close(4003, "")
    assert len(handler.infos) == 1


def test_close_from_another_greenlet_while_the_handler_works_and_then_returns() -> None:
    working, go_on = Event(), Event()

    class Working(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            super().on_message(conn, message)
            working.set()
            go_on.wait(5)

    handler = Working()
    with paired(handler, client_handler=Recorder()) as pair:
        pair.client.write_text("work")
        working.wait(5)
        closer = gevent.spawn(pair.server.close)
        wait_until(lambda: pair.server.state == State.CLOSING)
        assert not closer.dead
        go_on.set()
        closer.join(5)
        assert closer.dead
        assert handler.wait_closed().clean


def test_both_sides_close_at_once() -> None:
    server, client = Recorder(), Recorder()
    with paired(server, client_handler=client) as pair:
        server.open.get(timeout=5)
        client.open.get(timeout=5)
        pair.server.write_close(4004)
        pair.client.write_close(4005)
        assert server.wait_closed().received == Close(4005, "")
        assert client.wait_closed().received == Close(4004, "")
    assert server.infos[0].clean
    assert client.infos[0].clean


def test_messages_that_arrive_after_our_close_frame_are_dropped() -> None:
    handler = Recorder()
    with paired(handler) as pair:
        pair.server.write_close(4006)
        pair.client.write_text("crossed with the close frame")
        with pytest.raises(ConnectionClosed):
            pair.client.receive(timeout=5)
        handler.wait_closed()
    assert handler.messages == []


def test_abort_while_the_handler_works_wakes_nobody_in_user_code() -> None:
    working, go_on, results = Event(), Event(), []

    class Working(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            working.set()
            results.append(go_on.wait(5))

    handler = Working()
    with paired(handler) as pair:
        pair.client.write_text("work")
        working.wait(5)
        pair.server.abort()
        assert pair.server.closed
        gevent.sleep(0)
        assert handler.infos == []
        go_on.set()
        handler.wait_closed()
    assert results == [True]


def test_nothing_is_delivered_after_an_abort() -> None:
    class Aborting(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            super().on_message(conn, message)
            conn.abort()

    handler = Aborting()
    with paired(handler) as pair:
        frames = (frame_header(0x81, 1, bytes(4)) + b"%d" % number for number in range(3))
        pair.client.stream.send_all(b"".join(frames))  # all in one read
        handler.wait_closed()
    assert handler.messages == ["0"]


def test_a_timeout_that_escapes_on_close_reaches_the_hub_and_leaves_nothing(hub_errors: list[BaseException]) -> None:
    error = gevent.Timeout(3)
    handler = failing_with(error, "on_close")
    with serving(handler) as server:
        connect(url_of(server)).close()
        wait_until(lambda: hub_errors)
        wait_until(lambda: not server.connections)
    assert hub_errors == [error]
    assert len(handler.infos) == 1


def test_a_kill_during_the_closing_handshake() -> None:
    handler = Recorder()
    # The client does not read, so the server waits for its close frame.
    with paired(handler) as pair:
        handler.open.get(timeout=5)
        pair.server.write_close(4000)
        gevent.sleep(0)
        pair.server.kill()
        info = handler.wait_closed()
    assert (info.sent, info.received, info.clean) == (Close(4000, ""), None, False)
    assert len(handler.infos) == 1


def test_abort_from_the_hub() -> None:
    handler = Recorder()
    with paired(handler) as pair:
        handler.open.get(timeout=5)
        gevent.get_hub().loop.run_callback(pair.server.abort)
        assert handler.wait_closed().code == 1006


def test_close_from_the_hub_does_not_block_it() -> None:
    handler = Recorder()
    with paired(handler, client_handler=Recorder()) as pair:
        gevent.get_hub().loop.run_callback(pair.server.close, 4007)
        assert handler.wait_closed().sent == Close(4007, "")


def test_on_close_may_not_write_and_need_not_read() -> None:
    errors: list[BaseException] = []

    class Late(Recorder):
        def on_close(self, conn: Any, info: Any) -> None:
            for late in (lambda: conn.write_text("late"), lambda: conn.receive()):
                with pytest.raises(ConnectionClosed) as raised:
                    late()
                errors.append(raised.value)
            assert list(conn) == []
            super().on_close(conn, info)

    handler = Late()
    with paired(handler) as pair:
        pair.client.close()
        info = handler.wait_closed()
    assert [error.info for error in errors if isinstance(error, ConnectionClosed)] == [info, info]


def test_leaving_the_with_block_tells_the_peer_why() -> None:
    for error, code in ((None, 1000), (ValueError("x"), 1011), (KeyboardInterrupt(), 1001)):
        handler = Recorder()
        with paired(handler) as pair:
            expected = pytest.raises(type(error)) if error is not None else nullcontext()
            with expected, pair.client:
                if error is not None:
                    raise error
            assert pair.client.closed
            assert handler.wait_closed().received == Close(code, "")


# Facts


def test_facts_of_a_tcp_connection() -> None:
    handler = Recorder()
    with serving(handler) as server, connect(url_of(server, "/a?b")) as conn:
        served: Any = handler.open.get(timeout=5)
        assert served.state == State.OPEN
        assert not served.closed
        assert served.close_info is None
        assert served.remote_address == conn.local_address
        assert served.local_address == conn.remote_address
        assert served.stream.info("scheme") == "tcp"
        assert served.net_conn.getpeername() == conn.local_address
        assert served.latency is None
        assert served.buffered_amount == 0
        assert f"Connection {served.id} OPEN" in repr(served)
        remote = served.remote_address
        conn.close()
        handler.wait_closed()
        assert served.remote_address == remote
        assert (served.state, served.closed, served.net_conn) == (State.CLOSED, True, None)


def test_net_conn_sets_options_and_closing_it_leaves_the_connection_alone() -> None:
    with serving(EchoHandler()) as server, connect(url_of(server)) as conn:
        sock = conn.net_conn
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        sock.close()
        conn.write_text("still here")
        assert conn.receive(timeout=5) == "still here"


@pytest.mark.parametrize("no_delay", [True, False])
def test_no_delay(no_delay: bool) -> None:
    handler = Recorder()
    with serving(handler, ServerOptions(no_delay=no_delay)) as server, connect(url_of(server)):
        served: Any = handler.open.get(timeout=5)

        def is_set() -> bool:
            return bool(served.net_conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        assert is_set() is no_delay
        served.set_no_delay(not no_delay)
        assert is_set() is not no_delay


def test_set_no_delay_without_tcp_is_a_no_op() -> None:
    with paired(EchoHandler()) as pair:
        pair.server.set_no_delay(True)
        assert pair.server.net_conn is None
        pair.client.write_text("hello")
        assert pair.client.receive(timeout=5) == "hello"


def test_ids_differ() -> None:
    handler = Recorder()
    with serving(handler) as server:
        conns = [connect(url_of(server)) for _ in range(5)]
        wait_until(lambda: len(handler.events) == 5)
        assert len({conn.id for conn in server.connections}) == 5
        for conn in conns:
            conn.close()


@pytest.mark.parametrize("keep", [False, True])
def test_the_request_is_freed_after_on_open_unless_kept(keep: bool) -> None:
    seen: list[Any] = []

    class Looking(Recorder):
        def on_open(self, conn: Any) -> None:
            seen.append((conn.request.method, conn.request.target, conn.request.headers["user-agent"]))

        def on_message(self, conn: Any, message: Message) -> None:
            seen.append(conn.request.target if conn.request is not None else None)
            conn.write_text("seen")

    options = ClientOptions(headers={"User-Agent": "a test"})
    with serving(Looking(), ServerOptions(keep_request=keep)) as server, connect(url_of(server, "/x?y=1"), options=options) as conn:
        conn.write_text("look")
        assert conn.receive(timeout=5) == "seen"
    assert seen == [("GET", "/x?y=1", "a test"), "/x?y=1" if keep else None]


def test_a_session_is_made_on_first_use_and_belongs_to_one_connection() -> None:
    made: list[dict[Any, Any]] = []

    def new_session() -> dict[Any, Any]:
        made.append({"fresh": True})
        return made[-1]

    handler = Recorder()
    with serving(handler, ServerOptions(new_session=new_session)) as server, connect(url_of(server)), connect(url_of(server)):
        wait_until(lambda: len(handler.events) == 2)
        first, second = server.connections
        assert made == []
        assert first.session is first.session
        first.session["name"] = "first"
        assert second.session == {"fresh": True}
        assert len(made) == 2


def test_the_default_session_is_a_dict() -> None:
    handler = Recorder()
    with paired(handler) as pair:
        assert isinstance(pair.server.session, SessionStorage)
        pair.server.session["key"] = 1
        assert pair.server.session == {"key": 1}


def test_read_loop_without_a_handler_is_an_error() -> None:
    with paired(Recorder()) as pair:
        with pytest.raises(GwsError, match="no handler"):
            pair.client.read_loop()


def test_a_client_may_serve_its_read_loop_in_its_own_greenlet() -> None:
    ours, theirs = memory_pair()
    server = gevent.spawn(lambda: Upgrader(lambda conn: conn.write_text("hello and goodbye")).upgrade_stream(ours).read_loop())
    client = Client.from_stream(theirs)
    handler = Recorder()
    client.attach(handler)
    client.read_loop()
    server.join(5)
    assert [event[0] for event in handler.events] == ["open", "message", "close"]
    assert handler.infos[0].received == Close(CloseCode.NORMAL, "")


# Several messages at once


def test_parallel_bounds_how_many_messages_are_handled_at_once() -> None:
    running: list[str] = []
    most = []
    go_on = Event()

    class Slow(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            running.append(message.data)
            most.append(len(running))
            go_on.wait(5)
            running.remove(message.data)
            conn.write_text(message.data)

    with paired(Slow(), ServerOptions(parallel=3)) as pair:
        for number in range(8):
            pair.client.write_text(str(number))
        wait_until(lambda: len(running) == 3)
        gevent.sleep(0)
        assert running == ["0", "1", "2"]
        go_on.set()
        assert {pair.client.receive(timeout=5) for _ in range(8)} == {str(number) for number in range(8)}
    assert max(most) == 3


def test_parallel_handlers_do_not_hold_up_pings() -> None:
    go_on, client = Event(), Recorder()

    class Slow(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            go_on.wait(5)
            conn.write_text("done")

    with paired(Slow(), ServerOptions(parallel=2), client_handler=client) as pair:
        pair.client.write_text("work")
        pair.client.write_ping(b"meanwhile")
        wait_until(lambda: ("pong", b"meanwhile") in client.events)
        assert client.messages == []
        go_on.set()
        wait_until(lambda: client.messages == ["done"])


def test_an_exception_in_a_parallel_handler_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    handler = failing_with(RuntimeError("one of many"))
    with paired(handler, ServerOptions(parallel=2)) as pair:
        pair.client.write_text("go")
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=5)
        handler.wait_closed()
    assert closed.value.info.received == Close(1011, "")
    assert len(handler.infos) == 1


def test_parallel_handlers_that_never_return_end_with_their_connection() -> None:
    started, ended = [], []

    class Stuck(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            started.append(message.data)
            try:
                Event().wait()
            finally:
                ended.append(message.data)

    handler = Stuck()
    with paired(handler, ServerOptions(parallel=2, close_timeout=0.05)) as pair:
        pair.client.write_text("1")
        pair.client.write_text("2")
        wait_until(lambda: len(started) == 2)
        pair.client.abort()
        handler.wait_closed()
    assert sorted(ended) == ["1", "2"]


def test_a_kill_while_parallel_handlers_are_waited_for_still_calls_on_close() -> None:
    started, ended = [], []

    class Stuck(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            started.append(message.data)
            try:
                Event().wait()
            finally:
                ended.append(message.data)

    handler = Stuck()
    with paired(handler, ServerOptions(parallel=1, close_timeout=60)) as pair:
        pair.client.write_text("1")
        wait_until(lambda: started)
        pair.server.abort()
        gevent.sleep(0)  # its greenlet waits for the handler from now on
        gevent.sleep(0)
        pair.server.kill()  # as stop() does in the end
        handler.wait_closed(1)
    assert ended == ["1"]
    assert len(handler.infos) == 1


def test_a_timeout_in_a_parallel_handler_closes_with_1011(
    caplog: pytest.LogCaptureFixture, hub_errors: list[BaseException]
) -> None:
    error = gevent.Timeout(3)
    handler = failing_with(error)
    with paired(handler, ServerOptions(parallel=2)) as pair:
        pair.client.write_text("go")
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=2)
        handler.wait_closed()
    assert closed.value.info.received == Close(1011, "")
    assert hub_errors == [error]


@pytest.mark.parametrize("how", ["abort", "reset"])
def test_a_connection_that_a_fault_ended_needs_no_collection(how: str) -> None:
    handler = Recorder()
    gc.collect()
    before = sum(isinstance(one, Connection) for one in gc.get_objects())
    gc.disable()
    try:
        with serving(handler) as server:
            for _ in range(20):
                client = connect(url_of(server))
                if how == "reset":
                    client.stream.abort()
                client.abort()
            wait_until(lambda: len(handler.infos) == 20)
            wait_until(lambda: not server.connections)
        assert all(info.error is not None for info in handler.infos)
        handler.events.clear()
        handler.open = AsyncResult()
        del client
        gevent.sleep(0)
        assert sum(isinstance(one, Connection) for one in gc.get_objects()) == before
    finally:
        gc.enable()
