"""The exceptions of gevent-websocket, which are `OSError`s as there.

Belongs here: the tree. What the rest of this package raises is in gws_gevent.exceptions; `websocket.py` translates.
"""

from __future__ import annotations

__all__ = ["FrameTooLargeException", "ProtocolError", "WebSocketError"]


class WebSocketError(OSError):
    """A WebSocket that cannot be read or written any more."""


class ProtocolError(WebSocketError):
    """What a peer said cannot be understood. Raised in a WebSocketApplication it closes the WebSocket with 1002."""


class FrameTooLargeException(ProtocolError):
    """A message to send is larger than `write_max_payload_size`; nothing of it was sent."""
