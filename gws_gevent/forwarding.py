"""What a bridge makes of HTTP heads that it passes on.

Belongs here: which requests are passed on, which header lines are taken out and put in. Does not belong here: reading and sending,
what the target answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gws_gevent.exceptions import Refusal
from gws_gevent.handshake import accept_key, check_origin, upgrade_required, wants_websocket
from gws_gevent.http_head import Request, ResponseHead, check_header
from gws_gevent.options import BridgeOptions
from gws_gevent.proxy_headers import TrustedProxies

__all__ = ["check_may_pass", "closing_head", "forwarded_head", "opens_websocket"]

#: Headers that say who a client is, besides all that begin with "x-forwarded-".
_ABOUT_CLIENTS = frozenset({"forwarded", "x-real-ip"})
#: Headers about the connection a head came by (RFC 9110 section 7.6.1), of an answer that is no upgrade.
_ABOUT_CONNECTION = frozenset({"connection", "keep-alive", "proxy-connection"})


def check_may_pass(request: Request, options: BridgeOptions) -> None:
    """Raise a Refusal for a request that is no opening handshake, or that is none of an allowed origin.

    The rest is the target's to judge. Behind a request that could be none, or that has a body, another one could hide.
    """
    if request.method != "GET":
        raise Refusal(405, headers={"Allow": "GET"})
    if request.version != "1.1" or not wants_websocket(request):
        raise upgrade_required()
    if "transfer-encoding" in request.headers or (request.headers.get("content-length") or "").strip("0"):
        raise Refusal(400, "A WebSocket handshake has no body.\n")
    if options.origins is not None:
        check_origin(request.headers, options.origins)


def forwarded_head(head: bytes, peer: Any, secure: bool, trusted: TrustedProxies, tell: bool) -> bytes:
    """Return the head of a request as the target gets it: all lines as they came, but those about the client.

    Args:
        head: that of a parsed request, with its blank line.
        peer: the client's address as the socket module gives it.
        secure: the client came by an encrypted transport.
        trusted: peers whose lines about the client are true.
        tell: add the lines that say who the client is.
    """
    believed = trusted.trusts(peer)
    told: list[tuple[str, str]] = []
    if tell:
        address = _address(peer)
        before = _values(head, "x-forwarded-for") if believed else []
        chain = ", ".join([*before, *([address] if address else [])])
        if chain:
            told.append(("X-Forwarded-For", chain))
        if not (believed and _values(head, "x-forwarded-proto")):
            told.append(("X-Forwarded-Proto", "https" if secure else "http"))
    rewritten = {name.lower() for name, _ in told}
    return _edited(head, lambda name: name in rewritten or (not believed and _is_about_client(name)), told)


def opens_websocket(request: Request, answer: ResponseHead) -> bool:
    """Whether a 101 is that of WebSocket (RFC 6455 section 4.1).

    Behind another protocol that a client has offered as well, such as `h2c`, other requests could hide.
    """
    keys = request.headers.get_all("sec-websocket-key")
    if len(keys) != 1 or (answer.headers.get("upgrade") or "").lower() != "websocket":
        return False
    return answer.headers.get_all("sec-websocket-accept") == [accept_key(keys[0])]


def closing_head(head: bytes) -> bytes:
    """Return the head of an answer behind which the connection to the client is closed."""
    # As a 426 has it; who sends Upgrade lists it in Connection (section 7.8).
    options = "close, Upgrade" if _values(head, "upgrade") else "close"
    return _edited(head, _ABOUT_CONNECTION.__contains__, [("Connection", options)])


def _is_about_client(name: str) -> bool:
    # Programs that read headers as CGI variables see "_" and "-" as the same.
    plain = name.replace("_", "-")
    return plain in _ABOUT_CLIENTS or plain.startswith("x-forwarded-")


def _address(peer: Any) -> str:
    """An IP address without the mapping of a dual-stack listener; "" for a peer that has none, as on a Unix socket."""
    if not isinstance(peer, tuple) or not peer:
        return ""
    return str(peer[0]).removeprefix("::ffff:").partition("%")[0]


def _values(head: bytes, wanted: str) -> list[str]:
    found = [_name_and_value(line) for line in head.split(b"\r\n")[1:-2]]
    return [value for name, value in found if name == wanted and value]


def _edited(head: bytes, drop: Callable[[str], bool], add: Iterable[tuple[str, str]]) -> bytes:
    first, *lines = head.split(b"\r\n")[:-2]
    kept = [first, *(line for line in lines if not drop(_name_and_value(line)[0]))]
    for name, value in add:
        check_header(name, value)
        kept.append(f"{name}: {value}".encode("latin-1"))
    return b"\r\n".join([*kept, b"", b""])


def _name_and_value(line: bytes) -> tuple[str, str]:
    name, _, value = line.decode("latin-1").partition(":")
    return name.lower(), value.strip(" \t")
