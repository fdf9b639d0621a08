from ._frame_parser cimport FrameParser

cdef long long MAX_LENGTH


cdef class ProtocolRules:
    cdef object _options
    cdef object _compression
    cdef dict _shared
    cdef readonly object deflate
    cdef readonly bint is_client
    cdef readonly long long max_size
    cdef readonly long long never_too_big
    cdef readonly long max_fragments
    cdef readonly bint check_utf8
    cdef readonly str utf8_errors
    cdef readonly FrameParser parser
    cdef readonly FrameParser stream_parser
