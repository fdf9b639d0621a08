"""A stream that cannot be waited for: the connection ends, and nobody else feels it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket

from gws_gevent import ACCELERATED, Connection, ConnectionClosed, TransportError, Upgrader
from gws_gevent.transports.base import PollableStream
from gws_gevent.transports.tcp import SocketStream
from tests.pairs import Recorder
from tests.raw import request
from tests.support import run_program


class Unwaitable:
    """A stream whose wait fails, as where the kernel has no room for one more descriptor in an epoll."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def wait_readable(self) -> None:
        raise TransportError("wait: no space left on device")


PollableStream.register(Unwaitable)


def serve_one(serve: Callable[[Connection], object], handler: Recorder) -> None:
    """Let `serve` have a connection on such a stream, whose peer says nothing after its request."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(request())
        upgrader = Upgrader(handler)
        serving = gevent.spawn(lambda: serve(upgrader.upgrade_stream(Unwaitable(SocketStream.adopt(ours)))))  # type: ignore[arg-type]
        serving.get(timeout=5)


def test_a_handlers_connection_ends_when_it_cannot_be_waited_for() -> None:
    handler = Recorder()
    serve_one(Connection.read_loop, handler)
    (info,) = handler.infos
    assert str(info.error) == "wait: no space left on device"


def test_receive_ends_when_it_cannot_wait() -> None:
    def read(conn: Connection) -> None:
        with pytest.raises(ConnectionClosed):
            conn.receive()
        assert conn.close_info is not None
        assert str(conn.close_info.error) == "wait: no space left on device"

    serve_one(read, Recorder())


FORKS_IN_A_BATCH = """
import json, os, signal, time
import gevent, gevent.os
from gevent import socket
from gws_gevent import EventHandler, Server
from tests.raw import RawClient, frame

class Forking(EventHandler):
    def on_message(self, conn, message):
        global status
        if message.data == "fork":
            child = gevent.os.fork()
            if not child:
                signal.alarm(5)  # or it might never end
                gevent.sleep(0.05)
                os._exit(0)
            time.sleep(0.3)
            status = os.waitpid(child, 0)[1]
        conn.send("parent" if os.getpid() == PARENT else "child")

PARENT, status = os.getpid(), None
server = Server(Forking())
server.start("127.0.0.1:0")
clients = [RawClient(int(server.address.rpartition(":")[2])) for _ in range(6)]
for client in clients:
    client.upgrade()
gevent.sleep(0.05)
for number, client in enumerate(clients):
    client.sock.sendall(frame(1, b"fork" if number == 2 else b"hello"))
# Meanwhile the child has come to its end: this greenlet is in there as well, and must not read what belongs to the parent.
gevent.sleep(1)
answers = [client.read_frame().payload.decode() for client in clients]
print(json.dumps([status, answers]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not ACCELERATED, reason="gevent's own watchers deliver in a child what was pending in its parent")
def test_a_child_that_was_forked_in_the_middle_of_a_batch_serves_nothing_of_it() -> None:
    """A handler forks while other connections have input as well, and the child waits for something."""
    finished = run_program([sys.executable, "-c", FORKS_IN_A_BATCH])
    assert json.loads(finished.output) == [0, ["parent"] * 6]
