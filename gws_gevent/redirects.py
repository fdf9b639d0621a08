"""Redirects of the opening handshake: where the next request goes, and what it may carry along.

Belongs here: which answers redirect, URL references, what another origin may be told. Does not belong here: sending, counting.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import urldefrag, urljoin, urlsplit

from gws_gevent.exceptions import EndpointError, HandshakeRefused
from gws_gevent.http_head import ResponseHead
from gws_gevent.urls import WebSocketUrl, parse_url

__all__ = ["headers_after", "is_redirect", "next_url"]

#: Statuses that name another place in Location (RFC 9110 section 15.4).
_STATUSES: Final = frozenset({301, 302, 303, 307, 308})
#: Servers redirect to the pages they know, so http and https stand for ws and wss (WHATWG Fetch does it the other way round).
_SCHEMES: Final = {"http": "ws", "ws": "ws", "https": "wss", "wss": "wss"}
#: The program's own headers that another origin gets as well. Any other may be a credential: not only Authorization and Cookie,
#: X-Api-Key and what else people have thought of.
_HARMLESS: Final = frozenset({"accept-language", "cache-control", "origin", "pragma", "user-agent"})


def is_redirect(response: ResponseHead) -> bool:
    """Tell whether an answer says that the endpoint is somewhere else."""
    return response.status in _STATUSES and "location" in response.headers


def next_url(url: WebSocketUrl, response: ResponseHead) -> WebSocketUrl:
    """Return where a redirect leads; without the user name and password if that is another origin.

    Raises:
        HandshakeRefused: it may not be followed, or cannot be; the text says why.
    """
    location = response.headers["location"]
    try:
        found = _resolve(url, urldefrag(location)[0])
    except (EndpointError, ValueError):
        raise _refused(response, f"it redirects to {reprlib.repr(location)}, which is no place for a WebSocket") from None
    if url.secure and not found.secure:
        # As browsers, which take it for mixed content: who asked for TLS would get a connection without.
        raise _refused(response, f"it redirects from {url.scheme} to {reprlib.repr(location)}, which is not encrypted")
    return found


def _resolve(url: WebSocketUrl, location: str) -> WebSocketUrl:
    reference = urlsplit(location)
    if not reference.scheme and not reference.netloc:
        whole = urlsplit(urljoin(f"ws://localhost{url.target}", location))
        return replace(url, target=parse_url(f"ws://localhost{whole.path or '/'}{'?' + whole.query if whole.query else ''}").target)
    if url.scheme not in ("ws", "wss"):
        raise EndpointError("another server is another transport too")
    scheme = _SCHEMES.get(reference.scheme, reference.scheme or url.scheme)
    found = parse_url(f"{scheme}:{location[len(reference.scheme) + 1 :] if reference.scheme else location}")
    if found.scheme not in ("ws", "wss"):
        raise EndpointError("a redirect stays with ws and wss")
    if _origin(found) == _origin(url):
        return replace(found, username=url.username, password=url.password)
    return replace(found, username=None, password=None)


def headers_after(headers: Mapping[str, str], old: WebSocketUrl, new: WebSocketUrl) -> Mapping[str, str]:
    """Return what of the program's own headers goes along from one URL to the next."""
    if _origin(old) == _origin(new):
        return headers
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS}


def _origin(url: WebSocketUrl) -> tuple[str, str, int, str]:
    return url.scheme, url.host, url.port, url.path


def _refused(response: ResponseHead, why: str) -> HandshakeRefused:
    return HandshakeRefused(response.status, response.headers, why=why)
