"""TLS sessions that a client can resume.

Belongs here: which session may be offered to whom, and how many are kept. Does not belong here: handshakes.

A resumed session skips the check of the server's certificate, because that was done when the session began. So a session belongs
to the context it was made with, and is offered only where the same address is asked under the same name, by the same rules.
"""

from __future__ import annotations

import ssl
from collections.abc import Hashable
from typing import Final

from gws_gevent.transports.base import Endpoint

__all__ = ["MAX_SESSIONS", "Sessions", "server_key", "sessions_of"]

#: Sessions kept for one context. With the certificates of its server one takes a few KiB.
MAX_SESSIONS: Final = 64

_ATTRIBUTE = "_gws_gevent_sessions"


class Sessions:
    """The latest session with each server, the one kept longest ago first."""

    __slots__ = ("_by_server",)

    def __init__(self) -> None:
        self._by_server: dict[Hashable, ssl.SSLSession] = {}

    def __len__(self) -> int:
        return len(self._by_server)

    def take(self, server: Hashable) -> ssl.SSLSession | None:
        """Return a session to resume and forget it: RFC 8446 (appendix C.4) advises to use a ticket once. None: there is none."""
        return self._by_server.pop(server, None)

    def keep(self, server: Hashable, session: ssl.SSLSession) -> None:
        """Remember a session in place of an older one with the same server; above MAX_SESSIONS the oldest goes."""
        self._by_server.pop(server, None)
        self._by_server[server] = session
        if len(self._by_server) > MAX_SESSIONS:
            self._by_server.pop(next(iter(self._by_server)), None)


def sessions_of(context: ssl.SSLContext) -> Sessions:
    """Return the sessions made with `context`. They live as long as it does, and no longer: so they are kept in it."""
    found: Sessions | None = context.__dict__.get(_ATTRIBUTE)
    if found is None:
        found = context.__dict__.setdefault(_ATTRIBUTE, Sessions())
    return found


def server_key(context: ssl.SSLContext, endpoint: Endpoint, name: str) -> Hashable:
    """What must be equal for a session to be offered: where, under which name, and what is checked."""
    return endpoint.host, endpoint.port, name, context.verify_mode, context.check_hostname, context.verify_flags
