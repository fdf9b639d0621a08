/* rawecho: the floor of the throughput benchmark. A bare epoll loop that speaks just enough WebSocket to echo: no validation,
 * no callbacks, nothing but the system calls, the unmasking and one copy. The throughput of a server divided by this one's
 * is how close it comes to what the kernel allows. It is no server for anything else: it takes every first read for a
 * complete upgrade request, and spins while a client does not read.
 *
 *   rawecho PORT           on 127.0.0.1; frames of up to MAX_FRAME bytes, descriptors up to MAX_FD */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FRAME ((1 << 20) + 14)
#define MAX_READ (1 << 18)
#define MAX_FD 65536

static unsigned char in[MAX_FRAME + MAX_READ], out[MAX_FRAME + MAX_READ];
static struct { char upgraded; size_t kept; unsigned char *rest; } state[MAX_FD];

/* Echo the complete frames of `data` into `out`; return the bytes written there, -1 if a frame is too large. An echo is four
 * bytes shorter than its frame, so that `out` needs no more room than `in`. */
static long echo(const unsigned char *data, size_t n, size_t *used) {
    size_t at = 0, w = 0;
    while (n - at >= 6) {
        const unsigned char *p = data + at;
        uint64_t len = p[1] & 127, i = 0;
        size_t head = len < 126 ? 2 : len == 126 ? 4 : 10;
        if (n - at < head + 4) break;
        if (head > 2) {
            len = 0;
            for (size_t j = 2; j < head; j++) len = len << 8 | p[j];
        }
        if (len > MAX_FRAME - 14) return -1;
        if (n - at - head - 4 < len) break;
        memcpy(out + w, p, head);
        out[w + 1] &= 0x7f;
        w += head;
        uint32_t key;
        memcpy(&key, p + head, 4);
        uint64_t key8 = (uint64_t)key << 32 | key;
        p += head + 4;
        for (; i + 8 <= len; i += 8) { uint64_t x; memcpy(&x, p + i, 8); x ^= key8; memcpy(out + w + i, &x, 8); }
        for (; i < len; i++) out[w + i] = p[i] ^ ((unsigned char *)&key)[i & 3];
        w += len;
        at += head + 4 + len;
    }
    *used = at;
    return w;
}

static int send_all(int fd, const void *data, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t k = send(fd, (const char *)data + done, n - done, MSG_NOSIGNAL);
        if (k > 0) done += k;
        else if (errno != EAGAIN) return -1;
    }
    return 0;
}

/* Read once and answer. Return -1 when the connection is over. */
static int serve(int fd) {
    static const char accepted[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                   "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    size_t kept = state[fd].kept, used;
    if (kept) memcpy(in, state[fd].rest, kept);
    ssize_t got = recv(fd, in + kept, MAX_READ, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) return -1;
    if (!state[fd].upgraded) {
        state[fd].upgraded = 1;
        return send_all(fd, accepted, sizeof accepted - 1);
    }
    long written = echo(in, got + kept, &used);
    if (written < 0) return -1;
    if ((state[fd].kept = got + kept - used)) {
        unsigned char *rest = realloc(state[fd].rest, state[fd].kept);
        if (!rest) return -1;
        state[fd].rest = memcpy(rest, in + used, state[fd].kept);
    }
    return send_all(fd, out, written);
}

static void forget(int fd) {
    free(state[fd].rest);
    memset(&state[fd], 0, sizeof state[fd]);
    close(fd);
}

static void take_connection(int listener, int poller) {
    int fd = accept4(listener, 0, 0, SOCK_NONBLOCK), one = 1;
    if (fd < 0) return;
    if (fd >= MAX_FD) { close(fd); return; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) close(fd);
}

int main(int argc, char **argv) {
    if (argc != 2) { fprintf(stderr, "usage: rawecho PORT\n"); return 2; }
    int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 4096)) { perror("listen"); return 1; }
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, ready[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    while (1) {
        int n = epoll_wait(poller, ready, 512, -1);
        for (int j = 0; j < n; j++) {
            int fd = ready[j].data.fd;
            if (fd == listener) take_connection(listener, poller);
            else if (serve(fd)) forget(fd);
        }
    }
}
