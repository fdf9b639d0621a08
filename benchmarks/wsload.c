/* wsload: the load of the throughput benchmark, one thread, many connections, over TCP or a Unix socket.
 *
 *   wsload ADDRESS CONNECTIONS SIZE DEPTH SECONDS [TARGET [text] [flood]]
 *
 * ADDRESS      127.0.0.1:9001 or unix:/run/echo.sock         SIZE    payload bytes of each message
 * CONNECTIONS  all open before the clock starts              DEPTH   messages sent back to back in a round
 * TARGET       of the request, "/" unless given              text    text messages; binary unless given
 * flood        one more connection that sends FLOOD_SIZE-byte messages as fast as they are taken, and reads the echoes
 *
 * Each connection first sends one message and compares the echo byte by byte. From then on it sends DEPTH masked frames, waits
 * until as many bytes came back as the echoes have, and repeats: it knows the size of every reply, so it counts bytes
 * instead of parsing frames, and costs far less than any server it loads.
 *
 * Prints one line: messages/s, payload MB/s, the median and the 99th percentile of a round in microseconds, and the share of a
 * core it used. Exit status 1: the server refused, echoed something else, closed, or was silent for REPLY_SECONDS. */
#include "wsclient.h"

#define MAX_CONNECTIONS 15000
#define MAX_SIZE (1 << 20)
#define MAX_DEPTH 1024
#define SAMPLES 2000000                 /* rounds whose duration is kept */
#define SINK (1 << 18)
#define FLOOD_SIZE 64
#define FLOOD_FRAMES 900                /* sent at once: no more, so that the load's own loop is not what the others wait for */

struct connection { int fd; size_t sent; long awaited; double started; };

static unsigned char *batch;            /* DEPTH client frames, ready to send */
static unsigned char *flood;            /* FLOOD_FRAMES client frames */
static unsigned char *reply;            /* the echo of one of them */
static size_t batch_len, flood_len, frame_len, reply_len;
static int epoll_fd;

/* Make `count` masked frames with the same payload; return their length. */
static size_t build_frames(unsigned char **frames, size_t size, int count, int opcode) {
    static const unsigned char key[4] = {0x37, 0xfa, 0x21, 0x3d};
    unsigned char *p = *frames = allocate((size + 14) * count, 1);
    for (int n = 0; n < count; n++) {
        p += put_header(p, opcode, size, 1);
        memcpy(p, key, 4);
        p += 4;
        for (size_t i = 0; i < size; i++) *p++ = ('a' + i % 26) ^ key[i & 3];
    }
    return p - *frames;
}

static void build_messages(size_t size, int depth, int opcode) {
    batch_len = build_frames(&batch, size, depth, opcode);
    frame_len = batch_len / depth;
    reply = allocate(size + 10, 1);
    reply_len = put_header(reply, opcode, size, 0);
    for (size_t i = 0; i < size; i++) reply[reply_len++] = 'a' + i % 26;
    flood_len = build_frames(&flood, FLOOD_SIZE, FLOOD_FRAMES, opcode);
}

static void check_echo(int fd) {
    unsigned char *got = allocate(reply_len, 1);
    send_all(fd, batch, frame_len);
    for (size_t n = 0; n < reply_len;) {
        ssize_t k = get(fd, got + n, reply_len - n);
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
        ssize_t k = put(c->fd, batch + c->sent, batch_len - c->sent);
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

static long take_bytes(struct connection *c, char *sink) {
    ssize_t k = get(c->fd, sink, SINK);
    if (k < 0 && errno == EAGAIN) return 0;
    if (k < 0) fail_os("recv");
    if (k == 0) fail("the server closed a connection");
    return k;
}

static void keep_flooding(struct connection *c, unsigned events, char *sink) {
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) take_bytes(c, sink);
    if (!(events & EPOLLOUT)) return;
    ssize_t k = put(c->fd, flood + c->sent, flood_len - c->sent);
    if (k < 0 && errno != EAGAIN) fail_os("send");
    if (k > 0) c->sent = (c->sent + k) % flood_len;
}

/* Take what came; return whether the round is complete. */
static int take(struct connection *c, char *sink) {
    c->awaited -= take_bytes(c, sink);
    if (c->awaited < 0) fail("the server sent more than the echo");
    return c->awaited == 0;
}

static void report(long rounds, int depth, size_t size, double took, unsigned *sample, long kept) {
    if (!rounds) fail("no round was complete in time");
    qsort(sample, kept, sizeof *sample, by_value);
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double cpu = u.ru_utime.tv_sec + u.ru_utime.tv_usec * 1e-6 + u.ru_stime.tv_sec + u.ru_stime.tv_usec * 1e-6;
    double rate = rounds * depth / took;
    printf("%.0f msg/s %.1f MB/s p50 %u us p99 %u us load-cpu %.0f%%\n", rate, rate * size / 1e6, quantile(sample, kept, .5),
           quantile(sample, kept, .99), 100 * cpu / took);
}

static void run(struct connection *all, int connections, struct connection *flooder, size_t size, int depth, double seconds) {
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
            if (c == flooder) { keep_flooding(c, ready[j].events, sink); continue; }
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

static void open_connection(struct connection *c, const char *address, const char *target, unsigned events) {
    c->fd = dial(address, 0);
    upgrade(c->fd, target);
    check_echo(c->fd);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    watch(c, EPOLL_CTL_ADD, events);
}

int main(int argc, char **argv) {
    if (argc < 6 || argc > 9) {
        fprintf(stderr, "usage: wsload ADDRESS CONNECTIONS SIZE DEPTH SECONDS [TARGET [text] [flood]]\n");
        return 2;
    }
    int connections = atoi(argv[2]), depth = atoi(argv[4]);
    long size = atol(argv[3]);
    double seconds = atof(argv[5]);
    if (connections < 1 || connections > MAX_CONNECTIONS || size < 0 || size > MAX_SIZE || depth < 1 || depth > MAX_DEPTH) {
        fprintf(stderr, "at most %d connections, %d bytes, and %d messages in a round\n", MAX_CONNECTIONS, MAX_SIZE, MAX_DEPTH);
        return 2;
    }
    int text = 0, flooding = 0;
    for (int i = 7; i < argc; i++) {
        if (!strcmp(argv[i], "text")) text = 1;
        else if (!strcmp(argv[i], "flood")) flooding = 1;
        else fail("behind TARGET there may be text, and flood");
    }
    const char *target = argc > 6 ? argv[6] : "/";
    build_messages(size, depth, text ? 1 : 2);
    epoll_fd = epoll_create1(0);
    struct connection *all = allocate(connections + 1, sizeof *all), *flooder = flooding ? &all[connections] : NULL;
    for (int i = 0; i < connections; i++) open_connection(&all[i], argv[1], target, EPOLLIN);
    if (flooder) open_connection(flooder, argv[1], target, EPOLLIN | EPOLLOUT);
    run(all, connections, flooder, size, depth, seconds);
    return 0;
}
