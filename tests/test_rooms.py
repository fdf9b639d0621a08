"""Rooms: who is in them, when they leave, who hears what, in which order, from which thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gws_gevent import CloseInfo, Connection, ConnectionClosed, Opcode, Rooms, ServerOptions, connect
from tests.pairs import Pair, Recorder, paired, serving, url_of
from tests.support import wait_until
from tests.test_broadcast import Encodings, Told
from tests.test_threads import hold_the_hub, in_thread
from tests.test_writing import in_hub

TEXT, BINARY = Opcode.TEXT, Opcode.BINARY


@contextmanager
def pairs(count: int, options: ServerOptions | None = None, **more: Any) -> Iterator[list[Pair]]:
    with ExitStack() as stack:
        yield [stack.enter_context(paired(Recorder(), options, **more)) for _ in range(count)]


def heard(pair: Pair) -> list[Any]:
    """Everything that came before the connection was closed."""
    pair.server.write_close()
    return list(pair.client)


# Membership


def test_joining_and_leaving() -> None:
    rooms = Rooms()
    with pairs(2) as (one, two):
        a, b = one.server, two.server
        assert rooms.join("lobby", a)
        assert rooms.join("lobby", b)
        assert not rooms.join("lobby", a)
        assert rooms.join(("any", "hashable"), a)
        assert rooms.members("lobby") == [a, b]
        assert rooms.rooms_of(a) == ["lobby", ("any", "hashable")]
        assert (rooms.count("lobby"), rooms.count("elsewhere")) == (2, 0)
        assert rooms.rooms() == ["lobby", ("any", "hashable")]
        assert rooms.leave("lobby", a)
        assert not rooms.leave("lobby", a)
        assert not rooms.leave("elsewhere", a)
        assert rooms.members("lobby") == [b]
        assert rooms.leave_all(a) == [("any", "hashable")]
        assert rooms.leave_all(a) == []
        assert rooms.rooms() == ["lobby"]
        assert rooms.rooms_of(a) == rooms.members("elsewhere") == []


def test_a_room_that_nobody_is_in_is_gone_and_so_is_what_a_connection_cost() -> None:
    rooms = Rooms()
    with pairs(1) as (pair,):
        gevent.sleep(0.01)  # its greenlet comes to wait
        references = sys.getrefcount(pair.server)
        for name in range(100):
            rooms.join(name, pair.server)
        for name in range(50):
            rooms.leave(name, pair.server)
        rooms.leave_all(pair.server)
        assert rooms.rooms() == []
        left = sys.getrefcount(pair.server)
        assert left == references


@pytest.mark.parametrize("how", ["close", "abort", "kill", "the peer closes", "the peer aborts"])
def test_membership_ends_with_the_connection(how: str) -> None:
    rooms = Rooms()
    with paired(Recorder(), client_handler=Recorder()) as pair, paired(Recorder()) as other:
        for name in ("lobby", "elsewhere"):
            rooms.join(name, pair.server)
        rooms.join("lobby", other.server)
        end = {
            "close": pair.server.close, "abort": pair.server.abort, "kill": pair.server.kill, "the peer closes": pair.client.close,
            "the peer aborts": pair.client.abort,
        }[how]  # fmt: skip
        end()
        wait_until(lambda: rooms.rooms() == ["lobby"])
        assert rooms.members("lobby") == [other.server]
        assert rooms.rooms_of(pair.server) == []


def test_on_close_may_still_ask_and_tell_the_room() -> None:
    rooms = Rooms()
    left: list[Any] = []

    class Member(Recorder):
        def on_open(self, conn: Connection) -> None:
            rooms.join("lobby", conn)
            super().on_open(conn)

        def on_close(self, conn: Connection, info: CloseInfo) -> None:
            left.extend(rooms.leave_all(conn))
            for room in left:
                rooms.broadcast(room, TEXT, "somebody left")
            super().on_close(conn, info)

    handler = Member()
    with paired(handler) as one, paired(handler) as two:
        wait_until(lambda: rooms.count("lobby") == 2)
        one.server.abort()
        assert two.client.receive(timeout=5) == "somebody left"
        assert left == ["lobby"]
    wait_until(lambda: rooms.rooms() == [])


def test_connections_that_a_function_reads_leave_as_well() -> None:
    rooms = Rooms()
    go_on = Event()

    def member(conn: Connection) -> None:
        rooms.join("lobby", conn)
        go_on.wait(5)

    with serving(member) as server, connect(url_of(server)) as client:
        wait_until(lambda: rooms.count("lobby") == 1)
        rooms.broadcast("lobby", TEXT, "hello")
        assert client.receive(timeout=5) == "hello"
        rooms.join("ours", client)
        go_on.set()
        assert list(client) == []
        client.close()
        wait_until(lambda: rooms.rooms() == [])


def test_who_has_closed_cannot_join() -> None:
    rooms = Rooms()
    joined: list[Any] = []

    class Late(Recorder):
        def on_close(self, conn: Connection, info: CloseInfo) -> None:
            with pytest.raises(ConnectionClosed):
                rooms.join("late", conn)
            joined.append(rooms.rooms())
            super().on_close(conn, info)

    handler = Late()
    with paired(handler) as pair:
        pair.server.abort()
        with pytest.raises(ConnectionClosed):
            rooms.join("lobby", pair.server)
        handler.wait_closed()
    assert joined == [[]]
    assert rooms.rooms() == []


def test_close_callbacks_are_called_once_behind_on_close_and_can_be_taken_back() -> None:
    order: list[str] = []

    class Closing(Recorder):
        def on_close(self, conn: Connection, info: CloseInfo) -> None:
            order.append("on_close")
            super().on_close(conn, info)

    def fail(conn: Connection) -> None:
        order.append("fails")
        raise RuntimeError("in a callback")

    def second(conn: Connection) -> None:
        order.append("second")

    def never(conn: Connection) -> None:
        order.append("never")

    handler = Closing()
    with paired(handler, client_handler=Recorder()) as pair:
        for callback in (fail, never, second, never):
            pair.server.add_close_callback(callback)
        for _ in range(3):
            pair.server.remove_close_callback(never)
        pair.server.close()
        handler.wait_closed()
        wait_until(lambda: len(order) == 3)
        with pytest.raises(ConnectionClosed):
            pair.server.add_close_callback(never)
    assert order == ["on_close", "fails", "second"]


# Broadcasts


def test_everybody_but_the_sender_hears_it_and_it_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encodings, told = Encodings(monkeypatch), Told()
    rooms = Rooms()
    with pairs(4) as all_pairs:
        for pair in all_pairs[:3]:
            rooms.join("lobby", pair.server)
        assert rooms.broadcast("lobby", TEXT, "from one", sender=all_pairs[0].server, callback=told) == {}
        wait_until(lambda: len(told.errors) == 2)
        assert set(told.kinds()) == {all_pairs[1].server, all_pairs[2].server}
        assert encodings.count == 1
        assert rooms.broadcast("lobby", BINARY, b"to all") == {}
        # The sender need not be a member.
        assert rooms.broadcast("lobby", TEXT, "from four", sender=all_pairs[3].server) == {}
        assert rooms.broadcast("nobody is here", TEXT, "x") == {}
        with pytest.raises(TypeError, match="a BINARY message is bytes, not str"):
            rooms.broadcast("nobody is here", BINARY, "x")
        everything = [heard(pair) for pair in all_pairs]
    others = ["from one", b"to all", "from four"]
    assert everything == [[b"to all", "from four"], others, others, []]


def test_what_is_no_connection_joins_no_room() -> None:
    rooms = Rooms()
    with pairs(1) as all_pairs, pytest.raises(TypeError, match=r"join\(room, conn\), and 'lobby' is none"):
        rooms.join(all_pairs[0].server, "lobby")  # type: ignore[arg-type]
    assert rooms.rooms() == []


def test_a_member_that_fails_is_reported_and_stops_nobody() -> None:
    rooms = Rooms()
    with pairs(3, ServerOptions(slow_consumer="drop", write_queue_size=1000), capacity=500) as all_pairs:
        for pair in all_pairs:
            rooms.join("lobby", pair.server)
        all_pairs[1].server.write_async(BINARY, bytes(5000))
        assert list(rooms.broadcast("lobby", TEXT, "hello")) == [all_pairs[1].server]
        assert [all_pairs[at].client.receive(timeout=5) for at in (0, 2)] == ["hello", "hello"]




@pytest.mark.slow
def test_all_members_hear_several_speakers_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gws_gevent.broadcast.TURN", -1.0)
    rooms = Rooms()
    with pairs(50) as all_pairs:
        for pair in all_pairs:
            rooms.join("lobby", pair.server)
        speakers = [
            gevent.spawn(lambda name=name: [rooms.broadcast("lobby", TEXT, f"{name} {number}") for number in range(5)])
            for name in range(8)
        ]
        gevent.joinall(speakers, timeout=10, raise_error=True)
        everything = [heard(pair) for pair in all_pairs]
    assert len(everything[0]) == 40
    assert all(one == everything[0] for one in everything)
    # Each spoke once before anybody spoke a second time.
    assert [line.partition(" ")[2] for line in everything[0]] == [str(number) for number in range(5) for _ in range(8)]


def test_who_waits_for_a_slow_member_holds_up_no_other_speaker() -> None:
    rooms = Rooms()
    options = ServerOptions(slow_consumer="block", write_queue_size=1000)
    with paired(Recorder(), options, capacity=500) as slow, pairs(2) as others:
        for pair in (slow, *others):
            rooms.join("lobby", pair.server)
        slow.server.write_async(BINARY, bytes(5000))
        waiting = gevent.spawn(rooms.broadcast, "lobby", TEXT, "one")
        gevent.sleep(0)
        second = gevent.spawn(rooms.broadcast, "lobby", TEXT, "two")
        for pair in others:
            assert [pair.client.receive(timeout=5) for _ in range(2)] == ["one", "two"]
        assert not waiting.dead
        assert sorted([slow.client.receive(timeout=5) for _ in range(3)][1:]) == ["one", "two"]
        gevent.joinall([waiting, second], timeout=5, raise_error=True)


def test_in_the_hub_nothing_waits_not_even_for_another_speaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gws_gevent.broadcast.TURN", -1.0)
    rooms = Rooms()
    with pairs(40) as all_pairs:
        for pair in all_pairs:
            rooms.join("lobby", pair.server)
        speaking = gevent.spawn(rooms.broadcast, "lobby", TEXT, "greenlet")
        gevent.sleep(0)
        assert in_hub(lambda: rooms.broadcast("lobby", TEXT, "hub")) == {}
        speaking.get(timeout=5)
        assert all(sorted(heard(pair)) == ["greenlet", "hub"] for pair in all_pairs)


@pytest.mark.parametrize("run", [in_thread, hold_the_hub], ids=["the hub runs", "the hub is held"])
def test_rooms_are_safe_across_threads(run: Any) -> None:
    rooms = Rooms()
    with pairs(5) as all_pairs:
        conns = [pair.server for pair in all_pairs]

        def elsewhere() -> None:
            for conn in conns:
                rooms.join("lobby", conn)
            assert rooms.broadcast("lobby", TEXT, "from a thread", sender=conns[0]) == {}
            rooms.leave("lobby", conns[1])

        run(elsewhere)
        assert rooms.members("lobby") == [conns[0], *conns[2:]]
        rooms.broadcast("lobby", TEXT, "from here")
        everything = [sorted(heard(pair)) for pair in all_pairs]
        wait_until(lambda: rooms.rooms() == [])
    both = ["from a thread", "from here"]
    assert everything == [["from here"], ["from a thread"], both, both, both]


def test_threads_that_join_and_leave_at_once_leave_nothing_behind() -> None:
    rooms = Rooms()
    with pairs(3) as all_pairs:
        conns = [pair.server for pair in all_pairs]

        def churn(number: int) -> None:
            for at in range(300):
                room = (at + number) % 4
                for conn in conns:
                    rooms.join(room, conn)
                    rooms.members(room)
                    rooms.leave(room, conn)

        pool = gevent.get_hub().threadpool
        threads = [pool.spawn(churn, number) for number in range(3)]
        for thread in threads:
            thread.get(timeout=20)
        for conn in conns:
            rooms.leave_all(conn)
        assert rooms.rooms() == []
