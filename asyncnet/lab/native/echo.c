/* Echo servers without anything around the system calls: the ceiling that the others are held against.
 *
 *     echo udp-one PORT     a recvfrom and a sendto for each datagram
 *     echo udp-many PORT    recvmmsg and sendmmsg, 64 datagrams at most
 *
 * Port 0 takes a free one. "listening on 127.0.0.1:PORT" goes to standard error when the server is ready.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

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

int main(int argc, char **argv) {
    int many = argc == 3 && !strcmp(argv[1], "udp-many");
    if (argc != 3 || (!many && strcmp(argv[1], "udp-one"))) {
        fputs("usage: echo udp-one|udp-many PORT\n", stderr);
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (void *)&address, length) || getsockname(fd, (void *)&address, &length)) {
        fprintf(stderr, "echo: %s\n", strerror(errno));
        return 1;
    }
    fprintf(stderr, "listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    (many ? echo_many : echo_one)(fd);
}
