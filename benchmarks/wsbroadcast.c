/* wsbroadcast: how long a server takes to send one message to all its connections.
 *
 *   wsbroadcast ADDRESS CONNECTIONS SIZE ROUNDS [TARGET]
 *
 * Opens the connections, then sends a message of one byte on the first, upon which the server sends every connection, the first
 * one too, a binary message of SIZE bytes. A round is the time from sending the byte until all of them have arrived. The
 * first round is not counted.
 *
 * Prints one line: the median and the shortest round in microseconds. Exit status 1: the server refused, closed, sent another
 * number of bytes, or was silent for REPLY_SECONDS. */
#include "wsclient.h"

#define MAX_CONNECTIONS 60000
#define MAX_ROUNDS 10000
#define SINK (1 << 16)
#define SETTLE_SECONDS 1                /* from the last connection to the first round: the server may still be busy with it */

struct member { int fd; long awaited; };

static int epoll_fd;

static void take(struct member *m, char *sink) {
    ssize_t k = get(m->fd, sink, SINK);
    if (k < 0) fail_os("recv");
    if (k == 0) fail("the server closed a connection");
    if (k > m->awaited) fail("the server sent more than the message");
    m->awaited -= k;
}

static double run_round(struct member *all, int connections, long expected, char *sink) {
    static const unsigned char trigger[] = {0x82, 0x81, 0, 0, 0, 0, '!'};
    static struct epoll_event ready[1024];
    for (int i = 0; i < connections; i++) all[i].awaited = expected;
    double start = now();
    send_all(all[0].fd, trigger, sizeof trigger);
    for (int left = connections; left;) {
        int n = epoll_wait(epoll_fd, ready, 1024, REPLY_SECONDS * 1000);
        if (!n) fail("the message did not reach everyone");
        for (int j = 0; j < n; j++) {
            struct member *m = ready[j].data.ptr;
            take(m, sink);
            if (!m->awaited) left--;
        }
    }
    return now() - start;
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 6) { fprintf(stderr, "usage: wsbroadcast ADDRESS CONNECTIONS SIZE ROUNDS [TARGET]\n"); return 2; }
    int connections = atoi(argv[2]), rounds = atoi(argv[4]);
    if (connections < 1 || connections > MAX_CONNECTIONS || rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "at most %d connections, and %d rounds\n", MAX_CONNECTIONS, MAX_ROUNDS);
        return 2;
    }
    unsigned char header[10];
    long size = atol(argv[3]), expected = size + put_header(header, 2, size, 0);
    struct member *all = allocate(connections, sizeof *all);
    unsigned *sample = allocate(rounds, sizeof *sample);
    char *sink = allocate(SINK, 1);
    epoll_fd = epoll_create1(0);
    for (int i = 0; i < connections; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &all[i]};
        all[i].fd = dial(argv[1], 0);
        upgrade(all[i].fd, argc > 5 ? argv[5] : "/");
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, all[i].fd, &e)) fail_os("epoll_ctl");
    }
    sleep(SETTLE_SECONDS);
    run_round(all, connections, expected, sink);
    for (int i = 0; i < rounds; i++) sample[i] = run_round(all, connections, expected, sink) * 1e6;
    qsort(sample, rounds, sizeof *sample, by_value);
    printf("%u us %u us\n", quantile(sample, rounds, .5), sample[0]);
    return 0;
}
