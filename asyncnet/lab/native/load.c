/* Load for servers: one thread, one epoll, every byte checked.
 *
 *     load udp HOST PORT PEERS SIZE WARM_UP SECONDS
 *     load tftp HOST PORT NAME FILE CLIENTS BLOCK_SIZE WINDOW_SIZE LIMIT
 *
 * udp: an echo server. Closed loop: each peer is a connected socket with one datagram in flight; it sends the next one when the echo of the
 * last has arrived. An echo that does not come within RESEND seconds counts as lost. The first eight bytes of a datagram
 * (or all, of a shorter one) carry its number, and every byte is compared.
 *
 * tftp: every client downloads NAME once, all at the same time, and compares it with FILE; LIMIT is in seconds. Block size
 * 0 asks for no option at all. A client reads datagram by datagram, as most do, and acknowledges a gap once, and again
 * after 2 ms.
 *
 * Standard output: the line "measuring" when the warm-up is over, then one line of JSON. Times are in seconds.
 */
#include "common.h"

#include <fcntl.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define RESEND 0.2
#define MAX_SIZE 65507
#define MAX_EVENTS 512

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

/* TFTP downloads: each client is a socket of its own, and compares every block with the original file. */

#define CLIENT_RESEND 1000000000u /* ns without progress after which a client sends its last packet again */
#define GAP_QUIET 2000000u        /* ns between two ACKs that report the same gap */
#define PER_EVENT 64              /* datagrams read from one socket before the next has its turn */

struct download {
    int fd, known, over, failed, in_window, block_size, window_size;
    struct sockaddr_in peer;
    uint64_t next, received, sent_at, gap, gap_at, seconds_ns;
    unsigned char last[600];
    size_t last_length;
};

static int compare_times(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void send_last(struct download *d, const struct sockaddr_in *server, uint64_t now) {
    const struct sockaddr_in *to = d->known ? &d->peer : server;
    sendto(d->fd, d->last, d->last_length, 0, (const void *)to, sizeof *to);
    d->sent_at = now;
}

static void acknowledge(struct download *d, uint64_t block, const struct sockaddr_in *server, uint64_t now) {
    d->last[0] = 0, d->last[1] = 4, d->last[2] = (unsigned char)(block >> 8), d->last[3] = (unsigned char)block;
    d->last_length = 4;
    d->in_window = 0;
    send_last(d, server, now);
}

static void take_options(struct download *d, const char *at, const char *end) {
    while (at < end) {
        const char *value = at + strnlen(at, (size_t)(end - at)) + 1;
        if (value >= end) return;
        if (!strcasecmp(at, "blksize")) d->block_size = atoi(value);
        if (!strcasecmp(at, "windowsize")) d->window_size = atoi(value);
        at = value + strnlen(value, (size_t)(end - value)) + 1;
    }
}

static size_t put_text(unsigned char *at, const char *text) {
    size_t length = strlen(text) + 1;
    memcpy(at, text, length);
    return length;
}

static size_t make_request(unsigned char *packet, const char *name, int block_size, int window_size) {
    char number[16];
    size_t length = 2;
    packet[0] = 0, packet[1] = 1;
    length += put_text(packet + length, name);
    length += put_text(packet + length, "octet");
    if (block_size) {
        snprintf(number, sizeof number, "%d", block_size);
        length += put_text(packet + length, "blksize");
        length += put_text(packet + length, number);
    }
    if (window_size > 1) {
        snprintf(number, sizeof number, "%d", window_size);
        length += put_text(packet + length, "windowsize");
        length += put_text(packet + length, number);
    }
    return length;
}

static int run_tftp(struct sockaddr_in server, const char *name, const char *path, int count, int block_size,
                    int window_size, double limit) {
    int file = open(path, O_RDONLY), epoll = epoll_create1(0), left = count;
    struct stat status;
    if (file < 0 || fstat(file, &status)) return fail(path);
    uint64_t bytes = (uint64_t)status.st_size;
    const unsigned char *original = bytes ? mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0) : NULL;
    struct download *all = calloc((size_t)count, sizeof *all);
    if (original == MAP_FAILED || !all || epoll < 0) return fail("memory");
    uint64_t resent = 0, gaps = 0, wrong = 0, total = 0;
    puts("measuring");
    fflush(stdout);
    double cpu = cpu_seconds();
    uint64_t begin = now_ns(), give_up = begin + (uint64_t)(limit * 1e9), next_scan = begin;
    for (int i = 0; i < count; i++) {
        struct download *d = &all[i];
        int buffer = 2 << 20;
        d->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (d->fd < 0) return fail("socket");
        setsockopt(d->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
        struct epoll_event event = {EPOLLIN, {.u32 = (uint32_t)i}};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, d->fd, &event)) return fail("epoll_ctl");
        d->next = 1, d->window_size = 1, d->block_size = 512;
        d->last_length = make_request(d->last, name, block_size, window_size);
        send_last(d, &server, now_ns());
    }
    while (left) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(epoll, events, MAX_EVENTS, 50);
        uint64_t now = now_ns();
        if (now > give_up) break;
        for (int i = 0; i < ready; i++) {
            struct download *d = &all[events[i].data.u32];
            for (int turn = 0; turn < PER_EVENT; turn++) {
                struct sockaddr_in from;
                socklen_t from_length = sizeof from;
                ssize_t got = recvfrom(d->fd, answer, sizeof answer, 0, (void *)&from, &from_length);
                if (got < 4) break;
                if (d->over) continue;
                if (!d->known) d->peer = from, d->known = 1;
                if (from.sin_port != d->peer.sin_port) continue;
                unsigned opcode = answer[1], number = (unsigned)answer[2] << 8 | answer[3];
                if (opcode == 5) {
                    fprintf(stderr, "load: the server says: %.100s\n", answer + 4);
                    d->over = d->failed = 1;
                    left--;
                } else if (opcode == 6 && d->next == 1 && !d->received) {
                    take_options(d, (char *)answer + 2, (char *)answer + got);
                    acknowledge(d, 0, &server, now);
                } else if (opcode == 3 && number == (d->next & 0xffff)) {
                    uint64_t length = (uint64_t)got - 4;
                    if (d->received + length > bytes || memcmp(original + d->received, answer + 4, length)) wrong++;
                    d->received += length;
                    int last = length < (uint64_t)d->block_size;
                    if (++d->in_window >= d->window_size || last) acknowledge(d, d->next, &server, now);
                    d->next++;
                    if (last) {
                        d->over = 1;
                        d->failed = d->received != bytes;
                        d->seconds_ns = now_ns() - begin;
                        left--;
                    }
                } else if (opcode == 3) {
                    gaps++;
                    if (d->gap != d->next || now - d->gap_at > GAP_QUIET) {
                        d->gap = d->next, d->gap_at = now;
                        if (d->window_size > 1 || number == ((d->next - 1) & 0xffff))
                            acknowledge(d, d->next - 1, &server, now);
                    }
                }
            }
        }
        if (now >= next_scan) {
            next_scan = now + CLIENT_RESEND / 5;
            for (int i = 0; i < count; i++)
                if (!all[i].over && now - all[i].sent_at > CLIENT_RESEND) {
                    resent++;
                    send_last(&all[i], &server, now);
                }
        }
    }
    double elapsed = (double)(now_ns() - begin) / 1e9;
    cpu = cpu_seconds() - cpu;
    uint64_t *times = calloc((size_t)count, sizeof *times);
    int done = 0;
    for (int i = 0; i < count; i++) {
        total += all[i].received;
        if (all[i].over && !all[i].failed) times[done++] = all[i].seconds_ns;
    }
    qsort(times, (size_t)done, sizeof *times, compare_times);
    printf("{\"bytes\": %lu, \"seconds\": %.6f, \"done\": %d, \"failed\": %d, \"wrong\": %lu, \"p50\": %.6f, "
           "\"p99\": %.6f, \"max\": %.6f, \"resent\": %lu, \"gaps\": %lu, \"cpu_seconds\": %.6f}\n",
           total, elapsed, done, count - done, wrong, done ? times[done / 2] / 1e9 : 0.0,
           done ? times[(int)(done * 0.99)] / 1e9 : 0.0, done ? times[done - 1] / 1e9 : 0.0, resent, gaps, cpu);
    return 0;
}

int main(int argc, char **argv) {
    struct sockaddr_in server;
    if (argc == 8 && !strcmp(argv[1], "udp") && is_address(argv[2], argv[3], &server)) {
        int peers = atoi(argv[4]);
        size = (size_t)atol(argv[5]);
        if (peers > 0 && size > 0 && size <= MAX_SIZE)
            return run_udp(server, peers, atof(argv[6]), atof(argv[7]));
    }
    if (argc == 10 && !strcmp(argv[1], "tftp") && is_address(argv[2], argv[3], &server) && strlen(argv[4]) < 400) {
        int clients = atoi(argv[6]);
        if (clients > 0)
            return run_tftp(server, argv[4], argv[5], clients, atoi(argv[7]), atoi(argv[8]), atof(argv[9]));
    }
    fputs("usage: load udp HOST PORT PEERS SIZE WARM_UP SECONDS\n"
          "       load tftp HOST PORT NAME FILE CLIENTS BLOCK_SIZE WINDOW_SIZE LIMIT\n", stderr);
    return 2;
}
