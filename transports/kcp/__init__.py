"""KCP over UDP: what the registry asks for.

Belongs here: the two functions of a transport. Does not belong here: everything else. From below: `core.py` (the libraries),
`cipher.py` and `cookie.py` (what is ours on the wire), `params.py`, `session.py` (one conversation), `server.py` and `client.py`
(how one begins); none of them needs a socket. `stream.py` and `endpoints.py` are what the application sees.

    kcp://:4000?mode=fast&mtu=1200&key-file=/etc/app/kcp.key
"""

from __future__ import annotations

from gws_gevent.transports.base import Dialer, DialSettings, Endpoint, Listener, ListenSettings
from gws_gevent.transports.kcp.endpoints import KcpDialer, KcpListener
from gws_gevent.transports.kcp.stream import KcpStream

__all__ = ["KcpDialer", "KcpListener", "KcpStream", "dialer", "listen"]


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `kcp://host:port`; docs/kcp.md has its parameters."""
    return KcpListener(endpoint, settings)


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `kcp://host:port`; docs/kcp.md has its parameters."""
    return KcpDialer(endpoint, settings)
