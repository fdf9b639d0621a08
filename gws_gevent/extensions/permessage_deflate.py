"""Negotiating permessage-deflate (RFC 7692 section 7.1), both sides.

Belongs here: what an offer and an answer mean, and what both ends have agreed on by them. Does not belong here: the syntax of the
header (handshake.py), compressing (deflate.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from gws_gevent.exceptions import HandshakeError
from gws_gevent.options import PermessageDeflate

__all__ = ["NAME", "Agreement", "accept_offer", "judge_answer", "offer"]

NAME: Final = "permessage-deflate"

#: Name and value, or None, of each parameter, in order.
Parameters = Sequence[tuple[str, str | None]]

_SERVER_RESETS, _CLIENT_RESETS = "server_no_context_takeover", "client_no_context_takeover"
_SERVER_BITS, _CLIENT_BITS = "server_max_window_bits", "client_max_window_bits"
#: Section 7.1.2: decimal numbers without leading zeros.
_BITS: Final = {str(bits): bits for bits in range(8, 16)}
WIDEST: Final = 15


class Agreement(NamedTuple):
    """What both ends have agreed on."""

    server_no_context_takeover: bool
    client_no_context_takeover: bool
    server_max_window_bits: int
    client_max_window_bits: int

    def __str__(self) -> str:
        """As an answer that says everything."""
        return _written(self, {_SERVER_BITS, _CLIENT_BITS})


def accept_offer(offers: Iterable[tuple[str, Parameters]], options: PermessageDeflate) -> tuple[Agreement, str] | None:
    """Return what a server agrees to, and its answer, for the first offer that it can meet; None declines them all.

    Args:
        offers: every extension that the client offers, in its order of preference.
    """
    for name, parameters in offers:
        if name != NAME:
            continue
        found = _read(parameters, bare_client_bits=True)
        # Section 7.1: a wrong offer is declined, and so is one that cannot be met. No zlib deflates with 8.
        if found is None or found.get(_SERVER_BITS) == 8:
            continue
        agreement = Agreement(
            not options.server_context_takeover or _SERVER_RESETS in found,
            not options.client_context_takeover or _CLIENT_RESETS in found,
            min(options.server_max_window_bits, found.get(_SERVER_BITS) or WIDEST),
            # Section 7.1.2.2: the client is bound only if it offers to be.
            min(options.client_max_window_bits, found[_CLIENT_BITS] or WIDEST) if _CLIENT_BITS in found else WIDEST,
        )
        said = {_CLIENT_BITS} & found.keys()
        if _SERVER_BITS in found or agreement.server_max_window_bits < WIDEST:
            said.add(_SERVER_BITS)
        return agreement, _written(agreement, said)
    return None


def offer(options: PermessageDeflate) -> str:
    """Return the value of Sec-WebSocket-Extensions with which a client offers compression."""
    words = [NAME]
    if not options.server_context_takeover:
        words.append(_SERVER_RESETS)
    if not options.client_context_takeover:
        words.append(_CLIENT_RESETS)
    if options.server_max_window_bits < WIDEST:
        words.append(f"{_SERVER_BITS}={options.server_max_window_bits}")
    # Without a value it says no more than that the server may choose.
    words.append(_CLIENT_BITS if options.client_max_window_bits == WIDEST else f"{_CLIENT_BITS}={options.client_max_window_bits}")
    return "; ".join(words)


def judge_answer(answers: Iterable[tuple[str, Parameters]], options: PermessageDeflate) -> Agreement | None:
    """Return what a server has agreed to with a client that has sent `offer(options)`; None: no compression.

    Raises:
        HandshakeError: an answer that breaks the RFC, or does not fit the offer.
    """
    answered = [parameters for name, parameters in answers if name == NAME]
    if not answered:
        return None
    if len(answered) > 1:
        raise HandshakeError(f"the server's answer has {NAME} more than once")
    found = _read(answered[0], bare_client_bits=False)
    if found is None:
        raise HandshakeError(f"the server's answer has wrong parameters for {NAME}: {_shown(answered[0])}")
    server_bits, client_bits = found.get(_SERVER_BITS) or WIDEST, found.get(_CLIENT_BITS) or WIDEST
    # Sections 7.1.1.1, 7.1.2.1 and 7.1.2.2: what was asked for has to be granted, and a bound may only be lowered.
    if not options.server_context_takeover and _SERVER_RESETS not in found:
        raise HandshakeError(f"the server did not grant {_SERVER_RESETS}, which {NAME} was offered with: {_shown(answered[0])}")
    if server_bits > options.server_max_window_bits or (_CLIENT_BITS in found and client_bits > options.client_max_window_bits):
        raise HandshakeError(f"the server's answer does not fit what was offered for {NAME}: {_shown(answered[0])}")
    return Agreement(
        _SERVER_RESETS in found,
        not options.client_context_takeover or _CLIENT_RESETS in found,
        server_bits,
        min(options.client_max_window_bits, client_bits),
    )


def _read(parameters: Parameters, bare_client_bits: bool) -> dict[str, int | None] | None:
    """The parameters by name, window bits as numbers; None if one is unknown, comes twice or has a wrong value."""
    found: dict[str, int | None] = {}
    for name, value in parameters:
        if name in found:
            return None
        if name in (_SERVER_RESETS, _CLIENT_RESETS) or (name == _CLIENT_BITS and bare_client_bits and value is None):
            if value is not None:
                return None
            found[name] = None
        elif name in (_SERVER_BITS, _CLIENT_BITS) and value in _BITS:
            found[name] = _BITS[value]
        else:
            return None
    return found


def _written(agreement: Agreement, said: set[str]) -> str:
    words = [NAME]
    words += [name for name in (_SERVER_RESETS, _CLIENT_RESETS) if getattr(agreement, name)]
    words += [f"{name}={getattr(agreement, name)}" for name in (_SERVER_BITS, _CLIENT_BITS) if name in said]
    return "; ".join(words)


def _shown(parameters: Parameters) -> str:
    text = "; ".join(name if value is None else f"{name}={value}" for name, value in parameters)
    return repr(text[:200]) if text else "it answered without parameters"
