"""Who the client is behind a proxy: X-Forwarded-For, Forwarded (RFC 7239) and the PROXY protocol, versions 1 and 2.

Belongs here: which proxies are trusted, and parsing what they say. Does not belong here: reading bytes, sockets, the handshake.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from struct import unpack_from
from typing import Any, NamedTuple

from gws_gevent.exceptions import GwsError, Refusal
from gws_gevent.http_head import Headers

__all__ = [
    "ProxyHeader", "ProxyHeaderError", "TrustedProxies", "client_address", "client_scheme", "looks_like_proxy_header",
    "parse_proxy_header",
]  # fmt: skip

#: Entries of one header that are looked at, from the right: no chain of proxies is as long.
MAX_HOPS = 100
#: Bytes of a version 1 header, its line end included; the protocol's own bound.
MAX_V1_HEADER = 107
#: Bytes of a version 2 header. Addresses take at most 216; certificate names and identifiers that balancers add, a few hundred.
MAX_V2_HEADER = 2048

_V1_START = b"PROXY "
_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = 16
_V1_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9a-fA-F:.]{2,45}) ([0-9a-fA-F:.]{2,45}) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?")

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?")
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = r'"(?:[^"\\]++|\\.)*+"'
_PAIR = re.compile(rf"({_TOKEN})=(?:({_TOKEN})|({_QUOTED}))")
_FORWARDED_END = re.compile(r"[ \t]*+([,;]|\Z)[ \t]*+")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ProxyHeaderError(GwsError):
    """A PROXY protocol header that breaks its specification."""


class ProxyHeader(NamedTuple):
    """A PROXY protocol header.

    Attributes:
        source: the client's (host, port), or the path of its Unix socket; None where the real peer counts (UNKNOWN, LOCAL, UNSPEC).
        destination: what the client connected to, in the same forms.
        consumed: bytes the header takes.
    """

    source: tuple[str, int] | str | None
    destination: tuple[str, int] | str | None
    consumed: int


def _plain(address: _Address) -> _Address:
    """Take an IPv4 address out of its IPv6 form, which is what a dual-stack listener reports."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _read_network(text: str) -> _Network:
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped is not None:
        return ipaddress.IPv4Network((int(network.network_address.ipv4_mapped), network.prefixlen - 96))
    return network


class TrustedProxies:
    """The proxies whose word about the client counts."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, networks: Sequence[str] = ()) -> None:
        """Trust addresses, networks, and with `"unix"` every peer on a Unix socket; nobody if empty. ValueError if malformed."""
        self._unix = "unix" in networks
        self._networks = tuple([_read_network(network) for network in networks if network != "unix"])

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def trusts(self, peername: Any) -> bool:
        """Tell whether a peer is trusted.

        Args:
            peername: as the socket module gives it: a tuple whose first item is an address; text or bytes for a Unix socket.
        """
        if isinstance(peername, str | bytes):
            return self._unix
        if not self._networks or not peername:
            return False
        try:
            return self.trusts_address(_plain(ipaddress.ip_address(peername[0])))
        except ValueError:
            return False

    def trusts_address(self, address: _Address) -> bool:
        """Tell whether an address, not in IPv4-mapped form, is that of a trusted proxy."""
        return any(address in network for network in self._networks)


def client_address(headers: Headers, peer: Any, trusted: TrustedProxies) -> Any:
    """Return the client's (host, port), as trusted proxies report it in X-Forwarded-For or Forwarded; `peer` if none does.

    Both headers are read from the right, over trusted proxies, to the first address that is not one. At an entry that is no address
    the last good one counts. The port is 0 where it is not known.

    Raises:
        Refusal: 400 if the two headers disagree. A proxy that writes one of them passes the other through, so it may be forged.
    """
    if not trusted.trusts(peer):
        return peer
    answers = []
    if "x-forwarded-for" in headers:
        answers.append(_nearest_client(_forwarded_for(headers), trusted))
    if "forwarded" in headers:
        answers.append(_nearest_client(_forwarded(headers), trusted))
    if len(answers) == 2:
        answers = [_agreed(*answers)]
    return peer if not answers or answers[0] is None else answers[0]


def client_scheme(headers: Headers, peer: Any, trusted: TrustedProxies) -> str | None:
    """Return "http" or "https" as the nearest proxy, if trusted, reports it in X-Forwarded-Proto or Forwarded; else None."""
    if not trusted.trusts(peer):
        return None
    found = [element.lower() for element in headers.elements("x-forwarded-proto")[-1:]]
    for line in headers.get_all("forwarded")[-1:]:
        elements = _forwarded_elements(line)
        if elements and "proto" in elements[-1]:
            found.append(elements[-1]["proto"].lower())
    return found[0] if found and found[0] in ("http", "https") and len(set(found)) == 1 else None


def _agreed(one: tuple[str, int] | None, other: tuple[str, int] | None) -> tuple[str, int] | None:
    if one == other:
        return one
    if one is None or other is None or one[0] != other[0] or (one[1] and other[1]):
        raise Refusal(400, "X-Forwarded-For and Forwarded disagree.\n")
    return one if one[1] else other


def _nearest_client(entries: Iterator[str | None], trusted: TrustedProxies) -> tuple[str, int] | None:
    last_good = None
    for _, entry in zip(range(MAX_HOPS), entries, strict=False):
        hop = _read_address(entry) if entry is not None else None
        if hop is None:
            break
        last_good = str(hop[0]), hop[1]
        if not trusted.trusts_address(hop[0]):
            break
    return last_good


def _read_address(text: str) -> tuple[_Address, int] | None:
    """Read `1.2.3.4`, `1.2.3.4:80`, `[::1]`, `[::1]:80` or a bare IPv6 address."""
    match = _ADDRESS.fullmatch(text)
    host, port = (match[1] or match[2], int(match[3] or 0)) if match is not None else (text, 0)
    if port > 65535 or "%" in host:  # a zone means nothing on another machine
        return None
    try:
        return _plain(ipaddress.ip_address(host)), port
    except ValueError:
        return None


def _forwarded_for(headers: Headers) -> Iterator[str | None]:
    """Yield the entries of X-Forwarded-For from the right, over all its lines."""
    entries = ",".join(headers.get_all("x-forwarded-for")).rsplit(",", MAX_HOPS)
    for entry in reversed(entries):
        yield entry.strip(" \t")


def _forwarded(headers: Headers) -> Iterator[str | None]:
    """Yield the `for` values of Forwarded from the right, over all its lines; None where one is missing or a line is malformed."""
    for line in reversed(headers.get_all("forwarded")):
        elements = _forwarded_elements(line)
        yield from (None,) if elements is None else (element.get("for") for element in reversed(elements))


def _forwarded_elements(line: str) -> list[dict[str, str]] | None:
    """Parse one line of Forwarded (RFC 7239 section 4) into the parameters of each element; None if it is malformed."""
    elements: list[dict[str, str]] = []
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        pair = _PAIR.match(line, at)
        end = _FORWARDED_END.match(line, pair.end()) if pair is not None else None
        if pair is None or end is None:
            return None
        name = pair[1].lower()
        if name in found:  # section 4: each parameter once per element
            return None
        found[name] = pair[2] if pair[2] is not None else re.sub(r"\\(.)", r"\1", pair[3][1:-1])
        if end[1] != ";":
            elements.append(found)
            found = {}
        elif end.end() == len(line):
            return None
        at = end.end()
    return elements


def looks_like_proxy_header(prefix: bytes) -> bool | None:
    """Tell whether bytes begin a PROXY protocol header of either version. None: there are too few to tell."""
    for start in (_V1_START, _V2_SIGNATURE):
        if prefix.startswith(start):
            return True
        if start.startswith(prefix):
            return None
    return False


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Parse the PROXY protocol header that bytes begin with. None: more are needed, never more than MAX_V2_HEADER in all.

    Raises:
        ProxyHeaderError: the bytes cannot begin a valid header. Close the connection: the specification wants no guess.
    """
    kind = looks_like_proxy_header(data)
    if kind is None:
        return None
    if not kind:
        raise ProxyHeaderError("not a PROXY protocol header")
    return _parse_v1(data) if data.startswith(_V1_START) else _parse_v2(data)


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_HEADER)
    if end < 0:
        if len(data) >= MAX_V1_HEADER:
            raise ProxyHeaderError(f"a PROXY header of version 1 has at most {MAX_V1_HEADER} bytes")
        return None
    line = data[:end]
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(None, None, end + 2)
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise ProxyHeaderError("malformed PROXY header of version 1")
    kind = ipaddress.IPv4Address if match[1] == b"TCP4" else ipaddress.IPv6Address
    source_port, destination_port = int(match[4]), int(match[5])
    try:
        source, destination = str(kind(match[2].decode())), str(kind(match[3].decode()))
    except ValueError:
        raise ProxyHeaderError("malformed address in a PROXY header of version 1") from None
    if source_port > 65535 or destination_port > 65535:
        raise ProxyHeaderError("malformed port in a PROXY header of version 1")
    return ProxyHeader((source, source_port), (destination, destination_port), end + 2)


#: Bytes of addresses by address family (the upper half of byte 13): UNSPEC, INET, INET6, UNIX.
_V2_ADDRESS_BYTES = {0: 0, 1: 12, 2: 36, 3: 216}


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) > 12 and data[12] not in (0x20, 0x21):  # version 2; LOCAL and PROXY
        raise ProxyHeaderError("a PROXY header of an unknown version or command")
    if len(data) < _V2_FIXED:
        return None
    family, protocol = data[13] >> 4, data[13] & 15
    (length,) = unpack_from("!H", data, 14)
    consumed = _V2_FIXED + length
    if consumed > MAX_V2_HEADER:
        raise ProxyHeaderError(f"a PROXY header of version 2 has at most {MAX_V2_HEADER} bytes here")
    if data[12] == 0x21:
        if family not in _V2_ADDRESS_BYTES or protocol > 2:
            raise ProxyHeaderError("a PROXY header of an unknown address family or protocol")
        if length < _V2_ADDRESS_BYTES[family]:
            raise ProxyHeaderError("a PROXY header too short for its addresses")
    if len(data) < consumed:
        return None
    if data[12] == 0x20 or family == 0 or protocol != 1:
        # LOCAL, UNSPEC, and datagrams, which never reach a stream: a combination that is not supported counts as UNSPEC.
        return ProxyHeader(None, None, consumed)
    return ProxyHeader(*_v2_addresses(data, family), consumed)


def _v2_addresses(data: bytes, family: int) -> tuple[tuple[str, int] | str, tuple[str, int] | str]:
    at = _V2_FIXED
    if family == 3:
        return _unix_path(data[at : at + 108]), _unix_path(data[at + 108 : at + 216])
    size = 4 if family == 1 else 16
    source, destination = (str(ipaddress.ip_address(data[i : i + size])) for i in (at, at + size))
    source_port, destination_port = unpack_from("!HH", data, at + 2 * size)
    return (source, source_port), (destination, destination_port)


def _unix_path(field: bytes) -> str:
    # An abstract name begins with NUL and is shown with "@" in its place, as elsewhere in this package.
    if field[0] == 0:
        name = field[1:].rstrip(b"\0")
        return "@" + os.fsdecode(name) if name else ""
    return os.fsdecode(field.partition(b"\0")[0])
