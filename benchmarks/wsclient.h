/* What the loads share: connecting, the opening handshake, the header of a frame, the clock.
 *
 * ADDRESS, wherever it is an argument: 127.0.0.1:9001 or unix:/run/echo.sock. Compiled with -DWITH_TLS -lssl -lcrypto all of it
 * goes through TLS, and any certificate will do. */
#ifndef WSCLIENT_H
#define WSCLIENT_H
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
#ifdef WITH_TLS
#include <openssl/ssl.h>
#endif

#define REPLY_SECONDS 10                /* that a server may take for a handshake, or for a message that is waited for */
#define MAX_REQUEST 1024
#define MAX_ANSWER 8192

static void fail(const char *why) { fprintf(stderr, "%s\n", why); exit(1); }

static void fail_os(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

static inline void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) fail("out of memory");
    return memory;
}

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static inline int dial_unix(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path) fail("the path of the socket is too long");
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (void *)&a, sizeof a)) fail_os("connect");
    return fd;
}

#ifdef WITH_TLS

#define MAX_TLS_FD 65536
static SSL *tls_of[MAX_TLS_FD];

/* What OpenSSL returned, as send and recv would say it. */
static inline ssize_t as_posix(int fd, int result) {
    if (result > 0) return result;
    int error = SSL_get_error(tls_of[fd], result);
    if (error == SSL_ERROR_ZERO_RETURN) return 0;
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    return -1;
}

static inline ssize_t put(int fd, const void *data, size_t n) { return as_posix(fd, SSL_write(tls_of[fd], data, n)); }

static inline ssize_t get(int fd, void *data, size_t n) { return as_posix(fd, SSL_read(tls_of[fd], data, n)); }

static inline void start_tls(int fd) {
    static SSL_CTX *context;
    if (!context && !(context = SSL_CTX_new(TLS_client_method()))) fail("OpenSSL: no context");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (fd >= MAX_TLS_FD) fail("too many descriptors");
    if (!(tls_of[fd] = SSL_new(context)) || !SSL_set_fd(tls_of[fd], fd)) fail("OpenSSL: no connection");
    if (SSL_connect(tls_of[fd]) != 1) fail("the TLS handshake failed");
}

#else

static inline ssize_t put(int fd, const void *data, size_t n) { return send(fd, data, n, MSG_NOSIGNAL); }

static inline ssize_t get(int fd, void *data, size_t n) { return recv(fd, data, n, 0); }

static inline void start_tls(int fd) { (void)fd; }

#endif

/* `from`: the address to connect from, 0 for any. With many of them a load never runs out of ports. */
static inline int dial_tcp(const char *address, in_addr_t from) {
    char host[64];
    const char *colon = strrchr(address, ':');
    if (!colon || colon - address >= (long)sizeof host) fail("ADDRESS is neither IPV4:PORT nor unix:PATH");
    memcpy(host, address, colon - address);
    host[colon - address] = 0;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
    if (inet_pton(AF_INET, host, &a.sin_addr) != 1) fail("ADDRESS is neither IPV4:PORT nor unix:PATH");
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0) fail_os("socket");
    if (from) {
        struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = from};
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (void *)&own, sizeof own)) fail_os("bind");
    }
    if (connect(fd, (void *)&a, sizeof a)) fail_os("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static inline int dial(const char *address, in_addr_t from) {
    int fd = strncmp(address, "unix:", 5) ? dial_tcp(address, from) : dial_unix(address + 5);
    struct timeval limit = {.tv_sec = REPLY_SECONDS};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    start_tls(fd);
    return fd;
}

/* Write the request for an upgrade into `text`, of MAX_REQUEST bytes; return its length. */
static inline int put_request(char *text, const char *target) {
    int n = snprintf(text, MAX_REQUEST,
        "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", target);
    if (n >= MAX_REQUEST) fail("TARGET is too long");
    return n;
}

/* Return whether the answer, which ends with a zero, is complete; anything but a 101 is an error. */
static inline int is_upgraded(const char *answer) {
    if (!strstr(answer, "\r\n\r\n")) return 0;
    if (strncmp(answer, "HTTP/1.1 101", 12)) { fprintf(stderr, "handshake: %.60s\n", answer); exit(1); }
    return 1;
}

static inline void send_all(int fd, const void *data, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t k = put(fd, (const char *)data + done, n - done);
        if (k < 0) fail_os("send");
        done += k;
    }
}

static inline void upgrade(int fd, const char *target) {
    char text[MAX_REQUEST], answer[MAX_ANSWER];
    send_all(fd, text, put_request(text, target));
    for (size_t got = 0;;) {
        ssize_t k = get(fd, answer + got, sizeof answer - 1 - got);
        if (k < 0) fail_os("handshake");
        if (k == 0) fail("handshake: the server closed");
        got += k;
        answer[got] = 0;
        if (is_upgraded(answer)) return;
    }
}

/* Write the header of a frame, without the masking key; return its length. */
static inline size_t put_header(unsigned char *p, int opcode, size_t size, int masked) {
    unsigned mask_bit = masked ? 0x80 : 0;
    p[0] = 0x80 | opcode;
    if (size < 126) { p[1] = mask_bit | size; return 2; }
    if (size < 65536) { p[1] = mask_bit | 126; p[2] = size >> 8; p[3] = size; return 4; }
    p[1] = mask_bit | 127;
    for (int i = 0; i < 8; i++) p[2 + i] = (unsigned long long)size >> (56 - 8 * i);
    return 10;
}

static inline int by_value(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return x < y ? -1 : x > y;
}

/* The smallest of `count` samples that this share of them does not exceed; they must be sorted. */
static inline unsigned quantile(const unsigned *sample, long count, double share) { return sample[(long)(count * share)]; }

#endif
