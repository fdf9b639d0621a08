"""Which proxy a connection goes through: URLs of proxies, the environment, its exceptions.

Belongs here: the decision. Does not belong here: speaking to a proxy (dialing.py).
"""

from __future__ import annotations

import ipaddress
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gws_gevent.exceptions import EndpointError
from gws_gevent.urls import WebSocketUrl, parse_url

__all__ = ["Proxy", "choose_proxy", "parse_proxy"]

#: Schemes of proxies, with the port of a URL that has none. With socks5 names are resolved here, with socks5h by the proxy.
_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
#: What some desktops write.
_ALIASES: Final = {"socks": "socks5h"}
#: Variables by the URL's scheme, the first that is set counts: as curl has them.
_VARIABLES: Final = {
    "ws": ("ws_proxy", "http_proxy", "socks_proxy", "all_proxy"),
    "wss": ("wss_proxy", "https_proxy", "socks_proxy", "all_proxy"),
}
_HAS_PORT = re.compile(r":[0-9]+$")
_FORMS: Final = "http://HOST:PORT, https://HOST:PORT, socks5://HOST:PORT or socks5h://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's URL in its parts.

    Attributes:
        scheme: "http" (CONNECT), "https" (the same inside of TLS), "socks5" (names are resolved here) or "socks5h" (names are
            resolved by the proxy).
        host: in ASCII and lower case, without brackets.
        username: decoded, or None.
        password: decoded, or None; left out of the repr.
    """

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def authorization(self) -> str | None:
        """Value of the Proxy-Authorization header for the user name and password (RFC 7617), or None."""
        if self.username is None:
            return None
        return "Basic " + b64encode(f"{self.username}:{self.password or ''}".encode()).decode()

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_proxy(text: str, default_scheme: str = "http") -> Proxy:
    """Take a proxy's URL apart; raise EndpointError with what is wrong.

    Examples:
        >>> parse_proxy("socks5h://127.0.0.1").port
        1080
        >>> print(parse_proxy("proxy.example.org:3128"))
        http://proxy.example.org:3128
    """
    # Errors repeat the URL without what may be a password in it.
    shown = re.sub(r"(//|^).*@", r"\1...@", text, flags=re.DOTALL)
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = default_scheme, text
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if scheme not in _PORTS:
        raise EndpointError(f"{shown!r}: a proxy is {_FORMS}, not {scheme}")
    authority, _, path = rest.partition("/")
    try:
        parts = parse_url(f"ws://{authority}/")
    except EndpointError as error:
        raise EndpointError(f"{shown!r}: not a proxy: {str(error).partition(': ')[2]}") from None
    if path:
        raise EndpointError(f"{shown!r}: a proxy is {_FORMS}, without a path")
    port = parts.port if _HAS_PORT.search(authority) else _PORTS[scheme]
    return Proxy(scheme, parts.host, port, parts.username, parts.password)


def choose_proxy(url: WebSocketUrl, proxy: str | bool | None, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy for a URL; None: there is none to go through.

    Args:
        proxy: its URL. True: as the environment says, and never for this machine itself. False, None: none.

    Raises:
        EndpointError: a proxy's URL that cannot be used, or one for a transport that does not go through proxies.
        TypeError: something else.
    """
    if proxy is None or proxy is False:
        return None
    if isinstance(proxy, str):
        if url.scheme not in _VARIABLES:
            raise EndpointError(f"{proxy!r}: {url.scheme} does not go through proxies, only ws and wss do")
        return parse_proxy(proxy)
    if proxy is not True:
        raise TypeError(f"a proxy is the text of its URL, True for the environment's, or None, not {proxy!r}")
    if url.scheme not in _VARIABLES or _is_this_machine(url.host):
        return None
    name, text = _variable(_VARIABLES[url.scheme], environ)
    if not text or _is_excepted(url.host, url.port, _variable(("no_proxy",), environ)[1]):
        return None
    try:
        return parse_proxy(text, "socks5h" if name == "socks_proxy" else "http")
    except EndpointError as error:
        raise EndpointError(f"the environment's {name}: {error}") from None


def _variable(names: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, str]:
    """The first of these variables that says something, in lower or in upper case."""
    for name in names:
        text = environ.get(name)
        # In a CGI program HTTP_PROXY is a header that the client has sent.
        if text is None and not (name == "http_proxy" and "REQUEST_METHOD" in environ):
            text = environ.get(name.upper())
        if text and text.strip():
            return name, text.strip()
    return "", ""


def _is_this_machine(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address is not None else host == "localhost" or host.endswith(".localhost")


def _is_excepted(host: str, port: int, exceptions: str) -> bool:
    """Tell whether `no_proxy` names a host: by its name, a domain above it, its address, a network, each with or without a port."""
    address = _address(host)
    for entry in re.split(r"[,\s]+", exceptions.lower()):
        if entry == "*":
            return True
        name, only = _split_port(entry)
        if not name or (only and only != str(port)):
            continue
        if address is not None:
            if _contains(name, address):
                return True
            continue
        domain = name.removeprefix("*").strip(".")
        if domain and (host.rstrip(".") == domain or host.rstrip(".").endswith(f".{domain}")):
            return True
    return False


def _split_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        name, _, port = entry[1:].partition("]")
        return name, port.removeprefix(":")
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""


def _contains(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
