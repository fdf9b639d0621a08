cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t


cpdef double monotonic() noexcept
cpdef unsigned long thread_id() noexcept
cpdef borrow_data_stack()
cpdef lend_data_stack()
cpdef trim_heap()

cdef struct Slot:
    void *stream
    uint32_t generation
    uint32_t next_free


cdef class Poller:
    cdef readonly object hub
    cdef object _watcher
    cdef object _again
    cdef dict _counts
    cdef int _epoll
    cdef unsigned long _thread
    cdef uint32_t _forks
    cdef Slot *_slots
    cdef uint32_t _size
    cdef uint32_t _free
    cdef uint32_t _used
    cdef void *_events
    cdef int _at
    cdef int _count
    cdef bint _draining

    cdef int _grow(self) except -1
    cdef int add(self, SocketStream stream) except -1
    cdef int watch(self, SocketStream stream) except -1
    cdef void remove(self, SocketStream stream) noexcept
    cpdef drain(self)
    cdef bint _is_the_parents(self) except -1
    cdef void *next_to_run(self) noexcept
    cdef _report(self, error)


# Without a header of the garbage collector: a stream is in a cycle only while a greenlet waits on it.
@cython.no_gc
@cython.final
cdef class SocketStream:
    cdef Poller _poller
    cdef object _reader
    cdef object _writer
    cdef object _on_writable
    cdef object _borrowed
    cdef int _fd
    cdef uint32_t _slot
    cdef uint16_t _flags
    cdef uint16_t _family
    cdef uint16_t _port
    cdef unsigned char _address[16]

    cpdef Py_ssize_t try_recv_into(self, buffer) except -2
    cpdef Py_ssize_t try_send(self, data) except -1
    cdef Py_ssize_t receive(self, char *to, Py_ssize_t size) except -2
    cdef Py_ssize_t send(self, const char *data, Py_ssize_t size) except -1
    cdef int _count(self, int which, Py_ssize_t count) except -1
    cdef int on_input(self, uint32_t events) except -1
    cdef int on_room(self) except -1
    cpdef Py_ssize_t try_send_frame(self, int first_byte, payload) except -1
    cdef Py_ssize_t _send_frame(self, int first_byte, const char *payload, Py_ssize_t length) except -1
    cdef Py_ssize_t _send_message(self, void *message) except -1
    cpdef wait(self, bint reading)
    cdef object _begin_to_wait(self, bint reading)
    cdef object _end_of_wait(self, bint reading, int failed)
    cdef int _leave(self) except -1
