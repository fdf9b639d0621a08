cdef object TEXT
cdef object BINARY


cpdef encode(opcode, data, bint whole=*)
