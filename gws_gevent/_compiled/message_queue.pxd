cimport cython

from ._fdio cimport thread_id
from .frame_output cimport FrameOutput
from .payloads cimport encode
from .writer cimport Writer

cdef int RSV1
cdef int ALWAYS
cdef object SENT
cdef object QUEUED
cdef object DROPPED
cdef object FULL


cdef class MessageQueue(FrameOutput):
    @cython.locals(writer=Writer)
    cpdef queue_prepared(self, prepared, callback, bint may_wait)
    @cython.locals(writer=Writer, unsent=Py_ssize_t)
    cdef _queue(self, opcode, payload, callback, prepared, bint may_wait)
    cdef _to_be(self, opcode, Py_ssize_t size, compress)
    cdef _append_message(self, Writer writer, int opcode, payload, prepared)
    cdef _make_room(self, Writer writer, Py_ssize_t size, bint may_wait)
