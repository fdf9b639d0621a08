"""What comes before a KCP session: a client shows that it gets what is sent to its address; until then the server keeps nothing.

Belongs here: control datagrams, cookies. Does not belong here: who sends them when (server.py, client.py).

    client                                        server
    HELLO   (68 bytes, padded)        ->
                                      <-   COOKIE (44)     conversation number, cookie; the server keeps nothing
    START   (44, with the cookie)     ->                   the cookie is right: there is a session
                                      <-   ACCEPT (44)     or REFUSE (28): see `Code`
    KCP from here on, both ways
                                      <->  RESET  (28)     at the end, see `Code`

All begin with the conversation number, as KCP does, so that the session is found in the same way, and the fifth byte tells them
apart from KCP's commands. Their last four bytes are a check sum. With a shared key their last 16 bytes are HMAC-SHA256 under that
key, cut, instead: who does not have the key gets no answer at all, not even a cookie.

A cookie is HMAC-SHA256, cut, over the client's address, conversation number, nonce and the time, under a key that only this server
process has. It is good for `COOKIE_LIFE` seconds.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple
from zlib import crc32

__all__ = ["COOKIE_LIFE", "NONCE", "Code", "Control", "Controls", "Cookies", "Kind"]

#: Bytes of a nonce, of a cookie, of the tag under a shared key, of the check sum.
NONCE: Final = 16
_TAG: Final = 16
_SUM: Final = 4
_COOKIE: Final = 16
#: Seconds.
COOKIE_LIFE: Final = 10
_VERSION: Final = 1
#: conversation number, kind, version, 1 if there is a tag, code, nonce of the client.
_HEAD: Final = 8 + NONCE
_HELLO: Final = 64


class Kind(IntEnum):
    """What a control datagram says."""

    HELLO = 0xC1
    COOKIE = 0xC2
    START = 0xC3
    ACCEPT = 0xC4
    REFUSE = 0xC5
    RESET = 0xC6


class Code(IntEnum):
    """Why: the fourth byte of the head of REFUSE and RESET."""

    NONE = 0
    FULL = 1
    """REFUSE: too many sessions, of all or of this address."""
    CLOSED = 2
    """REFUSE: no more are accepted."""
    ABORTED = 3
    """RESET: the peer has aborted; what it had sent may be lost."""
    GONE = 4
    """RESET: the peer has closed, all that it had sent was acknowledged, and it will read no more."""


_SIZES: Final = {
    Kind.HELLO: _HELLO,
    Kind.COOKIE: _HEAD + _COOKIE,
    Kind.START: _HEAD + _COOKIE,
    Kind.ACCEPT: _HEAD + NONCE,
    Kind.REFUSE: _HEAD,
    Kind.RESET: _HEAD,
}


class Control(NamedTuple):
    """A control datagram.

    Attributes:
        conv: 4 bytes as they are sent; zeros in HELLO.
        nonce: the client's.
        extra: the cookie of COOKIE and START, the server's nonce of ACCEPT.
    """

    kind: Kind
    conv: bytes
    nonce: bytes
    extra: bytes = b""
    code: int = Code.NONE


class Controls:
    """Makes and reads control datagrams, with or without a shared key."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes | None, cipher: str) -> None:
        # The cipher's name is in it, so that two sides with different ciphers do not even begin.
        self._key = hmac.digest(key, b"gws_gevent kcp control " + cipher.encode(), "sha256") if key is not None else None

    def write(self, control: Control) -> bytes:
        """Return the datagram."""
        head = bytes((control.kind, _VERSION, self._key is not None, control.code))
        data = (control.conv + head + control.nonce + control.extra).ljust(_SIZES[control.kind], b"\0")
        return data + self._tag(data)

    def read(self, data: bytes) -> Control | None:
        """Return what a datagram says; None if it is no control datagram, or not from somebody who has the key."""
        try:
            kind = Kind(data[4])
        except (IndexError, ValueError):
            return None
        size = _SIZES[kind]
        is_tagged = self._key is not None
        if len(data) != size + (_TAG if is_tagged else _SUM) or data[5] != _VERSION or data[6] != is_tagged:
            return None
        if not hmac.compare_digest(data[size:], self._tag(data[:size])):
            return None
        extra = b"" if kind is Kind.HELLO else data[_HEAD:size]
        return Control(kind, data[:4], data[8:_HEAD], extra, data[7])

    def _tag(self, data: bytes) -> bytes:
        if self._key is None:
            return crc32(data).to_bytes(_SUM, "little")
        return hmac.digest(self._key, data, "sha256")[:_TAG]


class Cookies:
    """Makes and checks cookies; keeps nothing of whom it made them for."""

    __slots__ = ("_secret",)

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._secret = random(32)

    def make(self, address: Any, conv: bytes, nonce: bytes, now: float) -> bytes:
        """Return a cookie for a client."""
        seconds = (int(now) & 0xFFFFFFFF).to_bytes(4, "big")
        return seconds + self._code(address, conv, nonce, seconds)

    def is_right(self, cookie: bytes, address: Any, conv: bytes, nonce: bytes, now: float) -> bool:
        """Tell whether `make` made the cookie for this client a short time ago."""
        seconds = cookie[:4]
        age = (int(now) - int.from_bytes(seconds, "big")) & 0xFFFFFFFF
        return age <= COOKIE_LIFE and hmac.compare_digest(cookie[4:], self._code(address, conv, nonce, seconds))

    def _code(self, address: Any, conv: bytes, nonce: bytes, seconds: bytes) -> bytes:
        # Host and port only: what else there is (flow and scope of IPv6) is no part of whom we talk to.
        said = b"%s %d " % (address[0].encode(), address[1]) + conv + nonce + seconds
        return hmac.digest(self._secret, said, "sha256")[: _COOKIE - 4]
