"""What is said to an argument or option that does not exist: the name of the one that was meant.

Belongs here: names of other libraries, and the sentence. Does not belong here: the options themselves (options.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

__all__ = ["names_options", "refuse_unknown"]

P = ParamSpec("P")
R = TypeVar("R")

#: What websockets, websocket-client, aiohttp, Tornado and others call it, where the names are not alike.
_ELSEWHERE: Final = {
    "additional_headers": ("headers", "response_headers"),
    "check_origin": ("origins",),
    "compress": ("permessage_deflate",),
    "compression": ("permessage_deflate",),
    "connect_timeout": ("handshake_timeout",),
    "context": ("ssl_context",),
    "cookie": ("headers",),
    "cookies": ("headers",),
    "extra_headers": ("headers", "response_headers"),
    "header": ("headers", "response_headers"),
    "heartbeat": ("ping_interval",),
    "idle_timeout": ("read_timeout",),
    "max_message_size": ("read_max_payload_size",),
    "max_msg_size": ("read_max_payload_size",),
    "max_payload": ("read_max_payload_size",),
    "max_size": ("read_max_payload_size",),
    "open_timeout": ("handshake_timeout",),
    "origin": ("origins", "headers"),
    "process_request": ("on_request",),
    "receive_timeout": ("read_timeout",),
    "server_hostname": ("server_name",),
    "ssl": ("ssl_context",),
    "sslopt": ("ssl_context",),
    "timeout": ("handshake_timeout",),
    "user_agent_header": ("headers",),
    "websocket_ping_interval": ("ping_interval",),
    "write_limit": ("write_high_water",),
}


def refuse_unknown(kind: type, given: Iterable[str]) -> None:
    """Raise TypeError for the first of these names that is no field of an options class."""
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            meant = _meant(name, known)
            raise TypeError(f"{kind.__name__} has no option {name!r}" + (f"; did you mean {meant}?" if meant else ""))


def names_options(kind: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate what takes `options=`, an instance of `kind`: a keyword it does not know is a TypeError that names the option."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = inspect.signature(function).parameters
        shown = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def checked(*args: P.args, **given: P.kwargs) -> R:
            for name in given:
                if name not in known:
                    raise TypeError(f"{shown}() has no argument {name!r}{_hint(name, known, kind)}")
            return function(*args, **given)

        return checked

    return decorate


def _hint(name: str, arguments: Collection[str], kind: Any) -> str:
    options = [field.name for field in fields(kind)]
    meant = name if name in options else _meant(name, [*arguments, *options])
    if meant is None:
        return ""
    return f"; did you mean {meant}?" if meant in arguments else f"; did you mean options={kind.__name__}({meant}=...)?"


def _meant(name: str, known: Collection[str]) -> str | None:
    for ours in _ELSEWHERE.get(name, ()):
        if ours in known:
            return ours
    from difflib import get_close_matches  # only here: nobody else needs it

    return next(iter(get_close_matches(name, known, 1)), None)
