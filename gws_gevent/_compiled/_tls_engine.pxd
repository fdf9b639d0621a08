cimport cython

from ._fdio cimport SocketStream

cdef double RETRY_DELAY


cdef class Buffers:
    cdef object incoming
    cdef object outgoing
    cdef bytearray scratch
    cdef object view
    cdef bint busy


cdef class TlsEngine:
    cdef SocketStream _carrier
    cdef Buffers _buffers
    cdef object _ssl
    cdef object _core
    cdef object _keep_session
    cdef bytes _held
    cdef bytearray _pending
    cdef bytearray _plain
    cdef object _on_writable
    cdef object _linger
    cdef object _failure
    cdef unsigned char _more
    cdef unsigned char _ended
    cdef unsigned char _stalled
    cdef unsigned char _sending
    cdef unsigned char _closed

    @cython.locals(buffers=Buffers)
    cdef _borrow(self)
    @cython.locals(buffers=Buffers)
    cdef _give_back(self, aside)
    @cython.locals(buffers=Buffers)
    cdef _set_aside(self)
    @cython.locals(buffers=Buffers)
    cdef _put_back(self, aside)
    cdef bint _advance_handshake(self) except -1
    @cython.locals(buffers=Buffers, received=Py_ssize_t)
    cdef _fetch_for_handshake(self)
    cdef _tell_why(self, error, alert)
    cdef _push(self, bytes records)


cpdef reason_of(error)
