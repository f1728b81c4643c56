/* Load for echo servers: one thread, one epoll, every message checked.
 *
 *     load udp HOST PORT PEERS SIZE WARM_UP SECONDS
 *
 * Closed loop: each peer is a connected socket with one datagram in flight; it sends the next one when the echo of the
 * last has arrived. An echo that does not come within RESEND seconds counts as lost. The first eight bytes of a datagram
 * (or all, of a shorter one) carry its number, and every byte is compared.
 *
 * Standard output: the line "measuring" when the warm-up is over, then one line of JSON. Times are in seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RESEND 0.2
#define MAX_SIZE 65507
#define MAX_EVENTS 512

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* A log-linear histogram of nanoseconds: 64 buckets for each power of two, so 1.6 % wide at most. */
#define SUB 64
#define BUCKETS (59 * SUB)
static uint64_t histogram[BUCKETS];

static unsigned bucket_of(uint64_t ns) {
    if (ns < SUB) return (unsigned)ns;
    unsigned shift = 63 - (unsigned)__builtin_clzll(ns) - 6;
    return (shift + 1) * SUB + (unsigned)((ns >> shift) - SUB);
}

static double value_of(unsigned bucket) {
    if (bucket < SUB) return bucket;
    unsigned shift = bucket / SUB - 1;
    return ((double)(bucket % SUB + SUB) + 0.5) * (double)(1ull << shift);
}

static double percentile(uint64_t count, double share) {
    uint64_t seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen && seen >= share * (double)count) return value_of(i) / 1e9;
    }
    return 0;
}

struct peer {
    int fd;
    uint64_t number, sent_at;
};

static size_t size;
static unsigned char message[MAX_SIZE], answer[MAX_SIZE + 1];

static void stamp(const struct peer *peer, uint64_t index) {
    uint64_t mark = index << 40 | (peer->number & 0xffffffffff);
    memcpy(message, &mark, size < 8 ? size : 8);
}

static int send_next(struct peer *peer, uint64_t index, uint64_t now) {
    peer->number++;
    peer->sent_at = now;
    stamp(peer, index);
    return send(peer->fd, message, size, 0) == (ssize_t)size;
}

static int fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    return 1;
}

static int run_udp(struct sockaddr_in server, int count, double warm_up, double seconds) {
    struct peer *peers = calloc((size_t)count, sizeof *peers);
    int epoll = epoll_create1(0);
    if (!peers || epoll < 0) return fail("epoll");
    for (int i = 0; i < count; i++) {
        peers[i].fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (peers[i].fd < 0) return fail("socket");
        if (connect(peers[i].fd, (void *)&server, sizeof server)) return fail("connect");
        struct epoll_event event = {EPOLLIN, {.u32 = (uint32_t)i}};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, peers[i].fd, &event)) return fail("epoll_ctl");
    }
    for (size_t i = 0; i < MAX_SIZE; i++) message[i] = (unsigned char)(i * 31);

    uint64_t answers = 0, all = 0, lost = 0, wrong = 0, refused = 0, resend = (uint64_t)(RESEND * 1e9);
    uint64_t begin = now_ns(), measure = begin + (uint64_t)(warm_up * 1e9), end = UINT64_MAX, next_scan = begin + resend;
    double cpu = 0;
    for (int i = 0; i < count; i++) refused += !send_next(&peers[i], (uint64_t)i, now_ns());
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(epoll, events, MAX_EVENTS, 20);
        uint64_t now = now_ns();
        if (end == UINT64_MAX && now >= measure) {
            puts("measuring");
            fflush(stdout);
            memset(histogram, 0, sizeof histogram);
            answers = lost = wrong = refused = 0;
            cpu = cpu_seconds();
            measure = now_ns();
            end = measure + (uint64_t)(seconds * 1e9);
        }
        if (now >= end) break;
        for (int i = 0; i < ready; i++) {
            uint64_t index = events[i].data.u32;
            struct peer *peer = &peers[index];
            ssize_t got = recv(peer->fd, answer, sizeof answer, 0);
            if (got < 0) {
                refused += errno != EAGAIN;
                continue;
            }
            stamp(peer, index);
            if ((size_t)got != size || memcmp(answer, message, size)) {
                wrong++; /* also the late echo of a datagram that was counted as lost */
                continue;
            }
            now = now_ns();
            histogram[bucket_of(now - peer->sent_at)]++;
            answers++;
            all++;
            refused += !send_next(peer, index, now);
        }
        if (now >= next_scan) {
            next_scan = now + resend / 4;
            for (int i = 0; i < count; i++)
                if (now - peers[i].sent_at >= resend) {
                    lost++;
                    send_next(&peers[i], (uint64_t)i, now);
                }
        }
    }
    double elapsed = (double)(now_ns() - measure) / 1e9;
    cpu = cpu_seconds() - cpu;
    printf("{\"requests\": %lu, \"all_requests\": %lu, \"seconds\": %.6f, \"p50\": %.9f, \"p99\": %.9f, \"p999\": %.9f, "
           "\"lost\": %lu, \"wrong\": %lu, \"refused\": %lu, \"cpu_seconds\": %.6f}\n",
           answers, all, elapsed, percentile(answers, 0.5), percentile(answers, 0.99), percentile(answers, 0.999),
           lost, wrong, refused, cpu);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 8 || strcmp(argv[1], "udp")) {
        fputs("usage: load udp HOST PORT PEERS SIZE WARM_UP SECONDS\n", stderr);
        return 2;
    }
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[3]))};
    int peers = atoi(argv[4]);
    size = (size_t)atol(argv[5]);
    if (inet_pton(AF_INET, argv[2], &server.sin_addr) != 1 || peers < 1 || size < 1 || size > MAX_SIZE) {
        fputs("load: HOST must be an IPv4 address, PEERS at least 1, SIZE 1 to 65507\n", stderr);
        return 2;
    }
    return run_udp(server, peers, atof(argv[6]), atof(argv[7]));
}
