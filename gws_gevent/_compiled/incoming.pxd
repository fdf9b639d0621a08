cimport cython

from ._fdio cimport monotonic
from .message cimport Message
from .protocol cimport Protocol
from .reading cimport Reading

cdef object OPEN
cdef object TEXT
cdef object BINARY
cdef object CONTINUATION
cdef long long NO_BOUND


cdef class Incoming(Reading):
    @cython.locals(failed=bint)
    cdef bint _turn(self) except -1
    @cython.locals(message=Message)
    cdef bint _work(self, handler) except -1
    cdef bint _wait(self) except -1
    cdef _wait_as_it_can(self)
    cdef _waiting_failed(self, error)
    cdef _handle(self, handler, Message message)
    cdef _handle_control(self, handler, Message message)
    cpdef _handle_one_of_many(self, handler, message)
    cdef _handle_in_pool(self, handler, Message message)
    cdef _handler_failed(self, error)
    cpdef _park(self)
    cdef bint _try_to_park(self) except -1
    cpdef on_readable(self)
    cdef _watch_idleness(self)
    cpdef receive(self, timeout=*)
    @cython.locals(message=Message)
    cdef _receive_data(self)
    cdef _check_reader(self)
    cdef bint _may_be_read_here(self) except -1
    cdef _in_time(self, timeout, stream)
    @cython.locals(protocol=Protocol, message=Message)
    cdef _begin_stream(self, stream)
    cdef bint _hold_whole(self, stream, Message message) except -1
    cdef _skip_piece(self, data)
