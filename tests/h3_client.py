"""An HTTP/3 client on the public interface of aioquic, without asyncio: what a test says to a server, right or wrong.

Belongs here: that client. Does not belong here: the package's own client, tests.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any

import gevent
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from gevent import socket

from tests.support import wait_until

__all__ = ["CONNECT", "H3Client"]

#: An extended CONNECT as aioquic's example client sends it.
CONNECT = [
    (b":method", b"CONNECT"),
    (b":scheme", b"https"),
    (b":authority", b"localhost"),
    (b":path", b"/"),
    (b":protocol", b"websocket"),
    (b"user-agent", b"aioquic"),
    (b"sec-websocket-version", b"13"),
]


class H3Client:
    """One connection. A greenlet of its own receives; use it in a `with` block.

    Attributes:
        quic, h3: aioquic's objects; `flush` after each use.
        headers: the header sections received, by stream.
        data: the DATA received, by stream.
        ended: streams that the server has ended.
        resets: codes of streams that the server has reset.
        stops: codes of streams that the server has asked to stop.
        over: the ConnectionTerminated event, once there was one.
    """

    def __init__(self, port: int) -> None:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE, server_name="localhost")
        self.quic = QuicConnection(configuration=configuration)
        self.h3: H3Connection | None = None
        self.headers: dict[int, list[list[tuple[bytes, bytes]]]] = {}
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.stops: dict[int, int] = {}
        self.over: Any = None
        self._address = ("127.0.0.1", port)
        self._socket: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._reader = gevent.spawn(self._receive)

    def __enter__(self) -> H3Client:
        self.quic.connect(self._address, time.monotonic())
        self.flush()
        wait_until(lambda: self.h3 is not None or self.over, what="the handshake")
        return self

    def __exit__(self, *exception: object) -> None:
        self.quic.close()
        self.flush()
        self._reader.kill()
        self._socket.close()

    def flush(self) -> None:
        """Send what is to be sent."""
        for data, _ in self.quic.datagrams_to_send(time.monotonic()):
            self._socket.sendto(data, self._address)

    def request(self, fields: list[tuple[bytes, bytes]], body: bytes | None = None) -> int:
        """Send a request; None: its stream stays open. Return the stream's id."""
        assert self.h3 is not None
        stream_id = self.quic.get_next_available_stream_id()
        self.h3.send_headers(stream_id, fields, end_stream=body == b"")
        if body:
            self.h3.send_data(stream_id, body, end_stream=True)
        self.flush()
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send DATA."""
        assert self.h3 is not None
        self.h3.send_data(stream_id, data, end)
        self.flush()

    def answer(self, stream_id: int) -> tuple[int, dict[str, str]]:
        """Wait for the answer; return its status and headers."""
        fields = self.until(lambda: self.headers.get(stream_id))[-1]
        found = {name.decode(): value.decode() for name, value in fields}
        return int(found.pop(":status")), found

    def body(self, stream_id: int) -> bytes:
        """Wait for the end of a stream; return its DATA."""
        self.until(lambda: stream_id in self.ended)
        return self.data.get(stream_id, b"")

    def until(self, predicate: Callable[[], Any]) -> Any:
        """Wait for something that the server does; fail if the connection ends instead."""
        return wait_until(lambda: predicate() or (self._fail() if self.over else None), 10)

    def _fail(self) -> None:
        raise AssertionError(f"the connection has ended: {self.over}")

    def _receive(self) -> None:
        while True:
            due = self.quic.get_timer()
            self._socket.settimeout(None if due is None else max(due - time.monotonic(), 0.001))
            try:
                data, _ = self._socket.recvfrom(65536)
            except TimeoutError:
                self.quic.handle_timer(time.monotonic())
            except ConnectionError:
                continue
            else:
                self.quic.receive_datagram(data, self._address, time.monotonic())
            while (event := self.quic.next_event()) is not None:
                self._take(event)
            self.flush()

    def _take(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ProtocolNegotiated):
            self.h3 = H3Connection(self.quic)
        elif isinstance(event, events.ConnectionTerminated):
            self.over = event
        elif isinstance(event, events.StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, events.StopSendingReceived):
            self.stops[event.stream_id] = event.error_code
        if self.h3 is not None:
            for found in self.h3.handle_event(event):
                self._take_h3(found)

    def _take_h3(self, found: H3Event) -> None:
        if isinstance(found, HeadersReceived):
            self.headers.setdefault(found.stream_id, []).append(found.headers)
        elif isinstance(found, DataReceived):
            self.data[found.stream_id] = self.data.get(found.stream_id, b"") + found.data
        if isinstance(found, HeadersReceived | DataReceived) and found.stream_ended:
            self.ended.add(found.stream_id)
