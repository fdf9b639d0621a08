"""An echo server with picows, on uvloop where it is installed, on 127.0.0.1: python echo_picows.py PORT [CERTIFICATE]."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

MAX_MESSAGE = 1 << 20


class Echo(WSListener):
    """Sends each frame back: the load sends no fragments."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY):
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


def listener_for(request: WSUpgradeRequest) -> WSListener:
    return Echo()


async def main(port: int, certificate: str | None = None) -> None:
    logging.disable(logging.CRITICAL)
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await ws_create_server(listener_for, "127.0.0.1", port, ssl=context, max_frame_size=MAX_MESSAGE)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
    else:
        uvloop.run(main(int(sys.argv[1]), *sys.argv[2:]))
