"""The KCP core of a library behind one small interface, and what the libraries leave to their users.

Belongs here: the packages `kcp` and `siokcp`, their defects, the C structure that both are wrappers of (ikcp.h). Does not belong
here: datagrams, sessions, time: milliseconds are passed in.

What is made good here, for `kcp` 0.1.6:

* It never frees a core: `release` calls `ikcp_release` itself, once, and drops the object, whose pointer is dangling from then on.
* A conversation number is a signed int to it.
* It refuses empty messages, and so does `siokcp`: the end of a stream is one, sent with `ikcp_send` itself.
* It has neither `stream` nor `probe` nor the peer's window: they are read and written in the structure.
* `update_check` takes its own clock's time off: `ikcp_check` is called itself.
* It swallows exceptions of its output handler: ours appends to a list and has none.
* A message of 128 fragments or more is refused by the C code, and so may nobody send one: MAX_FRAGMENTS.

For `siokcp` 0.0.5: a bound method as output handler leaks, so the handler is a plain function that the cores of a port share,
and it is taken off when the core is released.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["HEADER", "MAX_FRAGMENTS", "Core", "MakeCore", "Outbox", "Tuning", "core_names", "find_core"]

#: Bytes of a segment's header (IKCP_OVERHEAD).
HEADER: Final = 24
#: Fragments of a message that `ikcp_send` takes: it wants fewer than IKCP_WND_RCV.
MAX_FRAGMENTS: Final = 127
_ASK_SEND: Final = 1  # IKCP_ASK_SEND: the next flush asks the peer for its window


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a core sends.

    Attributes:
        nodelay: 1: a retransmission comes after 1.5 times the last wait instead of twice, and after 30 ms at the earliest.
        interval: milliseconds between two looks at what is under way.
        resend: acknowledgements of later segments after which one is sent again at once; 0: never.
        nc: 1: no congestion control.
        sndwnd: segments under way or waiting to be.
        rcvwnd: segments received and not read; at least 128.
        mtu: bytes of one datagram of the core.
        stream: small sends are joined; False: each send is one message to the peer.
    """

    nodelay: int
    interval: int
    resend: int
    nc: int
    sndwnd: int
    rcvwnd: int
    mtu: int
    stream: bool


class Outbox:
    """Where the cores of one port put datagrams. A core puts them there during `update` and `flush`, and at no other time."""

    __slots__ = ("datagrams", "for_kcp", "for_siokcp")

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        append = self.datagrams.append

        def for_kcp(_: object, data: bytes) -> None:
            append(data)

        def for_siokcp(data: bytes) -> int:
            append(data)
            return 0

        self.for_kcp = for_kcp
        self.for_siokcp = for_siokcp


class Core(Protocol):
    """One conversation of the KCP protocol. Not to be used after `release`."""

    def send(self, data: bytes) -> None:
        """Queue a message of 1 to `MAX_FRAGMENTS` segments."""

    def send_end(self) -> None:
        """Queue an empty message."""

    def receive(self, datagram: bytes) -> bool:
        """Take a datagram of at least HEADER bytes. False: it is not this conversation's, or broken; its beginning may count."""

    def next_size(self) -> int:
        """Return the bytes of the next message; -1: there is none."""

    def take(self) -> bytes | bytearray:
        """Return the next message, which exists."""

    def waiting(self) -> int:
        """Return the segments that are queued or not acknowledged."""

    def update(self, milliseconds: int) -> None:
        """Tell the time, modulo 2**32, and do what is due."""

    def flush(self) -> None:
        """Put out acknowledgements and what may be sent. `update` has been called at least once."""

    def check(self, milliseconds: int) -> int:
        """Return the milliseconds until the next `update`, from the given time on."""

    def ask_window(self) -> None:
        """Have the next flush ask the peer for its window, which every peer answers."""

    def peer_window(self) -> int:
        """Return the segments that the peer has said it can take."""

    def release(self) -> None:
        """Give all memory back."""


#: Makes a core from conversation number, tuning and outbox.
MakeCore = Callable[[int, Tuning, Outbox], Core]


class _Control(ctypes.Structure):
    """The beginning of IKCPCB (ikcp.h). Checked against a core of known values before it is used."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("conv", "mtu", "mss", "state", "snd_una", "snd_nxt", "rcv_nxt")),
        *((name, ctypes.c_uint32) for name in ("ts_recent", "ts_lastack", "ssthresh")),
        *((name, ctypes.c_int32) for name in ("rx_rttval", "rx_srtt", "rx_rto", "rx_minrto")),
        *((name, ctypes.c_uint32) for name in ("snd_wnd", "rcv_wnd", "rmt_wnd", "cwnd", "probe")),
        *((name, ctypes.c_uint32) for name in ("current", "interval", "ts_flush", "xmit", "nrcv_buf", "nsnd_buf")),
        *((name, ctypes.c_uint32) for name in ("nrcv_que", "nsnd_que", "nodelay", "updated", "ts_probe", "probe_wait")),
        *((name, ctypes.c_uint32) for name in ("dead_link", "incr")),
        ("queues", ctypes.c_void_p * 8),
        ("acklist", ctypes.c_void_p),
        *((name, ctypes.c_uint32) for name in ("ackcount", "ackblock")),
        *((name, ctypes.c_void_p) for name in ("user", "buffer")),
        *((name, ctypes.c_int32) for name in ("fastresend", "fastlimit", "nocwnd", "stream")),
    )


class _KcpCore:
    """A core of the package `kcp`."""

    __slots__ = ("_core", "_pointer")

    #: The extension module, and its C functions.
    extension: Any = None
    library: Any = None

    def __init__(self, conv: int, tuning: Tuning, outbox: Outbox) -> None:
        signed = conv - (1 << 32) if conv >= 1 << 31 else conv
        self._core = core = self.extension.KCP(
            signed,
            tuning.mtu,
            bool(tuning.nodelay),
            tuning.interval,
            tuning.resend,
            bool(tuning.nc),
            tuning.sndwnd,
            tuning.rcvwnd,
        )
        core.include_outbound_handler(outbox.for_kcp)
        # The object's head, the pointer to its methods, and then the pointer to the structure.
        self._pointer = _pointer_at(id(core) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p))
        if tuning.stream:
            _control(self._pointer).stream = 1

    def send(self, data: bytes) -> None:
        self._core.enqueue(data)

    def send_end(self) -> None:
        _control(self._pointer).stream = 0  # else an empty send would be joined to what is before it, and be nothing
        self.library.ikcp_send(self._pointer, b"", 0)

    def receive(self, datagram: bytes) -> bool:
        try:
            self._core.receive(datagram)
        except self.extension.KCPException:
            return False
        return True

    def next_size(self) -> int:
        size: int = self._core.get_next_packet_size()
        return size

    def take(self) -> bytes | bytearray:
        taken: bytearray = self._core.get_received()
        return taken

    def waiting(self) -> int:
        count: int = self._core.get_outbound_packets()
        return count

    def update(self, milliseconds: int) -> None:
        self._core.update(milliseconds)

    def flush(self) -> None:
        self._core.flush()

    def check(self, milliseconds: int) -> int:
        due: int = self.library.ikcp_check(self._pointer, milliseconds)
        return (due - milliseconds) & 0xFFFFFFFF

    def ask_window(self) -> None:
        _control(self._pointer).probe |= _ASK_SEND

    def peer_window(self) -> int:
        window: int = _control(self._pointer).rmt_wnd
        return window

    def release(self) -> None:
        core, pointer, self._core, self._pointer = self._core, self._pointer, None, 0
        if pointer:
            core.include_outbound_handler(None)
            self.library.ikcp_release(pointer)


class _SiokcpCore:
    """A core of the package `siokcp`."""

    __slots__ = ("_core",)

    extension: Any = None
    library: Any = None

    def __init__(self, conv: int, tuning: Tuning, outbox: Outbox) -> None:
        self._core = core = self.extension.KCPConnection(conv, outbox.for_siokcp, None)
        core.setmtu(tuning.mtu)
        core.nodelay(tuning.nodelay, tuning.interval, tuning.resend, tuning.nc)
        core.wndsize(tuning.sndwnd, tuning.rcvwnd)
        core.stream = int(tuning.stream)

    def send(self, data: bytes) -> None:
        self._core.send(data)

    def send_end(self) -> None:
        self._core.stream = 0
        self.library.ikcp_send(_capsule_pointer(self._core.get_ptr(), None), b"", 0)

    def receive(self, datagram: bytes) -> bool:
        return bool(self._core.receive_data(datagram) >= 0)

    def next_size(self) -> int:
        size: int = self._core.peeksize()
        return size

    def take(self) -> bytes | bytearray:
        taken: bytes = self._core.next_event()
        return taken

    def waiting(self) -> int:
        count: int = self._core.waitsnd()
        return count

    def update(self, milliseconds: int) -> None:
        self._core.update(milliseconds)

    def flush(self) -> None:
        self._core.flush()

    def check(self, milliseconds: int) -> int:
        due: int = self._core.check(milliseconds)
        return (due - milliseconds) & 0xFFFFFFFF

    def ask_window(self) -> None:
        self._core.probe |= _ASK_SEND

    def peer_window(self) -> int:
        window: int = self._core.rmt_wnd
        return window

    def release(self) -> None:
        core, self._core = self._core, None
        if core is not None:
            core.send_cb = None


def _pointer_at(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0


def _control(pointer: int) -> _Control:
    return _Control.from_address(pointer)


def _capsule_pointer(capsule: Any, name: bytes | None) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return int(get(capsule, name) or 0)


_CHECKED: Final = Tuning(nodelay=1, interval=11, resend=3, nc=1, sndwnd=37, rcvwnd=141, mtu=733, stream=True)
_CHECKED_CONV: Final = 0xFEDC1234


def _is_understood(make: type[_KcpCore]) -> bool:
    """Whether the structure of a new core is where, and as, this module takes it to be."""
    core = make(_CHECKED_CONV, _CHECKED, Outbox())
    try:
        found = _control(core._pointer)
        values = (found.conv, found.mtu, found.mss, found.interval, found.fastresend, found.snd_wnd, found.rcv_wnd, found.nocwnd)
        return values == (_CHECKED_CONV, 733, 733 - HEADER, 11, 3, 37, 141, 1) and found.stream == 1 and found.rmt_wnd == 128
    finally:
        core.release()


def _load_kcp() -> MakeCore:
    from kcp import extension

    library = ctypes.PyDLL(extension.__file__)  # it keeps the GIL: these calls take less than giving it away would
    library.ikcp_check.restype, library.ikcp_check.argtypes = ctypes.c_uint32, (ctypes.c_void_p, ctypes.c_uint32)
    library.ikcp_release.restype, library.ikcp_release.argtypes = None, (ctypes.c_void_p,)
    library.ikcp_send.restype, library.ikcp_send.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
    _KcpCore.extension, _KcpCore.library = extension, library
    if not _is_understood(_KcpCore):
        raise ImportError("this version of the package kcp is not known: kcp 0.1.6 is")
    return _KcpCore


class _SiokcpLibrary:
    def __init__(self, extension: Any) -> None:
        function = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
        self.ikcp_send = function(_capsule_pointer(extension.ikcp_send, b"siokcp._kcp.ikcp_send"))


def _load_siokcp() -> MakeCore:
    from siokcp import _kcp as extension

    _SiokcpCore.extension, _SiokcpCore.library = extension, _SiokcpLibrary(extension)
    return _SiokcpCore


_LOADERS: Final[dict[str, Callable[[], MakeCore]]] = {"kcp": _load_kcp, "siokcp": _load_siokcp}


def core_names() -> tuple[str, ...]:
    """Return the names that `find_core` takes."""
    return tuple(_LOADERS)


def find_core(name: str = "") -> MakeCore:
    """Return what makes cores of the named library, or of the first that is installed.

    Raises:
        ImportError: it cannot be imported, or none can.
    """
    if name:
        return _LOADERS[name]()
    try:
        return _load_kcp()
    except (ImportError, OSError, AttributeError) as error:  # the last two: a build that does not show its C functions
        try:
            return _load_siokcp()
        except ImportError:
            raise ImportError(str(error)) from error
