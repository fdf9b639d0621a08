"""Any message is answered with SIZE bytes to every connection, by a loop over picows' transports.

python broadcast_picows.py PORT SIZE
"""

from __future__ import annotations

import asyncio
import logging
import sys

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

members: set[WSTransport] = set()


class Member(WSListener):
    """A connection; what it sends is for all."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        members.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            payload = bytes(int(sys.argv[2]))
            for member in members:
                member.send(WSMsgType.BINARY, payload)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        members.discard(transport)


def listener_for(request: WSUpgradeRequest) -> WSListener:
    return Member()


async def main(port: int) -> None:
    logging.disable(logging.CRITICAL)
    server = await ws_create_server(listener_for, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(int(sys.argv[1])))
    else:
        uvloop.run(main(int(sys.argv[1])))
