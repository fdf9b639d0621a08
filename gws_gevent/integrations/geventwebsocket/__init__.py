"""The successor of gevent-websocket: its names and objects, on the engine of this package.

`install()` lets it answer `import geventwebsocket`. What differs stands in docs/geventwebsocket.md.
"""

from __future__ import annotations

from gws_gevent.integrations.geventwebsocket._version import VERSION
from gws_gevent.integrations.geventwebsocket.exceptions import WebSocketError
from gws_gevent.integrations.geventwebsocket.installing import install
from gws_gevent.integrations.geventwebsocket.resource import Resource, WebSocketApplication
from gws_gevent.integrations.geventwebsocket.server import WebSocketServer
from gws_gevent.integrations.geventwebsocket.utils import get_version

__all__ = ["VERSION", "Resource", "WebSocketApplication", "WebSocketError", "WebSocketServer", "get_version", "install"]
