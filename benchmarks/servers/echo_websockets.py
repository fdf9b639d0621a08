"""An echo server with websockets on asyncio, on 127.0.0.1: python echo_websockets.py PORT [CERTIFICATE]."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

MAX_MESSAGE = 1 << 20


async def echo(connection: ServerConnection) -> None:
    """Send each message back; a connection that the load cuts off is no error."""
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass


async def main(port: int, certificate: str | None = None) -> None:
    logging.disable(logging.CRITICAL)
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    async with serve(echo, "127.0.0.1", port, ssl=context, compression=None, max_size=MAX_MESSAGE) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
