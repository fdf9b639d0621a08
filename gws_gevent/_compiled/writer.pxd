cimport cython

from ._fdio cimport SocketStream
from ._masking cimport empty


cdef class Writer:
    cdef object _hub
    cdef object _stream
    cdef SocketStream _socket
    cdef object _owner
    cdef bytearray _tail
    cdef object _parts
    cdef object _marks
    cdef Py_ssize_t _offset
    cdef object _below
    cdef bint _non_blocking
    cdef readonly bint draining
    cdef readonly bint failed
    cdef public bint flush_scheduled
    cdef readonly Py_ssize_t size
    cdef public double progress

    cpdef attach(self, stream, owner)
    cpdef bint detach(self) except -1
    cpdef bytearray tail(self)
    cpdef appended(self, Py_ssize_t count)
    cpdef sent_all_but(self, Py_ssize_t left)
    cpdef append_payload(self, bytes payload)
    cpdef append_frame(self, bytes frame)
    cpdef bint is_idle(self) except -1
    cpdef flush(self)
    @cython.locals(sent=Py_ssize_t)
    cdef bint _send_tail(self) except -1
    cdef _all_parts(self)
    @cython.locals(left=Py_ssize_t, sent=Py_ssize_t)
    cdef bint _pump(self) except -1
    cdef _advance(self, Py_ssize_t sent)
    cdef _start_drain(self)
