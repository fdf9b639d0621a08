"""The `websockets` server on a free port: echoes, and does what "please ..." asks; prints its port and how connections closed."""

from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve


def handle(peer: ServerConnection) -> None:
    count = 0
    try:
        while True:
            pieces: list[Any] = list(peer.recv_streaming())
            message = "".join(pieces) if isinstance(pieces[0], str) else b"".join(pieces)
            if message == "please fragment":
                peer.send(["alpha ", "", "\u03b2\u03ae\u03c4\u03b1"])
            elif message == "please ping":
                peer.ping("server").wait(10)
                peer.send("you answered my ping")
            elif message == "please count":
                peer.send(f"{count} fragments")
            elif message == "please close":
                peer.close(4002, "as you wish \u20ac")
            else:
                peer.send(message)
            count = len(pieces)
    except ConnectionClosed as closed:
        received = closed.rcvd
        print("closed", received and received.code, received and received.reason, flush=True)


with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
    print("port", server.socket.getsockname()[1], flush=True)
    server.serve_forever()
