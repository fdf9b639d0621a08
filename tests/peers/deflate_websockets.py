"""`websockets` with compression: "client URL COMBINATIONS" or "server COMBINATIONS"; see test_deflate_peers.py."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory

TEXT = "compress me, please " * 50
MESSAGES: list[str | bytes] = [TEXT, TEXT, "short", bytes(range(256)) * 40, "", TEXT * 100, TEXT]


async def client(url: str, combinations: list[dict[str, object]]) -> None:
    saw = []
    for combination in combinations:
        factory = ClientPerMessageDeflateFactory(**combination)  # type: ignore[arg-type]
        async with connect(url, compression=None, extensions=[factory], max_size=None) as peer:
            for message in MESSAGES:
                await peer.send(message)
                assert await peer.recv() == message
            await peer.send([TEXT[:7], "", TEXT[7:]])
            assert await peer.recv() == TEXT
            assert peer.response is not None
            saw.append(peer.response.headers.get("Sec-WebSocket-Extensions", ""))
    print(json.dumps(saw))


async def echo(peer: ServerConnection) -> None:
    async for message in peer:
        await peer.send(message)


async def server(combinations: list[dict[str, object]]) -> None:
    ports = []
    for combination in combinations:
        factory = ServerPerMessageDeflateFactory(**combination)  # type: ignore[arg-type]
        one = await serve(echo, "127.0.0.1", 0, compression=None, extensions=[factory], max_size=None)
        ports += [sock.getsockname()[1] for sock in one.sockets]
    print("ports", *ports, flush=True)
    await asyncio.Future()


if sys.argv[1] == "client":
    asyncio.run(client(sys.argv[2], json.loads(sys.argv[3])))
else:
    asyncio.run(server(json.loads(sys.argv[2])))
