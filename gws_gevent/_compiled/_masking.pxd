cpdef bytes unmask(const unsigned char *data, Py_ssize_t at, Py_ssize_t length, Py_ssize_t key_at)
cpdef str unmask_text(const unsigned char *data, Py_ssize_t at, Py_ssize_t length, Py_ssize_t key_at, str errors)
cpdef int append_unmasked(bytearray target, const unsigned char *data, Py_ssize_t at, Py_ssize_t length, bytes key, int phase) except -1
cpdef int append_frame(bytearray out, int first_byte, payload, bytes masking_key) except -1
cpdef object utf8(str text)
cpdef int empty(bytearray out) except -1
