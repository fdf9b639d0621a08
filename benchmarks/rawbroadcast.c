/* rawbroadcast: the floor of the broadcast benchmark. A bare epoll loop that upgrades whatever connects and, when anything comes
 * in after that, sends one frame to every connection with one `send` each. No validation, and no second try where a
 * connection's buffer is full: it ends there.
 *
 *   rawbroadcast PORT SIZE           on 127.0.0.1; payload bytes of the message; descriptors up to MAX_FD */
#include "wsclient.h"

#define MAX_FD 65536
#define MAX_SIZE (1 << 20)
#define READ_SIZE 4096

static char upgraded[MAX_FD];
static int highest;

static void broadcast(const unsigned char *frame, size_t len) {
    for (int fd = 0; fd <= highest; fd++)
        if (upgraded[fd] && send(fd, frame, len, MSG_NOSIGNAL) != (ssize_t)len) fail("a connection did not take the message");
}

/* Read once. Return -1 when the connection is over. */
static int serve(int fd, const unsigned char *frame, size_t len) {
    static const char accepted[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                   "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    char in[READ_SIZE];
    if (recv(fd, in, sizeof in, 0) <= 0) return -1;
    if (upgraded[fd]) {
        broadcast(frame, len);
        return 0;
    }
    upgraded[fd] = 1;
    send_all(fd, accepted, sizeof accepted - 1);
    return 0;
}

static void take_connection(int listener, int poller) {
    int fd = accept4(listener, 0, 0, SOCK_NONBLOCK), one = 1;
    if (fd < 0) return;
    if (fd >= MAX_FD) fail("too many descriptors");
    if (fd > highest) highest = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) fail_os("epoll_ctl");
}

int main(int argc, char **argv) {
    if (argc != 3 || atol(argv[2]) > MAX_SIZE) { fprintf(stderr, "usage: rawbroadcast PORT SIZE\n"); return 2; }
    size_t size = atol(argv[2]);
    unsigned char *frame = allocate(size + 10, 1);
    size_t len = put_header(frame, 2, size, 0) + size;
    int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 4096)) fail_os("listen");
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, ready[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    while (1) {
        int n = epoll_wait(poller, ready, 512, -1);
        for (int j = 0; j < n; j++) {
            int fd = ready[j].data.fd;
            if (fd == listener) take_connection(listener, poller);
            else if (serve(fd, frame, len)) { upgraded[fd] = 0; close(fd); }
        }
    }
}
