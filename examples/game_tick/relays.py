"""Relays between real sockets of this machine that behave like a bad line: one for UDP, one for TCP.

`udp_relay` loses, delays and reorders datagrams. Linux gives nobody the segments of a TCP connection, so `tcp_relay` reads the
stream and hands it on when `tcp_model.TcpConnection` says that the receiver would have had it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer
from tcp_model import SEGMENT, TcpConnection

from gws_gevent.transports.simulated import Impairment


@contextmanager
def udp_relay(target: tuple[str, int], line: Impairment, seed: int) -> Iterator[tuple[str, int]]:
    """Give an address that leads to `target` and back over the line, for any number of clients."""
    random, front = Random(seed), _bound()
    backs: dict[Any, Any] = {}
    readers: list[gevent.Greenlet] = []
    under_way: set[Any] = set()

    def carry(data: bytes, send: Callable[[bytes], object]) -> None:
        for late, copy in line.copies(data, random):
            timer = gevent.get_hub().loop.timer(late)
            under_way.add(timer)
            timer.start(arrive, timer, copy, send)

    def arrive(timer: Any, data: bytes, send: Callable[[bytes], object]) -> None:
        under_way.discard(timer)
        timer.close()
        try:
            send(data)
        except OSError:
            pass  # lost like any other

    def read_back(back: Any, client: Any) -> None:
        while True:
            carry(back.recv(65536), lambda data: front.sendto(data, client))

    def read_front() -> None:
        while True:
            data, client = front.recvfrom(65536)
            if client not in backs:
                backs[client] = _bound()
                backs[client].connect(target)
                readers.append(gevent.spawn(read_back, backs[client], client))
            carry(data, backs[client].send)

    readers.append(gevent.spawn(read_front))
    try:
        yield front.getsockname()
    finally:
        gevent.killall(readers)
        for timer in under_way:
            timer.close()
        for sock in (front, *backs.values()):
            sock.close()


@contextmanager
def tcp_relay(target: tuple[str, int], line: Impairment, seed: int) -> Iterator[tuple[str, int]]:
    """Give an address that leads to `target` and back as a TCP connection over the line would."""
    random = Random(seed)

    def serve(client: Any, _: Any) -> None:
        with socket.create_connection(target) as server:
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _carry_both_ways((client, server), TcpConnection(line.loss, line.delay, line.jitter, Random(random.random())))

    relay = StreamServer(("127.0.0.1", 0), serve)
    relay.start()
    try:
        yield relay.address
    finally:
        relay.stop(0)


def _carry_both_ways(sides: tuple[Any, Any], connection: TcpConnection) -> None:
    """Carry bytes until both streams have ended."""
    wake = Event()

    def read(side: int) -> None:
        data = b" "
        while data:
            try:
                data = sides[side].recv(SEGMENT)
            except OSError:
                data = b""
            connection.send(side, data, len(data), time.monotonic())
            wake.set()

    readers = [gevent.spawn(read, side) for side in (0, 1)]
    try:
        ends = 0
        while ends < 2:
            wake.clear()
            for side, data in connection.run(time.monotonic()):
                if data:
                    sides[side].sendall(data)
                else:
                    sides[side].shutdown(socket.SHUT_WR)
                    ends += 1
            moment = connection.next_event()
            wake.wait(None if moment is None else max(0.0, moment - time.monotonic()))
    except OSError:
        pass  # one of them has gone
    finally:
        gevent.killall(readers)


def _bound() -> Any:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock
