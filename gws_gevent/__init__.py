"""WebSocket for gevent: five callbacks, one greenlet per connection, very little memory.

Importing this package patches nothing, and is safe before or after `gevent.monkey.patch_all()`.
"""

from typing import TYPE_CHECKING

from gws_gevent._accel import ACCELERATED, build_of
from gws_gevent.bridge import Bridge
from gws_gevent.broadcast import Broadcaster, PreparedMessage
from gws_gevent.client import Client, connect
from gws_gevent.concurrent_map import ConcurrentMap
from gws_gevent.exceptions import (
    ConnectionClosed,
    EndpointError,
    GwsError,
    HandshakeError,
    HandshakeRefused,
    MessageTooLarge,
    MissingExtra,
    ProtocolError,
    ProxyError,
    ReconnectFailed,
    Refusal,
    StreamClosed,
    TransportError,
    WriteQueueFull,
)
from gws_gevent.frames import Close, CloseCode, CloseInfo, Opcode, State
from gws_gevent.handler import EventHandler, Message
from gws_gevent.handshake import Headers, Request, Response
from gws_gevent.options import BridgeOptions, ClientOptions, PermessageDeflate, ServerOptions, WsgiSettings
from gws_gevent.raw_bridge import RawBridge
from gws_gevent.reconnect import Reconnect
from gws_gevent.rooms import Rooms
from gws_gevent.server import Server, serve
from gws_gevent.session import SessionStorage
from gws_gevent.streamed import MessageStream
from gws_gevent.transports.base import ListenSettings, TlsFiles
from gws_gevent.transports.tls_contexts import client_context
from gws_gevent.upgrader import Upgrader

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
else:
    Connection = build_of("connection").Connection

__all__ = [
    "ACCELERATED",
    "Bridge",
    "BridgeOptions",
    "Broadcaster",
    "Client",
    "ClientOptions",
    "Close",
    "CloseCode",
    "CloseInfo",
    "ConcurrentMap",
    "Connection",
    "ConnectionClosed",
    "EndpointError",
    "EventHandler",
    "GwsError",
    "HandshakeError",
    "HandshakeRefused",
    "Headers",
    "ListenSettings",
    "Message",
    "MessageStream",
    "MessageTooLarge",
    "MissingExtra",
    "Opcode",
    "PermessageDeflate",
    "PreparedMessage",
    "ProtocolError",
    "ProxyError",
    "RawBridge",
    "Reconnect",
    "ReconnectFailed",
    "Refusal",
    "Request",
    "Response",
    "Rooms",
    "Server",
    "ServerOptions",
    "SessionStorage",
    "State",
    "StreamClosed",
    "TlsFiles",
    "TransportError",
    "Upgrader",
    "WriteQueueFull",
    "WsgiSettings",
    "__version__",
    "client_context",
    "connect",
    "serve",
]

__version__ = "0.1.0"
