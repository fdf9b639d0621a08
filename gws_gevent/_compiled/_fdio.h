/* The C of `_fdio.pyx`: greenlet's C API, the data stack, and what Cython has no words for.
 *
 * Linux only, like the module.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* greenlet's C API by its capsule: its header is found by no compiler that pip runs. The numbers are part of its ABI. */
static void **gws_greenlet_api;
static int gws_import_greenlet(void) {
    gws_greenlet_api = (void **)PyCapsule_Import("greenlet._C_API", 0);
    return gws_greenlet_api ? 0 : -1;
}
static inline PyObject *gws_getcurrent(void) { return ((PyObject *(*)(void))gws_greenlet_api[4])(); }
static inline PyObject *gws_switch(PyObject *greenlet) {
    return ((PyObject *(*)(PyObject *, PyObject *, PyObject *))gws_greenlet_api[6])(greenlet, NULL, NULL);
}

/* The data stack. Since CPython 3.11 a greenlet that has ever run a Python frame owns a chunk of 16 KiB for its frames, and keeps
 * 4 KiB or more of it resident. While it waits in here with no Python frame alive its root chunk is empty, and can serve
 * another greenlet: `gws_lend` puts it on a shelf that all greenlets of the process share (under the GIL), `gws_borrow`
 * takes one from there on waking. Without a chunk CPython allocates one at the next call, so borrowing is only a short cut.
 * greenlet saves and restores the three fields at each switch. A no-op where the layout was not tested. */
#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030E0000 && !defined(Py_GIL_DISABLED) && !defined(PYPY_VERSION)
#define GWS_CAN_TRIM 1
#define GWS_SHELF 64
static _PyStackChunk *gws_shelf[GWS_SHELF];
static int gws_on_shelf = 0;
static int gws_trims = 0;

static inline void gws_lend(void) {
    if (!gws_trims) return;
    PyThreadState *state = PyThreadState_Get();
    _PyStackChunk *chunk = state->datastack_chunk;
    if (!chunk || chunk->previous || state->datastack_top != &chunk->data[1]) return;
    state->datastack_chunk = NULL;
    state->datastack_top = NULL;
    state->datastack_limit = NULL;
    if (gws_on_shelf < GWS_SHELF) {
        gws_shelf[gws_on_shelf++] = chunk;
        return;
    }
    PyObjectArenaAllocator arena;
    PyObject_GetArenaAllocator(&arena);
    arena.free(arena.ctx, chunk, chunk->size);
}

static inline void gws_borrow(void) {
    if (!gws_on_shelf) return;
    PyThreadState *state = PyThreadState_Get();
    if (state->datastack_chunk) return;
    _PyStackChunk *chunk = gws_shelf[--gws_on_shelf];
    state->datastack_chunk = chunk;
    state->datastack_top = &chunk->data[1];
    state->datastack_limit = (PyObject **)((char *)chunk + chunk->size);
}
#else
#define GWS_CAN_TRIM 0
static int gws_trims = 0;
static inline void gws_lend(void) {}
static inline void gws_borrow(void) {}
#endif

/* Wait until `bit` is in `*flags`, and let `next` run meanwhile: the hub, or whom the hub would have switched to; -1 if an
 * exception was thrown in. Nothing of Python happens in between. */
__attribute__((noinline)) static int gws_wait_for(PyObject *next, PyObject *hub, uint16_t *flags, uint16_t bit) {
    gws_lend();
    while (!(*flags & bit)) {
        PyObject *sent = gws_switch(next);
        if (!sent) {
            gws_borrow();
            return -1;
        }
        Py_DECREF(sent);
        next = hub;
    }
    gws_borrow();
    return 0;
}

/* The exception that is on its way, as an object; traceback and all. */
static PyObject *gws_caught(void) {
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback);
    PyErr_NormalizeException(&kind, &value, &traceback);
    if (traceback) PyException_SetTraceback(value, traceback);
    Py_XDECREF(kind);
    Py_XDECREF(traceback);
    return value;
}

#ifdef __GLIBC__
#include <malloc.h>
static inline void gws_trim_heap(void) { malloc_trim(0); }
#else
static inline void gws_trim_heap(void) {}
#endif

static double gws_monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* A link-local address needs its scope to be of any use: it is left out, and asked for when somebody wants it. */
static int gws_accept(int fd, unsigned char *address, uint16_t *port) {
    union { struct sockaddr any; struct sockaddr_in v4; struct sockaddr_in6 v6; struct sockaddr_storage room; } peer;
    socklen_t size = sizeof peer;
    int accepted = accept4(fd, &peer.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (accepted < 0) return -1;
    if (peer.any.sa_family == AF_INET) {
        memcpy(address, &peer.v4.sin_addr, 4);
        *port = ntohs(peer.v4.sin_port);
    } else if (peer.any.sa_family == AF_INET6 && peer.v6.sin6_scope_id == 0) {
        memcpy(address, &peer.v6.sin6_addr, 16);
        *port = ntohs(peer.v6.sin6_port);
    }
    return accepted;
}

static void gws_reset_on_close(int fd) {
    struct linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

static int gws_epoll(int epoll, int what, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event;
    event.events = events;
    event.data.u64 = data;
    return epoll_ctl(epoll, what, fd, &event);
}
static inline uint32_t gws_event_bits(void *events, int i) { return ((struct epoll_event *)events)[i].events; }
static inline uint64_t gws_event_data(void *events, int i) { return ((struct epoll_event *)events)[i].data.u64; }
static inline int gws_epoll_wait(int epoll, void *events, int count) { return epoll_wait(epoll, events, count, 0); }
