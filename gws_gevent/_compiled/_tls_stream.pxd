cimport cython

from ._fdio cimport SocketStream

cdef Py_ssize_t RECORD
cdef Py_ssize_t BATCH


cdef class Buffers:
    cdef object incoming
    cdef object outgoing
    cdef bytearray scratch
    cdef object view
    cdef bint busy


cdef class TlsStream:
    cdef SocketStream _carrier
    cdef Buffers _buffers
    cdef object _ssl
    cdef object _core
    cdef object _keep_session
    cdef bytes _held
    cdef bytearray _pending
    cdef bytearray _plain
    cdef object _on_writable
    cdef object _linger
    cdef object _failure
    cdef unsigned char _more
    cdef unsigned char _ended
    cdef unsigned char _stalled
    cdef unsigned char _sending
    cdef unsigned char _closed

    @cython.locals(buffers=Buffers)
    cdef _borrow(self)
    @cython.locals(buffers=Buffers)
    cdef _give_back(self, aside)
    @cython.locals(buffers=Buffers)
    cdef _set_aside(self)
    @cython.locals(buffers=Buffers)
    cdef _put_back(self, aside)
    cdef bint _advance_handshake(self) except -1
    @cython.locals(buffers=Buffers, received=Py_ssize_t)
    cdef _fetch_for_handshake(self)
    cdef _tell_why(self, error, alert)
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
