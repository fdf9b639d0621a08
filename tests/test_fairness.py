"""One connection with endless input does not starve the others (architecture: rules of the runtime, fairness)."""

from __future__ import annotations

import pytest

from gws_gevent import Connection, EventHandler, Message, connect
from gws_gevent import connection as connection_module
from gws_gevent.transports.base import NonBlockingStream
from tests.pairs import serving, url_of
from tests.support import wait_until


class Order(EventHandler):
    """Remembers how much of the flood had been handled when the other connection's message was."""

    def __init__(self) -> None:
        self.flooded = 0
        self.flooded_before_the_other: int | None = None

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.data == "flood":
            self.flooded += 1
        else:
            self.flooded_before_the_other = self.flooded


def test_a_flood_of_small_messages_in_one_read_lets_others_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    # Any time at all is too long a turn: it gives way at each look at the clock.
    monkeypatch.setattr(connection_module, "TURN", 0.0)
    handler = Order()
    frame = b"\x81\x85\0\0\0\0flood"
    with serving(handler) as server, connect(url_of(server)) as flood, connect(url_of(server)) as other:
        stream = flood.stream
        assert isinstance(stream, NonBlockingStream)
        # Both are in the kernel's buffers before the server's greenlets run, the flood first.
        taken = stream.try_send(frame * 10_000)
        sent = taken // len(frame)
        other.send("other")
        wait_until(lambda: handler.flooded == sent, 10, "the flood to be handled")
        wait_until(lambda: handler.flooded_before_the_other is not None, 10, "the other message to be handled")
        stream.send_all(frame[taken % len(frame) :])
    assert sent > 1000
    assert handler.flooded_before_the_other is not None
    assert 0 < handler.flooded_before_the_other < sent
