cdef class Message:
    cdef readonly object opcode
    cdef readonly object data


cpdef Message new_message(opcode, data)
