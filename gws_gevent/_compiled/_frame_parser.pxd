cimport cython


cdef class FrameParser:
    cdef readonly Py_ssize_t at
    cdef readonly bint expect_masked
    cdef readonly long long max_payload
    cdef readonly bint allow_compressed
    cdef readonly bint compressed
    cdef readonly bint fin
    cdef readonly int opcode
    cdef readonly long long length

    @cython.locals(available=Py_ssize_t, first=int, second=int, opcode=int, length="long long", size=int, i=int)
    cpdef int read_header(self, const unsigned char *data, Py_ssize_t at, Py_ssize_t end, bint fragmented) except -1
