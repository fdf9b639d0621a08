"""Parameters of a `kcp://` endpoint: what they are called, what they may be, the presets.

Belongs here: from the text after `?` to numbers. Does not belong here: what the numbers do.

The presets of `mode` are kcptun's, which also turn congestion control off. Without `mode` it is on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.base import Endpoint, as_transport_error, refuse_unknown_params
from gws_gevent.transports.kcp.cipher import CIPHERS, parse_key
from gws_gevent.transports.kcp.core import MAX_FRAGMENTS, Tuning, core_names

__all__ = ["MODES", "KcpParams", "client_params", "server_params"]

#: nodelay, interval, resend, nc of each mode.
MODES: Final = {
    "normal": (0, 40, 2, 1),
    "fast": (0, 30, 2, 1),
    "fast2": (1, 20, 2, 1),
    "fast3": (1, 10, 2, 1),
}
#: The same without a mode: as quick as fast3, but others on the way get their share.
_NO_MODE: Final = (1, 10, 2, 0)

#: Whole numbers by name: lowest, highest, default.
_TUNING: Final = {"nodelay": (0, 1), "interval": (10, 5000), "resend": (0, 1000), "nc": (0, 1)}
_NUMBERS: Final = {
    # What is under way has to fit into the receiver's socket (net.core.rmem_max): 512 packets of 9000 bytes made a session stall.
    "sndwnd": (MAX_FRAGMENTS + 1, 32768, 128),
    "rcvwnd": (MAX_FRAGMENTS + 1, 32768, 256),
    # Below 576 bytes of IPv4 there is nothing left for the data; above 1472 an Ethernet does not take it in one piece.
    "mtu": (256, 65000, 1200),
    "stream": (0, 1, 1),
    "cookie": (0, 1, 1),
}
_SERVER_NUMBERS: Final = {"sessions": (1, 1_000_000, 10_000), "sessions-per-address": (1, 1_000_000, 1000)}
#: Seconds by name: lowest, highest, default of a server, of a client.
_SECONDS: Final = {
    "idle-timeout": (1.0, 86400.0, 60.0, 60.0),
    # A client asks first, so that it is the one that keeps a NAT's table in order, and a server hardly ever has to.
    "keepalive": (0.5, 86400.0, 30.0, 20.0),
    "no-progress": (1.0, 3600.0, 12.0, 12.0),
    "linger": (0.0, 3600.0, 60.0, 60.0),
}
_SERVER_SECONDS: Final = {"handshake-timeout": (0.1, 300.0, 10.0, 10.0)}
_WORDS: Final = {"mode": tuple(MODES), "cipher": tuple(CIPHERS), "core": core_names()}


@dataclass(frozen=True, slots=True)
class KcpParams:
    """What an endpoint says.

    Attributes:
        tuning: see Tuning; its mtu is that of the whole UDP payload.
        cookie: the exchange of cookies before a session; False: as stock peers do it, without.
        key: 32 bytes, or None for no encryption.
        cipher: a name in CIPHERS.
        core: a name in `core_names()`, or "" for the first that is installed.
        sessions: at the same time.
        sessions_per_address: of one IP address.
        handshake_timeout: seconds in which a stock peer has to show that it gets what is sent to it.
        idle_timeout: seconds without any datagram of the peer after which a session ends.
        keepalive: seconds without any datagram after which the peer is asked whether it is there.
        no_progress: seconds in which nothing that was sent is acknowledged after which a session ends.
        linger: seconds that a closed stream goes on sending what it had taken.
    """

    tuning: Tuning
    cookie: bool
    key: bytes | None
    cipher: str
    core: str
    sessions: int
    sessions_per_address: int
    handshake_timeout: float
    idle_timeout: float
    keepalive: float
    no_progress: float
    linger: float


def server_params(endpoint: Endpoint) -> KcpParams:
    """Read the parameters of an endpoint to listen on.

    Raises:
        EndpointError: a parameter nobody knows, or a value that it cannot have.
        TransportError: the key's file cannot be read.
    """
    return _read(endpoint, is_server=True)


def client_params(endpoint: Endpoint) -> KcpParams:
    """Read the parameters of an endpoint to connect to; raises as `server_params`."""
    return _read(endpoint, is_server=False)


def _read(endpoint: Endpoint, *, is_server: bool) -> KcpParams:
    if "key" in endpoint.params:
        shown = f"{endpoint.scheme}://{endpoint.host}:{endpoint.port}"  # without the key
        raise EndpointError(f"{shown!r}: a key in an endpoint is seen by every user of the machine: give key-file= or key-env=")
    numbers = {**_NUMBERS, **(_SERVER_NUMBERS if is_server else {})}
    seconds = {**_SECONDS, **(_SERVER_SECONDS if is_server else {})}
    refuse_unknown_params(endpoint, (*_WORDS, *_TUNING, *numbers, *seconds, "key-file", "key-env"))
    preset = MODES.get(_word(endpoint, "mode"), _NO_MODE)
    nodelay, interval, resend, nc = (
        _number(endpoint, name, *_TUNING[name], default) for name, default in zip(_TUNING, preset, strict=True)
    )
    values = {name: _number(endpoint, name, *bounds) for name, bounds in numbers.items()}
    times = {name: _time(endpoint, name, *bounds[:2], bounds[2 if is_server else 3]) for name, bounds in seconds.items()}
    if times["keepalive"] >= times["idle-timeout"]:
        raise _fault(endpoint, f"keepalive has to be less than idle-timeout, which is {times['idle-timeout']:g} seconds")
    key = _key(endpoint)
    if key is None and "cipher" in endpoint.params:
        raise _fault(endpoint, "a cipher needs a key: key-file= or key-env=")
    if key is not None and not values["cookie"]:
        raise _fault(endpoint, "cookie=0 is for stock peers, which know nothing of this encryption: there is no key with it")
    tuning = Tuning(nodelay, interval, resend, nc, values["sndwnd"], values["rcvwnd"], values["mtu"], bool(values["stream"]))
    return KcpParams(
        tuning=tuning,
        cookie=bool(values["cookie"]),
        key=key,
        cipher=_word(endpoint, "cipher") or next(iter(CIPHERS)),
        core=_word(endpoint, "core"),
        sessions=values.get("sessions", 1),
        sessions_per_address=values.get("sessions-per-address", 1),
        handshake_timeout=times.get("handshake-timeout", 0.0),
        idle_timeout=times["idle-timeout"],
        keepalive=times["keepalive"],
        no_progress=times["no-progress"],
        linger=times["linger"],
    )


def _fault(endpoint: Endpoint, said: str) -> EndpointError:
    return EndpointError(f"{str(endpoint)!r}: {said}")


def _word(endpoint: Endpoint, name: str) -> str:
    given = endpoint.params.get(name, "")
    if name in endpoint.params and given not in _WORDS[name]:
        raise _fault(endpoint, f"{name} is one of {', '.join(_WORDS[name])}, not {given!r}")
    return given


def _number(endpoint: Endpoint, name: str, low: int, high: int, default: int) -> int:
    given = endpoint.params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and low <= int(given) <= high):
        raise _fault(endpoint, f"{name} is a whole number from {low} to {high}, not {given!r}")
    return int(given)


def _time(endpoint: Endpoint, name: str, low: float, high: float, default: float) -> float:
    given = endpoint.params.get(name)
    if given is None:
        return default
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise _fault(endpoint, f"{name} is a number of seconds from {low:g} to {high:g}, not {given!r}")
    return value


def _key(endpoint: Endpoint) -> bytes | None:
    path, variable = endpoint.params.get("key-file"), endpoint.params.get("key-env")
    if path is not None and variable is not None:
        raise _fault(endpoint, "key-file and key-env: one of them")
    if path is not None:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                return parse_key(file.read(1024))
        except OSError as error:
            raise as_transport_error(error, f"read the key file {path}") from error
        except ValueError as error:
            raise TransportError(f"read the key file {path}: {error}") from error
    if variable is None:
        return None
    if variable not in os.environ:
        raise _fault(endpoint, f"there is no environment variable {variable}")
    try:
        return parse_key(os.environ[variable])
    except ValueError as error:
        raise _fault(endpoint, f"the environment variable {variable}: {error}") from error
