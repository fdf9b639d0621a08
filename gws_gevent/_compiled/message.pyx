# cython: language_level=3
"""A message, or a control frame: compiled twin of `gws_gevent/message.py`, which documents it.

There is one for each message that arrives, so what it costs to make, read and free one is a good part of what a message costs.
"""

cimport cython

cdef extern from *:
    """
    #include <Python.h>
    #include <structmember.h>

    /* Cython reads an attribute by a function. As members of the struct the interpreter reads them itself, in a fraction of the time. */
    static PyMemberDef gws_members[] = {
        {"opcode", T_OBJECT_EX, sizeof(PyObject), READONLY, NULL},
        {"data", T_OBJECT_EX, sizeof(PyObject) + sizeof(PyObject *), READONLY, NULL},
    };
    static int gws_have_members(PyObject *type) {
    #if defined(PYPY_VERSION)
        return 0;
    #elif PY_VERSION_HEX >= 0x030C0000
        PyObject *names = PyType_GetDict((PyTypeObject *)type);
    #else
        PyObject *names = ((PyTypeObject *)type)->tp_dict;
        Py_XINCREF(names);
    #endif
    #if !defined(PYPY_VERSION)
        if (!names) return -1;
        for (int i = 0; i < 2; i++) {
            PyObject *member = PyDescr_NewMember((PyTypeObject *)type, &gws_members[i]);
            if (!member || PyDict_SetItemString(names, gws_members[i].name, member) < 0) {
                Py_XDECREF(member);
                Py_DECREF(names);
                return -1;
            }
            Py_DECREF(member);
        }
        Py_DECREF(names);
        PyType_Modified((PyTypeObject *)type);
        return 0;
    #endif
    }
    """
    int gws_have_members(object type) except -1

__all__ = ["Message", "new_message"]


@cython.final
@cython.no_gc  # holds a str or bytes and an enum member, never part of a cycle
@cython.freelist(64)
cdef class Message:

    def __init__(self, opcode, data):
        self.opcode = opcode
        self.data = data

    def __repr__(self):
        shown = repr(self.data)
        return f"Message({self.opcode.name}, {shown if len(shown) <= 80 else shown[:76] + '...'})"


cpdef Message new_message(opcode, data):
    cdef Message message = Message.__new__(Message)
    message.opcode = opcode
    message.data = data
    return message


gws_have_members(Message)
