cimport cython

from ._frame_parser cimport FrameParser
from ._masking cimport append_frame, unmask, unmask_text
from .message cimport Message, new_message
from .partial_message cimport PartialMessage
from .protocol_rules cimport ProtocolRules


cdef object OPEN
cdef object CLOSED
cdef object TEXT
cdef object BINARY
cdef object CONTINUATION
cdef object TOO_BIG
cdef Py_ssize_t OUTPUT_SLICE


cdef class Protocol:
    cdef readonly ProtocolRules rules
    cdef readonly PartialMessage partial
    cdef public object failure
    cdef public object info
    cdef public object state

    @cython.locals(messages=list)
    cpdef list receive(self, const unsigned char *data, Py_ssize_t at, Py_ssize_t end)
    @cython.locals(parser=FrameParser, size=int)
    cpdef Message receive_whole(self, const unsigned char *data, Py_ssize_t at, Py_ssize_t end)
    cpdef append_frame(self, bytearray out, int opcode, payload, bint fin)
    cpdef begin_close(self, bytearray out, code, str reason)
    cdef _closing(self)
    cdef Py_ssize_t _parse(self, list messages, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(parser=FrameParser, fragmented=bint, inflated=Py_ssize_t, before=Py_ssize_t, size=int, payload_at=Py_ssize_t, key_at=Py_ssize_t,
                   length="long long")
    cdef Py_ssize_t _parse_frames(self, list messages, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(rules=ProtocolRules, partial=PartialMessage)
    cdef bint _may_be_too_big(self) except -1
    cdef Message _whole(self, int opcode, const unsigned char *data, Py_ssize_t at, Py_ssize_t length, Py_ssize_t key_at)
    @cython.locals(rules=ProtocolRules, inflated=bytes)
    cdef Py_ssize_t _inflate(self, list messages, int opcode, payload) except -1
    cdef _data_of(self, int opcode, bytes inflated)
    cdef Message _control(self, int opcode, bytes payload)
    cdef _parse_close(self, bytes payload)
    @cython.locals(rules=ProtocolRules)
    cdef PartialMessage _open_partial(self)
    @cython.locals(parser=FrameParser, partial=PartialMessage, key=bytes)
    cdef Py_ssize_t _begin_fragment(self, list messages, const unsigned char *data, Py_ssize_t at, Py_ssize_t end,
                                    Py_ssize_t key_at) except -1
    cpdef agree(self, agreement)
    @cython.locals(opcode=int)
    cdef Py_ssize_t _add(self, list messages, PartialMessage partial, const unsigned char *data, Py_ssize_t at,
                         Py_ssize_t end) except -1
    cdef Py_ssize_t _hold_rest(self, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(partial=PartialMessage, whole=bytes)
    cdef Py_ssize_t _resume(self, list messages, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(parser=FrameParser, held=bytes, joined=bytes, key=bytes, payload=bytes, top_up=Py_ssize_t, size=int, key_at=Py_ssize_t)
    cdef Py_ssize_t _resume_held(self, list messages, PartialMessage partial, const unsigned char *data, Py_ssize_t at,
                                 Py_ssize_t end) except -1
    cdef _drop_empty_partial(self)
    @cython.locals(partial=PartialMessage)
    cpdef stream_next(self, stream)
    @cython.locals(partial=PartialMessage, whole=PartialMessage)
    cpdef stream_none(self, stream)
    @cython.locals(partial=PartialMessage)
    cpdef skip_stream(self)
    @cython.locals(partial=PartialMessage, whole=bytes)
    cdef Py_ssize_t _resume_stream(self, list messages, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(parser=FrameParser, partial=PartialMessage, size=int, inflated=Py_ssize_t)
    cdef Py_ssize_t _stream_frames(self, list messages, const unsigned char *data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(parser=FrameParser, key=bytes, key_at=Py_ssize_t)
    cdef Py_ssize_t _stream_header(self, list messages, PartialMessage partial, const unsigned char *data,
                                   Py_ssize_t payload_at) except -1
    cdef _begin_pieces(self, list messages, PartialMessage partial)
    @cython.locals(before="long long")
    cdef Py_ssize_t _add_piece(self, list messages, PartialMessage partial) except -1
