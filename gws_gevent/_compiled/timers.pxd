cimport cython

cdef double NEVER


cdef class Timed:
    cdef int _wheel_slot
    cdef int _wheel_index

    cpdef double on_deadline(self, double now) except? -1


cdef class Wheel:
    cdef object _loop
    cdef object _timer
    cdef list _slots
    cdef int _count
    cdef int _position
    cdef public double now
    cdef public bint held_up

    @cython.locals(ticks=int, slot=int, entries=list)
    cpdef schedule(self, Timed entry, double when)
    cpdef cancel(self, Timed entry)
    @cython.locals(slot=int, entries=list, last=Timed)
    cdef _take_off(self, Timed entry)
    cdef _start(self)
    cdef _stop(self)
    @cython.locals(now=double, ticks=int)
    cpdef _on_tick(self)
    @cython.locals(due=list, entry=Timed, when=double)
    cdef _visit(self, int slot, double now)
