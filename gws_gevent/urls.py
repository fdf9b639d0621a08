"""WebSocket URLs: ws, wss, ws+unix and the ws+NAME and wss+NAME of other transports (RFC 6455 section 3).

Belongs here: taking a client's URL apart. Does not belong here: which transports exist, name resolution, listening endpoints.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from gws_gevent.exceptions import EndpointError

__all__ = ["WebSocketUrl", "parse_url", "without_login"]

#: Transports that are always encrypted, whatever the URL says: `ws+quic` and `wss+quic` are the same.
_ENCRYPTED = frozenset({"quic", "h3"})
_SCHEME = re.compile(r"wss?(?:\+[a-z][a-z0-9.\-]*)?")
#: What else people write, from a browser or as an endpoint.
_MEANT = {"http": "ws", "https": "wss", "tcp": "ws", "tls": "wss", "unix": "ws+unix"}
_MEANT |= {"quic": "ws+quic", "h3": "wss+h3", "kcp": "ws+kcp"}
_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(//([^/?]*))?(.*)", re.DOTALL)
# A registered name as resolvers know it: no percent-encoding, no sub-delimiters.
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9\-_.]*[A-Za-z0-9_.])?")
_PORT = re.compile(r"[0-9]{1,5}")
#: Spaces, control characters, lone surrogates, and the backslash that browsers read as a slash.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029\ud800-\udfff]")
_ASCII = "".join(map(chr, range(0x21, 0x7F)))


@dataclass(frozen=True, slots=True)
class WebSocketUrl:
    """A client's URL in its parts.

    Attributes:
        scheme: in lower case, such as "ws", "wss", "ws+unix", "ws+quic".
        host: in ASCII and lower case, without brackets; "localhost" for a Unix socket.
        port: 1 to 65535; if the URL has none 80, or 443 if it is secure; 0 for a Unix socket.
        path: the socket's path, for a Unix socket; a leading "@" means a Linux abstract name.
        target: path and query, percent-encoded, for the request line.
        username: decoded, or None.
        password: decoded, or None; left out of the repr.
    """

    scheme: str
    host: str
    port: int
    path: str
    target: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def secure(self) -> bool:
        """The URL asks for an encrypted transport."""
        return _is_secure(self.scheme)

    @property
    def host_header(self) -> str:
        """Value of the Host header: without the default port, and without an IPv6 zone, which means nothing elsewhere."""
        host = f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host
        return host if self.port in (0, self._default_port) else f"{host}:{self.port}"

    @property
    def authorization(self) -> str | None:
        """Value of the Authorization header for the user name and password (RFC 7617), or None."""
        if self.username is None:
            return None
        return "Basic " + b64encode(f"{self.username}:{self.password or ''}".encode()).decode()

    @property
    def _default_port(self) -> int:
        return 443 if self.secure else 80


def parse_url(url: str) -> WebSocketUrl:
    """Take a WebSocket URL apart; raise EndpointError with what is wrong.

    Examples:
        >>> parse_url("wss://example.org/chat?room=1").target
        '/chat?room=1'
        >>> parse_url("ws+unix:/run/app.sock:/chat").path
        '/run/app.sock'
    """
    # Errors repeat the URL without what may be a password in it.
    shown = re.sub(r"//.*@", "//...@", url, flags=re.DOTALL)
    if _FORBIDDEN.search(url):
        raise EndpointError(f"{shown!r}: a URL has no spaces, backslashes or control characters")
    parts = _PARTS.fullmatch(url)
    if parts is None or not _SCHEME.fullmatch(parts[1].lower()):
        meant = _MEANT.get(parts[1].lower()) if parts is not None else None
        hint = f"; did you mean {meant}:{shown.partition(':')[2]}?" if meant is not None else ""
        known = "ws:// or wss://, or names a transport, as ws+quic:// does"
        raise EndpointError(f"{shown!r}: a WebSocket URL begins with {known}{hint}")
    scheme = parts[1].lower()
    if "#" in url:
        raise EndpointError(f"{shown!r}: a WebSocket URL has no fragment")
    if scheme == "wss+unix":
        raise EndpointError(f"{shown!r}: there is no TLS over Unix sockets")
    if scheme == "ws+unix":
        return _parse_unix(url, parts[2], parts[3], parts[4])
    if parts[2] is None:
        raise EndpointError(f"{shown!r}: a WebSocket URL begins with {scheme}://")
    username, password, place = _split_user(parts[3], shown)
    host, port = _split_host(place, shown)
    if port is None:
        port = 443 if _is_secure(scheme) else 80
    return WebSocketUrl(scheme, host, port, "", _target(parts[4]), username, password)


def without_login(url: str) -> str:
    """Return a URL as it may be shown and kept: without the user name and the password.

    Examples:
        >>> without_login("ws://anna:secret@example.org/@home")
        'ws://...@example.org/@home'
    """
    return re.sub(r"//[^/?]*@", "//...@", url)


def _is_secure(scheme: str) -> bool:
    return scheme.startswith("wss") or scheme.rpartition("+")[2] in _ENCRYPTED


def _target(text: str) -> str:
    if not text.startswith("/"):
        text = "/" + text
    return quote(text, safe=_ASCII)


def _parse_unix(url: str, authority: str | None, host: str | None, rest: str) -> WebSocketUrl:
    # The form of npm's ws: ws+unix:/path/of/socket:/target, also with empty authority, ws+unix:///path.
    if authority is not None and host:
        raise EndpointError(f"{url!r}: a Unix socket URL is ws+unix:/path/of/socket:/target")
    path, separator, target = rest.partition(":")
    path = unquote(path)
    if path in ("", "@") or "?" in path or "\0" in path or (separator and not target.startswith(("/", "?"))):
        raise EndpointError(f"{url!r}: a Unix socket URL is ws+unix:/path/of/socket:/target")
    return WebSocketUrl("ws+unix", "localhost", 0, path, _target(target))


def _split_user(authority: str, shown: str) -> tuple[str | None, str | None, str]:
    user, separator, place = authority.rpartition("@")
    if not separator:
        return None, None, authority
    name, separator, password = user.partition(":")
    username = unquote(name)
    if "@" in user or ":" in username:
        raise EndpointError(f"{shown!r}: a user name has no colon, and an @ in it is written %40")
    return username, unquote(password) if separator else None, place


def _split_host(place: str, shown: str) -> tuple[str, int | None]:
    if place.startswith("["):
        literal, separator, port = place[1:].partition("]")
        if not separator or (port and not port.startswith(":")):
            raise EndpointError(f"{shown!r}: an IPv6 address stands in brackets, as in ws://[::1]:3001/")
        host, port = _ipv6(literal, shown), port[1:]
    else:
        name, _, port = place.partition(":")
        if ":" in port:
            raise EndpointError(f"{shown!r}: an IPv6 address stands in brackets, as in ws://[::1]:3001/")
        host = _ascii_host(name, shown)
    if not port:
        return host, None
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise EndpointError(f"{shown!r}: a port is 1 to 65535, not {port!r}")
    return host, int(port)


def _ipv6(literal: str, shown: str) -> str:
    # RFC 6874: the % before a zone is itself percent-encoded.
    address = literal.replace("%25", "%", 1)
    try:
        if address.isascii():
            return str(ipaddress.IPv6Address(address))
    except ValueError:
        pass
    raise EndpointError(f"{shown!r}: not an IPv6 address: {literal!r}")


def _ascii_host(name: str, shown: str) -> str:
    host = name
    if not name.isascii():
        try:
            host = name.encode("idna").decode()
        except UnicodeError:
            raise EndpointError(f"{shown!r}: not a host name: {name!r}") from None
    # After IDNA, which turns some letters into slashes and the like.
    if not _HOST.fullmatch(host) or ".." in host:
        raise EndpointError(f"{shown!r}: not a host name: {name!r}" if name else f"{shown!r}: the host is missing")
    return host.lower()
