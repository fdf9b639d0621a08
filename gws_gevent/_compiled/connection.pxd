cimport cython

from ._fdio cimport borrow_data_stack, lend_data_stack
from .incoming cimport Incoming
from .service cimport Service
from .writer cimport Writer

cdef object CONNECTING
cdef object IDS
cdef object OPEN
cdef object CLOSED


cdef class Connection(Incoming):
    cdef readonly object subprotocol
    cdef readonly long long id
    cdef object _remote
    cdef object _closed

    cpdef run(self)
    cdef bint _begin(self) except -1
    cpdef accepted(self, subprotocol, deflate, request, remote, bytes rest)
    cpdef abort(self)
    cpdef give_up(self, code, reason)
    cdef _fail(self, code, reason)
    cdef _finish_closing_handshake(self)
    @cython.locals(writer=Writer)
    cdef _wait_drained(self)
    cpdef _info_so_far(self)
    @cython.locals(writer=Writer)
    cpdef _end(self, bint abort)
    cpdef _finish(self)
    cpdef output_failed(self, error)
    cpdef output_changed(self, writer)
    @cython.locals(held=Py_ssize_t, change=Py_ssize_t)
    cdef _account(self)


cdef class Acceptor:
    cdef Service _service
