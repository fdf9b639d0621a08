cimport cython

from ._fdio cimport monotonic
from .outgoing cimport Outgoing
from .service cimport Service
from .writer cimport Writer

cdef object CONNECTING
cdef object OPEN
cdef double NEVER
cdef double TICK
cdef double JITTER
cdef double AGAIN


cdef class Deadlines(Outgoing):
    cdef object _error
    cdef object _limits
    cdef double _heard
    cdef double _round_trip
    cdef double _ping_at
    cdef double _ping_sent
    cdef double _message_since
    cdef double _due
    cdef double _close_by
    cdef unsigned char _ended
    cdef unsigned char _reading
    cdef unsigned char _may_park

    @cython.locals(now=double)
    cpdef _start_clocks(self)
    cdef _message_has_begun(self, double now)
    cdef _watch_output(self, Writer writer)
    cdef bint _is_keepalive_pong(self, payload) except -1
    cpdef _look_at(self, double when)
    cpdef double on_deadline(self, double now) except? -1
    @cython.locals(writer=Writer, read_by=double, write_by=double)
    cdef _overdue(self, double now)
    @cython.locals(due=double)
    cdef double _next_due(self, double now) except? -1
    cdef _keepalive(self, double now)
    cpdef _end(self, bint abort)
    cpdef _park(self)
    cdef _note(self, error)
