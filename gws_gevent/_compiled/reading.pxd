cimport cython

from ._fdio cimport SocketStream, monotonic
from .deadlines cimport Deadlines
from .message cimport Message
from .partial_message cimport PartialMessage
from .protocol cimport Protocol
from .service cimport Service
from .writer cimport Writer

cdef object TEXT
cdef object BINARY
cdef object CONTINUATION
cdef double TURN
cdef double YIELD
cdef double WAITED
cdef int LOOK_UP
cdef int WOULD_BLOCK
cdef int FAILED


cdef class Reading(Deadlines):
    cdef object _handler
    cdef object _greenlet
    cdef object _request
    cdef object _session
    cdef object _pool
    cdef unsigned short _batch_at
    cdef unsigned char _opened
    cdef unsigned char _pollable
    cdef unsigned char _giving_way
    cdef unsigned char _parking
    cdef unsigned char _parked

    @cython.locals(message=Message)
    cdef Message _next(self)
    @cython.locals(batch=list, message=Message)
    cdef Message _take_message(self)
    @cython.locals(protocol=Protocol, message=Message, count=Py_ssize_t)
    cdef Message _fetch(self)
    @cython.locals(writer=Writer, protocol=Protocol)
    cdef bint _may_read(self) except -1
    @cython.locals(service=Service, count=Py_ssize_t)
    cdef Py_ssize_t _receive(self) except -3
    @cython.locals(before=double)
    cdef Py_ssize_t _receive_blocking(self) except -3
    @cython.locals(count=Py_ssize_t)
    cdef Py_ssize_t _receive_waiting(self) except -3
    cdef _wait_for_input(self)
    @cython.locals(service=Service)
    cdef _give_way(self, double now)
    @cython.locals(partial=PartialMessage)
    cdef _take(self, list messages, double now)
    cdef _flush_before_waiting(self, Writer writer)
    cdef _fail(self, code, reason)
    cdef _finish_closing_handshake(self)
