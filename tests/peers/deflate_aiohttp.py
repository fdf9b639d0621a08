"""`aiohttp` with compression: "client URL COMBINATIONS" or "server COMBINATIONS"; see test_deflate_peers.py."""

import asyncio
import json
import sys
from typing import Any

from aiohttp import ClientSession, WSMsgType, web

TEXT = "compress me, please " * 50
MESSAGES: list[Any] = [TEXT, TEXT, "short", bytes(range(256)) * 40, TEXT * 100, TEXT]


async def client(url: str, combinations: list[dict[str, Any]]) -> None:
    saw = []
    async with ClientSession() as session:
        for combination in combinations:
            async with session.ws_connect(url, max_msg_size=0, **combination) as peer:
                for message in MESSAGES:
                    if isinstance(message, str):
                        await peer.send_str(message)
                        assert await peer.receive_str() == message
                    else:
                        await peer.send_bytes(message)
                        assert await peer.receive_bytes() == message
                saw.append(peer._response.headers.get("Sec-WebSocket-Extensions", ""))
    print(json.dumps(saw))


async def server(combinations: list[dict[str, Any]]) -> None:
    ports = []
    for combination in combinations:
        runner = web.AppRunner(make_app(combination))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(runner.addresses[0][1])
    print("ports", *ports, flush=True)
    await asyncio.Future()


def make_app(combination: dict[str, Any]) -> web.Application:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        peer = web.WebSocketResponse(max_msg_size=0, **combination)
        await peer.prepare(request)
        async for message in peer:
            if message.type is WSMsgType.TEXT:
                await peer.send_str(message.data)
            else:
                await peer.send_bytes(message.data)
        return peer

    app = web.Application()
    app.router.add_get("/", echo)
    return app


if sys.argv[1] == "client":
    asyncio.run(client(sys.argv[2], json.loads(sys.argv[3])))
else:
    asyncio.run(server(json.loads(sys.argv[2])))
