"""Who is let in: Retry under load, caps on half-open connections and on connections of one address.

Belongs here: the decision about a datagram that opens a connection, before anything is made for it. Does not belong here: the
connections.
"""

from __future__ import annotations

import ipaddress
import os
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from aioquic.buffer import Buffer
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.connection import TRANSPORT_CLOSE_FRAME_CAPACITY
from aioquic.quic.crypto import (
    INITIAL_CIPHER_SUITE,
    INITIAL_SALT_VERSION_1,
    INITIAL_SALT_VERSION_2,
    CryptoContext,
    CryptoError,
    CryptoPair,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.tls import cipher_suite_hash, hkdf_expand_label, hkdf_extract

from gws_gevent.transports.datagram import Address

__all__ = ["Admission", "Limits", "Welcome"]

CONNECTION_ID_LENGTH: Final = 8
_VERSIONS: Final = [int(QuicProtocolVersion.VERSION_1), int(QuicProtocolVersion.VERSION_2)]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one listener allows.

    Attributes:
        connections: at the same time.
        per_address: of one IPv4 address, or of one IPv6 network of 64 bits.
        half_open: connections whose handshake is not complete; more are not answered.
        retry: half-open connections from which on a client has to show that it receives at its address (RFC 9000 section 8.1.2);
            it also has to when many wait to be looked at.
    """

    connections: int = 100_000
    per_address: int = 1000
    half_open: int = 1000
    retry: int = 50


@dataclass(frozen=True, slots=True)
class Welcome:
    """A client that is let in; what its connection has to know (RFC 9000 section 7.3)."""

    original_destination_id: bytes
    retry_source_id: bytes | None


class Admission:
    """Counts connections, and answers those who want to have another.

    Attributes:
        connections, half_open: how many there are now.
        refused: how many were not let in, by reason.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.connections = 0
        self.half_open = 0
        self.refused: Counter[str] = Counter()
        self._by_address: dict[Hashable, int] = {}
        self._tokens = QuicRetryTokenHandler()

    def judge(
        self, header: QuicHeader, data: bytes, address: Address, now: float, *, is_crowded: bool = False
    ) -> Welcome | bytes | None:
        """Decide about a datagram that belongs to no connection.

        Args:
            is_crowded: many others wait to be judged.

        Returns:
            Welcome: let it in. bytes: send this answer and forget it. None: forget it.
        """
        if len(data) < SMALLEST_MAX_DATAGRAM_SIZE:
            return None  # RFC 9000 section 14.1; and no answer may be longer than what it answers
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return None
        if header.version not in _VERSIONS:
            return encode_quic_version_negotiation(
                source_cid=header.destination_cid, destination_cid=header.source_cid, supported_versions=_VERSIONS
            )
        if header.packet_type is not QuicPacketType.INITIAL or len(header.destination_cid) < CONNECTION_ID_LENGTH:
            return None
        full = self._is_full(address)
        if full is not None:
            self.refused[full] += 1
            return None
        if is_crowded or self.half_open >= self.limits.retry or header.token:
            return self._with_token(header, address, now)
        if not _is_genuine(header, data):
            self.refused["damaged"] += 1
            return None
        return Welcome(header.destination_cid, None)

    def _is_full(self, address: Address) -> str | None:
        limits = self.limits
        if self.half_open >= limits.half_open:
            return "half_open"
        if self.connections >= limits.connections:
            return "connections"
        return "per_address" if self._by_address.get(_network(address), 0) >= limits.per_address else None

    def _with_token(self, header: QuicHeader, address: Address, now: float) -> Welcome | bytes | None:
        place = _plain(address)
        if not header.token:
            self.refused["retry"] += 1
            source = os.urandom(CONNECTION_ID_LENGTH)
            token = self._tokens.create_token(
                address=place, original_destination_connection_id=header.destination_cid, retry_source_connection_id=source, now=now
            )
            return encode_quic_retry(
                version=header.version or _VERSIONS[0],
                source_cid=source,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=token,
            )
        try:
            original = self._tokens.validate_token(
                address=place, destination_cid=header.destination_cid, token=header.token, now=now
            )
        except ValueError:
            self.refused["token"] += 1
            return self.refusal(header, QuicErrorCode.INVALID_TOKEN)
        return Welcome(original, header.destination_cid)

    def refusal(self, header: QuicHeader, code: QuicErrorCode) -> bytes:
        """Return an Initial packet that closes a connection that does not exist yet."""
        crypto = CryptoPair()
        crypto.setup_initial(cid=header.destination_cid, is_client=False, version=header.version or _VERSIONS[0])
        builder = QuicPacketBuilder(
            host_cid=header.destination_cid,
            is_client=False,
            max_datagram_size=SMALLEST_MAX_DATAGRAM_SIZE,
            peer_cid=header.source_cid,
            version=header.version or _VERSIONS[0],
        )
        builder.start_packet(QuicPacketType.INITIAL, crypto)
        frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=TRANSPORT_CLOSE_FRAME_CAPACITY)
        frame.push_uint_var(code)
        frame.push_uint_var(QuicFrameType.PADDING)
        frame.push_uint_var(0)
        return builder.flush()[0][0]

    # Counting.

    def opened(self, address: Address) -> Hashable:
        """A connection has begun, half-open. Return what `gone` takes."""
        self.connections += 1
        self.half_open += 1
        network = _network(address)
        self._by_address[network] = self._by_address.get(network, 0) + 1
        return network

    def established(self) -> None:
        """A half-open connection has become one."""
        self.half_open -= 1

    def gone(self, network: Hashable, *, was_established: bool) -> None:
        """A connection has ended."""
        self.connections -= 1
        if not was_established:
            self.half_open -= 1
        left = self._by_address[network] - 1
        if left:
            self._by_address[network] = left
        else:
            del self._by_address[network]


def _is_genuine(header: QuicHeader, data: bytes) -> bool:
    """The first packet is what somebody who knows QUIC would send: a tenth of the work of making a connection for it."""
    is_second = header.version == QuicProtocolVersion.VERSION_2
    algorithm = cipher_suite_hash(INITIAL_CIPHER_SUITE)
    salt = INITIAL_SALT_VERSION_2 if is_second else INITIAL_SALT_VERSION_1
    secret = hkdf_expand_label(
        algorithm, hkdf_extract(algorithm, salt, header.destination_cid), b"client in", b"", algorithm.digest_size
    )
    crypto = CryptoContext()
    crypto.setup(cipher_suite=INITIAL_CIPHER_SUITE, secret=secret, version=header.version or _VERSIONS[0])
    buffer = Buffer(data=data)
    pull_quic_header(buffer, host_cid_length=CONNECTION_ID_LENGTH)
    try:
        crypto.decrypt_packet(data[: header.packet_length], buffer.tell(), 0)
    except CryptoError:
        return False
    return True


def _plain(address: Address) -> tuple[str, int]:
    return address[0].partition("%")[0], address[1]


def _network(address: Address) -> str | bytes:
    """What counts as one client: an IPv4 address, or the 64 bits of IPv6 that one customer has at least."""
    host: str = address[0]
    if ":" not in host:
        return host
    parsed = ipaddress.IPv6Address(host.partition("%")[0])
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else parsed.packed[:8]
