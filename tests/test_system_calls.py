"""What each message, wake-up and idle connection costs in system calls, counted by strace around a server of both builds.

Belongs here: counts that do not depend on the machine. Does not belong here: times (benchmarks).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import gevent
import pytest

from tests.raw import Frame, RawClient, frame
from tests.support import require_tool, run_server_process, wait_until
from tests.test_accel import compiled

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="strace and epoll are Linux's")]

#: What is traced.
CALLS = "epoll_wait,epoll_pwait,epoll_pwait2,epoll_ctl,recvfrom,recvmsg,sendto,sendmsg,read,readv,write,writev"
WAITS = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
RECEIVES = ("recvfrom", "recvmsg", "read", "readv")
SENDS = ("sendto", "sendmsg", "write", "writev")

ECHOES = 20
DEPTH = 16
CROWD = 50
BROADCAST = 100

#: A control connection names each phase: that shows as a write to /dev/null.
SERVER = """
import os, time
from gws_gevent import EventHandler, Opcode, PreparedMessage, serve, Server, ServerOptions

null = os.open("/dev/null", os.O_WRONLY)
prepared = PreparedMessage(Opcode.TEXT, "b" * 1024)

class Handler(EventHandler):
    def __init__(self):
        self.opened = {}
    def on_open(self, conn):
        self.opened[conn] = None
    def on_close(self, conn, info):
        del self.opened[conn]
    def on_message(self, conn, message):
        if message.data == "broadcast":
            for other in self.opened:
                if other is not conn:
                    other.write_prepared(prepared)
        elif message.data == "hold":
            time.sleep(0.3)
        elif message.data[:4] == "mark":
            os.write(null, message.data.encode())
        conn.write_message(message.opcode, message.data)

import gevent, signal
server = Server(Handler(), ServerOptions(ping_interval=None))
server.start("127.0.0.1:0")
gevent.signal_handler(signal.SIGTERM, server.stop, 1.0)
print(server.address, flush=True)
server.serve_forever()
"""


class Call(NamedTuple):
    """One system call: its name, the descriptor, what it returned, and the error if it failed."""

    name: str
    fd: int
    result: int
    error: str


_LINE = re.compile(r"^(\w+)\((\d+)\b.*\) += (-?\d+)(?: (E[A-Z]+).*)?$")
_MARK = re.compile(r'^write\(\d+, "mark (.*)", \d+\)')


class Trace:
    """What a server did in each phase.

    Attributes:
        phases: its calls by the name of the phase, without those for the control connection.
    """

    def __init__(self, lines: list[str]) -> None:
        self.phases: dict[str, list[Call]] = {}
        name, control, last = "", -1, -1
        for line in lines:
            if found := _MARK.match(line):
                name, control = found[1], last
                continue
            if not (found := _LINE.match(line)):
                continue
            call = Call(found[1], int(found[2]), int(found[3]), found[4] or "")
            if call.name in RECEIVES:
                last = call.fd
            if call.fd != control:
                self.phases.setdefault(name, []).append(call)

    def count(self, phase: str, *names: str) -> int:
        return sum(call.name in names for call in self.phases.get(phase, []))

    def calls(self, phase: str, *names: str) -> list[Call]:
        return [call for call in self.phases.get(phase, []) if call.name in names]


def drive(port: int) -> None:
    """Be the peers of all phases."""
    with ExitStack() as stack:

        def open_one() -> RawClient:
            client = stack.enter_context(RawClient(port))
            client.upgrade()
            return client

        def phase(name: str, work: Callable[[], object]) -> None:
            control.echo(f"mark {name}".encode())
            work()
            control.echo(b"mark between")

        control = open_one()
        one = open_one()
        phase("one at a time", lambda: [one.echo(b"x" * 64) for _ in range(ECHOES)])
        phase("pipelined", lambda: pipeline(one))
        crowd = [one, *(open_one() for _ in range(CROWD - 1))]
        for client in crowd:
            client.echo()
        phase("crowd", lambda: at_the_same_moment(control, crowd))
        crowd += [open_one() for _ in range(BROADCAST - CROWD)]
        for client in crowd:
            client.echo()
        phase("idle", lambda: gevent.sleep(1))
        phase("broadcast", lambda: take_broadcast(control, crowd))


def pipeline(client: RawClient) -> None:
    for _ in range(5):
        client.send(*[frame(1, b"%d" % number) for number in range(DEPTH)])
        for number in range(DEPTH):
            assert client.read_frame() == Frame(1, b"%d" % number)


def at_the_same_moment(control: RawClient, crowd: list[RawClient]) -> None:
    """All of it is there before the server looks."""
    control.send(frame(1, b"hold"))
    gevent.sleep(0.05)  # it sleeps for longer than this
    for client in crowd:
        client.send(frame(1, b"all at once"))
    for client in crowd:
        assert client.read_frame() == Frame(1, b"all at once")
    assert control.read_frame() == Frame(1, b"hold")


def take_broadcast(control: RawClient, crowd: list[RawClient]) -> None:
    control.send(frame(1, b"broadcast"))
    for client in crowd:
        assert client.read_frame() == Frame(1, b"b" * 1024)
    assert control.read_frame() == Frame(1, b"broadcast")


@pytest.fixture(scope="module", params=["compiled", "plain"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    strace = require_tool("strace")
    if request.param == "compiled":
        compiled("_fdio")
    output = tmp_path_factory.mktemp("strace") / "calls"
    # -D: the tracer is the grandchild, so that the process that is ours to signal and to wait for is the server.
    command = [strace, "-D", "-qq", "-s", "40", "-o", str(output), "-e", f"trace={CALLS}", sys.executable, "-c", SERVER]
    program = f"import os; os.execv({strace!r}, {command!r})"
    environment = {"GWS_GEVENT_PURE_PYTHON": "1" if request.param == "plain" else ""}
    with run_server_process(["-c", program], env=environment) as server:
        drive(server.port)
    wait_until(lambda: not _is_open_elsewhere(output), what="the end of strace")
    return Trace(output.read_text().splitlines())


def _is_open_elsewhere(path: Path) -> bool:
    """Tell whether some process still has the file open."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(link) == str(path) for link in folder.iterdir()):
                return True
        except OSError:
            continue
    return False


def test_one_receive_and_one_send_for_each_message(trace: Trace) -> None:
    calls = trace.calls("one at a time", *RECEIVES, *SENDS)
    assert [call.name for call in calls] == ["recvfrom", "sendto"] * ECHOES
    assert len({call.fd for call in calls}) == 1
    # Nothing was asked for in vain.
    assert [call.error for call in calls] == [""] * (2 * ECHOES)
    assert trace.count("one at a time", "epoll_ctl") == 0


def test_one_send_for_a_pipeline(trace: Trace) -> None:
    names = [call.name for call in trace.calls("pipelined", *RECEIVES, *SENDS)]
    if len(names) == 11:
        # The machine held the server up for longer than a turn: it flushed, gave way and went on, once.
        del names[next(at for at in range(1, 11) if names[at - 1] == names[at] == "sendto")]
    assert names == ["recvfrom", "sendto"] * 5
    # One where it gave way, which need not show in what it sent.
    assert trace.count("pipelined", "epoll_ctl") <= 1


def test_two_waits_for_each_wake_up_at_most(trace: Trace) -> None:
    loop = trace.calls("", *WAITS)[0].fd
    for name in trace.phases:
        inner = 0
        for call in trace.calls(name, *WAITS):
            inner = 0 if call.fd == loop else inner + 1
            assert inner <= 1, name
    assert 0 < trace.count("one at a time", *WAITS) <= 2 * ECHOES + 10


def test_waits_do_not_grow_with_the_connections_that_are_ready(trace: Trace) -> None:
    calls = trace.phases["crowd"]
    received = [at for at, call in enumerate(calls) if call.name in RECEIVES]
    assert len(received) == CROWD
    assert trace.count("crowd", *SENDS) == CROWD
    # One look of the loop's and one of ours find them all; a batch that takes long lets the loop look in between.
    assert sum(call.name in WAITS for call in calls[received[0] : received[-1]]) <= 4
    assert trace.count("crowd", "epoll_ctl") == 0


def test_an_idle_connection_costs_nothing(trace: Trace) -> None:
    assert trace.calls("idle", *RECEIVES, *SENDS, "epoll_ctl") == []
    # The wheel turns ten times a second, whoever is connected.
    assert 0 < trace.count("idle", *WAITS) <= 15


def test_one_send_for_each_connection_of_a_broadcast(trace: Trace) -> None:
    calls = trace.calls("broadcast", *RECEIVES, *SENDS)
    assert {call.name for call in calls} == {"sendto"}
    assert [call.result for call in calls] == [4 + 1024] * BROADCAST
    assert len({call.fd for call in calls}) == BROADCAST
    assert trace.count("broadcast", "epoll_ctl") == 0
