"""`--option NAME=VALUE`: ServerOptions from text.

Belongs here: turning text into the type of an option's annotation. Does not belong here: which values are right, the options
themselves check that.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal

from gws_gevent.cli.errors import UsageError
from gws_gevent.http_head import Request
from gws_gevent.options import PermessageDeflate, ServerOptions

__all__ = ["describe_options", "parse_size", "server_options"]

_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_FACTORS = {unit.lower(): factor for unit, factor in _UNITS.items()}
_SIZE = re.compile(r"(-?[0-9][0-9_]*) ?([KMG]iB|)", re.IGNORECASE | re.ASCII)
_WHOLE = re.compile(r"-?[0-9][0-9_]*")
#: In the words of a help text: times are seconds, sizes bytes. docs/server.md says more.
_MEANINGS = {
    "read_max_payload_size": "of one message; a larger one ends its connection (1009)",
    "write_max_payload_size": "of one message to write; a larger one is an error of the handler",
    "max_fragments": "of one message (1009)",
    "check_utf8": "check that text is UTF-8 (1007)",
    "parallel": "messages of one connection handled at once; 0: one after the other",
    "handshake_timeout": "from accept to the end of the request's head, TLS included",
    "close_timeout": "for the peer's close frame",
    "park_after": "idle, until an event handler's connection gives its greenlet back",
    "ping_interval": "between keepalive pings; none: no keepalive",
    "ping_timeout": "that nothing at all may come after a ping; none: for ever",
    "read_timeout": "without any frame; none: for ever",
    "message_timeout": "from a message's first byte to its last",
    "write_timeout": "that a peer may take no bytes while there are some for it",
    "write_high_water": "unsent, above which a writer waits",
    "write_queue_size": "unsent, above which slow_consumer says what becomes of a message",
    "slow_consumer": "close (1008), drop (the newest message) or block",
    "max_buffered": "held for all connections; above it the largest is closed (1013)",
    "no_delay": "TCP_NODELAY",
    "recovery": "false: what a handler raises goes to gevent's hub as well",
    "subprotocols": "supported, in order of preference",
    "permessage_deflate": "compression: --compress, or level=6,server_context_takeover=true",
    "max_request_head": "of request line and headers (414, 431)",
    "trusted_proxies": "networks, or unix, whose word about the client's address counts",
    "require_subprotocol": "refuse a client that offers none of subprotocols (400)",
    "origins": "of pages that may connect (403); none: any",
    "response_headers": "more headers of the answer, NAME:VALUE",
    "keep_request": "keep conn.request for the life of the connection",
    "max_connections": "at once; more are refused (503)",
    "accept_limit": "at once; more wait, or go to another process on the same socket",
    "context_vars": "names of context variables that go from the app to the connection",
    "keep_alive_timeout": "with --wsgi: that a connection may wait for its next request",
    "body_timeout": "with --wsgi: for a request's body; a second more for each KiB",
    "max_request_body": "with --wsgi: of a request's body (413)",
}
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def server_options(texts: Sequence[str], compress: bool = False) -> ServerOptions:
    """Make ServerOptions from texts such as "ping_interval=20" and "read_max_payload_size=1MiB".

    A list may be given in one text, separated by commas, or in several; a header ("response_headers=Name: value") in one each.

    Args:
        compress: `permessage_deflate` is on if no text says otherwise.

    Raises:
        UsageError: an unknown option or a wrong value; it names the option.
    """
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        name = name.strip()
        if not separator:
            raise UsageError(f"--option {text}: must be NAME=VALUE")
        given[name] = value.strip()
        parsed = _parse(name, given[name])
        if name not in values:
            values[name] = parsed
        elif isinstance(parsed, tuple) and isinstance(values[name], tuple):
            values[name] += parsed
        elif isinstance(parsed, dict):
            values[name].update(parsed)
        else:
            raise UsageError(f"--option {name}: is given twice")
    if compress:
        values.setdefault("permessage_deflate", PermessageDeflate())
    try:
        return ServerOptions(**values)
    except ValueError as error:
        raise UsageError(f"--option {_about_text(str(error), values, given)}") from error


def _about_text(said: str, values: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """What an option says about its value, said about the text that was given for it."""
    name = said.partition(":")[0]
    value = f"not {values.get(name)!r}"
    if name not in given or not said.endswith(value):
        return said
    return said.removesuffix(value).replace(" or None", " or none") + f"not {given[name]}"


def describe_options() -> str:
    """List what can be set, one option a line with its default and its meaning."""
    settable = [item for item in fields(ServerOptions) if _parsers(_types()[item.name])]
    return "\n".join(
        f"  {item.name:<23} {_written(_default(item), size=item.name in _sizes()):<9} {_MEANINGS[item.name]}" for item in settable
    )


@cache
def _sizes() -> frozenset[str]:
    """The options that are bytes, and may be given as 16MiB."""
    return frozenset(item.name for item in fields(ServerOptions) if item.metadata.get("unit") == "bytes")


@cache
def _types() -> dict[str, Any]:
    # Request is imported for type checkers only where the options stand.
    return typing.get_type_hints(ServerOptions, localns={"Request": Request})


def _parse(name: str, text: str) -> Any:
    if name not in _types():
        near = get_close_matches(name, _types(), n=1)
        hint = f"did you mean {near[0]}?" if near else "'gws-gevent serve --help' lists them"
        raise UsageError(f"--option {name}: there is no such option; {hint}")
    parsers = [(parse_size, "a whole number, or a size such as 64KiB or 16MiB")] if name in _sizes() else _parsers(_types()[name])
    if not parsers:
        raise UsageError(f"--option {name}: takes a Python object and cannot be set here")
    for parser, _ in parsers:
        try:
            return parser(text)
        except ValueError:
            continue
    raise UsageError(f"--option {name}: must be {' or '.join(expected for _, expected in parsers)}, not {text!r}")


def _parsers(kind: Any) -> list[tuple[Callable[[str], Any], str]]:
    """Ways to read a type, best first, each with what it expects in words. Empty: the type cannot be written as text."""
    origin = typing.get_origin(kind)
    if kind == Sequence[ContextVar[Any] | str]:
        return [(_list, "a comma-separated list of names")]
    if origin in (typing.Union, UnionType):
        found = [_parsers(part) for part in typing.get_args(kind)]
        # None goes first, for a list could also have an element "none"; an object that may be None can still not be set.
        return sorted((way for ways in found for way in ways), key=lambda way: way[0] is not _none) if all(found) else []
    if origin is Literal:
        choices = typing.get_args(kind)
        return [(_choice(choices), " or ".join(choices))]
    if origin is not None and issubclass(origin, Mapping):
        return [(_header, "'Name: value'")]
    if origin is not None and issubclass(origin, Sequence):
        return [(_list, "a comma-separated list")]
    return list(_SCALARS.get(kind, ()))


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(text)


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError(text)
    return _FLAGS[text.lower()]


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError(text)
    return int(text)


def parse_size(text: str) -> int:
    """Read a number of bytes, such as 125 or 16KiB; a ValueError if it is none."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * _FACTORS[match[2].lower()]


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _header(text: str) -> dict[str, str]:
    name, separator, value = text.partition(":")
    if not separator:
        raise ValueError(text)
    return {name.strip(): value.strip()}


def _deflate(text: str) -> PermessageDeflate:
    """Read "on", or parameters separated by commas, such as "level=6,server_context_takeover=true"."""
    if text.lower() in _FLAGS and _FLAGS[text.lower()]:
        return PermessageDeflate()
    types = typing.get_type_hints(PermessageDeflate)
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in types or name in values:
            raise ValueError(text)
        values[name] = _parsers(types[name])[0][0](value)
    return PermessageDeflate(**values)


def _choice(choices: Sequence[str]) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return choose


_SCALARS: dict[Any, tuple[tuple[Callable[[str], Any], str], ...]] = {
    bool: ((_flag, "true or false"),),
    int: ((_whole, "a whole number"),),
    float: ((float, "a number"),),
    str: ((str, "text"),),
    NoneType: ((_none, "none"),),
    PermessageDeflate: ((_deflate, "on, or parameters such as level=6,server_context_takeover=true"),),
}


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _written(value: Any, size: bool) -> str:
    """Write a default as it would be given."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and size:
        for unit in ("GiB", "MiB", "KiB"):
            if value and value % _UNITS[unit] == 0:
                return f"{value // _UNITS[unit]}{unit}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value else "(empty)" if isinstance(value, Mapping | Sequence) else str(value)
