# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Masking and unmasking of payloads (RFC 6455 section 5.3), always together with the copy that has to be made anyway.

Compiled twin of `gws_gevent/_masking.py`, which documents the functions. The loops XOR eight bytes at a time through
memcpy, which is free of alignment rules and which the compiler turns into vector instructions.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* The masking key as it lies in memory, so that the XOR below needs no byte order. */
    static inline uint64_t gws_wide_key(const unsigned char *key, int phase) {
        unsigned char k[8];
        memcpy(k, key + phase, 4 - phase);
        memcpy(k + 4 - phase, key, phase);
        memcpy(k + 4, k, 4);
        uint64_t wide;
        memcpy(&wide, k, 8);
        return wide;
    }

    static void gws_xor(unsigned char *to, const unsigned char *from, Py_ssize_t n, uint64_t wide) {
        Py_ssize_t i = 0;
        for (; i + 8 <= n; i += 8) {
            uint64_t x;
            memcpy(&x, from + i, 8);
            x ^= wide;
            memcpy(to + i, &x, 8);
        }
        for (int j = 0; i < n; i++, j++) to[i] = from[i] ^ ((unsigned char *)&wide)[j];
    }

    /* The same, and tell whether every byte was ASCII. */
    static int gws_xor_ascii(unsigned char *to, const unsigned char *from, Py_ssize_t n, uint64_t wide) {
        Py_ssize_t i = 0;
        uint64_t seen = 0;
        for (; i + 8 <= n; i += 8) {
            uint64_t x;
            memcpy(&x, from + i, 8);
            x ^= wide;
            seen |= x;
            memcpy(to + i, &x, 8);
        }
        for (int j = 0; i < n; i++, j++) {
            to[i] = from[i] ^ ((unsigned char *)&wide)[j];
            seen |= to[i];
        }
        return !(seen & 0x8080808080808080ULL);
    }

    /* bytearray gives memory back as soon as it holds less than half of what it has, and takes it again with the next frames: a buffer
     * that is filled and emptied all day would spend its time on that. These two leave the memory with it. */
    #define GWS_KEPT 16384
    static int gws_set_size(PyObject *buffer, Py_ssize_t size) {
    #if PY_VERSION_HEX < 0x030F0000 && !defined(PYPY_VERSION) && !defined(Py_GIL_DISABLED)
        PyByteArrayObject *array = (PyByteArrayObject *)buffer;
        if (array->ob_exports == 0 && array->ob_start == array->ob_bytes && size < array->ob_alloc) {
            Py_SET_SIZE(array, size);
            array->ob_start[size] = 0;
            return 0;
        }
    #endif
        return PyByteArray_Resize(buffer, size);
    }
    static int gws_empty(PyObject *buffer) {
    #if PY_VERSION_HEX < 0x030F0000 && !defined(PYPY_VERSION) && !defined(Py_GIL_DISABLED)
        if (((PyByteArrayObject *)buffer)->ob_alloc <= GWS_KEPT) return gws_set_size(buffer, 0);
    #endif
        return PyByteArray_Resize(buffer, 0);
    }
    """
    ctypedef unsigned long long uint64_t
    uint64_t gws_wide_key(const unsigned char *key, int phase) nogil
    void gws_xor(unsigned char *to, const unsigned char *source, Py_ssize_t n, uint64_t wide) nogil
    int gws_set_size(object buffer, Py_ssize_t size) except -1
    int gws_empty(object buffer) except -1
    bint gws_xor_ascii(unsigned char *to, const unsigned char *source, Py_ssize_t n, uint64_t wide) nogil

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void *PyUnicode_DATA(object text)
    bint PyUnicode_IS_ASCII(object text)


cpdef bytes unmask(const unsigned char *data, Py_ssize_t at, Py_ssize_t length, Py_ssize_t key_at):
    cdef bytes payload
    if key_at < 0:
        return PyBytes_FromStringAndSize(<const char *>data + at, length)
    payload = PyBytes_FromStringAndSize(NULL, length)
    gws_xor(<unsigned char *>PyBytes_AS_STRING(payload), data + at, length, gws_wide_key(data + key_at, 0))
    return payload


cpdef str unmask_text(const unsigned char *data, Py_ssize_t at, Py_ssize_t length, Py_ssize_t key_at, str errors):
    cdef str text
    cdef bytes payload, handler
    if length == 0:
        return ""
    if key_at >= 0:
        # Most text is ASCII: it is unmasked straight into the string. A byte above 127 sends it the long way round.
        text = PyUnicode_New(length, 127)
        if gws_xor_ascii(<unsigned char *>PyUnicode_DATA(text), data + at, length, gws_wide_key(data + key_at, 0)):
            return text
    payload = unmask(data, at, length, key_at)
    handler = errors.encode()
    return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(payload), length, PyBytes_AS_STRING(handler))


cpdef int append_unmasked(bytearray target, const unsigned char *data, Py_ssize_t at, Py_ssize_t length, bytes key,
                          int phase) except -1:
    cdef Py_ssize_t before = PyByteArray_GET_SIZE(target)
    cdef unsigned char *to
    PyByteArray_Resize(target, before + length)
    to = <unsigned char *>PyByteArray_AS_STRING(target) + before
    gws_xor(to, data + at, length, gws_wide_key(<const unsigned char *>PyBytes_AS_STRING(key), phase) if key else 0)
    return 0


cpdef object utf8(str text):
    return text if PyUnicode_IS_ASCII(text) else text.encode()


cpdef int append_frame(bytearray out, int first_byte, payload, bytes masking_key) except -1:
    cdef Py_buffer view
    if PyBytes_CheckExact(payload):
        return _append(out, first_byte, <const unsigned char *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), masking_key)
    if type(payload) is str:
        return _append(out, first_byte, <const unsigned char *>PyUnicode_DATA(payload), len(<str>payload), masking_key)
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        return _append(out, first_byte, <const unsigned char *>view.buf, view.len, masking_key)
    finally:
        PyBuffer_Release(&view)


cdef int _append(bytearray out, int first_byte, const unsigned char *payload, Py_ssize_t length, bytes masking_key) except -1:
    cdef Py_ssize_t before = PyByteArray_GET_SIZE(out), key_size = PyBytes_GET_SIZE(masking_key), i
    cdef Py_ssize_t head = 2 if length < 126 else 4 if length < 65536 else 10
    cdef unsigned char *to
    gws_set_size(out, before + head + key_size + length)
    to = <unsigned char *>PyByteArray_AS_STRING(out) + before
    to[0] = <unsigned char>first_byte
    to[1] = 0x80 if key_size else 0
    if head == 2:
        to[1] |= <unsigned char>length
    else:
        to[1] |= 126 if head == 4 else 127
        for i in range(head - 2):
            to[2 + i] = <unsigned char>((<uint64_t>length >> (8 * (head - 3 - i))) & 0xFF)
    to += head
    if key_size == 0:
        memcpy(to, payload, length)
        return 0
    memcpy(to, PyBytes_AS_STRING(masking_key), 4)
    gws_xor(to + 4, payload, length, gws_wide_key(to, 0))
    return 0


cpdef int empty(bytearray out) except -1:
    return gws_empty(out)
