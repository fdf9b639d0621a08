cimport cython

from ._fdio cimport SocketStream
from .protocol cimport Protocol
from .service cimport Service
from .timers cimport Timed
from .writer cimport Writer

cdef int CONTROL
cdef object OPEN
cdef object CLOSING
cdef Py_ssize_t FLUSH_SIZE
cdef Py_ssize_t LARGE
cdef Py_ssize_t SPARE_WRITERS


cdef class FrameOutput(Timed):
    cdef readonly object stream
    cdef Service _service
    cdef Protocol _protocol
    cdef Writer _writer
    cdef SocketStream _socket
    cdef object _streamed
    cdef list _batch
    cdef Py_ssize_t _accounted

    @cython.locals(writer=Writer, left=Py_ssize_t)
    cdef _write_frame(self, int opcode, payload, bint fin)
    cdef bint _may_send_directly(self) except -1
    @cython.locals(writer=Writer)
    cdef _write_whole_frame(self, bytes frame)
    @cython.locals(writer=Writer, left=Py_ssize_t)
    cdef Writer _send_whole_frame(self, bytes frame)
    cdef bytes _encoded(self, prepared)
    cdef _lost(self, error)
    @cython.locals(out=bytearray, before=Py_ssize_t)
    cdef _append(self, Writer writer, int opcode, payload, bint fin)
    cdef _flush(self, Writer writer)
    cdef _wait_below_high_water(self, Writer writer)
    @cython.locals(writer=Writer)
    cpdef flush_deferred(self)
    cdef _flush_deferred_later(self, Writer writer)
    @cython.locals(writer=Writer, spare=list)
    cdef Writer _open_writer(self)
    @cython.locals(spare=list)
    cdef _release(self, Writer writer)
    cdef _check_open(self)
    @cython.locals(protocol=Protocol)
    cdef bint _is_open(self) except -1
    cdef _check_size(self, Py_ssize_t size)
    cdef _check_room(self, Writer writer, Py_ssize_t size)
    cdef _send_close(self, code, reason)
    cpdef give_up(self, code, reason)
    cpdef output_failed(self, error)
    cpdef output_changed(self, writer)
    cdef _account(self)
    cpdef _closing_has_begun(self)
    cpdef _info_so_far(self)
