"""Any message is answered with SIZE bytes to every connection, by `broadcast` of websockets.

python broadcast_websockets.py PORT SIZE
"""

from __future__ import annotations

import asyncio
import logging
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

members: set[ServerConnection] = set()


async def join(connection: ServerConnection) -> None:
    members.add(connection)
    try:
        async for _ in connection:
            broadcast(members, bytes(int(sys.argv[2])))
    except ConnectionClosed:
        pass
    finally:
        members.discard(connection)


async def main(port: int) -> None:
    logging.disable(logging.CRITICAL)
    async with serve(join, "127.0.0.1", port, compression=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
