"""Giving the data stack of a waiting greenlet back changes nothing but the memory: whatever a handler does, the same comes out.

Belongs here: programs of the compiled build that are run with GWS_GEVENT_TRIM=1 and =0, and what they make of it. Does not belong
here: waiting itself (test_fdio.py). Each program prints what it found as its last line, in JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.support import run_program
from tests.test_accel import compiled

#: Where the layout of the data stack is known.
CAN_TRIM = sys.implementation.name == "cpython" and (3, 11) <= sys.version_info[:2] <= (3, 13)

#: A server in the same process, whose connections are event handlers', and clients that are read with receive().
PROLOGUE = """
import gc, json, os, sys, threading
import gevent, greenlet
from gevent import monkey
from gws_gevent import ClientOptions, ConnectionClosed, EventHandler, Opcode, Server, ServerOptions, connect
from gws_gevent._compiled import _fdio
import gws_gevent
assert gws_gevent.ACCELERATED

def deep(depth, leaf=lambda: 0):
    # Numbers and strings in every frame: one that were shared with somebody else would not come back as it was.
    mine, also = depth * 7, f"at {depth}"
    below = deep(depth - 1, leaf) if depth else leaf()
    assert (mine, also) == (depth * 7, f"at {depth}")
    return below + mine

class Handler(EventHandler):
    def __init__(self):
        self.closed = []
    def on_message(self, conn, message):
        conn.write_text(str(work(conn, message.data)))
    def on_close(self, conn, info):
        self.closed.append(info.sent.code if info.sent is not None else info.code)

class World:
    def __init__(self, clients):
        self.handler = Handler()
        self.server = Server(self.handler, ServerOptions(ping_interval=None, close_timeout=0.5))
        self.server.start("127.0.0.1:0")
        url = self.server.address.replace("tcp", "ws")
        self.clients = [connect(url, options=ClientOptions(ping_interval=None)) for _ in range(clients)]
    def ask(self, text):
        # All are asked before the first answer is read.
        for client in self.clients:
            client.send(text)
        return [client.receive(timeout=20) for client in self.clients]
    def wait_closed(self, count):
        with gevent.Timeout(10):
            while len(self.handler.closed) < count:
                gevent.sleep(0.001)
        return sorted(self.handler.closed)
    def close(self):
        for client in self.clients:
            client.close()
        self.server.stop(2)

def idle():
    gevent.sleep(0.02)

def show(**found):
    print(json.dumps(found))
"""


def outcomes(program: str) -> dict[str, Any]:
    """Run a program with the data stack given back and kept; what it found must be the same, and is returned."""
    compiled("_fdio")
    found = []
    for trim in ("1", "0"):
        environment = {"GWS_GEVENT_TRIM": trim, "GWS_GEVENT_PURE_PYTHON": "", "PYTHONWARNINGS": "error", "PYTHONFAULTHANDLER": "1"}
        check = f"assert _fdio.TRIMS is {trim == '1' and CAN_TRIM}\n"
        ended = run_program([sys.executable, "-c", PROLOGUE + check + program], env=environment, timeout=60)
        assert ended.status == 0, (trim, ended.errors)
        assert ended.errors == ""
        found.append(json.loads(ended.output.splitlines()[-1]))
    assert found[0] == found[1]
    result: dict[str, Any] = found[0]
    return result


DEEP = """
def work(conn, text):
    return deep(int(text))

world = World(20)
answers = []
for depth in (1, 500, 3, 500, 150, 500, 0):
    answers.append(sorted(set(world.ask(str(depth)))))
    idle()
world.close()
show(answers=answers)
"""


@pytest.mark.slow
def test_deep_recursion_and_again_after_an_idle_wait() -> None:
    sums = [[str(sum(7 * at for at in range(depth + 1)))] for depth in (1, 500, 3, 500, 150, 500, 0)]
    assert outcomes(DEEP) == {"answers": sums}


NESTED = """
from gevent.event import AsyncResult
from gevent.pool import Pool
from gevent.queue import Queue

def leaf(conn):
    gevent.sleep(0.001)
    result, queue = AsyncResult(), Queue()
    gevent.spawn(lambda: (gevent.sleep(0), deep(60), result.set(3)))
    gevent.spawn(lambda: [queue.put(at) for at in range(4)])
    return result.get() + sum(queue.get() for _ in range(4)) + sum(Pool(3).map(lambda at: deep(at), range(5)))

def work(conn, text):
    if text == "talk":  # waits for another stream of ours in the middle of its frames
        url = world.server.address.replace("tcp", "ws")
        with connect(url, options=ClientOptions(ping_interval=None)) as other:
            other.send("100")
            return deep(30, lambda: int(other.receive(timeout=10)))
    return deep(int(text), lambda: leaf(conn))

world = World(20)
answers = []
for text in ("100", "talk", "0", "talk", "100"):
    answers.append(sorted(set(world.ask(text))))
    idle()
world.close()
show(answers=answers)
"""


@pytest.mark.slow
def test_handlers_that_wait_in_the_middle_of_their_frames() -> None:
    def deep(depth: int) -> int:
        return 7 * depth * (depth + 1) // 2

    leaf = 3 + 6 + sum(deep(at) for at in range(5))
    hundred = deep(100) + leaf
    talk = deep(30) + hundred
    assert outcomes(NESTED) == {"answers": [[str(one)] for one in (hundred, talk, leaf, talk, hundred)]}


RAISING = """
import logging
logging.disable(logging.CRITICAL)
kept = []

def fail():
    try:
        raise KeyError("inner")
    except KeyError:
        raise ValueError("outer")

def work(conn, text):
    if text == "keep":
        try:
            deep(200, fail)
        except ValueError as error:
            kept.append(error)  # its frames live on
        return len(kept)
    if text == "fail" and (conn.id + 1) // 2 % 2:  # of each pair of ends one is the server's
        deep(300, fail)
    return deep(100)

world = World(20)
answers = [sorted(map(int, world.ask("keep")))]
idle()
for client in world.clients:
    client.send("fail")
ended = []
for client in world.clients:
    try:
        ended.append(client.receive(timeout=10))
    except ConnectionClosed:
        ended.append(client.close_info.code)
idle()
world.clients = [client for client in world.clients if not client.closed]
answers.append(sorted(set(world.ask("again"))))
codes = world.wait_closed(10)
depths = []
for error in kept:
    count, frame = 0, error.__traceback__
    while frame is not None:
        assert frame.tb_frame.f_locals.get("depth", 0) >= 0
        count, frame = count + 1, frame.tb_next
    depths.append((count, repr(error.__context__)))
kept.clear()
gc.collect()
world.close()
show(answers=answers, ended=sorted(map(str, ended)), codes=codes, depths=sorted(set(depths)))
"""


@pytest.mark.slow
def test_handlers_that_raise() -> None:
    usual = str(7 * 100 * 101 // 2)
    assert outcomes(RAISING) == {
        "answers": [list(range(1, 21)), [usual]],
        "ended": sorted(["1011"] * 10 + [usual] * 10),
        "codes": [1011] * 10,
        "depths": [[203, "KeyError('inner')"]],
    }


GENERATORS = """
def count(conn, level):
    if level:
        yield from count(conn, level - 1)
    at, text = 0, f"{conn.id} {level}"
    while at < 4:
        yield f"{text} {at}"
        at += 1

def closing(conn):
    try:
        while True:
            yield deep(20)
    finally:
        ended.append(deep(30))

ended = []

def work(conn, text):
    session = conn.session
    if text == "begin":
        session["count"], session["closing"] = count(conn, 5), closing(conn)
        next(session["closing"])
        return "begun"
    if text == "wait":  # the generator's frame is the one that waits
        def waiting():
            for at in range(3):
                gevent.sleep(0.001)
                yield deep(at * 10)
        return list(waiting())
    next(session["closing"])
    return next(session["count"], "over")

world = World(10)
answers = [sorted(set(world.ask("begin")))]
idle()
for _ in range(26):
    answers.append(world.ask("next"))
    gevent.sleep(0.002)
waited = sorted(set(world.ask("wait")))
world.close()
del world
gc.collect()
names = [answer.split()[1:] for answer in (row[3] for row in answers[1:]) if answer != "over"]
ids = [len({answer.split()[0] for answer in row}) for row in answers[1:25]]
show(first=answers[0], names=names, ids=ids, last=answers[-1], waited=waited, ended=ended)
"""


@pytest.mark.slow
def test_generators_that_live_across_waits() -> None:
    assert outcomes(GENERATORS) == {
        "first": ["begun"],
        "names": [[str(level), str(at)] for level in range(6) for at in range(4)],
        "ids": [10] * 24,
        "last": ["over"] * 10,
        "waited": [str([0, 7 * 10 * 11 // 2, 7 * 20 * 21 // 2])],
        "ended": [7 * 30 * 31 // 2] * 10,
    }


TRACED = """
def work(conn, text):
    if text == "raise":
        try:
            deep(20, lambda: 1 // 0)
        except ZeroDivisionError:
            pass
    return deep(int(text) if text.isdecimal() else 50, lambda: gevent.sleep(0) or 0)

seen = {"trace": 0, "profile": 0, "greenlet": 0}
names = set()

def trace(frame, event, argument):
    seen["trace"] += 1
    deep(5)
    return trace

def profile(frame, event, argument):
    seen["profile"] += 1
    deep(5)

def switched(event, pair):
    seen["greenlet"] += 1
    names.add(event)
    deep(30)

world = World(10)
answers = [sorted(set(world.ask("50")))]
for kind in ("trace", "profile", "greenlet", "all"):
    if kind in ("trace", "all"):
        sys.settrace(trace)
        threading.settrace(trace)
    if kind in ("profile", "all"):
        sys.setprofile(profile)
    if kind in ("greenlet", "all"):
        greenlet.settrace(switched)
    for text in ("50", "raise", "200"):
        answers.append(sorted(set(world.ask(text))))
        idle()
    sys.settrace(None)
    sys.setprofile(None)
    greenlet.settrace(None)
    answers.append(sorted(set(world.ask("50"))))
world.close()
show(answers=answers, seen={kind: count > 50 for kind, count in seen.items()}, names=sorted(names))
"""


@pytest.mark.slow
def test_tracing_and_profiling() -> None:
    fifty, more = str(7 * 50 * 51 // 2), str(7 * 200 * 201 // 2)
    result = outcomes(TRACED)
    assert result["answers"] == [[fifty], *([[fifty], [fifty], [more], [fifty]] * 4)]
    assert result["seen"] == {"trace": True, "profile": True, "greenlet": True}
    assert "switch" in result["names"]


TRACED_IN_THE_HANDLER = """
# Switched on in the middle of a handler, in the greenlet that then goes back to wait.
calls = []

def trace(frame, event, argument):
    calls.append(deep(3))
    return trace

def work(conn, text):
    if text == "on":
        sys.settrace(trace)
        sys.setprofile(trace)
    elif text == "off":
        sys.settrace(None)
        sys.setprofile(None)
    return deep(80)

world = World(5)
answers = []
for text in ("on", "deep", "deep", "off", "deep"):
    answers.append(sorted(set(world.ask(text))))
    idle()
world.close()
show(answers=answers, called=len(calls) > 10, wrong=sum(call != 42 for call in calls))
"""


@pytest.mark.slow
def test_tracing_that_begins_in_a_handler() -> None:
    assert outcomes(TRACED_IN_THE_HANDLER) == {"answers": [[str(7 * 80 * 81 // 2)]] * 5, "called": True, "wrong": 0}


INTERRUPTED = """
def work(conn, text):
    if text == "timeout":
        with gevent.Timeout(0.002, False):
            deep(200, lambda: gevent.sleep(10))
        with gevent.Timeout(0.002, False):
            deep(5, lambda: gevent.sleep(10))
        return deep(100)
    if text == "block":
        deep(200, lambda: gevent.sleep(10))
    return deep(50)

class Reader:
    # The other face: Python frames wait, and Timeouts go through them.
    def __init__(self, client):
        self.client, self.timeouts = client, 0
    def read(self):
        while True:
            try:
                with gevent.Timeout(0.003):
                    return deep(100, lambda: int(self.client.receive()))
            except gevent.Timeout:
                self.timeouts += 1
                if self.timeouts == 5:
                    self.client.send("7")

world = World(30)
answers = [sorted(set(world.ask("timeout")))]
idle()
readers = [Reader(client) for client in world.clients]
greenlets = [gevent.spawn(reader.read) for reader in readers]
gevent.joinall(greenlets, timeout=20, raise_error=True)
answers.append(sorted({str(one.value) for one in greenlets}))
timeouts = min(reader.timeouts for reader in readers)

# Killed while they wait for input, and in the middle of a handler.
conns = sorted(world.server.connections, key=lambda conn: conn.id)
for conn in conns[:10]:
    conn.kill()
for client in world.clients[10:20]:
    client.send("block")
idle()
for conn in conns[10:20]:
    conn.kill()
codes = world.wait_closed(20)
for client in world.clients[:20]:
    client.abort()
world.clients = world.clients[20:]
answers.append(sorted(set(world.ask("again"))))
world.close()
show(answers=answers, codes=codes, timeouts=timeouts >= 5)
"""


@pytest.mark.slow
def test_timeouts_and_kills() -> None:
    hundred, fifty = 7 * 100 * 101 // 2, 7 * 50 * 51 // 2
    result = outcomes(INTERRUPTED)
    assert result == {"answers": [[str(hundred)], [str(hundred + fifty)], [str(fifty)]], "codes": [1006] * 20, "timeouts": True}


THREADS = """
start_new_thread = monkey.get_original("_thread", "start_new_thread")
results = []

def work(conn, text):
    gevent.sleep(0.0005)
    return deep(int(text), lambda: gevent.sleep(0) or 0)

def live(number):
    world = World(15)
    answers = set()
    for depth in (200, 1, 300, number):
        answers.update(world.ask(str(depth)))
        idle()
    world.close()
    return sorted(answers)

def run(number):
    try:
        result = live(number)
        gevent.get_hub().destroy(destroy_loop=True)
    except BaseException as error:
        result = repr(error)
    results.append((number, result))

for turn in range(2):  # threads end, and their chunks may lie on the shelf
    for number in range(3):
        start_new_thread(run, (10 + number + 3 * turn,))
    mine = live(10)
    with gevent.Timeout(30):
        while len(results) < 3 * (turn + 1):
            gevent.sleep(0.001)
show(results=sorted(results), mine=mine)
"""


@pytest.mark.slow
def test_threads_with_hubs_of_their_own() -> None:
    def sums(number: int) -> list[str]:
        return sorted({str(7 * depth * (depth + 1) // 2) for depth in (200, 1, 300, number)})

    assert outcomes(THREADS) == {"results": [[number, sums(number)] for number in range(10, 16)], "mine": sums(10)}


MANY = """
from gevent.event import Event

gates = {}
inside = 0

def leaf(conn, gate):
    global inside
    inside += 1
    if inside == len(world.clients):
        gate.set()
    gate.wait()  # until everybody is in the middle of its frames
    return conn.id

def work(conn, text):
    if text == "short":
        return conn.id
    gate = gates.setdefault(text, Event())
    return deep(100, lambda: leaf(conn, gate))

world = World(300)  # many more than the shelf holds
ids = sorted(conn.id for conn in world.server.connections)
right = []
for turn in range(4):
    inside = 0
    right.append(sorted(map(int, world.ask(f"turn {turn}"))) == [7 * 50 * 101 + one for one in ids])
    idle()
    right.append(sorted(map(int, world.ask("short"))) == ids)
    world.clients, others = world.clients[::2], world.clients[1::2]
    for client in others:
        client.close()
    ids = sorted(conn.id for conn in world.server.connections)
world.close()
show(right=right)
"""


@pytest.mark.slow
def test_more_greenlets_at_once_than_the_shelf_holds() -> None:
    assert outcomes(MANY) == {"right": [True] * 8}


STREAMS = """
import socket
from gws_gevent.transports.tcp import SocketStream

# Streams by themselves: the main greenlet waits, raw greenlets, and those that have Python frames below the wait.
one, two = (SocketStream.adopt(sock) for sock in socket.socketpair())
buffer, results = bytearray(100), []

def answer():
    mine = bytearray(100)
    for at in range(20):
        count = two.recv_into(mine)
        two.send_all(b"%d" % deep(at * 10, lambda: int(mine[:count])))

hub = gevent.get_hub()
hub.loop.run_callback(greenlet.greenlet(answer, hub).switch)
for at in range(20):
    one.send_all(b"%d" % at)
    count = deep(at * 20, lambda: one.recv_into(buffer)) - 7 * (at * 20) * (at * 20 + 1) // 2
    results.append(int(buffer[:count]))

# Without any Python frame of their own: the greenlet's function is the method.
pairs = [[SocketStream.adopt(sock) for sock in socket.socketpair()] for _ in range(100)]
waiting = [greenlet.greenlet(ours.wait_readable, hub) for ours, _ in pairs]
for each in waiting:
    hub.loop.run_callback(each.switch)
idle()
for at, (_, theirs) in enumerate(pairs):
    theirs.send_all(b"x" * (at + 1))
idle()
deep(400)
counts = [ours.recv_into(buffer) for ours, _ in pairs]
dead = sum(each.dead for each in waiting)

# Dropped in the middle of their wait.
waiting = [greenlet.greenlet(ours.wait_readable, hub) for ours, _ in pairs]
for each in waiting:
    hub.loop.run_callback(each.switch)
idle()
for each in waiting:
    hub.loop.run_callback(each.throw, greenlet.GreenletExit)
idle()
dead += sum(each.dead for each in waiting)
deep(400)
for pair in [[one, two], *pairs]:
    for stream in pair:
        stream.close()
show(results=results, counts=counts, dead=dead)
"""


@pytest.mark.slow
def test_streams_by_themselves_and_the_main_greenlet() -> None:
    results = [7 * (at * 10) * (at * 10 + 1) // 2 + at for at in range(20)]
    assert outcomes(STREAMS) == {"results": results, "counts": list(range(1, 101)), "dead": 200}


MEMORY = """
import ctypes, socket

trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

def rss():
    gc.collect()
    if trim is not None:
        trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def work(conn, text):
    return deep(20)

request = (
    b"GET / HTTP/1.1\\r\\nHost: x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n"
)
world = World(0)
port = int(world.server.address.rpartition(":")[2])

def connect_all(count):
    socks = []
    for _ in range(count):
        socks.append(socket.create_connection(("127.0.0.1", port)))
        socks[-1].send(request + b"\\x81\\x85\\0\\0\\0\\0hello")
        socks[-1].setblocking(False)
        answer = b""
        while not answer.endswith(b"\\x81\\x041470"):
            try:
                answer += socks[-1].recv(4096)
            except BlockingIOError:
                gevent.sleep(0.0001)
    return socks

warm = connect_all(100)
before = rss()
socks = connect_all(COUNT)
idle()
each = (rss() - before) / COUNT
for sock in warm + socks:
    sock.close()
world.wait_closed(COUNT + 100)
world.close()
print(json.dumps({"trims": _fdio.TRIMS, "each": each}))
"""


def bytes_for_each_idle_connection(trim: str | None) -> tuple[bool, float]:
    """Return whether it trims, and what each of 500 idle connections adds to the resident memory."""
    environment = {"GWS_GEVENT_PURE_PYTHON": "", **({} if trim is None else {"GWS_GEVENT_TRIM": trim})}
    ended = run_program([sys.executable, "-c", PROLOGUE + "COUNT = 500\n" + MEMORY], env=environment, timeout=60)
    assert ended.status == 0, ended
    result = json.loads(ended.output.splitlines()[-1])
    return result["trims"], result["each"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_the_memory_is_really_given_back_and_the_variable_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled("_fdio")
    monkeypatch.delenv("GWS_GEVENT_TRIM", raising=False)
    trims, with_it = bytes_for_each_idle_connection(None)
    assert trims is CAN_TRIM
    trims, without_it = bytes_for_each_idle_connection("0")
    assert trims is False
    # A page of 4 KiB at least is resident of each data stack. Where nothing is known of the layout nothing is saved.
    assert (without_it - with_it > 2048) is CAN_TRIM, (with_it, without_it)
