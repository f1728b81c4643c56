/* Echo servers without anything around the system calls: the ceiling that the others are held against.
 *
 *     echo udp-one PORT     a recvfrom and a sendto for each datagram
 *     echo udp-many PORT    recvmmsg and sendmmsg, 64 datagrams at most
 *     echo tcp PORT         epoll, a recv and a send for what has come
 *
 * Port 0 takes a free one. "listening on 127.0.0.1:PORT" goes to standard error when the server is ready.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOTS 64
#define SLOT_SIZE 65536

static char buffers[SLOTS][SLOT_SIZE];
static struct sockaddr_in names[SLOTS];
static struct iovec vectors[SLOTS];
static struct mmsghdr messages[SLOTS];

static void echo_one(int fd) {
    for (;;) {
        socklen_t length = sizeof names[0];
        ssize_t got = recvfrom(fd, buffers[0], SLOT_SIZE, 0, (void *)&names[0], &length);
        if (got >= 0) sendto(fd, buffers[0], (size_t)got, 0, (void *)&names[0], length);
    }
}

static void echo_many(int fd) {
    for (;;) {
        for (int i = 0; i < SLOTS; i++) {
            vectors[i] = (struct iovec){buffers[i], SLOT_SIZE};
            messages[i].msg_hdr = (struct msghdr){
                .msg_name = &names[i], .msg_namelen = sizeof names[i], .msg_iov = &vectors[i], .msg_iovlen = 1};
        }
        int got = recvmmsg(fd, messages, SLOTS, MSG_WAITFORONE, NULL);
        for (int i = 0; i < got; i++) vectors[i].iov_len = messages[i].msg_len;
        for (int sent = 0, n; sent < got; sent += n > 0 ? n : 1)
            n = sendmmsg(fd, messages + sent, (unsigned)(got - sent), 0);
    }
}

/* What the peer does not take is waited for: the loads here read as they write. */
static int send_all(int fd, const char *data, ssize_t left) {
    while (left > 0) {
        ssize_t sent = send(fd, data, (size_t)left, MSG_NOSIGNAL);
        if (sent < 0) return -1;
        data += sent;
        left -= sent;
    }
    return 0;
}

static void echo_tcp(int listener) {
    int epoll = epoll_create1(0), one = 1;
    struct epoll_event events[512], event = {EPOLLIN, {.fd = listener}};
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                event.data.fd = accept(listener, NULL, NULL);
                if (event.data.fd < 0) continue;
                setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
                continue;
            }
            ssize_t got = recv(fd, buffers[0], SLOT_SIZE, 0);
            if (got <= 0 || send_all(fd, buffers[0], got)) close(fd);
        }
    }
}

int main(int argc, char **argv) {
    const struct {
        const char *name;
        int type;
        void (*run)(int);
    } ways[] = {{"udp-one", SOCK_DGRAM, echo_one}, {"udp-many", SOCK_DGRAM, echo_many}, {"tcp", SOCK_STREAM, echo_tcp}};
    for (size_t i = 0; argc == 3 && i < sizeof ways / sizeof *ways; i++) {
        if (strcmp(argv[1], ways[i].name)) continue;
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
        socklen_t length = sizeof address;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int fd = socket(AF_INET, ways[i].type, 0);
        if (fd < 0 || bind(fd, (void *)&address, length) || getsockname(fd, (void *)&address, &length) ||
            (ways[i].type == SOCK_STREAM && listen(fd, 1024))) {
            fprintf(stderr, "echo: %s\n", strerror(errno));
            return 1;
        }
        fprintf(stderr, "listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
        ways[i].run(fd);
    }
    fputs("usage: echo udp-one|udp-many|tcp PORT\n", stderr);
    return 2;
}
