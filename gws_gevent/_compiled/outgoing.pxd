cimport cython

from ._fdio cimport thread_id
from ._masking cimport utf8
from .message_queue cimport MessageQueue
from .payloads cimport encode

cdef int RSV1
cdef object TEXT
cdef object BINARY


cdef class Outgoing(MessageQueue):
    @cython.locals(compressed=bint)
    cpdef write_message(self, opcode, data, compress=*)
    cdef _write_compressed(self, int opcode, payload, bint always)
    cdef _write_fragment(self, streamed, opcode, piece, bint fin)
