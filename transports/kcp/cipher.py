"""What protects the datagrams of one session: a check sum, or encryption with a key that both sides have.

Belongs here: keys, nonces, replay. Does not belong here: what is in the datagrams, the handshake (cookie.py).

* `Bare`: nothing, as stock peers do it. What UDP's own check sum lets through is taken for right.
* `Summed`: CRC-32 over the datagram, which begins from what the two sides have told each other in the handshake. It finds what a
  broken line or machine changes, and who cannot read the datagrams cannot guess one; who can read them can forge them.
* `Sealed`: AEAD (AES-256-GCM, RFC 5116, or ChaCha20-Poly1305, RFC 8439).

Keys and nonces of `Sealed`. The key that users share is never a key of the cipher: HKDF (RFC 5869) makes two for each session, one
for each direction, from it and from 16 random bytes of each side. So two sessions never have the same key, and the nonce is
simply the datagram's number in its session, which is sent with it. After 2**24 datagrams a direction goes on with its next key,
far below what either cipher allows. A number that has come already, or that is too far behind the highest, is a replay and is
dropped; the number is looked at before and noted after the datagram has proved to be genuine.

There is no forward secrecy: who has recorded a session and learns the shared key later can read it.
"""

from __future__ import annotations

import binascii
import hmac
from abc import ABC, abstractmethod
from base64 import b64decode
from functools import lru_cache
from typing import Any, Final
from zlib import crc32

from gws_gevent.exceptions import MissingExtra

__all__ = ["CIPHERS", "KEY_SIZE", "SEALED", "Bare", "Seal", "Sealed", "Summed", "load_ciphers", "parse_key"]

#: Classes of `cryptography.hazmat.primitives.ciphers.aead`, by the names of endpoints.
CIPHERS: Final = {"aes-256-gcm": "AESGCM", "chacha20-poly1305": "ChaCha20Poly1305"}
#: Bytes of the shared key.
KEY_SIZE: Final = 32
#: Fifth byte of an encrypted datagram: no command of KCP, and no control datagram of ours.
SEALED: Final = 0xE0
#: Bytes in front of the encrypted: conversation number, SEALED, number of the datagram.
_HEAD: Final = 12
_TAG: Final = 16
#: Datagrams with one key are 2 ** this many.
_EPOCH_BITS: Final = 24
#: How far a datagram may be behind the highest number.
_WINDOW: Final = 2048
_SUM: Final = 4
#: Objects of the library that are kept, for the sessions that were busy last: one has 2.5 kB, and an idle session needs none.
_CIPHERS_KEPT: Final = 256


def parse_key(text: str) -> bytes:
    """Return the key that a file or variable holds as 64 hexadecimal digits, or as base64; a ValueError says what is wrong."""
    text = text.strip()
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_SIZE else b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_SIZE:
        # Not a word of what it holds: it may be the key with a typing error.
        how = f"as {2 * KEY_SIZE} hexadecimal digits or in base64 (openssl rand -hex {KEY_SIZE})"
        raise ValueError(f"a key is {KEY_SIZE} bytes, {how}")
    return key


class Seal(ABC):
    """Both directions of one session.

    Attributes:
        overhead: bytes that `seal` adds.
    """

    __slots__ = ()
    overhead = 0

    @abstractmethod
    def seal(self, packet: bytes) -> bytes:
        """Return the datagram to send."""

    @abstractmethod
    def open(self, datagram: bytes) -> bytes | None:
        """Return what the peer sealed; None if it did not, or has been opened before."""


class Bare(Seal):
    """Nothing."""

    __slots__ = ()

    def seal(self, packet: bytes) -> bytes:
        return packet

    def open(self, datagram: bytes) -> bytes | None:
        return datagram


class Summed(Seal):
    """A check sum at the end."""

    __slots__ = ("_ours", "_theirs")
    overhead = _SUM

    def __init__(self, client_nonce: bytes, server_nonce: bytes, *, is_client: bool) -> None:
        sums = [crc32(side + client_nonce + server_nonce) for side in (b"client", b"server")]
        self._ours, self._theirs = sums if is_client else sums[::-1]

    def seal(self, packet: bytes) -> bytes:
        return packet + crc32(packet, self._ours).to_bytes(_SUM, "little")

    def open(self, datagram: bytes) -> bytes | None:
        packet = datagram[:-_SUM]
        return packet if crc32(packet, self._theirs).to_bytes(_SUM, "little") == datagram[-_SUM:] else None


class Sealed(Seal):
    """Authenticated encryption."""

    __slots__ = ("_before", "_conv", "_next", "_number", "_opening", "_sealing", "_seen", "_top")
    overhead = _HEAD + _TAG

    def __init__(self, key: bytes, cipher: str, conv: bytes, client_nonce: bytes, server_nonce: bytes, *, is_client: bool) -> None:
        """Make the keys of a session.

        Args:
            key: the shared one.
            conv: conversation number as it is sent.

        Raises:
            MissingExtra: the library is not installed.
        """
        salt = client_nonce + server_nonce
        sides = [_Key(_hkdf(key, salt, b"gws_gevent kcp " + side), cipher, 0) for side in (b"client", b"server")]
        self._sealing, self._opening = sides if is_client else sides[::-1]
        self._before: _Key | None = None
        self._next: _Key | None = None
        self._conv = conv
        self._number = 0
        self._top = -1
        self._seen = 0  # bit n: number `_top` - n has come

    def seal(self, packet: bytes) -> bytes:
        number = self._number
        self._number = number + 1
        if number >> _EPOCH_BITS != self._sealing.epoch:
            self._sealing = self._sealing.next()
        head = self._conv + (SEALED << 56 | number).to_bytes(8, "big")
        return head + self._sealing.encrypt(_nonce(head), packet, head)

    def open(self, datagram: bytes) -> bytes | None:
        if len(datagram) <= self.overhead or datagram[4] != SEALED:
            return None
        number = int.from_bytes(datagram[5:_HEAD], "big")
        behind = self._top - number
        if behind >= 0 and (behind >= _WINDOW or self._seen >> behind & 1):
            return None
        key = self._key_of(number >> _EPOCH_BITS)
        if key is None:
            return None
        head = datagram[:_HEAD]
        packet = key.decrypt(_nonce(head), datagram[_HEAD:], head)
        if packet is None:
            return None
        if behind < 0:
            self._seen = (self._seen << min(-behind, _WINDOW) | 1) & ((1 << _WINDOW) - 1)
            self._top = number
        else:
            self._seen |= 1 << behind
        if key is self._next:
            self._before, self._opening, self._next = self._opening, key, None
        return packet

    def _key_of(self, epoch: int) -> _Key | None:
        # Neighbours overtake each other where one epoch ends. Nothing changes here: the number may be a lie.
        ahead = epoch - self._opening.epoch
        if ahead == 0:
            return self._opening
        if ahead == 1:
            if self._next is None:
                self._next = self._opening.next()
            return self._next
        return self._before if ahead == -1 else None


class _Key:
    """The key of one direction for one epoch."""

    __slots__ = ("_cipher", "_secret", "epoch")

    def __init__(self, secret: bytes, cipher: str, epoch: int) -> None:
        self._secret = secret
        self._cipher = cipher
        self.epoch = epoch

    def next(self) -> _Key:
        return _Key(_hkdf(self._secret, b"", b"gws_gevent kcp next"), self._cipher, self.epoch + 1)

    def encrypt(self, nonce: bytes, packet: bytes, head: bytes) -> bytes:
        sealed: bytes = _aead(self._cipher, self._secret).encrypt(nonce, packet, head)
        return sealed

    def decrypt(self, nonce: bytes, sealed: bytes, head: bytes) -> bytes | None:
        try:
            packet: bytes = _aead(self._cipher, self._secret).decrypt(nonce, sealed, head)
        except _invalid():
            return None
        return packet


def _nonce(head: bytes) -> bytes:
    return bytes(5) + head[5:]


def _hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, for one block of output."""
    return hmac.digest(hmac.digest(salt or bytes(32), secret, "sha256"), info + b"\x01", "sha256")


@lru_cache(_CIPHERS_KEPT)
def _aead(cipher: str, secret: bytes) -> Any:
    return getattr(load_ciphers(), CIPHERS[cipher])(secret)


def load_ciphers() -> Any:
    """Return the library's module of ciphers; a MissingExtra if it is not installed."""
    try:
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError as error:
        raise MissingExtra("a key for kcp", "kcp") from error
    return aead


def _invalid() -> type[Exception]:
    from cryptography.exceptions import InvalidTag

    return InvalidTag
