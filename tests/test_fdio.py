"""The rules of the runtime, as far as descriptors and the waiting on them go: both builds of `_fdio`, by themselves.

Belongs here: what one stream, or many in one look at the poller, must do. Does not belong here: the transport contract (the
conformance kit), connections (test_parking.py, test_system_calls.py).
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from gevent.monkey import get_original
from greenlet import getcurrent, greenlet, settrace

from gws_gevent.exceptions import StreamClosed
from tests.core import BUILDS
from tests.support import run_program, wait_until
from tests.test_accel import compiled

start_new_thread = get_original("_thread", "start_new_thread")

KINDS = pytest.mark.parametrize("kind", ["unix", "tcp"])
#: Larger than anything sent at once: every read is a short one.
ROOM = 4096


def stream_class(build: str) -> Any:
    module = import_module("gws_gevent._fdio") if build == "plain" else compiled("_fdio")
    return module.SocketStream


@pytest.fixture(scope="module", autouse=True)
def poller() -> None:
    """Make the hub's poller before the first test, which would seem to leak its descriptor where the plain build is in use."""
    for sock in socket.socketpair():
        stream_class("compiled").adopt(sock).close()


def connected_sockets(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listening:
        one = socket.create_connection(listening.getsockname())
        two, _ = listening.accept()
    return one, two


@contextmanager
def several(build: str, count: int, kind: str = "unix") -> Iterator[tuple[list[Any], list[socket.socket]]]:
    """So many streams, and the plain socket at the other end of each."""
    ours: list[Any] = []
    theirs: list[socket.socket] = []
    try:
        for _ in range(count):
            one, two = connected_sockets(kind)
            ours.append(stream_class(build).adopt(one))
            two.setblocking(False)
            theirs.append(two)
        yield ours, theirs
    finally:
        for stream in ours:
            stream.close()
        for sock in theirs:
            sock.close()


@contextmanager
def pair(build: str, kind: str = "unix") -> Iterator[tuple[Any, socket.socket]]:
    with several(build, 1, kind) as (ours, theirs):
        yield ours[0], theirs[0]


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except (Exception, gevent.Timeout) as error:
        return error


def waiting(function: Callable[..., Any], *args: Any) -> Any:
    """Start a greenlet and let it reach the place where it waits."""
    started = gevent.spawn(outcome, function, *args)
    gevent.sleep(0)
    assert not started.dead
    return started


def some_turns_of_the_loop() -> None:
    """Long enough for whatever is ready to be reported, more than once."""
    for _ in range(5):
        gevent.sleep(0)
    gevent.sleep(0.005)


def in_hub(function: Callable[[], Any]) -> Any:
    result = AsyncResult()
    gevent.get_hub().loop.run_callback(lambda: result.set(outcome(function)))
    return result.get(timeout=5)


def in_thread(function: Callable[[], Any]) -> Any:
    """Run `function` in a thread that has a hub of its own."""
    results: list[Any] = []

    def run() -> None:
        result = outcome(function)
        gevent.get_hub().destroy(destroy_loop=True)
        results.append(result)

    start_new_thread(run, ())
    wait_until(lambda: results, what="the thread")
    return results[0]


def read_all(stream: Any, size: int = ROOM) -> bytes:
    received, buffer = bytearray(), bytearray(size)
    while count := stream.recv_into(buffer):
        received += buffer[:count]
    return bytes(received)


@contextmanager
def caught_by_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    caught: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, traceback: caught.append(value))
        yield caught


# --- 1: the end of the stream


@BUILDS
@KINDS
@pytest.mark.parametrize("waits_first", [True, False], ids=["waits first", "comes later"])
def test_an_end_that_comes_with_the_data_is_seen(build: str, kind: str, waits_first: bool) -> None:
    with several(build, 300, kind) as (ours, theirs):
        readers = [waiting(read_all, stream) for stream in ours] if waits_first else []
        for number, sock in enumerate(theirs):
            sock.send(b"%d" % number)
            sock.shutdown(socket.SHUT_WR)
        readers = readers or [gevent.spawn(read_all, stream) for stream in ours]
        gevent.joinall(readers, timeout=10)
        assert [reader.value for reader in readers] == [b"%d" % number for number in range(300)]


@BUILDS
@KINDS
def test_no_second_read_follows_a_short_one(build: str, kind: str) -> None:
    with pair(build, kind) as (ours, theirs):
        theirs.send(b"one")
        buffer = bytearray(ROOM)
        assert ours.recv_into(buffer) == 3
        theirs.send(b"two")  # the loop has not run: nothing can know of it
        assert ours.try_recv_into(buffer) == -1
        ours.wait_readable()
        assert ours.try_recv_into(buffer) == 3
        assert buffer[:3] == b"two"


@BUILDS
@KINDS
def test_an_end_is_told_again_and_again(build: str, kind: str) -> None:
    with pair(build, kind) as (ours, theirs):
        reader = waiting(read_all, ours)
        theirs.shutdown(socket.SHUT_WR)
        reader.join(timeout=5)
        assert reader.value == b""
        for _ in range(3):
            assert ours.recv_into(bytearray(10)) == 0
        ours.send_all(b"still open this way")
        assert theirs.recv(100) == b"still open this way"


# --- 4: descriptors


@BUILDS
@KINDS
def test_bytes_are_counted_where_somebody_asked(build: str, kind: str) -> None:
    with pair(build, kind) as (stream, peer):
        stream.try_send(b"before")
        assert stream.info("bytes") is None
        stream.count_bytes()
        peer.sendall(b"x" * 1000)
        assert stream.recv_into(bytearray(ROOM)) == 1000
        stream.count_bytes()
        stream.try_send(b"four")
        stream.try_send_parts([b"and", b"five5"])
        stream.try_send_frame(0x82, b"y" * 10)
        stream.try_send_frame(0x82, b"y" * 5000)
        stream.close()
        assert stream.info("bytes") == (1000, 4 + 8 + 12 + 5004)


def registered_inodes() -> set[int]:
    """The inodes of everything that an epoll of this process watches."""
    found: set[int] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            with open(f"/proc/self/fdinfo/{name}") as file:
                lines = [line for line in file if line.startswith("tfd:")]
        except FileNotFoundError:
            continue
        found |= {int(line.split(" ino:")[1].split()[0], 16) for line in lines}
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of an epoll")
@pytest.mark.parametrize("how", ["close", "abort", "drop"])
def test_a_stream_is_out_of_the_poller_before_its_descriptor_is_closed(how: str) -> None:
    # The compiled build: the other one has watchers of libev's, which looks after its own epoll.
    one, theirs = socket.socketpair()
    streams = [stream_class("compiled").adopt(one)]
    theirs.send(b"so that it is registered")
    streams[0].wait_readable()
    copy = os.dup(streams[0].fileno())
    try:
        assert os.fstat(copy).st_ino in registered_inodes()
        if how == "drop":
            gevent.sleep(0)  # the poller lets go of the one whose event woke us
            with pytest.warns(ResourceWarning, match="unclosed"):
                streams.clear()
        else:
            getattr(streams[0], how)()
        assert os.fstat(copy).st_ino not in registered_inodes()
    finally:
        os.close(copy)
        theirs.close()


@BUILDS
def test_what_a_duplicate_receives_wakes_nobody(build: str) -> None:
    with pair(build) as (first, theirs):
        reader = waiting(first.wait_readable)
        number = first.fileno()
        copy = os.dup(number)
        first.abort()
        reader.join(timeout=5)
        one, other = socket.socketpair()
        stream = stream_class(build).adopt(one)
        try:
            assert stream.fileno() == number
            reader = waiting(stream.wait_readable)
            theirs.send(b"to the duplicate")
            some_turns_of_the_loop()
            assert not reader.dead
            other.send(b"to the stream")
            reader.join(timeout=5)
            assert stream.try_recv_into(bytearray(100)) == 13
            assert os.read(copy, 100) == b"to the duplicate"
        finally:
            os.close(copy)
            stream.close()
            other.close()


@BUILDS
def test_an_event_of_a_closed_stream_does_not_reach_the_next_one_with_its_number(build: str) -> None:
    hub = gevent.get_hub()
    heirs: list[Any] = []
    woken: list[bool] = []

    def read_and_replace(first: Any, second: Any) -> None:
        first.wait_readable()
        # The event of `second` lies in the same batch. Its descriptor's number, and its slot, go to the heir, which waits.
        number = second.fileno()
        second.abort()
        one, peer = socket.socketpair()
        heirs.extend((stream_class(build).adopt(one), peer))
        assert heirs[0].fileno() == number
        hub.loop.run_callback(getcurrent().switch)
        greenlet(inherit, hub).switch()

    def inherit() -> None:
        heirs[0].wait_readable()
        woken.append(True)

    with several(build, 2) as (ours, theirs):
        theirs[1].send(b"so that it is registered")
        ours[1].wait_readable()
        assert ours[1].try_recv_into(bytearray(ROOM)) == 24
        reader = waiting(read_and_replace, *ours)
        try:
            theirs[0].send(b"first")
            theirs[1].send(b"second")
            reader.join(timeout=5)
            assert reader.value is None
            some_turns_of_the_loop()
            assert woken == []
            heirs[1].send(b"for the heir")
            wait_until(lambda: woken, what="the heir")
        finally:
            for end in heirs:
                end.close()


@BUILDS
@KINDS
def test_no_descriptor_is_inherited_by_programs(build: str, kind: str) -> None:
    with pair(build, kind) as (ours, _):
        reader = waiting(ours.wait_readable)
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue
            if target.startswith(("socket:", "anon_inode:")):
                assert not os.get_inheritable(int(name)), target
        assert not os.get_inheritable(ours.fileno())
        ours.close()
        reader.join(timeout=5)


def in_program(build: str, program: str) -> dict[str, Any]:
    """Run a program in a process of its own with one of the builds; its last line is its result."""
    if build == "compiled":
        compiled("_fdio")
    environment = {"GWS_GEVENT_PURE_PYTHON": "1" if build == "plain" else "", "PYTHONWARNINGS": "error"}
    ended = run_program([sys.executable, "-c", program], env=environment)
    assert ended.status == 0, ended
    result: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
    return result


#: What the programs below begin with.
PROLOGUE = """
import json, os, socket
import gevent
from gws_gevent import EventHandler, Server, connect
from gws_gevent.transports.tcp import SocketStream

def registered():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            with open(f"/proc/self/fdinfo/{name}") as file:
                found |= {int(line.split(" ino:")[1].split()[0], 16) for line in file if line.startswith("tfd:")}
        except FileNotFoundError:
            pass
    return found

def waiting(function, *args):
    started = gevent.spawn(function, *args)
    gevent.sleep(0.01)
    assert not started.dead
    return started

def fork_and_run(child):
    # The child's verdict comes back through a pipe; it stays until we say so.
    ours, theirs = os.pipe()
    go_on, said = os.pipe()
    pid = FORK()
    if not pid:
        try:
            os.close(said)
            try:
                verdict = child()
            except BaseException as error:
                verdict = repr(error)
            os.write(theirs, json.dumps(verdict).encode())
            os.close(theirs)
            os.read(go_on, 1)
        finally:
            os._exit(0)
    os.close(theirs)
    os.close(go_on)
    verdict = b""
    while piece := os.read(ours, 65536):
        verdict += piece
    os.close(ours)
    return json.loads(verdict), lambda: (os.close(said), os.waitpid(pid, 0))

FORK = gevent.os.fork

class Echo(EventHandler):
    def on_message(self, conn, message):
        conn.write_message(message.opcode, message.data)
"""

CHILD_WITH_STREAMS = """
one, two = (SocketStream.adopt(sock) for sock in socket.socketpair())
reader = waiting(one.recv_into, bytearray(10))

def child():
    pairs = [[SocketStream.adopt(sock) for sock in socket.socketpair()] for _ in range(50)]
    readers = [waiting(ours.recv_into, bytearray(10)) for ours, _ in pairs]
    inodes = [os.fstat(ours.fileno()).st_ino for ours, _ in pairs]
    for _, theirs in pairs[:25]:
        theirs.send_all(b"hello")
    gevent.joinall(readers[:25], timeout=5)
    return {"inodes": inodes, "read": [reader.value for reader in readers[:25]], "waiting": sum(not r.dead for r in readers[25:])}

verdict, end = fork_and_run(child)
shared = set(verdict.pop("inodes")) & registered()
two.send_all(b"parent")
reader.join(timeout=5)
verdict.update(shared=len(shared), value=reader.value)
end()
one.close(), two.close()
print(json.dumps(verdict))
"""


@pytest.mark.slow
@BUILDS
def test_what_a_forked_child_registers_is_unknown_to_its_parent(build: str) -> None:
    result = in_program(build, PROLOGUE + CHILD_WITH_STREAMS)
    assert result == {"read": [5] * 25, "waiting": 25, "shared": 0, "value": 6}


#: What a child may do to a stream that its parent goes on using.
GOODBYES = {
    "close": "one.close()",
    "abort": "one.abort()",
    "drop": "del one",
    "exit": "pass",
}

CHILD_THAT_CLOSES = """
one, two = (SocketStream.adopt(sock) for sock in SOCKETS())
reader = waiting(one.recv_into, bytearray(10)) if WAITS else None
if not WAITS:
    two.send_all(b"x")
    one.recv_into(bytearray(10))
    gevent.sleep(0)

def child():
    global one, reader
    reader = None
    GOODBYE
    gevent.sleep(0.01)
    return "done"

verdict, end = fork_and_run(child)
end()
if reader is None:
    reader = waiting(one.recv_into, bytearray(10))
two.send_all(b"parent")
reader.join(timeout=2)
buffer = bytearray(10)
one.send_all(b"back")
back, linger = two.recv_into(buffer), one.info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_LINGER)
print(json.dumps({"verdict": verdict, "value": reader.value, "back": back, "linger": linger}))
one.close(), two.close()
"""

TCP_SOCKETS = """
def SOCKETS():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        return one, listening.accept()[0]
"""


@pytest.mark.slow
@BUILDS
@KINDS
@pytest.mark.parametrize("how", GOODBYES)
def test_what_a_forked_child_closes_lives_on_in_its_parent(build: str, kind: str, how: str) -> None:
    sockets = TCP_SOCKETS if kind == "tcp" else "SOCKETS = socket.socketpair\n"
    waits = f"WAITS = {how == 'exit'}\n"
    program = PROLOGUE + sockets + waits + CHILD_THAT_CLOSES.replace("GOODBYE", GOODBYES[how])
    if how == "drop":
        program = program.replace(
            "global one, reader", 'global one, reader\n    import warnings\n    warnings.simplefilter("ignore")'
        )
    assert in_program(build, program) == {"verdict": "done", "value": 6, "back": 4, "linger": 0}


CHILD_THAT_READS = """
one, two = (SocketStream.adopt(sock) for sock in socket.socketpair())
if REGISTERED:
    two.send_all(b"x")
    one.recv_into(bytearray(10))
    gevent.sleep(0)
inode = os.fstat(one.fileno()).st_ino
before = inode in registered()

def child():
    gevent.spawn_later(0.02, two.send_all, b"to myself")
    with gevent.Timeout(2, False):
        try:
            while (count := one.try_recv_into(bytearray(10))) < 0:
                one.wait_readable()
            return count
        except Exception as error:
            return type(error).__name__
    return "it waited for ever"

verdict, end = fork_and_run(child)
print(json.dumps({"verdict": verdict, "same": (inode in registered()) == before}))
end()
one.close(), two.close()
"""


@pytest.mark.slow
@BUILDS
@pytest.mark.parametrize("registered", [True, False], ids=["registered", "not registered"])
def test_a_stream_that_a_forked_child_inherited_works_or_is_refused_and_stays_the_parents(build: str, registered: bool) -> None:
    program = PROLOGUE + f"REGISTERED = {registered}\n" + CHILD_THAT_READS
    result = in_program(build, program)
    assert result["same"]
    assert result["verdict"] in (9, "ConcurrentObjectUseError")


CHILD_THAT_ASKS = """
one, two = (SocketStream.adopt(sock) for sock in socket.socketpair())
inode = os.fstat(one.fileno()).st_ino

class Waiter:
    def on_readable(self):
        pass

def child():
    try:
        ASK
        return "taken"
    except Exception as error:
        return type(error).__name__

verdict, end = fork_and_run(child)
print(json.dumps({"verdict": verdict, "shared": inode in registered()}))
end()
one.close(), two.close()
"""


@pytest.mark.slow
@BUILDS
@pytest.mark.parametrize("ask", ["one.call_when_writable(int)", "one.call_when_readable(Waiter())"])
def test_a_callback_that_a_forked_child_asks_for_is_unknown_to_its_parent(build: str, ask: str) -> None:
    result = in_program(build, PROLOGUE + CHILD_THAT_ASKS.replace("ASK", ask))
    assert result["shared"] is False
    assert result["verdict"] == ("ConcurrentObjectUseError" if build == "compiled" else "taken")


SERVED_BY_BOTH = """
server = Server(Echo())
server.start("127.0.0.1:0")
conn = connect(server.address.replace("tcp", "ws"))
conn.send("before")
before = conn.receive(timeout=5)

def child():
    # As a worker that is forked from a master that serves already.
    mine = Server(Echo())
    mine.start("127.0.0.1:0")
    with connect(mine.address.replace("tcp", "ws")) as other:
        other.send("in the child")
        answer = other.receive(timeout=5)
    mine.stop()
    return answer

verdict, end = fork_and_run(child)
end()
conn.send("after")
after = conn.receive(timeout=5)
conn.close()
server.stop()
print(json.dumps({"before": before, "child": verdict, "after": after}))
"""


@pytest.mark.slow
@BUILDS
@pytest.mark.parametrize("fork", ["gevent.os.fork", "fork_and_reinit"])
def test_a_server_in_a_forked_child_and_the_one_in_its_parent(build: str, fork: str) -> None:
    reinit = "def fork_and_reinit():\n    pid = os.fork()\n    if not pid:\n        gevent.reinit()\n    return pid\n"
    program = PROLOGUE + reinit + f"FORK = {fork}\n" + SERVED_BY_BOTH
    assert in_program(build, program) == {"before": "before", "child": "in the child", "after": "after"}


# --- 5: closing


@BUILDS
@KINDS
@pytest.mark.parametrize("how", ["close", "abort"])
def test_the_number_is_given_back_when_reader_and_writer_have_both_left(build: str, kind: str, how: str) -> None:
    seen: list[bool] = []

    def wait(function: Callable[[], Any], number: int) -> None:
        with pytest.raises(StreamClosed):
            function()
        try:
            os.fstat(number)
            seen.append(True)
        except OSError:
            seen.append(False)

    with pair(build, kind) as (ours, _):
        while ours.try_send(b"x" * 65536):
            pass
        number = ours.fileno()
        both = [waiting(wait, ours.wait_readable, number), waiting(wait, ours.wait_writable, number)]
        getattr(ours, how)()
        gevent.joinall(both, timeout=5, raise_error=True)
    assert seen == [True, False]


@BUILDS
def test_a_number_is_not_given_to_another_stream_while_one_waits(build: str) -> None:
    with pair(build) as (ours, _):
        number = ours.fileno()
        reader = waiting(ours.recv_into, bytearray(10))
        ours.close()
        with several(build, 3) as (others, sockets):
            assert number not in [other.fileno() for other in (*others, *sockets)]
            reader.join(timeout=5)
        assert isinstance(reader.value, StreamClosed)


# --- 6: wake-ups


@BUILDS
@pytest.mark.parametrize("how", ["close", "abort"])
def test_one_that_closes_all_others_in_the_same_batch(build: str, how: str) -> None:
    woken: list[int] = []
    closed: list[int] = []

    def read(number: int, streams: list[Any]) -> None:
        try:
            streams[number].wait_readable()
        except StreamClosed:
            closed.append(number)
            # Switched into wrongly here, by its event, gevent's own wait would complain.
            gevent.sleep(0.005)
            return
        woken.append(number)
        for other in streams:
            if other is not streams[number]:
                getattr(other, how)()

    with several(build, 40) as (ours, theirs):
        readers = [gevent.spawn(read, number, ours) for number in range(40)]
        gevent.sleep(0)
        for sock in theirs:
            sock.send(b"all at once")
        gevent.joinall(readers, timeout=5, raise_error=True)
    assert len(woken) == 1
    assert sorted(woken + closed) == list(range(40))


@BUILDS
def test_one_that_takes_the_others_out_of_their_wait_in_the_same_batch(build: str) -> None:
    hub = gevent.get_hub()
    woken: list[int] = []
    left: list[int] = []
    wrongly: list[int] = []
    released = False

    def read(number: int, stream: Any) -> None:
        try:
            stream.wait_readable()
        except gevent.Timeout:
            left.append(number)
            # It waits for something else by now; its stream's event still lies in the batch.
            readers[woken[0]].switch()
            if not released:
                wrongly.append(number)
            return
        woken.append(number)
        for other in readers:
            if other is not readers[number]:
                other.throw(gevent.Timeout(None))

    with several(build, 10) as (ours, theirs):
        readers = [greenlet(read, hub) for number in range(10)]
        for number, reader in enumerate(readers):
            hub.loop.run_callback(reader.switch, number, ours[number])
        gevent.sleep(0)
        for sock in theirs:
            sock.send(b"all at once")
        wait_until(lambda: len(woken) + len(left) == 10, what="all of them")
        some_turns_of_the_loop()
        released = True
        for number in left:
            hub.loop.run_callback(readers[number].switch)
        wait_until(lambda: all(reader.dead for reader in readers), what="the end of all")
        assert wrongly == []
        assert len(woken) == 1
        # Nobody took the data, and nobody has to send more for it to be found.
        for stream in ours:
            with gevent.Timeout(5):
                assert stream.recv_into(bytearray(100)) == 11


@BUILDS
def test_an_exception_out_of_a_greenlet_reaches_the_hub_and_the_rest_of_the_batch_is_served(
    build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[int] = []

    def read(number: int, stream: Any) -> None:
        served.append(stream.recv_into(bytearray(10)) * number)
        if number % 3 == 0:
            raise ValueError(number)

    with several(build, 30) as (ours, theirs), caught_by_hub(monkeypatch) as caught:
        hub = gevent.get_hub()
        for number in range(30):
            hub.loop.run_callback(greenlet(read, hub).switch, number, ours[number])
        gevent.sleep(0)
        for sock in theirs:
            sock.send(b"x")
        wait_until(lambda: len(served) == 30, what="all of them")
        some_turns_of_the_loop()
        assert sorted(served) == list(range(30))
        assert sorted(str(error) for error in caught) == sorted(map(str, range(0, 30, 3)))
        # And the next batch comes.
        reader = waiting(ours[1].recv_into, bytearray(10))
        theirs[1].send(b"y")
        reader.join(timeout=5)
        assert reader.value == 1


@BUILDS
@KINDS
def test_an_exception_out_of_the_reader_takes_nothing_from_the_writer(
    build: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(stream: Any) -> None:
        stream.wait_readable()
        raise ValueError("reader")

    with pair(build, kind) as (ours, theirs), caught_by_hub(monkeypatch) as caught:
        hub = gevent.get_hub()
        while ours.try_send(b"x" * 65536):
            pass
        hub.loop.run_callback(greenlet(read, hub).switch, ours)
        writer = waiting(ours.wait_writable)
        # Readable and writable at once: one event tells both.
        take_what_is_there(theirs)
        theirs.send(b"x")
        writer.join(timeout=2)
        assert writer.dead
        assert [str(error) for error in caught] == ["reader"]


@BUILDS
def test_more_than_one_look_at_the_poller_takes(build: str) -> None:
    count = 700
    with several(build, count) as (ours, theirs):
        readers = [gevent.spawn(ours[number].recv_into, bytearray(10)) for number in range(count)]
        gevent.sleep(0)
        for _ in range(2):
            for sock in theirs:
                sock.send(b"x")
            gevent.joinall(readers, timeout=10)
            assert [reader.value for reader in readers] == [1] * count
            readers = [gevent.spawn(ours[number].recv_into, bytearray(10)) for number in range(count)]
            gevent.sleep(0)
        assert not any(reader.dead for reader in readers)
        gevent.killall(readers)


def test_readers_of_one_batch_switch_to_each_other_without_the_hub_between() -> None:
    # The compiled build: the other one is woken by gevent's loop, callback by callback.
    count, rounds = 40, 3
    order: list[int] = []
    numbers: dict[Any, int] = {}
    switches: list[tuple[Any, Any]] = []

    def read(number: int, stream: Any) -> None:
        buffer = bytearray(ROOM)
        while stream.recv_into(buffer):
            order.append(number)

    with several("compiled", count) as (ours, theirs):
        for number in range(count):
            reader = gevent.spawn(read, number, ours[number])
            numbers[reader] = number
        gevent.sleep(0)
        for _ in range(rounds):
            order.clear()
            for sock in theirs:
                sock.send(b"x")
            settrace(lambda event, pair: switches.append(pair))
            try:
                wait_until(lambda: len(order) == count, what="all of them")
            finally:
                settrace(None)
        for sock in theirs:
            sock.close()
        gevent.joinall(list(numbers), timeout=5, raise_error=True)
    assert order == list(range(count))
    direct = [pair for pair in switches if pair[0] in numbers and pair[1] in numbers]
    # All but the first, and the one in 32 at which the hub looks at the clock.
    assert len(direct) == rounds * (count - 2)
    assert all(numbers[one] + 1 == numbers[two] for one, two in direct)


def test_a_drain_that_takes_long_gives_way_and_loses_no_event() -> None:
    # The compiled build: the other one has a watcher for each descriptor, and the batch is the loop's own.
    count = 200
    served: list[int] = []
    turns: list[int] = []

    def read(number: int, stream: Any) -> None:
        stream.wait_readable()
        until = time.monotonic() + 0.0005
        while time.monotonic() < until:
            pass
        served.append(number)
        if not turns:
            hub.loop.run_callback(take_turn)

    def take_turn() -> None:
        turns.append(len(served))
        if len(served) < count:
            hub.loop.run_callback(take_turn)

    hub = gevent.get_hub()
    with several("compiled", count) as (ours, theirs):
        for number in range(count):
            hub.loop.run_callback(greenlet(read, hub).switch, number, ours[number])
        gevent.sleep(0)
        for sock in theirs:
            sock.send(b"x")
        wait_until(lambda: len(served) == count, what="all of them")
        some_turns_of_the_loop()
    assert sorted(served) == list(range(count))
    # 0.1 s in all: nobody else had to wait for more than half of it.
    assert max(later - earlier for earlier, later in zip([0, *turns], turns, strict=False)) < count / 2


def test_a_drain_that_takes_long_lets_timers_run() -> None:
    # The compiled build, as above.
    count = 200
    served: list[int] = []
    at_the_timer: list[int] = []

    def read(number: int, stream: Any) -> None:
        stream.wait_readable()
        until = time.monotonic() + 0.0005
        while time.monotonic() < until:
            pass
        served.append(number)

    hub = gevent.get_hub()
    timer = hub.loop.timer(0.001)
    with several("compiled", count) as (ours, theirs):
        for number in range(count):
            hub.loop.run_callback(greenlet(read, hub).switch, number, ours[number])
        gevent.sleep(0)
        for sock in theirs:
            sock.send(b"x")
        timer.start(lambda: at_the_timer.append(len(served)))
        wait_until(lambda: len(served) == count, what="all of them")
        wait_until(lambda: at_the_timer, what="the timer")
        timer.close()
    # Not behind all of them: after one drain of 64, or after two where the timer that goes on with it comes first.
    assert at_the_timer[0] <= 128 < count


@BUILDS
def test_streams_that_come_and_go_in_their_own_batch(build: str) -> None:
    """Slots and numbers are used again and again, in other orders; every stream gets its own data."""
    chance = random.Random(7)
    results: list[tuple[int, bytes]] = []
    expected: list[tuple[int, bytes]] = []

    def read(number: int, stream: Any) -> None:
        buffer = bytearray(ROOM)
        count = stream.recv_into(buffer)
        results.append((number, bytes(buffer[:count])))
        if chance.random() < 0.5:
            stream.close()

    with several(build, 0) as (ours, theirs):
        number = 0
        for _ in range(30):
            batch: list[Any] = []
            for _ in range(chance.randrange(1, 20)):
                one, two = socket.socketpair()
                ours.append(stream_class(build).adopt(one))
                theirs.append(two)
                batch.append(gevent.spawn(read, number, ours[-1]))
                expected.append((number, b"data of %d" % number))
                number += 1
            gevent.sleep(0)
            order = list(range(len(batch)))
            chance.shuffle(order)
            for at in order:
                theirs[at - len(batch)].send(expected[at - len(batch)][1])
            gevent.joinall(batch, timeout=5, raise_error=True)
            for at in chance.sample(range(len(ours)), len(ours) // 2):
                ours[at].abort()
    assert sorted(results) == expected


# --- 8: the hub, and other threads


@BUILDS
@KINDS
def test_the_hub_is_refused_what_could_wait(build: str, kind: str) -> None:
    with pair(build, kind) as (ours, theirs):
        assert isinstance(in_hub(ours.wait_readable), BlockingSwitchOutError)
        assert isinstance(in_hub(lambda: ours.recv_into(bytearray(10))), BlockingSwitchOutError)
        assert isinstance(in_hub(ours.wait_writable), BlockingSwitchOutError)
        assert isinstance(in_hub(lambda: ours.send_all(b"x")), BlockingSwitchOutError)
        with pytest.raises(BlockingIOError):
            theirs.recv(10)
        assert in_hub(lambda: ours.try_send(b"from the hub")) == 12
        theirs.send(b"to the hub")
        some_turns_of_the_loop()
        assert in_hub(lambda: ours.try_recv_into(bytearray(100))) == 10


@BUILDS
@KINDS
def test_another_thread_is_refused_what_could_wait(build: str, kind: str) -> None:
    with pair(build, kind) as (ours, theirs):
        for function in (ours.wait_readable, ours.wait_writable, lambda: ours.recv_into(bytearray(10))):
            assert isinstance(in_thread(function), ConcurrentObjectUseError)
        reader = waiting(ours.recv_into, bytearray(10))
        for function in (ours.wait_readable, lambda: ours.recv_into(bytearray(10))):
            assert isinstance(in_thread(function), ConcurrentObjectUseError)
        theirs.send(b"x")
        reader.join(timeout=5)
        assert reader.value == 1


@BUILDS
def test_another_thread_does_not_send_half_of_something(build: str) -> None:
    with pair(build) as (ours, theirs):
        assert isinstance(in_thread(lambda: ours.send_all(bytes(4_000_000))), ConcurrentObjectUseError)
        with pytest.raises(BlockingIOError):
            theirs.recv(10)


@BUILDS
@KINDS
def test_a_second_waiter_is_refused_and_the_first_one_goes_on(build: str, kind: str) -> None:
    with pair(build, kind) as (ours, theirs):
        while ours.try_send(b"x" * 65536):
            pass
        both = [waiting(ours.recv_into, bytearray(10)), waiting(ours.wait_writable)]
        for function in (ours.wait_readable, lambda: ours.try_recv_into(bytearray(10)), lambda: ours.recv_into(bytearray(10))):
            with pytest.raises(ConcurrentObjectUseError):
                function()
        for function in (ours.wait_writable, lambda: ours.send_all(b"x")):
            with pytest.raises(ConcurrentObjectUseError):
                function()
        take_what_is_there(theirs)
        theirs.send(b"x")
        gevent.joinall(both, timeout=5)
        assert [one.value for one in both] == [1, None]


# --- Partial sends, and what an edge-triggered poller makes easy to get wrong


@BUILDS
@KINDS
def test_a_full_socket_is_told_writable_once_the_peer_has_read(build: str, kind: str) -> None:
    with pair(build, kind) as (ours, theirs):
        for _ in range(3):
            sent = 0
            while count := ours.try_send(b"x" * 65536):
                sent += count
            called: list[Any] = []
            ours.call_when_writable(lambda called=called: called.append(getcurrent()))
            some_turns_of_the_loop()
            assert called == []
            take(theirs, sent)
            wait_until(lambda called=called: called, what="the callback")
            some_turns_of_the_loop()
            assert called == [gevent.get_hub()]


@BUILDS
@KINDS
@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_a_callback_and_a_writer_at_the_same_time(build: str, kind: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with pair(build, kind) as (ours, theirs):
        called: list[bool] = []
        writer = gevent.spawn(ours.send_all, data)
        gevent.sleep(0)
        ours.call_when_writable(lambda: called.append(True))
        assert take(theirs, size) == data
        writer.join(timeout=5)
        assert writer.successful()
        wait_until(lambda: called, what="the callback")
        assert called == [True]


@BUILDS
@KINDS
def test_a_callback_is_forgotten_when_the_writer_in_front_of_it_closes(build: str, kind: str) -> None:
    def write(stream: Any) -> None:
        stream.wait_writable()
        stream.abort()

    with pair(build, kind) as (ours, theirs):
        called: list[bool] = []
        while ours.try_send(b"x" * 65536):
            pass
        writer = waiting(write, ours)
        ours.call_when_writable(lambda: called.append(ours.fileno() >= 0))
        take_what_is_there(theirs)
        writer.join(timeout=5)
        assert writer.dead
        some_turns_of_the_loop()
        assert False not in called


def take(sock: socket.socket, count: int, sizes: Callable[[], int] = lambda: 65536) -> bytes:
    """Read so many bytes off a plain socket; greenlets run while there is nothing."""
    received = bytearray()
    while len(received) < count:
        piece = outcome(sock.recv, sizes())
        if isinstance(piece, bytes):
            received += piece
        else:
            gevent.sleep(0)
    return bytes(received)


def take_what_is_there(sock: socket.socket) -> None:
    while isinstance(outcome(sock.recv, 1 << 20), bytes):
        pass


@BUILDS
@KINDS
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_reading_in_small_buffers_loses_nothing(build: str, kind: str, size: int) -> None:
    data = random.Random(size).randbytes(size * 400)
    with pair(build, kind) as (ours, theirs):
        reader = waiting(read_all, ours, size)
        for at in range(0, len(data), 997):
            while not isinstance(outcome(theirs.send, data[at : at + 997]), int):
                gevent.sleep(0)
            if at % 3 == 0:
                gevent.sleep(0)
        theirs.shutdown(socket.SHUT_WR)
        reader.join(timeout=10)
        assert reader.value == data


@BUILDS
@KINDS
def test_a_slow_reader_gets_all_of_a_large_write(build: str, kind: str) -> None:
    data = random.Random(3).randbytes(2_000_000)
    with pair(build, kind) as (ours, theirs):
        writer = gevent.spawn(ours.send_all, data)
        chance = random.Random(4)
        assert take(theirs, len(data), lambda: chance.choice((1, 100, 10_000, 300_000))) == data
        writer.join(timeout=5)
        assert writer.successful()


@BUILDS
@KINDS
@pytest.mark.parametrize(
    "order", ["thrown, sent", "sent, thrown", "thrown", "sent, then thrown from the hub", "thrown behind a wake-up"]
)
def test_what_is_thrown_into_a_reader_loses_neither_data_nor_the_next_wake_up(build: str, kind: str, order: str) -> None:
    hub = gevent.get_hub()
    timeouts: list[int] = []

    def read(stream: Any, result: bytearray) -> None:
        buffer = bytearray(ROOM)
        while len(result) < 20:
            try:
                if (count := stream.try_recv_into(buffer)) >= 0:
                    result += buffer[:count]
                else:
                    stream.wait_readable()
            except gevent.Timeout:
                timeouts.append(len(result))

    with pair(build, kind) as (ours, theirs):
        result = bytearray()
        reader = gevent.spawn(read, ours, result)
        for at in range(20):
            gevent.sleep(0)
            if order == "thrown behind a wake-up":
                hub.loop.run_callback(theirs.send, bytes([at]))
                hub.loop.run_callback(lambda: hub.loop.run_callback(interrupt, reader))
            elif order == "sent, then thrown from the hub":
                theirs.send(bytes([at]))
                hub.loop.run_callback(interrupt, reader)
            else:
                for what in order.split(", "):
                    if what == "sent":
                        theirs.send(bytes([at]))
                    else:
                        reader.kill(gevent.Timeout(None), block=False)
                if order == "thrown":
                    gevent.sleep(0)
                    theirs.send(bytes([at]))
            wait_until(lambda at=at: len(result) == at + 1, what=f"byte {at}")
        reader.join(timeout=5)
        assert reader.successful()
        assert bytes(result) == bytes(range(20))
    assert timeouts


def interrupt(reader: Any) -> None:
    """In the hub: throw a Timeout into a greenlet that waits, as a timer does."""
    if not reader.dead:
        reader.throw(gevent.Timeout(None))


@BUILDS
@KINDS
def test_timeouts_at_random_moments_lose_nothing(build: str, kind: str) -> None:
    chance = random.Random(11)
    data = chance.randbytes(20_000)
    timeouts: list[bool] = []

    def read(stream: Any, result: bytearray) -> None:
        buffer = bytearray(64)
        while len(result) < len(data):
            try:
                with gevent.Timeout(chance.choice((0, 0, 0.00001, 0.001))):
                    count = stream.recv_into(buffer)
                    # Nothing may come between what recv_into returned and this.
                    result += buffer[:count]
            except gevent.Timeout:
                timeouts.append(True)

    with pair(build, kind) as (ours, theirs):
        result = bytearray()
        reader = gevent.spawn(read, ours, result)
        at = 0
        while at < len(data):
            size = chance.choice((1, 64, 65, 300))
            theirs.send(data[at : at + size])
            at += size
            if chance.random() < 0.7:
                gevent.sleep(chance.choice((0, 0, 0.0005)))
        reader.join(timeout=10)
        assert reader.successful()
        assert bytes(result) == data
    assert timeouts


@BUILDS
@KINDS
def test_a_writer_that_is_interrupted_is_woken_the_next_time(build: str, kind: str) -> None:
    with pair(build, kind) as (ours, theirs):
        for _ in range(3):
            while ours.try_send(b"x" * 65536):
                pass
            with pytest.raises(gevent.Timeout), gevent.Timeout(0):
                ours.wait_writable()
            take_what_is_there(theirs)
            with gevent.Timeout(5):
                ours.wait_writable()
            assert ours.try_send(b"x")


@BUILDS
@KINDS
def test_call_when_readable(build: str, kind: str) -> None:
    class Waiter:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def on_readable(self) -> None:
            self.calls.append(getcurrent())

    with pair(build, kind) as (ours, theirs):
        buffer = bytearray(10)
        waiter = Waiter()
        ours.call_when_readable(waiter)
        some_turns_of_the_loop()
        assert waiter.calls == []
        theirs.send(b"one")
        wait_until(lambda: waiter.calls, what="the call")
        assert waiter.calls == [gevent.get_hub()]
        # Once, and what is unread is told to whoever asks anew.
        theirs.send(b"two")
        some_turns_of_the_loop()
        assert len(waiter.calls) == 1
        ours.call_when_readable(waiter)
        wait_until(lambda: len(waiter.calls) == 2, what="the second call")
        while ours.try_recv_into(buffer) < 0:
            ours.wait_readable()
        # Taken back.
        ours.call_when_readable(waiter)
        ours.call_when_readable(None)
        theirs.send(b"three")
        some_turns_of_the_loop()
        assert len(waiter.calls) == 2
        assert ours.recv_into(buffer) == 5
        # The end is told too, and forgotten at close.
        ours.call_when_readable(waiter)
        theirs.shutdown(socket.SHUT_WR)
        wait_until(lambda: len(waiter.calls) == 3, what="the end")
        ours.call_when_readable(waiter)
        ours.close()
        some_turns_of_the_loop()
        assert len(waiter.calls) == 3
