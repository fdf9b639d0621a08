/* wsload: the load of the throughput benchmark, one thread, many connections, over TCP or a Unix socket.
 *
 *   wsload ADDRESS CONNECTIONS SIZE DEPTH SECONDS [TARGET [text]]
 *
 * ADDRESS      127.0.0.1:9001 or unix:/run/echo.sock         SIZE    payload bytes of each message
 * CONNECTIONS  all open before the clock starts              DEPTH   messages sent back to back in a round
 * TARGET       of the request, "/" unless given              text    text messages; binary unless given
 *
 * Each connection first sends one message and compares the echo byte by byte. From then on it sends DEPTH masked frames, waits
 * until as many bytes came back as the echoes have, and repeats: it knows the size of every reply, so it counts bytes
 * instead of parsing frames, and costs far less than any server it loads.
 *
 * Prints one line: messages/s, payload MB/s, the median and the 99th percentile of a round, and the share of a core it used.
 * Exit status 1: the server refused, echoed something else, closed, or was silent for REPLY_SECONDS. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 15000
#define MAX_SIZE (1 << 20)
#define MAX_DEPTH 1024
#define REPLY_SECONDS 10                /* for a handshake, and for the first echo */
#define SAMPLES 2000000                 /* rounds whose duration is kept */
#define SINK (1 << 18)

struct connection { int fd; size_t sent; long awaited; double started; };

static unsigned char *batch;            /* DEPTH client frames, ready to send */
static unsigned char *reply;            /* the echo of one of them */
static size_t batch_len, frame_len, reply_len;
static int epoll_fd;

static void fail(const char *why) { fprintf(stderr, "%s\n", why); exit(1); }

static void fail_os(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) fail("out of memory");
    return memory;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int dial_unix(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path) fail("the path of the socket is too long");
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (void *)&a, sizeof a)) fail_os("connect");
    return fd;
}

static int dial_tcp(const char *address) {
    char host[64];
    const char *colon = strrchr(address, ':');
    if (!colon || colon - address >= (long)sizeof host) fail("ADDRESS is neither IPV4:PORT nor unix:PATH");
    memcpy(host, address, colon - address);
    host[colon - address] = 0;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
    if (inet_pton(AF_INET, host, &a.sin_addr) != 1) fail("ADDRESS is neither IPV4:PORT nor unix:PATH");
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0 || connect(fd, (void *)&a, sizeof a)) fail_os("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static int dial(const char *address) {
    int fd = strncmp(address, "unix:", 5) ? dial_tcp(address) : dial_unix(address + 5);
    struct timeval limit = {.tv_sec = REPLY_SECONDS};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    return fd;
}

static void send_all(int fd, const void *data, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t k = send(fd, (const char *)data + done, n - done, MSG_NOSIGNAL);
        if (k < 0) fail_os("send");
        done += k;
    }
}

static void upgrade(int fd, const char *target) {
    char text[1024], answer[8192];
    int n = snprintf(text, sizeof text,
        "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", target);
    if (n >= (int)sizeof text) fail("TARGET is too long");
    send_all(fd, text, n);
    for (size_t got = 0;;) {
        ssize_t k = recv(fd, answer + got, sizeof answer - 1 - got, 0);
        if (k < 0) fail_os("handshake");
        if (k == 0) fail("handshake: the server closed");
        got += k;
        answer[got] = 0;
        if (strstr(answer, "\r\n\r\n")) break;
    }
    if (strncmp(answer, "HTTP/1.1 101", 12)) { fprintf(stderr, "handshake: %.60s\n", answer); exit(1); }
}

/* Write the header of a frame, without the masking key; return its length. */
static size_t put_header(unsigned char *p, int opcode, size_t size, int masked) {
    unsigned mask_bit = masked ? 0x80 : 0;
    p[0] = 0x80 | opcode;
    if (size < 126) { p[1] = mask_bit | size; return 2; }
    if (size < 65536) { p[1] = mask_bit | 126; p[2] = size >> 8; p[3] = size; return 4; }
    p[1] = mask_bit | 127;
    for (int i = 0; i < 8; i++) p[2 + i] = (unsigned long long)size >> (56 - 8 * i);
    return 10;
}

static void build_frames(size_t size, int depth, int opcode) {
    static const unsigned char key[4] = {0x37, 0xfa, 0x21, 0x3d};
    reply = allocate(10 + size, 1);
    size_t head = put_header(reply, opcode, size, 0);
    for (size_t i = 0; i < size; i++) reply[head + i] = 'a' + i % 26;
    reply_len = head + size;
    frame_len = reply_len + 4;
    batch_len = frame_len * depth;
    batch = allocate(batch_len, 1);
    for (unsigned char *p = batch; p < batch + batch_len; p += frame_len) {
        put_header(p, opcode, size, 1);
        memcpy(p + head, key, 4);
        for (size_t i = 0; i < size; i++) p[head + 4 + i] = reply[head + i] ^ key[i & 3];
    }
}

static void check_echo(int fd) {
    unsigned char *got = allocate(reply_len, 1);
    send_all(fd, batch, frame_len);
    for (size_t n = 0; n < reply_len;) {
        ssize_t k = recv(fd, got + n, reply_len - n, 0);
        if (k < 0) fail_os("first echo");
        if (k == 0) fail("first echo: the server closed");
        n += k;
    }
    if (memcmp(got, reply, reply_len)) fail("first echo: not what was sent");
    free(got);
}

static void watch(struct connection *c, int operation, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &e)) fail_os("epoll_ctl");
}

static void push(struct connection *c) {
    while (c->sent < batch_len) {
        ssize_t k = send(c->fd, batch + c->sent, batch_len - c->sent, MSG_NOSIGNAL);
        if (k < 0) {
            if (errno != EAGAIN) fail_os("send");
            watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        c->sent += k;
    }
}

static void start_round(struct connection *c, long awaited, double t) {
    c->sent = 0;
    c->awaited = awaited;
    c->started = t;
    push(c);
}

/* Take what came; return whether the round is complete. */
static int take(struct connection *c, char *sink) {
    ssize_t k = recv(c->fd, sink, SINK, 0);
    if (k < 0 && errno == EAGAIN) return 0;
    if (k < 0) fail_os("recv");
    if (k == 0) fail("the server closed a connection");
    c->awaited -= k;
    if (c->awaited < 0) fail("the server sent more than the echo");
    return c->awaited == 0;
}

static int by_value(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return x < y ? -1 : x > y;
}

static void report(long rounds, int depth, size_t size, double took, unsigned *sample, long kept) {
    if (!rounds) fail("no round was complete in time");
    qsort(sample, kept, sizeof *sample, by_value);
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double cpu = u.ru_utime.tv_sec + u.ru_utime.tv_usec * 1e-6 + u.ru_stime.tv_sec + u.ru_stime.tv_usec * 1e-6;
    double rate = rounds * depth / took;
    printf("%.0f msg/s %.1f MB/s p50 %u us p99 %u us load-cpu %.0f%%\n", rate, rate * size / 1e6, sample[kept / 2],
           sample[(long)(kept * .99)], 100 * cpu / took);
}

static void run(struct connection *all, int connections, size_t size, int depth, double seconds) {
    unsigned *sample = allocate(SAMPLES, sizeof *sample);
    char *sink = allocate(SINK, 1);
    struct epoll_event ready[512];
    long rounds = 0, kept = 0, awaited = reply_len * (long)depth;
    double begin = now();
    for (int i = 0; i < connections; i++) start_round(&all[i], awaited, now());
    while (now() - begin < seconds) {
        int n = epoll_wait(epoll_fd, ready, 512, 100);
        for (int j = 0; j < n; j++) {
            struct connection *c = ready[j].data.ptr;
            if (ready[j].events & EPOLLOUT) { watch(c, EPOLL_CTL_MOD, EPOLLIN); push(c); }
            if (!(ready[j].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || !take(c, sink)) continue;
            double t = now();
            rounds++;
            if (kept < SAMPLES) sample[kept++] = (t - c->started) * 1e6;
            start_round(c, awaited, t);
        }
    }
    report(rounds, depth, size, now() - begin, sample, kept);
}

int main(int argc, char **argv) {
    if (argc < 6 || argc > 8) { fprintf(stderr, "usage: wsload ADDRESS CONNECTIONS SIZE DEPTH SECONDS [TARGET [text]]\n"); return 2; }
    int connections = atoi(argv[2]), depth = atoi(argv[4]);
    long size = atol(argv[3]);
    double seconds = atof(argv[5]);
    if (connections < 1 || connections > MAX_CONNECTIONS || size < 0 || size > MAX_SIZE || depth < 1 || depth > MAX_DEPTH) {
        fprintf(stderr, "at most %d connections, %d bytes, and %d messages in a round\n", MAX_CONNECTIONS, MAX_SIZE, MAX_DEPTH);
        return 2;
    }
    build_frames(size, depth, argc > 7 && !strcmp(argv[7], "text") ? 1 : 2);
    epoll_fd = epoll_create1(0);
    struct connection *all = allocate(connections, sizeof *all);
    for (int i = 0; i < connections; i++) {
        all[i].fd = dial(argv[1]);
        upgrade(all[i].fd, argc > 6 ? argv[6] : "/");
        check_echo(all[i].fd);
        fcntl(all[i].fd, F_SETFL, O_NONBLOCK);
        watch(&all[i], EPOLL_CTL_ADD, EPOLLIN);
    }
    run(all, connections, size, depth, seconds);
    return 0;
}
