"""What the tests of the core share: frames as a peer would send them, and what a Protocol makes of them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from gws_gevent.frames import Opcode, Side, frame_header
from gws_gevent.options import ServerOptions
from tests.test_accel import compiled

__all__ = [
    "BINARY",
    "BUILDS",
    "CLOSE",
    "CONT",
    "FIN",
    "KEY",
    "PING",
    "PONG",
    "SIDES",
    "TEXT",
    "Event",
    "Outcome",
    "core",
    "feed",
    "frame",
    "header",
    "new_protocol",
    "outcome",
]

BUILDS = pytest.mark.parametrize("build", ["plain", "compiled"])
SIDES = pytest.mark.parametrize("side", ["SERVER", "CLIENT"])
KEY = b"\x01\x80\x7f\xfe"

CONT, TEXT, BINARY, CLOSE, PING, PONG = (int(opcode) for opcode in Opcode)
FIN = 0x80

Event = tuple[int, str | bytes]


class Outcome(NamedTuple):
    """What a protocol made of some bytes."""

    events: list[Event]
    failure: tuple[int, str] | None


def core(build: str, name: str = "protocol") -> ModuleType:
    return import_module(f"gws_gevent.{name}") if build == "plain" else compiled(name)


def new_protocol(build: str, side: str = "SERVER", **options: Any) -> Any:
    rules = core(build, "protocol_rules").ProtocolRules(Side[side], ServerOptions(**options))
    return core(build).Protocol(rules)


def frame(side: str, first: int, payload: bytes = b"") -> bytes:
    """A frame that the peer of `side` sends: masked if that is a server."""
    if side == "CLIENT":
        return frame_header(first, len(payload)) + payload
    return frame_header(first, len(payload), KEY) + bytes(byte ^ KEY[i & 3] for i, byte in enumerate(payload))


def header(side: str, first: int, length: int, form: int) -> bytes:
    """A header as the peer of `side` sends it, its length in `form` bytes (0, 2 or 8), without the key and the payload."""
    mask = 0x80 if side == "SERVER" else 0
    if form == 0:
        return bytes((first, mask | length))
    return bytes((first, mask | (126 if form == 2 else 127))) + length.to_bytes(form, "big")


def feed(protocol: Any, data: bytes) -> list[Event]:
    """Everything `data` completes."""
    events = [(int(message.opcode), message.data) for message in protocol.receive(data, 0, len(data))]
    while protocol.has_more:
        events += [(int(message.opcode), message.data) for message in protocol.receive(b"", 0, 0)]
    return events


def outcome(protocol: Any, *pieces: bytes) -> Outcome:
    events = [event for piece in pieces for event in feed(protocol, piece)]
    failure = protocol.failure
    return Outcome(events, (int(failure.code), str(failure)) if failure is not None else None)
