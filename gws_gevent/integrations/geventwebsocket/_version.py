"""The version of gevent-websocket whose API is answered for."""

from __future__ import annotations

__all__ = ["VERSION"]

VERSION = (0, 10, 1, "final", 0)
