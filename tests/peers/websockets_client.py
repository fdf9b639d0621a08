"""The `websockets` client against the server at argv[1]: does what test_peers.py expects and prints what it saw as JSON."""

import json
import sys
from hashlib import sha256

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

BIG = 1 << 20
url = sys.argv[1]
saw: dict[str, object] = {}

with connect(url, compression=None, max_size=None) as peer:
    peer.send("h\u00e9llo \u20ac \U0001d11e")
    saw["text"] = peer.recv(10)
    peer.send(bytes(range(256)))
    echoed = peer.recv(10)
    assert isinstance(echoed, bytes)
    saw["binary"] = echoed.hex()
    for name, data in (("big binary", bytes(range(256)) * (BIG // 256)), ("big text", "\u20ac" * (BIG // 3))):
        peer.send(data)
        whole = peer.recv(20)
        saw[name] = [len(whole), sha256(whole.encode() if isinstance(whole, str) else whole).hexdigest()]
    peer.send(["al", "pha ", "", "\u03b2\u03ae\u03c4\u03b1"])
    saw["fragments sent"] = peer.recv(10)
    peer.send("please fragment")
    saw["fragments received"] = list(peer.recv_streaming())
    saw["pong"] = peer.ping("tick").wait(10)
    peer.send("please ping")
    saw["answered"] = peer.recv(10)
    peer.close(4001, "bye \u20ac")
    saw["close"] = [peer.close_code, peer.close_reason]

with connect(url, compression=None) as peer:
    peer.send("please close")
    try:
        saw["unexpected"] = peer.recv(10)
    except ConnectionClosed:
        pass
    saw["closed"] = [peer.close_code, peer.close_reason]

print(json.dumps(saw))
