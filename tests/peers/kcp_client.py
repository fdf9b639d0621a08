"""A client of code that others wrote: WebSocket by `websockets`, over the client that the package `kcp` brings.

    python kcp_client.py PORT SIZE...

sends messages of these sizes, checks that each comes back, closes, and prints "ok".
"""

from __future__ import annotations

import os
import queue
import random
import sys

from kcp.client import KCPClientSync
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

port, sizes = int(sys.argv[1]), [int(text) for text in sys.argv[2:]]
client = KCPClientSync(
    "127.0.0.1",
    port,
    random.randrange(1, 1 << 31),
    no_delay=True,
    update_interval=10,
    resend_count=2,
    no_congestion_control=True,
    receive_window_size=256,
    send_window_size=256,
)
arrived: queue.Queue[bytes] = queue.Queue()
client.on_data(lambda data: arrived.put(bytes(data)))
protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"), max_size=None)


def put_out() -> None:
    for data in protocol.data_to_send():
        for at in range(0, len(data), 50_000):  # the package takes fewer than 128 segments at once
            client.send(data[at : at + 50_000])


def next_event() -> object:
    while not (events := protocol.events_received()):
        protocol.receive_data(arrived.get(timeout=15))
        put_out()
    (event,) = events
    return event


@client.on_start
def talk() -> None:
    try:
        protocol.send_request(protocol.connect())
        put_out()
        response = next_event()
        assert isinstance(response, Response), response
        assert response.status_code == 101, response
        for size in sizes:
            sent = os.urandom(size)
            protocol.send_binary(sent)
            put_out()
            received = b""
            while True:
                event = next_event()
                assert isinstance(event, Frame), event
                received += event.data
                if event.fin:
                    break
            assert received == sent, f"{size} bytes came back as {len(received)}"
        protocol.send_close(1000, "bye")
        put_out()
        event = next_event()
        assert isinstance(event, Frame), event
        assert event.opcode is Opcode.CLOSE, event
        print("ok", flush=True)
        os._exit(0)
    except BaseException as error:
        print(f"failed: {error!r}", flush=True)
        os._exit(1)


client.start()
