"""Unix sockets: a path with mode and owner, or a Linux abstract name.

Belongs here: making, replacing and removing the socket file; connecting to one. Does not belong here: the stream (tcp.py has it),
the accept loop (accepting.py).

Parameters of an endpoint to listen on: `mode` (octal), `user`, `group` (names or numbers), as in
`unix:/run/ws.sock?mode=660&group=www`. They are in force before the socket listens, so no client can connect under other rights.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
import sys

import gevent
import gevent.socket

from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.accepting import SocketListener
from gws_gevent.transports.base import (
    Dialer,
    DialSettings,
    Endpoint,
    Listener,
    ListenSettings,
    Stream,
    as_transport_error,
    refuse_unknown_params,
)
from gws_gevent.transports.tcp import SocketStream

__all__ = ["UnixDialer", "UnixListener", "dialer", "listen"]

#: Bytes of a path, its closing NUL not counted (sockaddr_un.sun_path).
MAX_PATH = 107 if sys.platform == "linux" else 103
#: Seconds between two attempts to connect to a listener whose queue is full; Linux has no way to wait for it.
RETRY_DELAY = 0.01


class UnixListener(SocketListener):
    """Listens on a socket file or an abstract name.

    A file that a dead server left is replaced; one that a live server listens on, or that is no socket, is refused. On `close`
    the file is removed if it is still ours, and only by the process that made it.
    """

    scheme = "unix"
    _made: tuple[str, int, int, int] | None = None

    def make_stream(self, accepted: SocketStream) -> Stream:
        return accepted

    def bind(self, endpoint: Endpoint) -> _socket.socket:
        address = _address(endpoint)
        mode, user, group = _rights(endpoint)
        doing = f"listen on {endpoint}"
        abstract = address.startswith(b"\0")
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            if not abstract:
                _make_room(address, doing)
            sock.bind(address)
            if not abstract:
                found = os.lstat(address)
                self._made = (os.path.abspath(endpoint.path), os.getpid(), found.st_dev, found.st_ino)
                if user != -1 or group != -1:
                    os.chown(address, user, group, follow_symlinks=False)
                if mode is not None:
                    os.chmod(address, mode)
            sock.listen(self.backlog)
            return sock
        except BaseException as error:
            self._remove()
            sock.close()
            if isinstance(error, OSError) and not isinstance(error, TransportError):
                raise as_transport_error(error, doing) from error
            raise

    def close(self) -> None:
        # The file goes before the socket: its inode number cannot be given to another file while the socket exists.
        self._remove()
        SocketListener.close(self)

    def _remove(self) -> None:
        if self._made is None:
            return
        path, process, device, inode = self._made
        self._made = None
        if process != os.getpid():
            return  # a forked child's copy of the listener: the parent still listens
        try:
            found = os.lstat(path)
            if (found.st_dev, found.st_ino) == (device, inode):
                os.unlink(path)
        except OSError:
            pass  # somebody else has removed it, or taken the folder from us: nothing is left to do


class UnixDialer(Dialer):
    """Connects to a socket file or an abstract name."""

    def __init__(self, endpoint: Endpoint, settings: DialSettings | None = None) -> None:
        self.endpoint = endpoint
        self.settings = settings or DialSettings()
        self._address = _address(endpoint)

    def dial(self) -> SocketStream:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            while True:
                try:
                    sock.connect(self._address)
                    return SocketStream.adopt(sock)
                except BlockingIOError:
                    gevent.sleep(RETRY_DELAY)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise as_transport_error(error, f"connect to {self.endpoint}") from error
            raise


def _address(endpoint: Endpoint) -> bytes:
    """Return what bind and connect take; an EndpointError for what cannot be one."""
    if not hasattr(_socket, "AF_UNIX"):
        raise EndpointError(f"{str(endpoint)!r}: this system has no Unix sockets in Python")
    path = os.fsencode(endpoint.path)
    if len(path) > MAX_PATH:
        raise EndpointError(f"{str(endpoint)!r}: the path has {len(path)} bytes, a Unix socket's has at most {MAX_PATH}")
    if not path.startswith(b"@"):
        return path
    if sys.platform != "linux":
        raise EndpointError(f"{str(endpoint)!r}: only Linux has abstract names")
    return b"\0" + path[1:]


def _rights(endpoint: Endpoint) -> tuple[int | None, int, int]:
    """Return mode (None: as the umask says), user and group id (-1: unchanged)."""
    params = endpoint.params
    if endpoint.path.startswith("@") and params:
        raise EndpointError(f"{str(endpoint)!r}: an abstract name has no {', '.join(sorted(params))}")
    mode = None
    if "mode" in params:
        try:
            mode = int(params["mode"], 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            raise EndpointError(f"{str(endpoint)!r}: mode is octal, 0 to 777, not {params['mode']!r}")
    return mode, _user(endpoint), _group(endpoint)


def _user(endpoint: Endpoint) -> int:
    name = endpoint.params.get("user", "-1")
    if name == "-1" or (name.isascii() and name.isdecimal()):
        return int(name)
    import pwd  # not on every platform

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise EndpointError(f"{str(endpoint)!r}: there is no user {name!r}") from None


def _group(endpoint: Endpoint) -> int:
    name = endpoint.params.get("group", "-1")
    if name == "-1" or (name.isascii() and name.isdecimal()):
        return int(name)
    import grp  # not on every platform

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise EndpointError(f"{str(endpoint)!r}: there is no group {name!r}") from None


def _make_room(path: bytes, doing: str) -> None:
    """Remove the socket file of a server that has died; a TransportError if it is anything else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise TransportError(errno.EEXIST, f"{doing}: the file exists and is not a socket")
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except ConnectionRefusedError:
        # Nobody listens on it. Two servers that start at the same moment may both come here: the later one wins.
        os.unlink(path)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        raise TransportError(errno.EADDRINUSE, f"{doing}: a server is listening there, and its queue is full") from None
    except OSError as error:
        # EPROTOTYPE: somebody's datagram socket. EACCES: somebody's, and we may not even ask.
        raise TransportError(errno.EADDRINUSE, f"{doing}: the socket is somebody else's ({error.strerror})") from error
    else:
        raise TransportError(errno.EADDRINUSE, f"{doing}: a server is already listening there")
    finally:
        probe.close()


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `unix:/path` or `unix:@name`, with the parameters mode, user and group."""
    refuse_unknown_params(endpoint, ("mode", "user", "group"))
    _address(endpoint)
    _rights(endpoint)
    return UnixListener(endpoint, settings=settings)


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `unix:/path` or `unix:@name`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return UnixDialer(endpoint, settings)
