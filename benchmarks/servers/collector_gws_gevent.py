"""An echo server that also says what a full collection costs it, to a text message: python collector_gws_gevent.py PORT.

The answer is JSON: seconds of one `gc.collect()`, and how many objects the collector sees.
"""

from __future__ import annotations

import gc
import json
import sys
import time

from gws_gevent import Connection, EventHandler, Message, Opcode, Server


class Collector(EventHandler):
    """Echoes binary messages."""

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.opcode == Opcode.BINARY:
            conn.write_message(message.opcode, message.data)
            return
        gc.collect()  # what is garbage by now is no work that comes again
        started = time.perf_counter()
        gc.collect()
        seconds = time.perf_counter() - started
        conn.send(json.dumps({"seconds": seconds, "objects": len(gc.get_objects())}))


if __name__ == "__main__":
    Server(Collector()).run(f"tcp://127.0.0.1:{int(sys.argv[1])}")
