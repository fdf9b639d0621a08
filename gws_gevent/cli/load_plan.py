"""What a load is to do, and what has become of it so far.

Belongs here: the facts that the load, the command line and the result share. Does not belong here: doing it, showing it.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Final

from gws_gevent.cli.histogram import Histogram
from gws_gevent.frames import Opcode
from gws_gevent.options import ClientOptions

__all__ = ["Counts", "Plan"]

#: Kinds of errors that are told apart, and characters of each.
MAX_KINDS: Final = 20
MAX_KIND: Final = 200
OTHER_ERRORS: Final = "other errors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        proxy: as of `connect`.
        connections: how many, opened over `ramp` seconds.
        duration: seconds, from when all are open.
        hold: send nothing.
        opcode: TEXT or BINARY; PING sends pings, and their pongs are the replies.
        depth: messages that may be unanswered on one connection.
        rate: messages a second, over all connections; None: each reply is followed by the next message at once.
        check: a reply has to be what was sent.
        timeout: seconds for the opening handshake, for a reply, and for the closing handshake.
    """

    url: str
    options: ClientOptions
    ssl_context: ssl.SSLContext | None = None
    proxy: str | bool | None = True
    connections: int = 1
    ramp: float = 0.0
    duration: float = 10.0
    hold: bool = False
    opcode: Opcode = Opcode.BINARY
    payload: str | bytes = b""
    depth: int = 1
    rate: float | None = None
    check: bool = False
    timeout: float = 10.0


@dataclass(slots=True)
class Counts:
    """What has happened so far.

    Attributes:
        phase: "opening", "running", "draining" (the last replies are waited for), "closing".
        tried, opened, alive: connections; `alive_at_end` those that were open when the time was over.
        opening: a Histogram of the opening handshakes that succeeded.
        seconds: how long messages were sent, or connections were held.
        answered, answered_in_time: replies, also those that came after these seconds, and those that did not.
        unanswered: messages sent without a reply. unsent: due, and not sent because `depth` were unanswered.
        unasked: messages received that are not replies.
        latency: of every message that was sent or due; what had no reply counts with the time it had waited.
        lateness: by how much this program was late to send, where nothing but itself was in the way.
        errors: how many of each kind.
    """

    phase: str = "opening"
    tried: int = 0
    opened: int = 0
    alive: int = 0
    alive_at_end: int = 0
    opening: Histogram = field(default_factory=Histogram)
    opening_took: float = 0.0
    seconds: float = 0.0
    sent: int = 0
    answered: int = 0
    answered_in_time: int = 0
    unanswered: int = 0
    unsent: int = 0
    unasked: int = 0
    latency: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    errors: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False

    def failed(self, kind: str) -> None:
        """Count an error."""
        kind = "".join(char if char.isprintable() else "?" for char in kind[:MAX_KIND])
        if kind not in self.errors and len(self.errors) >= MAX_KINDS:
            kind = OTHER_ERRORS
        self.errors[kind] = self.errors.get(kind, 0) + 1
