cimport cython

from ._fdio cimport SocketStream
from ._tls_engine cimport Buffers, TlsEngine, reason_of

cdef Py_ssize_t RECORD
cdef Py_ssize_t BATCH


cdef class TlsStream(TlsEngine):
    @cython.locals(received=Py_ssize_t)
    cpdef recv_into(self, buffer)
    cpdef wait_readable(self)
    @cython.locals(filled=Py_ssize_t, received=Py_ssize_t)
    cpdef Py_ssize_t try_recv_into(self, buffer) except -2
    @cython.locals(filled=Py_ssize_t)
    cdef Py_ssize_t _decrypt(self, buffer, Py_ssize_t received) except -1
    @cython.locals(size=Py_ssize_t, filled=Py_ssize_t, count=Py_ssize_t)
    cdef Py_ssize_t _read_records(self, buffer) except -1
    @cython.locals(count=Py_ssize_t, plain=bytearray)
    cdef Py_ssize_t _take_plain(self, buffer) except -1
    cdef _offer_session(self)
    @cython.locals(taken=Py_ssize_t)
    cpdef Py_ssize_t try_send(self, data) except -1
    @cython.locals(taken=Py_ssize_t, size=Py_ssize_t, done=Py_ssize_t, count=Py_ssize_t)
    cdef Py_ssize_t _encrypt(self, tuple pieces) except -1
    cdef bint _may_send(self) except -1
    @cython.locals(room=Py_ssize_t)
    cdef Py_ssize_t _try_send_pair(self, head, payload) except -1
    @cython.locals(size=Py_ssize_t, total=Py_ssize_t, taken=Py_ssize_t)
    cpdef Py_ssize_t try_send_parts(self, parts) except -1
    @cython.locals(sent=Py_ssize_t)
    cdef _push(self, bytes records)
    cdef bint _flush(self) except -1
    @cython.locals(plain=bytearray, filled=Py_ssize_t)
    cdef _save_plaintext(self)
    cdef _say_goodbye(self)
    cdef _stop_lingering(self)
