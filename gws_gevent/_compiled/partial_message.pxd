cimport cython

from ._masking cimport append_unmasked
from .message cimport Message, new_message


cdef class PartialMessage:
    cdef readonly long long max_size
    cdef readonly long max_fragments
    cdef readonly bint check_utf8
    cdef public bytes held
    cdef public bytes rest
    cdef readonly bytearray buffer
    cdef object decoder
    cdef readonly bint compressed
    cdef bytes key
    cdef int phase
    cdef readonly int opcode
    cdef readonly bint fin
    cdef readonly long fragments
    cdef readonly long long remaining
    cdef readonly object stream
    cdef public object next_stream
    cdef readonly long long declared
    cdef readonly object inflation
    cdef readonly long long inflated
    cdef readonly bint has_more

    cpdef bint is_empty(self)
    cpdef int begin_frame(self, int opcode, bint fin, long long length, bytes key, bint compressed) except -1
    @cython.locals(before=Py_ssize_t)
    cpdef Py_ssize_t add(self, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(taken=Py_ssize_t)
    cdef Py_ssize_t _collect(self, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    cpdef bint is_complete(self)
    @cython.locals(opcode=int, buffer=bytearray)
    cpdef Message take(self)
    cpdef bytearray take_compressed(self)
    @cython.locals(buffer=bytearray)
    cpdef bytearray take_buffer(self)
    cdef int _check_text(self, Py_ssize_t before) except -1
    cpdef bint is_waiting(self)
    cpdef begin_stream(self, stream)
    cpdef take_over(self, deflate)
    cpdef begin_piece(self, int opcode, bint fin, long long length, bytes key, deflate)
    cdef _begin_pieces(self, deflate)
    @cython.locals(taken=Py_ssize_t)
    cpdef Py_ssize_t add_piece(self, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(piece=bytes)
    cpdef take_piece(self)
    @cython.locals(piece=bytes)
    cdef bytes _inflate_piece(self, inflation)
    cpdef bint end_stream(self) except -1
