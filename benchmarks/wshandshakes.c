/* wshandshakes: connect, upgrade, wait for the 101, close, and again: how many of these a server does in a second.
 *
 *   wshandshakes ADDRESS AT_ONCE SECONDS [TARGET]
 *
 * AT_ONCE connections are on their way at any time. Each is closed without a closing handshake as soon as the answer is complete,
 * and the next is opened. Over TCP they come from 250 addresses of the loopback in turn, so that no port is missed.
 *
 * Prints one line: handshakes/s, the median and the 99th percentile of the time from connect to the 101 in microseconds.
 * Exit status 1: the server refused, closed, or was silent for REPLY_SECONDS. */
#include "wsclient.h"

#define MAX_AT_ONCE 1000
#define SOURCES 250
#define SAMPLES 2000000

struct opening { int fd; size_t got; double started; char answer[MAX_ANSWER]; };

static const char *address;
static char request[MAX_REQUEST];
static int request_len, epoll_fd;

static void begin(struct opening *o, long number) {
    o->started = now();
    o->got = 0;
    o->fd = dial(address, strncmp(address, "127.", 4) ? 0 : htonl(0x7f000002 + number % SOURCES));
    send_all(o->fd, request, request_len);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = o};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, o->fd, &e)) fail_os("epoll_ctl");
}

/* Read; return whether the answer is complete. */
static int go_on(struct opening *o) {
    ssize_t k = get(o->fd, o->answer + o->got, sizeof o->answer - 1 - o->got);
    if (k < 0) fail_os("handshake");
    if (k == 0) fail("handshake: the server closed");
    o->got += k;
    o->answer[o->got] = 0;
    return is_upgraded(o->answer);
}

int main(int argc, char **argv) {
    if (argc < 4 || argc > 5) { fprintf(stderr, "usage: wshandshakes ADDRESS AT_ONCE SECONDS [TARGET]\n"); return 2; }
    int at_once = atoi(argv[2]);
    double seconds = atof(argv[3]), start = now();
    if (at_once < 1 || at_once > MAX_AT_ONCE) { fprintf(stderr, "at most %d at once\n", MAX_AT_ONCE); return 2; }
    address = argv[1];
    request_len = put_request(request, argc > 4 ? argv[4] : "/");
    epoll_fd = epoll_create1(0);
    struct opening *all = allocate(at_once, sizeof *all);
    unsigned *sample = allocate(SAMPLES, sizeof *sample);
    struct epoll_event ready[MAX_AT_ONCE];
    long begun = 0, done = 0;
    while (begun < at_once) { begin(&all[begun], begun); begun++; }
    while (now() - start < seconds) {
        int n = epoll_wait(epoll_fd, ready, MAX_AT_ONCE, REPLY_SECONDS * 1000);
        if (!n) fail("handshake: the server is silent");
        for (int j = 0; j < n; j++) {
            struct opening *o = ready[j].data.ptr;
            if (!go_on(o)) continue;
            close(o->fd);
            if (done < SAMPLES) sample[done] = (now() - o->started) * 1e6;
            done++;
            begin(o, begun++);
        }
    }
    double took = now() - start;
    long kept = done < SAMPLES ? done : SAMPLES;
    if (!done) fail("no handshake was complete in time");
    qsort(sample, kept, sizeof *sample, by_value);
    printf("%.0f handshakes/s p50 %u us p99 %u us\n", done / took, quantile(sample, kept, .5), quantile(sample, kept, .99));
    return 0;
}
