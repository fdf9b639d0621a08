"""WAMP version 1 as gevent-websocket has it: remote calls, and topics that clients subscribe to.

Belongs here: the messages of that protocol. It is an old one: a new application takes WAMP 2 from a library of its own.

What a client sends wrong is a ProtocolError, which closes its WebSocket with 1002; a call that fails is answered as such.
"""

from __future__ import annotations

import inspect
import json
import secrets
import types
from collections.abc import Callable
from typing import Any

from gws_gevent.integrations.geventwebsocket.exceptions import ProtocolError, WebSocketError
from gws_gevent.integrations.geventwebsocket.protocols.base import BaseProtocol
from gws_gevent.integrations.geventwebsocket.utils import get_version

__all__ = ["Channels", "Prefixes", "RemoteProcedures", "WampProtocol", "export_rpc", "serialize"]

#: Short names that one client may give.
MAX_PREFIXES = 1000
GENERIC_ERROR = "http://wamp.ws/error#generic"


def export_rpc(arg: Any = None) -> Any:
    """Mark a method as one that clients may call, once its object is registered."""
    if isinstance(arg, types.FunctionType):
        arg._rpc = arg.__name__  # type: ignore[attr-defined]
    return arg


def serialize(data: Any) -> str:
    """Write a message as text."""
    return json.dumps(data)


class Prefixes:
    """The short names that one client has given to URIs."""

    def __init__(self) -> None:
        self.prefixes: dict[str, str] = {}

    def add(self, prefix: str, uri: str) -> None:
        """Let `prefix` stand for a URI.

        Raises:
            ProtocolError: there are MAX_PREFIXES already.
        """
        if len(self.prefixes) >= MAX_PREFIXES:
            raise ProtocolError("too many prefixes")
        self.prefixes[prefix] = uri

    def resolve(self, curie_or_uri: str) -> str:
        """Return the URI.

        Raises:
            ProtocolError: neither a URI nor a short form with a known prefix.
        """
        if "://" in curie_or_uri:
            return curie_or_uri
        prefix, colon, rest = curie_or_uri.partition(":")
        if not colon or prefix not in self.prefixes:
            raise ProtocolError("unknown prefix")
        return self.prefixes[prefix] + rest


class RemoteProcedures:
    """What clients may call, by URI."""

    def __init__(self) -> None:
        self.calls: dict[str, Callable[..., Any]] = {}

    def register_procedure(self, uri: str, proc: Callable[..., Any]) -> None:
        """Let clients call a function."""
        self.calls[uri] = proc

    def register_object(self, uri: str, obj: Any) -> None:
        """Let clients call the methods of an object, or of a class that is made anew for each call, that `export_rpc` marks."""
        for name, member in inspect.getmembers(obj, callable):
            if hasattr(member, "_rpc"):
                self.calls[uri + member._rpc] = _on_new_object(obj, name) if inspect.isclass(obj) else member

    def call(self, uri: str, args: list[Any]) -> Any:
        """Call what is registered there.

        Raises:
            LookupError: nothing is.
        """
        if uri not in self.calls:
            raise LookupError(f"no such uri '{uri}'")
        return self.calls[uri](*args)


def _on_new_object(kind: type, name: str) -> Callable[..., Any]:
    return lambda *args: getattr(kind(), name)(*args)


class Channels:
    """Who has subscribed to what, on one server."""

    def __init__(self) -> None:
        self.channels: dict[str, list[Any]] = {}

    def create(self, uri: str, prefix_matching: bool = False) -> None:
        """Make a topic, unless it is there. Prefix matching is not implemented."""
        self.channels.setdefault(uri, [])

    def subscribe(self, uri: str, client: Any) -> None:
        """Let a client hear what is published; nothing if there is no such topic, or it hears it already."""
        members = self.channels.get(uri)
        if members is not None and client not in members:
            members.append(client)

    def unsubscribe(self, uri: str, client: Any) -> None:
        """Take that back. The topic stays."""
        members = self.channels.get(uri, [])
        if client in members:
            members.remove(client)

    def publish(self, uri: str, event: Any, exclude: Any = None, eligible: Any = None) -> None:
        """Send an event to all who have subscribed. `exclude` and `eligible` are not implemented."""
        text = serialize([WampProtocol.MSG_EVENT, uri, event])
        for client in list(self.channels.get(uri, ())):
            try:
                client.ws.send(text)
            except WebSocketError:
                self.unsubscribe(uri, client)


class WampProtocol(BaseProtocol):
    """Name it as the `protocol_class` of a WebSocketApplication, and register procedures and topics in its `on_open`."""

    MSG_WELCOME = 0
    MSG_PREFIX = 1
    MSG_CALL = 2
    MSG_CALL_RESULT = 3
    MSG_CALL_ERROR = 4
    MSG_SUBSCRIBE = 5
    MSG_UNSUBSCRIBE = 6
    MSG_PUBLISH = 7
    MSG_EVENT = 8

    PROTOCOL_NAME = "wamp"

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.procedures = RemoteProcedures()
        self.prefixes = Prefixes()
        self.session_id = secrets.token_hex(8)

    def register_procedure(self, uri: str, proc: Callable[..., Any]) -> None:
        """Let clients call a function; see RemoteProcedures."""
        self.procedures.register_procedure(uri, proc)

    def register_object(self, uri: str, obj: Any) -> None:
        """Let clients call the methods of an object; see RemoteProcedures."""
        self.procedures.register_object(uri, obj)

    def register_pubsub(self, uri: str, prefix_matching: bool = False) -> None:
        """Make a topic, on the server; see Channels."""
        if not hasattr(self.server, "channels"):
            self.server.channels = Channels()
        self.server.channels.create(uri, prefix_matching)

    def do_handshake(self) -> None:
        """Send the welcome message."""
        self.app.ws.send(serialize([self.MSG_WELCOME, self.session_id, 1, f"gevent-websocket/{get_version()}"]))

    def on_open(self) -> None:
        """The WebSocket is open: have the application register what it offers, and welcome the client."""
        self.app.on_open()
        self.do_handshake()

    def on_message(self, message: Any) -> None:
        """A message has come: do what it says. The application's `on_message` gets only the results of calls, which it sends."""
        data = _parse(message)
        kind = data[0]
        if kind == self.MSG_PREFIX and len(data) == 3 and isinstance(data[1], str) and isinstance(data[2], str):
            self.prefixes.add(data[1], data[2])
        elif kind == self.MSG_CALL and len(data) >= 3:
            self.rpc_call(data)
        elif kind in (self.MSG_SUBSCRIBE, self.MSG_UNSUBSCRIBE, self.MSG_PUBLISH) and len(data) >= 2:
            self.pubsub_action(data)
        else:
            raise ProtocolError("unknown kind of message")

    def on_close(self, reason: Any = None) -> None:
        """The WebSocket has closed: nothing is published to it any more."""
        channels = getattr(self.server, "channels", None)
        if channels is not None:
            for uri in channels.channels:
                channels.unsubscribe(uri, self.handler.active_client)
        super().on_close(reason)

    def rpc_call(self, data: list[Any]) -> None:
        """Answer a call with its result, or with its error."""
        call_id, curie_or_uri, *args = data[1:]
        if not isinstance(call_id, str) or not isinstance(curie_or_uri, str):
            raise ProtocolError("a call has an id and a URI")
        uri = self.prefixes.resolve(curie_or_uri)
        try:
            answer = serialize([self.MSG_CALL_RESULT, call_id, self.procedures.call(uri, args)])
        except Exception as error:
            answer = serialize([self.MSG_CALL_ERROR, call_id, GENERIC_ERROR, type(error).__name__, str(error)])
        self.app.on_message(answer)

    def pubsub_action(self, data: list[Any]) -> None:
        """Subscribe, unsubscribe or publish."""
        kind, curie_or_uri = data[:2]
        if not isinstance(curie_or_uri, str):
            raise ProtocolError("a topic is a URI")
        uri = self.prefixes.resolve(curie_or_uri)
        channels = getattr(self.server, "channels", None)
        if channels is None:
            return
        if kind == self.MSG_SUBSCRIBE:
            channels.subscribe(uri, self.handler.active_client)
        elif kind == self.MSG_UNSUBSCRIBE:
            channels.unsubscribe(uri, self.handler.active_client)
        elif len(data) >= 3:
            channels.publish(uri, *data[2:5])


def _parse(message: Any) -> list[Any]:
    try:
        data = json.loads(message)
    except (ValueError, RecursionError):
        raise ProtocolError("a message is JSON") from None
    if not isinstance(data, list) or not data:
        raise ProtocolError("a message is a list")
    return data
