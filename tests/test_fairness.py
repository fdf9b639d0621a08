"""One connection with endless input does not starve the others (architecture: rules of the runtime, fairness)."""

from __future__ import annotations

import time
from typing import Any

from gws_gevent import Connection, EventHandler, Message, connect
from gws_gevent.transports.base import NonBlockingStream
from gws_gevent.transports.memory import MemoryStream
from tests.pairs import Recorder, paired, serving, url_of
from tests.support import wait_until

FRAME = b"\x81\x85\0\0\0\0hello"


class Turns(EventHandler):
    """Counts the messages, and how often the next one belonged to another connection."""

    def __init__(self) -> None:
        self.messages = 0
        self.changes = 0
        self._last = 0

    def on_message(self, conn: Connection, message: Message) -> None:
        self.messages += 1
        self.changes += conn.id != self._last
        # So that a turn is over at the next look at the clock.
        until = time.monotonic() + 0.00003
        while time.monotonic() < until:
            pass
        self._last = conn.id


def test_connections_with_endless_input_take_turns() -> None:
    turns = Turns()
    with serving(turns) as server, connect(url_of(server)) as one, connect(url_of(server)) as other:
        wait_until(lambda: len(server.connections) == 2, 5, "both to be open")
        sent = 0
        for conn in (one, other):
            # All of it is in the kernel's buffers before the server's greenlets run: to them it is one read each.
            stream = conn.stream
            assert isinstance(stream, NonBlockingStream)
            taken = stream.try_send(FRAME * 10_000)
            stream.try_send(FRAME[taken % len(FRAME) :] if taken % len(FRAME) else b"")
            sent += -(-taken // len(FRAME))
        wait_until(lambda: turns.messages == sent, 10, "all of it to be handled")
    assert sent > 2000
    assert turns.changes > 20


class Endless(MemoryStream):
    """Always has something to receive once `flooding` is set, and ends after LIMIT reads: a failure is not to hang."""

    __slots__ = ("flooding", "reads")
    LIMIT = 20_000

    def __init__(self, name: str, capacity: int) -> None:
        super().__init__(name, capacity)
        self.flooding = False
        self.reads = 0

    def recv_into(self, buffer: Any) -> int:
        if not self.flooding:
            return super().recv_into(buffer)
        self.reads += 1
        until = time.monotonic() + 0.00002
        while time.monotonic() < until:
            pass
        return 1 if self.reads < self.LIMIT else 0


def test_a_peer_that_goes_on_sending_after_its_mistake_leaves_others_their_turn() -> None:
    handler = Recorder()
    with paired(handler, make=Endless) as pair:
        conn = handler.open.get(timeout=5)
        pair.stream.flooding = True  # from its next read on
        pair.client.stream.send_all(b"\x81\x00")  # not masked
        wait_until(lambda: pair.stream.reads)
        # The first look comes in the middle of the flood, and so would anybody else's.
        assert pair.stream.reads < Endless.LIMIT
        conn.abort()
        handler.wait_closed()
