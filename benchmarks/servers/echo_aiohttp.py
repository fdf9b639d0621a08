"""An echo server with aiohttp on asyncio, on 127.0.0.1: python echo_aiohttp.py PORT [CERTIFICATE]."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys

from aiohttp import WSMsgType, web

MAX_MESSAGE = 1 << 20


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send each message back; a connection that the load cuts off is no error."""
    connection = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE)
    await connection.prepare(request)
    try:
        async for message in connection:
            if message.type is WSMsgType.TEXT:
                await connection.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await connection.send_bytes(message.data)
    except ConnectionResetError:
        pass
    return connection


async def main(port: int, certificate: str | None = None) -> None:
    logging.disable(logging.CRITICAL)
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    app = web.Application()
    app.router.add_get("/echo", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
