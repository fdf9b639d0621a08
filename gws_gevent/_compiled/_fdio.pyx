# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Waiting on, reading and writing descriptors without Python frames: one epoll of our own for all connections of a hub.

Compiled twin of `gws_gevent/_fdio.py`, which documents the methods. Linux only: elsewhere the plain twin waits by gevent's io watchers.

How a wait works: a stream is registered once, edge-triggered, in the hub's Poller, whose descriptor gevent's loop watches with
one io watcher. `Poller.drain` runs in the hub and switches into each greenlet that waits, through greenlet's C API. Edges that come
while nobody waits are remembered in the stream's flags.
"""

import _socket
import os
import warnings

from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError

from gws_gevent.exceptions import StreamClosed
from gws_gevent.runtime import YIELD, current
from gws_gevent.transports.base import PollableStream, as_transport_error
from gws_gevent.transports.borrowed import BorrowedSocket

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_CheckExact, PyByteArray_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, EINTR, ENOTCONN, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "Python.h":
    void *PyUnicode_DATA(object text)

cdef extern from "_fdio.h":
    int GWS_CAN_TRIM
    int gws_trims
    int gws_import_greenlet() except -1
    object gws_getcurrent()
    object gws_switch(object greenlet)
    int gws_wait_for(PyObject *next, PyObject *hub, uint16_t *flags, uint16_t bit) noexcept
    object gws_caught()
    double gws_monotonic() noexcept nogil
    void gws_trim_heap() noexcept nogil
    void gws_lend() noexcept
    void gws_borrow() noexcept
    int gws_accept(int fd, unsigned char *address, uint16_t *port) noexcept nogil
    void gws_reset_on_close(int fd) noexcept nogil
    int gws_epoll(int epoll, int what, int fd, uint32_t events, uint64_t data) noexcept nogil
    uint32_t gws_event_bits(void *events, int i) noexcept nogil
    uint64_t gws_event_data(void *events, int i) noexcept nogil
    int gws_epoll_wait(int epoll, void *events, int count) noexcept nogil

    int epoll_create1(int flags) noexcept nogil
    ssize_t c_recv "recv"(int fd, void *to, size_t size, int flags) noexcept nogil
    ssize_t c_send "send"(int fd, const void *data, size_t size, int flags) noexcept nogil
    int c_shutdown "shutdown"(int fd, int how) noexcept nogil
    int c_close "close"(int fd) noexcept nogil
    unsigned long PyThread_get_thread_ident() noexcept nogil
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    ctypedef struct msghdr "struct msghdr":
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t c_sendmsg "sendmsg"(int fd, msghdr *message, int flags) noexcept nogil
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLOUT
        EPOLLRDHUP
        EPOLLHUP
        EPOLLERR
        EPOLLET
        MSG_NOSIGNAL
        SHUT_WR
        SHUT_RDWR
        AF_INET
        AF_INET6
    size_t EVENT_SIZE "sizeof(struct epoll_event)"

__all__ = ["TRIMS", "SocketStream", "accept", "borrow_data_stack", "lend_data_stack", "monotonic", "thread_id", "trim_heap"]

gws_import_greenlet()
gws_trims = GWS_CAN_TRIM and os.environ.get("GWS_GEVENT_TRIM", "1") != "0"

#: Whether the data stack of a waiting greenlet is given back.
TRIMS = bool(gws_trims)

cdef enum:
    # Flags of a stream.
    CLOSED = 1
    DRAINED = 2  # the last read was short, so the socket is usually empty
    READABLE = 4  # an edge came that no read has answered
    ENDING = 8  # the peer has finished, or an error waits: read on to the end, for no further edge will come
    REGISTERED = 16
    WATCHES_OUT = 32
    READER_WOKEN = 64
    WRITER_WOKEN = 128
    PARKED = 256  # `_reader` is no greenlet, but what is to be told of input
    COUNTED = 512
    # Events that one look at the epoll takes, and the seconds that handling them may take before others have their turn.
    MAX_EVENTS = 512
    MAX_PARTS = 64
    # Bytes of a frame that is put together before it is sent; a larger one leaves in two parts, uncopied.
    SMALL_FRAME = 2048

cdef double MAX_DRAIN = 0.005
cdef uint32_t NO_SLOT = 0xFFFFFFFF

#: Incremented in a forked child, whose descriptors are the parent's.
cdef uint32_t forks = 0


def _forked():
    global forks
    forks += 1


os.register_at_fork(after_in_child=_forked)


cpdef double monotonic() noexcept:
    return gws_monotonic()


cpdef borrow_data_stack():
    gws_borrow()


cpdef lend_data_stack():
    gws_lend()


cpdef trim_heap():
    gws_trim_heap()


cpdef unsigned long thread_id() noexcept:
    return PyThread_get_thread_ident()


@cython.final
cdef class Poller:
    """All descriptors of one hub in one epoll.

    An event carries a slot and the slot's generation, never a pointer: what was registered there may be gone by the time the event is read.
    """

    def __cinit__(self):
        self._epoll = -1

    def __init__(self, hub):
        self.hub = hub
        self._thread = PyThread_get_thread_ident()
        self._forks = forks
        self._free = NO_SLOT
        # By the addresses of streams: [bytes received, bytes sent]. Only of those that are counted.
        self._counts = {}
        self._events = PyMem_Malloc(MAX_EVENTS * EVENT_SIZE)
        if self._events == NULL:
            raise MemoryError
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self._watcher = hub.loop.io(self._epoll, 1)
        # Goes on with a drain that took too long, as soon as everything else has had its turn.
        self._again = hub.loop.timer(YIELD)

    def __dealloc__(self):
        if self._epoll >= 0:
            c_close(self._epoll)
        PyMem_Free(self._events)
        PyMem_Free(self._slots)

    cdef int add(self, SocketStream stream) except -1:
        cdef uint32_t slot
        if self._free == NO_SLOT:
            self._grow()
        slot = self._free
        if gws_epoll(self._epoll, EPOLL_CTL_ADD, stream._fd, _events_of(stream),
                     <uint64_t>self._slots[slot].generation << 32 | slot) < 0:
            _raise_fault(errno, "wait")
        self._free = self._slots[slot].next_free
        self._slots[slot].stream = <void *>stream
        stream._slot = slot
        stream._flags |= REGISTERED
        self._used += 1
        if self._used == 1:
            self._watcher.start(self.drain)
        return 0

    cdef int _grow(self) except -1:
        cdef uint32_t size = 2 * self._size if self._size else 64, i
        cdef Slot *slots = <Slot *>PyMem_Realloc(self._slots, size * sizeof(Slot))
        if slots == NULL:
            raise MemoryError
        for i in range(self._size, size):
            slots[i].stream = NULL
            slots[i].generation = 0
            slots[i].next_free = i + 1 if i + 1 < size else NO_SLOT
        self._free = self._size
        self._slots, self._size = slots, size
        return 0

    cdef int watch(self, SocketStream stream) except -1:
        """Register a stream, or tell the kernel what it waits for by now; what is ready already is reported anew."""
        if self._forks != forks:
            raise ConcurrentObjectUseError("this stream belongs to the process that this one was forked from")
        if not stream._flags & REGISTERED:
            return self.add(stream)
        cdef uint64_t data = <uint64_t>self._slots[stream._slot].generation << 32 | stream._slot
        if gws_epoll(self._epoll, EPOLL_CTL_MOD, stream._fd, _events_of(stream), data) < 0:
            _raise_fault(errno, "wait")
        return 0

    cdef void remove(self, SocketStream stream) noexcept:
        """Before the descriptor is closed: a duplicate of it elsewhere would go on delivering events."""
        if not stream._flags & REGISTERED:
            return
        stream._flags &= ~REGISTERED
        cdef Slot *slot = self._slots + stream._slot
        slot.stream = NULL
        slot.generation += 1
        slot.next_free = self._free
        self._free = stream._slot
        self._used -= 1
        # A forked child has the same epoll as its parent, and would take the parent's connection out of it.
        if self._forks == forks:
            gws_epoll(self._epoll, EPOLL_CTL_DEL, stream._fd, 0, 0)
        if self._used == 0:
            try:
                self._watcher.stop()
            except Exception:
                pass

    cpdef drain(self):
        """In the hub: switch into whoever waits for what has become ready."""
        cdef int at
        cdef uint64_t data
        cdef uint32_t slot, bits
        cdef SocketStream stream
        cdef double until = 0
        if self._is_the_parents():
            return
        if self._at >= self._count:
            self._at = 0
            self._count = gws_epoll_wait(self._epoll, self._events, MAX_EVENTS)
        while self._at < self._count:
            if self._is_the_parents():
                # Whoever ran before in this loop has forked, and this is the child.
                return
            at = self._at
            self._at += 1
            data = gws_event_data(self._events, at)
            slot = <uint32_t>data
            # Whoever ran before in this loop may have closed this one, and another may stand in its slot.
            if self._slots[slot].stream != NULL and self._slots[slot].generation == data >> 32:
                # A reference of our own: whoever wakes up may drop the last one.
                stream = <SocketStream>self._slots[slot].stream
                bits = gws_event_bits(self._events, at)
                if bits & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                    try:
                        stream.on_input(bits)
                    except BaseException as error:
                        self._report(error)
                if bits & (EPOLLOUT | EPOLLHUP | EPOLLERR):
                    try:
                        stream.on_room()
                    except BaseException as error:
                        self._report(error)
            if self._at & 31 == 0:
                if until == 0:
                    until = gws_monotonic() + MAX_DRAIN
                elif gws_monotonic() > until and self._at < self._count:
                    # Not by a callback: the loop runs those before it looks at its timers.
                    if not self._again.active:
                        self._again.start(self.drain)
                    return

    cdef bint _is_the_parents(self) except -1:
        """True in a forked child, to which the connections do not belong: it watches no more."""
        if self._forks == forks:
            return False
        self._watcher.stop()
        return True

    cdef void *next_to_run(self) noexcept:
        """Whom a greenlet that is about to wait switches to: the reader of the next event if that is all there is to it, else the hub.

        Most events are input for a greenlet that waits for it. Going from one to the next saves half of the switches. Every 32nd
        goes by the hub, which looks at the clock.
        """
        cdef uint64_t data
        cdef Slot *slot
        cdef SocketStream stream
        if self._forks != forks:
            return <void *>self.hub
        if self._draining and self._at < self._count and self._at & 31 != 0 and gws_event_bits(self._events, self._at) == EPOLLIN:
            data = gws_event_data(self._events, self._at)
            slot = self._slots + <uint32_t>data
            if slot.stream != NULL and slot.generation == data >> 32:
                stream = <SocketStream>slot.stream
                if stream._reader is not None and not stream._flags & PARKED:
                    self._at += 1
                    stream._flags |= READABLE | READER_WOKEN
                    return <void *>stream._reader
        return <void *>self.hub

    cdef _report(self, error):
        # Nothing may escape from a raw greenlet: it would end the hub's callback, and the events behind it would be lost.
        self.hub.handle_error(None, type(error), error, error.__traceback__)


cdef int _raise_fault(int number, str doing) except -1:
    raise as_transport_error(OSError(number, os.strerror(number)), doing)


cdef bint _is_to_be_repeated(int number, str doing) except -1:
    """What a failed call says: True, a signal interrupted it; False, it would block; else the fault is raised."""
    if number == EINTR:
        PyErr_CheckSignals()
        return True
    if number != EAGAIN:
        _raise_fault(number, doing)
    return False


cdef uint32_t _events_of(SocketStream stream) noexcept:
    cdef uint32_t events = EPOLLIN | EPOLLRDHUP | EPOLLET
    # Only on demand: a Unix socket reports it anew whenever the peer has read something.
    return events | EPOLLOUT if stream._flags & WATCHES_OUT else events


cdef Poller _poller_here():
    runtime = current()
    if runtime.poller is None:
        runtime.poller = Poller(runtime.hub)
    return runtime.poller


def accept(listening):
    """Accept one connection from a listening socket that does not block; None if there is none.

    Raises:
        OSError: as accept(2).
    """
    cdef SocketStream stream = SocketStream.__new__(SocketStream)
    cdef int fd = gws_accept(listening.fileno(), stream._address, &stream._port)
    if fd < 0:
        if errno == EAGAIN or errno == EINTR:
            return None
        raise OSError(errno, os.strerror(errno))
    stream._fd = fd
    stream._family = listening.family
    stream._poller = _poller_here()
    return stream


@cython.no_gc
@cython.final
cdef class SocketStream:

    def __cinit__(self):
        self._fd = -1

    def __init__(self, int descriptor, int family):
        self._fd = descriptor
        self._family = family
        self._poller = _poller_here()

    def __del__(self):
        if self._fd >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning)

    def __dealloc__(self):
        if self._fd >= 0:
            if self._poller is not None:
                self._poller.remove(self)
            c_close(self._fd)
        if self._flags & COUNTED:
            self._poller._counts.pop(<size_t><void *>self, None)

    def __repr__(self):
        return f"<SocketStream {self.fileno()}>"

    @classmethod
    def adopt(cls, sock):
        family = sock.family
        descriptor = sock.detach()
        os.set_blocking(descriptor, False)
        return SocketStream(descriptor, family)

    def handshake(self, bytes received=b""):
        pass

    def fileno(self):
        return -1 if self._flags & CLOSED else self._fd

    # Reading

    def recv_into(self, buffer):
        cdef Py_ssize_t received
        while True:
            received = self.try_recv_into(buffer)
            if received >= 0:
                return received
            self.wait_readable()

    cpdef Py_ssize_t try_recv_into(self, buffer) except -2:
        cdef Py_buffer view
        if PyByteArray_CheckExact(buffer):
            return self.receive(PyByteArray_AS_STRING(buffer), PyByteArray_GET_SIZE(buffer))
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            return self.receive(<char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t receive(self, char *to, Py_ssize_t size) except -2:
        cdef ssize_t received
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        if self._flags & CLOSED:
            raise StreamClosed("receive: the stream is closed")
        if self._flags & DRAINED:
            self._flags &= ~DRAINED
            # The edge of what comes later finds us waiting; an end that came with the data would not.
            if not self._flags & (READABLE | ENDING):
                return -1
        self._flags &= ~READABLE
        while True:
            received = c_recv(self._fd, to, size, 0)
            if received >= 0:
                if 0 < received < size:
                    self._flags |= DRAINED
                if self._flags & COUNTED:
                    self._count(0, received)
                return received
            if not _is_to_be_repeated(errno, "receive"):
                self._flags &= ~ENDING
                return -1

    def wait_readable(self):
        error = self.wait(True)
        if error is not None:
            raise error

    def call_when_readable(self, waiter):
        if self._flags & CLOSED:
            raise StreamClosed("receive: the stream is closed")
        if self._reader is not None and not self._flags & PARKED:
            raise ConcurrentObjectUseError("a greenlet is waiting to receive from this stream")
        self._reader = waiter
        if waiter is None:
            self._flags &= ~PARKED
            return
        self._flags |= PARKED
        if self._flags & (READABLE | ENDING) or not self._flags & REGISTERED:
            self._poller.watch(self)

    # Writing

    cpdef Py_ssize_t try_send(self, data) except -1:
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.send(<const char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t send(self, const char *data, Py_ssize_t size) except -1:
        cdef ssize_t sent
        if self._flags & CLOSED:
            raise StreamClosed("send: the stream is closed")
        while True:
            sent = c_send(self._fd, data, size, MSG_NOSIGNAL)
            if sent >= 0:
                if self._flags & COUNTED:
                    self._count(1, sent)
                return sent
            if not _is_to_be_repeated(errno, "send"):
                return 0

    cpdef Py_ssize_t try_send_frame(self, int first_byte, payload) except -1:
        cdef Py_buffer view
        if PyBytes_CheckExact(payload):
            return self._send_frame(first_byte, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        if type(payload) is str:  # ASCII: see _masking.utf8
            return self._send_frame(first_byte, <const char *>PyUnicode_DATA(payload), len(<str>payload))
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            return self._send_frame(first_byte, <const char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t _send_frame(self, int first_byte, const char *payload, Py_ssize_t length) except -1:
        cdef char head[SMALL_FRAME]
        cdef iovec vectors[2]
        cdef msghdr message
        cdef int size = 2, i
        head[0] = <char>first_byte
        if length < 126:
            head[1] = <char>length
        elif length < 65536:
            size = 4
            head[1] = 126
        else:
            size = 10
            head[1] = 127
        for i in range(2, size):
            head[i] = <char>((<uint64_t>length >> (8 * (size - 1 - i))) & 0xFF)
        if size + length <= SMALL_FRAME:
            memcpy(head + size, payload, length)
            return size + length - self.send(head, size + length)
        if self._flags & CLOSED:
            raise StreamClosed("send: the stream is closed")
        vectors[0].iov_base, vectors[0].iov_len = head, size
        vectors[1].iov_base, vectors[1].iov_len = <void *>payload, length
        memset(&message, 0, sizeof(message))
        message.msg_iov, message.msg_iovlen = vectors, 2
        return size + length - self._send_message(&message)

    cdef Py_ssize_t _send_message(self, void *message) except -1:
        cdef ssize_t sent
        while True:
            sent = c_sendmsg(self._fd, <msghdr *>message, MSG_NOSIGNAL)
            if sent >= 0:
                if self._flags & COUNTED:
                    self._count(1, sent)
                return sent
            if not _is_to_be_repeated(errno, "send"):
                return 0

    def try_send_parts(self, parts):
        cdef Py_buffer views[MAX_PARTS]
        cdef iovec vectors[MAX_PARTS]
        cdef msghdr message
        cdef int count = 0, i
        if self._flags & CLOSED:
            raise StreamClosed("send: the stream is closed")
        memset(&message, 0, sizeof(message))
        try:
            for part in parts:
                if count == MAX_PARTS:
                    break
                PyObject_GetBuffer(part, &views[count], PyBUF_SIMPLE)
                vectors[count].iov_base = views[count].buf
                vectors[count].iov_len = views[count].len
                count += 1
            message.msg_iov = vectors
            message.msg_iovlen = count
            return self._send_message(&message)
        finally:
            for i in range(count):
                PyBuffer_Release(&views[i])

    def send_all(self, data):
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if gws_getcurrent() is self._poller.hub:
            # Refused before anything is sent: half a write could not be completed later.
            raise BlockingSwitchOutError("send_all may have to wait, and the hub cannot: use try_send there")
        if PyThread_get_thread_ident() != self._poller._thread:
            raise ConcurrentObjectUseError("this stream belongs to another thread")
        cdef Py_ssize_t sent = self.try_send(data), size
        with memoryview(data) as view:
            size = view.nbytes
            while sent < size:
                self.wait_writable()
                sent += self.try_send(view[sent:])

    def wait_writable(self):
        error = self.wait(False)
        if error is not None:
            raise error

    def call_when_writable(self, callback):
        if self._flags & CLOSED:
            raise StreamClosed("send: the stream is closed")
        self._on_writable = callback
        self._flags |= WATCHES_OUT
        self._poller.watch(self)

    # Closing

    def shutdown_write(self):
        if self._flags & CLOSED:
            raise StreamClosed("shutdown: the stream is closed")
        # ENOTCONN: the peer has reset the connection, as the next read will tell.
        if c_shutdown(self._fd, SHUT_WR) < 0 and errno != ENOTCONN:
            _raise_fault(errno, "shutdown")

    def close(self):
        if self._flags & CLOSED:
            return
        self._flags |= CLOSED
        # First of all: the descriptor may live on in waiters, or as a copy in a child process. A forked child has only such a
        # copy itself, and leaves the connection to its parent.
        if self._poller._forks == forks:
            c_shutdown(self._fd, SHUT_RDWR)
        self._leave()

    def abort(self):
        if self._flags & CLOSED:
            return
        self._flags |= CLOSED
        if self._poller._forks == forks:
            gws_reset_on_close(self._fd)
        self._leave()

    cdef int _leave(self) except -1:
        """Give the descriptor back once nobody waits on it: until then its number may not go to another connection."""
        cdef int fd
        self._on_writable = None
        if self._flags & PARKED:
            self._flags &= ~PARKED
            self._reader = None
        if self._reader is not None or self._writer is not None:
            self.interrupt()
            return 0
        self._poller.remove(self)
        if self._borrowed is not None:
            self._borrowed.close()
            self._borrowed = None
        fd, self._fd = self._fd, -1
        if fd >= 0:
            c_close(fd)
        return 0

    def interrupt(self):
        # Whether they still wait is looked up when the callbacks run: by then they may have left by themselves.
        loop = self._poller.hub.loop
        loop.run_callback(self._wake_reader)
        loop.run_callback(self._wake_writer)

    def _wake_reader(self):
        if self._reader is not None and not self._flags & PARKED:
            self._flags |= READER_WOKEN
            gws_switch(self._reader)

    def _wake_writer(self):
        if self._writer is not None:
            self._flags |= WRITER_WOKEN
            gws_switch(self._writer)

    # Facts

    def count_bytes(self):
        # In the poller, so that a stream whose bytes nobody counts is no larger for it.
        if not self._flags & COUNTED:
            self._poller._counts[<size_t><void *>self] = [0, 0]
            self._flags |= COUNTED

    cdef int _count(self, int which, Py_ssize_t count) except -1:
        counts = self._poller._counts[<size_t><void *>self]
        counts[which] += count
        return 0

    def info(self, str key):
        if key == "scheme":
            return "tcp" if self._family == AF_INET or self._family == AF_INET6 else "unix"
        if key == "bytes":
            return tuple(self._poller._counts[<size_t><void *>self]) if self._flags & COUNTED else None
        if self._flags & CLOSED:
            return None
        if key == "socket":
            if self._borrowed is None:
                self._borrowed = BorrowedSocket(self._family, _socket.SOCK_STREAM, 0, self._fd)
            return self._borrowed
        if key == "peername" and self._port:
            if self._family == AF_INET:
                return _socket.inet_ntop(AF_INET, self._address[:4]), self._port
            return _socket.inet_ntop(AF_INET6, self._address[:16]), self._port, 0, 0
        if key != "peername" and key != "sockname":
            return None
        sock = _socket.socket(self._family, _socket.SOCK_STREAM, 0, self._fd)
        try:
            return sock.getpeername() if key == "peername" else sock.getsockname()
        except OSError:
            return None
        finally:
            sock.detach()

    # Waiting

    cdef int on_input(self, uint32_t events) except -1:
        """In the hub: the edge of input, of the end, or of an error."""
        self._flags |= READABLE | ENDING if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) else READABLE
        if self._flags & PARKED:
            self._flags &= ~PARKED
            waiter, self._reader = self._reader, None
            waiter.on_readable()
        elif self._reader is not None:
            self._flags |= READER_WOKEN
            self._poller._draining = True
            try:
                gws_switch(self._reader)
            finally:
                self._poller._draining = False
        return 0

    cdef int on_room(self) except -1:
        """In the hub: the edge of room to send, or of an error."""
        if self._flags & (WATCHES_OUT | CLOSED) != WATCHES_OUT:
            return 0
        try:
            if self._writer is not None:
                self._flags |= WRITER_WOKEN
                gws_switch(self._writer)
        finally:
            callback, self._on_writable = self._on_writable, None
            if callback is not None:
                callback()
            if self._writer is None and self._on_writable is None and self._flags & (WATCHES_OUT | CLOSED) == WATCHES_OUT:
                self._flags &= ~WATCHES_OUT
                self._poller.watch(self)
        return 0

    cpdef wait(self, bint reading):
        # This function and its callers are the C stack that an idle connection keeps: the rest is done before and after.
        cdef int failed
        if reading and self._flags & (READABLE | ENDING) and not self._flags & CLOSED and self._reader is None:
            return None
        error = self._begin_to_wait(reading)
        if error is not None:
            return error
        failed = gws_wait_for(<PyObject *>self._poller.next_to_run(), <PyObject *>self._poller.hub, &self._flags,
                              READER_WOKEN if reading else WRITER_WOKEN)
        return self._end_of_wait(reading, failed)

    cdef object _begin_to_wait(self, bint reading):
        """Register what is waited for; return what forbids it."""
        doing = "receive" if reading else "send"
        here = gws_getcurrent()
        if self._flags & CLOSED:
            return StreamClosed(f"{doing}: the stream is closed")
        if (self._reader if reading else self._writer) is not None:
            what = "receive from" if reading else "send on"
            return ConcurrentObjectUseError(f"another greenlet is waiting to {what} this stream")
        if here is self._poller.hub:
            return BlockingSwitchOutError("this stream would have to wait, and the hub cannot")
        if PyThread_get_thread_ident() != self._poller._thread:
            return ConcurrentObjectUseError("this stream belongs to another thread")
        try:
            if not reading:
                self._flags |= WATCHES_OUT
            if not reading or not self._flags & REGISTERED or self._poller._forks != forks:
                self._poller.watch(self)
        except Exception as error:
            return error
        if reading:
            self._flags &= ~READER_WOKEN
            self._reader = here
        else:
            self._flags &= ~WRITER_WOKEN
            self._writer = here
        return None

    cdef object _end_of_wait(self, bint reading, int failed):
        """Return what was thrown in, or that the stream was closed. Nothing may be lost: who wakes up looks for himself."""
        error = gws_caught() if failed else None
        if reading:
            self._reader = None
        else:
            self._writer = None
        if self._flags & CLOSED:
            self._leave()
            if error is None:
                error = StreamClosed("receive: the stream was closed" if reading else "send: the stream was closed")
        return error


PollableStream.register(SocketStream)
