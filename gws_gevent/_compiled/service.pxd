from .protocol_rules cimport ProtocolRules
from .timers cimport Wheel


cdef class Service:
    cdef readonly object side
    cdef readonly object options
    cdef readonly ProtocolRules rules
    cdef readonly object runtime
    cdef readonly object hub
    cdef readonly Wheel wheel
    cdef readonly bytearray buffer
    cdef readonly dict connections
    cdef readonly list spare_writers
    cdef list _dirty
    cdef object _logger
    cdef object _empty
    cdef long _spared
    cdef dict _when_closed
    cdef dict _contexts
    cdef readonly unsigned long thread
    cdef readonly long long buffered
    cdef readonly long long write_max_payload_size
    cdef readonly long long write_high_water
    cdef readonly long long write_queue_size
    cdef public double turn_began
    cdef readonly bint is_client
    cdef readonly bint parallel
    cdef public bint keep_request

    cpdef flush_later(self, conn)
    cpdef account(self, long long change)
