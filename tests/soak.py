"""Everything at once, for as long as you like: `python tests/soak.py --minutes 10`.

A server in a process of its own, over TCP and a Unix socket, with keepalive and parking, and peers that connect, echo, pipeline,
read slowly, send half of something, reset, get killed and wait, at random from a seed. Every echo is compared with what was
sent, in order. Prints what the server holds every ten seconds; the exit status is 1 if a message was lost, doubled or changed,
if the resident memory grows by more than 5 % after the warm-up, or if anything is left at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent import socket

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.raw import PATIENCE, RawClient, frame, request
from tests.support import ServerProcess, run_server_process, wait_until

#: Peers that are at it at the same time.
PEERS = 60
#: Seconds of idleness after which the server parks a connection.
PARK_AFTER = 0.2
#: Seconds between two looks at the server, and between two lines.
LOOK, LINE = 1.0, 10.0
#: Share of the time that counts as warm-up, and what the resident memory may grow by after it.
WARM_UP, GROWTH = 0.4, 1.05

SERVER = """
import ctypes, gc, json, os, signal, sys
import gevent, greenlet
from gws_gevent import EventHandler, Response, Server, ServerOptions

trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

class Echo(EventHandler):
    opened = closed = messages = woken = 0
    def on_open(self, conn):
        self.opened += 1
        conn.session["greenlet"] = id(greenlet.getcurrent())
    def on_message(self, conn, message):
        self.messages += 1
        if conn.session["greenlet"] != id(greenlet.getcurrent()):
            conn.session["greenlet"] = id(greenlet.getcurrent())
            self.woken += 1  # at least: an id may be used again
        if message.data == "kill":
            conn.kill()
        elif message.data == "kill soon":
            gevent.spawn_later(0.4, conn.kill)
        elif message.data == "abort":
            conn.abort()
        elif message.data == "wait":
            gevent.sleep(0.01)
            conn.write_message(message.opcode, message.data)
        else:
            conn.write_message(message.opcode, message.data)
    def on_close(self, conn, info):
        self.closed += 1

def on_request(request):
    if request.path == "/":
        return echo
    gc.collect()
    if trim is not None:
        trim(0)
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    alive = sum(isinstance(one, greenlet.greenlet) and not one.dead for one in gc.get_objects())
    return Response(200, json.dumps({
        "rss": rss, "greenlets": alive, "descriptors": len(os.listdir("/proc/self/fd")), "connections": len(server.connections),
        "opened": echo.opened, "closed": echo.closed, "messages": echo.messages, "woken": echo.woken,
    }))

echo = Echo()
server = Server(None, ServerOptions(park_after=PARK_AFTER, ping_interval=1.0, close_timeout=2.0), on_request)
server.start("127.0.0.1:0", "unix:" + PATH)
gevent.signal_handler(signal.SIGTERM, server.stop, 2.0)
print(*server.addresses, flush=True)
server.serve_forever()
"""


class Peer(RawClient):
    """A raw client over either transport.

    Attributes:
        pongs: pings are answered on the way: as long as something else than what is being sent may be.
    """

    pongs = True

    def __init__(self, port: int, path: str, chance: random.Random) -> None:
        if chance.random() < 0.5:
            super().__init__(port)
        else:
            self.sock: Any = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(PATIENCE)
            self.buffer = bytearray()
            self.sock.connect(path)
        self.chance = chance

    def __enter__(self) -> Peer:
        return self

    def read_message(self) -> tuple[int, bytes]:
        """Read the next message, pong or close frame."""
        while True:
            opcode, payload, fin = self.read_frame()
            if opcode == 9:
                if self.pongs:
                    self.send(frame(10, payload))
                continue
            if not fin:
                raise AssertionError("the server sends no fragments here")
            return opcode, payload

    def messages(self, count: int, largest: int) -> list[tuple[int, bytes]]:
        """Make up so many messages, each unlike any other."""
        made: list[tuple[int, bytes]] = []
        for _ in range(count):
            size = self.chance.choice((0, 1, 20, 125, 126, 2000, largest))
            data = b"%016x" % self.chance.getrandbits(64)
            made.append((2, data + self.chance.randbytes(size)) if self.chance.random() < 0.5 else (1, data + b"x" * size))
        return made

    def expect(self, messages: list[tuple[int, bytes]]) -> None:
        """The echoes of these, and nothing else, come next."""
        for opcode, data in messages:
            got = self.read_message()
            if got != (opcode, data):
                raise AssertionError(f"{len(data)} bytes {data[:20]!r} came back as {got[0]}, {len(got[1])} bytes {got[1][:20]!r}")

    def say_goodbye(self) -> None:
        """The closing handshake."""
        self.send(frame(8, b"\x03\xe8bye"))
        self.pongs = False
        got = self.read_message()
        if got != (8, b"\x03\xe8"):
            raise AssertionError(f"instead of the close frame came {got}")
        self.read_end()

    def read_until_dropped(self) -> None:
        """Nothing but pings may come before the server drops the connection."""
        try:
            got = self.read_message()
        except (EOFError, ConnectionError):
            return
        raise AssertionError(f"instead of the end came {got}")


# What a peer may do. Each gets a Peer that has been let in, and returns how many echoes it has compared.


def talk(peer: Peer) -> int:
    """One at a time."""
    messages = peer.messages(peer.chance.randrange(1, 20), 70_000)
    for message in messages:
        peer.send(frame(*message))
        peer.expect([message])
        if peer.chance.random() < 0.2:
            gevent.sleep(peer.chance.uniform(0, 0.05))
    peer.say_goodbye()
    return len(messages)


def rest(peer: Peer) -> int:
    """Idle for about as long as it takes to be parked, again and again."""
    count = 0
    for _ in range(peer.chance.randrange(1, 5)):
        messages = peer.messages(peer.chance.randrange(1, 4), 5000)
        peer.send(*(frame(*message) for message in messages))
        peer.expect(messages)
        count += len(messages)
        waiting = time.monotonic() + peer.chance.uniform(0, 3 * PARK_AFTER)
        while (left := waiting - time.monotonic()) > 0:
            answer_pings_for(peer, left)
    peer.say_goodbye()
    return count


def answer_pings_for(peer: Peer, seconds: float) -> None:
    """Nothing else may come: what is there goes into the buffer whole, for a Timeout must not cut it."""
    with gevent.Timeout(seconds, False):
        peer._read_some()
    while peer.buffer:
        opcode, payload, _ = peer.read_frame()
        if opcode != 9:
            raise AssertionError(f"nobody asked for {opcode}, {payload[:20]!r}")
        peer.send(frame(10, payload))


def pipeline(peer: Peer) -> int:
    """Many in one write, cut anywhere."""
    messages = peer.messages(peer.chance.randrange(2, 100), 3000)
    if peer.chance.random() < 0.3:
        messages[len(messages) // 2] = (1, b"wait")
    data = b"".join(frame(*message) for message in messages)
    cut = peer.chance.randrange(len(data))
    peer.send(data[:cut])
    gevent.sleep(peer.chance.choice((0, 0, 0.3)))
    peer.send(data[cut:])
    peer.expect(messages)
    peer.say_goodbye()
    return len(messages)


def fragments(peer: Peer) -> int:
    """A message in fragments, with pings in between."""
    data = peer.chance.randbytes(peer.chance.randrange(3, 30_000))
    one, two = sorted(peer.chance.sample(range(len(data) + 1), 2))
    peer.send(frame(2, data[:one], fin=False), frame(9, b"p"))
    gevent.sleep(peer.chance.choice((0, 0.3)))
    peer.send(frame(0, data[one:two], fin=False), frame(0, data[two:]))
    pong = peer.read_message()
    if pong != (10, b"p"):
        raise AssertionError(f"instead of the pong came {pong}")
    peer.expect([(2, data)])
    peer.say_goodbye()
    return 1


def read_slowly(peer: Peer) -> int:
    """Ask for more than the kernel holds, and take it in small pieces."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    messages = peer.messages(peer.chance.randrange(5, 20), 100_000)
    peer.pongs = False
    sender = gevent.spawn(peer.send, *(frame(*message) for message in messages))
    for message in messages:
        gevent.sleep(peer.chance.uniform(0, 0.03))
        peer.expect([message])
    sender.get(timeout=PATIENCE)
    peer.pongs = True
    peer.say_goodbye()
    return len(messages)


def reset(peer: Peer) -> int:
    """Go with RST, with something half sent, or unread."""
    messages = peer.messages(peer.chance.randrange(1, 5), 50_000)
    peer.send(*(frame(*message) for message in messages))
    if peer.chance.random() < 0.5:
        peer.expect(messages)
        peer.send(frame(2, b"x" * 1000)[: peer.chance.randrange(1000)])
        gevent.sleep(peer.chance.choice((0, 0.01, 0.4)))
        peer.reset()
        return len(messages)
    peer.reset()
    return 0


def leave(peer: Peer) -> int:
    """Go with FIN and no closing handshake, with something half sent."""
    messages = peer.messages(2, 1000)
    peer.send(*(frame(*message) for message in messages), frame(1, b"half")[: peer.chance.randrange(9)])
    peer.sock.shutdown(socket.SHUT_WR)
    peer.pongs = False
    peer.expect(messages)
    peer.read_until_dropped()
    return len(messages)


def get_killed(peer: Peer) -> int:
    """The server kills or aborts the connection: at once, or while it is parked."""
    messages = peer.messages(3, 1000)
    peer.send(*(frame(*message) for message in messages))
    peer.expect(messages)
    peer.send(frame(1, peer.chance.choice((b"kill", b"kill soon", b"abort"))))
    peer.pongs = False
    peer.read_until_dropped()
    return len(messages)


def talk_nonsense(peer: Peer) -> int:
    """The connection is failed, and what came before is answered."""
    messages = peer.messages(2, 1000)
    peer.send(*(frame(*message) for message in messages), peer.chance.choice((b"\x83\x80abcd", b"\x81\x00", frame(1, b"\xff"))))
    peer.pongs = False
    peer.expect(messages)
    opcode, payload = peer.read_message()
    if opcode != 8 or payload[:2] not in (b"\x03\xea", b"\x03\xef"):
        raise AssertionError(f"instead of a close frame came {opcode}, {payload!r}")
    return len(messages)


DEEDS: dict[Callable[[Peer], int], int] = {
    talk: 6, rest: 6, pipeline: 4, fragments: 2, read_slowly: 2, reset: 3, leave: 2, get_killed: 2, talk_nonsense: 1,
}  # fmt: skip


class Soak:
    """One run.

    Attributes:
        done: how often each deed was done.
        echoes: how many echoes were compared.
        faults: what went wrong, in words.
    """

    def __init__(self, server: ServerProcess, path: str, seed: int) -> None:
        self.port = int(next(one for one in server.addresses if one.startswith("tcp:")).rpartition(":")[2])
        self.path = path
        self.seed = seed
        self.done: Counter[str] = Counter()
        self.echoes = 0
        self.faults: list[str] = []
        self.samples: list[tuple[float, int]] = []  # share of the time that has passed, and the resident memory

    def run(self, seconds: float) -> None:
        self.look()  # what is made at the first use is there from here on
        before = self.look()
        start = time.monotonic()
        peers = [gevent.spawn(self.be_a_peer, number, start + seconds) for number in range(PEERS)]
        next_line = LINE
        while not all(peer.dead for peer in peers):
            gevent.sleep(min(LOOK, seconds / 20))
            found = self.look()
            passed = time.monotonic() - start
            self.samples.append((passed / seconds, found["rss"]))
            if passed >= next_line:
                next_line += LINE
                self.print_line(passed, found)
        self.check_memory()
        self.check_what_is_left(before)
        self.print_line(time.monotonic() - start, self.look())
        print(", ".join(f"{name} {count}" for name, count in sorted(self.done.items())), flush=True)

    def be_a_peer(self, number: int, until: float) -> None:
        chance = random.Random(f"{self.seed} {number}")
        while time.monotonic() < until and len(self.faults) < 10:
            (deed,) = chance.choices(list(DEEDS), list(DEEDS.values()))
            try:
                with Peer(self.port, self.path, chance) as peer:
                    if chance.random() < 0.03:
                        peer.send(request()[: chance.randrange(1, 100)])
                        self.done["handshake not finished"] += 1
                        continue
                    peer.upgrade()
                    compared = deed(peer)
                    self.echoes += compared
            except (Exception, gevent.Timeout):
                self.faults.append(f"{deed.__name__} (peer {number}): {traceback.format_exc()}")
            self.done[deed.__name__] += 1

    def look(self) -> dict[str, int]:
        with RawClient(self.port) as client:
            client.send(b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
            found: dict[str, int] = json.loads(client.read_answer().body)
            return found

    def print_line(self, passed: float, found: dict[str, int]) -> None:
        counts = "  ".join(f"{kind} {found[kind]}" for kind in ("greenlets", "descriptors", "connections", "opened", "woken"))
        memory = f"RSS {found['rss'] / 1e6:.1f} MB"
        print(f"{passed:6.0f} s  {memory}  {counts}  echoes compared {self.echoes}  faults {len(self.faults)}", flush=True)

    def check_memory(self) -> None:
        """The medians of the third fifth and of the last one: single samples depend on who is there at that moment."""
        early = [rss for at, rss in self.samples if WARM_UP <= at < WARM_UP + 0.2]
        late = [rss for at, rss in self.samples if 0.8 <= at <= 1]
        if not early or not late:
            self.faults.append("too few looks at the memory: the run was too short")
        elif statistics.median(late) > GROWTH * statistics.median(early):
            self.faults.append(
                f"RSS grew from {statistics.median(early):.0f} to {statistics.median(late):.0f} bytes after the warm-up"
            )

    def check_what_is_left(self, before: dict[str, int]) -> None:
        kinds = ("connections", "greenlets", "descriptors")
        found: dict[str, int] = {}

        def all_gone() -> bool:
            nonlocal found
            found = self.look()
            return found["opened"] == found["closed"] and all(found[kind] <= before[kind] for kind in kinds)

        try:
            wait_until(all_gone, 10, "the end of all connections")
        except AssertionError:
            self.faults.append(f"left at the end: {found}, at the beginning: {before}")
        if self.done["rest"] and not found["woken"]:
            self.faults.append("no connection was ever parked")


def soak(minutes: float, seed: int) -> list[str]:
    """Run for so long; return what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        program = f"PARK_AFTER, PATH = {PARK_AFTER}, {path!r}\n{SERVER}"
        with run_server_process(["-c", program]) as server:
            run = Soak(server, path, seed)
            run.run(minutes * 60)
            said = server.output().splitlines()[1:]  # behind its addresses
    return run.faults + [f"the server said: {line}" for line in said[:50]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faults = soak(options.minutes, options.seed)
    for fault in faults:
        print(f"FAULT: {fault}")
    print("failed" if faults else "nothing lost, nothing doubled, nothing left")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
