"""An echo server with socketify (uWebSockets), on 127.0.0.1: python echo_socketify.py PORT."""

from __future__ import annotations

import sys
from typing import Any

from socketify import App, CompressOptions, OpCode

MAX_MESSAGE = 1 << 20


def echo(connection: Any, message: str | bytes, opcode: OpCode) -> None:
    """Send each message back."""
    connection.send(message, opcode)


if __name__ == "__main__":
    app = App()
    app.ws("/echo", {"compression": CompressOptions.DISABLED, "max_payload_length": MAX_MESSAGE, "message": echo})
    app.listen({"port": int(sys.argv[1]), "host": "127.0.0.1"})
    app.run()
