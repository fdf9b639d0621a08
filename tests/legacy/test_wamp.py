"""WAMP 1 over a WebSocketServer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gws_gevent.integrations.geventwebsocket import Resource, WebSocketApplication
from gws_gevent.integrations.geventwebsocket.protocols.wamp import MAX_PREFIXES, Channels, WampProtocol, export_rpc
from tests.legacy.client import websocket
from tests.legacy.test_api import port_of, serving
from tests.raw import RawClient, frame
from tests.support import wait_until


class Store:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    @export_rpc
    def set(self, key: str, value: Any) -> None:
        self.values[key] = value

    @export_rpc
    def get(self, key: str) -> Any:
        return self.values[key]

    def hidden(self) -> None:
        raise AssertionError


class Fresh:
    @export_rpc
    def kind(self) -> str:
        return type(self).__name__


class Application(WebSocketApplication):
    protocol_class = WampProtocol

    def on_open(self) -> None:
        protocol = self.protocol
        assert isinstance(protocol, WampProtocol)
        protocol.register_procedure("http://localhost/calc#add", lambda x, y: x + y)
        protocol.register_object("http://localhost/store#", Store())
        protocol.register_object("http://localhost/fresh#", Fresh)
        protocol.register_pubsub("http://localhost/news")


def say(client: RawClient, *message: Any) -> None:
    client.send(frame(1, json.dumps(message).encode()))


def hear(client: RawClient) -> list[Any]:
    said: list[Any] = json.loads(client.read_frame().payload)
    return said


def test_calls_and_topics() -> None:
    with serving(Resource([("/", Application)])) as server:
        with websocket(port_of(server), "/") as one, websocket(port_of(server), "/", "Sec-WebSocket-Protocol: wamp") as two:
            welcomes = [hear(client) for client in (one, two)]
            assert [welcome[0::2] for welcome in welcomes] == [[0, 1]] * 2
            assert welcomes[0][1] != welcomes[1][1]
            say(one, 2, "1", "http://localhost/calc#add", 3, 4)
            assert hear(one) == [3, "1", 7]
            say(one, 1, "store", "http://localhost/store#")
            say(one, 2, "2", "store:set", "a", [1])
            assert hear(one) == [3, "2", None]
            say(one, 2, "3", "store:get", "a")
            assert hear(one) == [3, "3", [1]]
            say(one, 2, "4", "store:get", "b")
            assert hear(one)[:2] == [4, "4"]
            say(one, 2, "5", "store:hidden")
            assert hear(one)[:2] == [4, "5"]
            say(one, 2, "6", "http://localhost/fresh#kind")
            assert hear(one) == [3, "6", "Fresh"]
            for client in (one, two):
                say(client, 5, "http://localhost/news")
            say(two, 7, "http://localhost/news", {"it": "rains"})
            assert hear(one) == hear(two) == [8, "http://localhost/news", {"it": "rains"}]
            say(one, 6, "http://localhost/news")
            say(one, 7, "http://localhost/news", "again")
            assert hear(two) == [8, "http://localhost/news", "again"]
        wait_until(lambda: not server.clients)
        assert server.channels.channels == {"http://localhost/news": []}


@pytest.mark.parametrize(
    "message", ["no JSON", "{}", "[]", "[" * 100_000, '["?"]', '[2, 1, "http://x"]', '[2, "1", "x:y"]', "[5, 5]"]
)
def test_what_is_no_wamp_is_1002(message: str) -> None:
    with serving(Resource([("/", Application)])) as server, websocket(port_of(server), "/") as client:
        hear(client)
        client.send(frame(1, message.encode()))
        assert client.read_close()[0] == 1002


def test_prefixes_are_bounded() -> None:
    with serving(Resource([("/", Application)])) as server, websocket(port_of(server), "/") as client:
        hear(client)
        client.send(b"".join(frame(1, json.dumps([1, str(n), "http://x"]).encode()) for n in range(MAX_PREFIXES + 1)))
        assert client.read_close() == (1002, b"too many prefixes")


def test_a_topic_that_is_not_there() -> None:
    channels = Channels()
    channels.subscribe("http://x", object())
    channels.unsubscribe("http://x", object())
    channels.publish("http://x", 1)
    assert channels.channels == {}
