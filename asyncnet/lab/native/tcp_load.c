/* Load for TCP servers that echo: one thread, one epoll, every byte checked.
 *
 *     tcp_load echo HOST PORT CONNECTIONS SIZE WARM_UP SECONDS
 *     tcp_load churn HOST PORT CONNECTIONS SIZE WARM_UP SECONDS close|reset
 *     tcp_load hold HOST PORT CONNECTIONS INTERVAL RETRY
 *
 * echo: closed loop. Each connection sends SIZE bytes, and again when they have come back. It ends early when the server
 * has closed all of them.
 *
 * churn: the same, but a request is a connection of its own: connect, send, wait for the echo, end. CONNECTIONS of them
 * are under way at any time. They end like those of most clients, by close(), or by a reset.
 *
 * hold: keeps connections open until standard input ends. Each sends a byte every INTERVAL seconds (0: never); one that
 * the server closes comes back after RETRY seconds (0: never).
 *
 * The first eight bytes of a request carry its number, the last one is a line feed, and every byte is compared. Clients
 * have 200 addresses, from 127.0.0.2 on, when the server is on loopback, so that ports do not run out.
 *
 * Standard output: the line "measuring" when the warm-up is over, or all connections are there, then one line of JSON.
 * Times are in seconds.
 */
#include "common.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>

#define MAX_SIZE (1 << 20)
#define MAX_EVENTS 512
#define ADDRESSES 200
#define CONNECT_WITHIN 10

struct connection {
    int fd, connected, wants_room;
    uint64_t number, started_at, due;
    size_t sent, got;
};

static struct sockaddr_in server;
static size_t size = 1;
static unsigned char message[MAX_SIZE], answer[MAX_SIZE];
static int epoll_fd, resets;
static uint64_t opened, refused, closed_by_server, wrong;

static int open_connection(struct connection *c, uint32_t index) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) return -1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (ntohl(server.sin_addr.s_addr) >> 24 == 127) {
        struct sockaddr_in own = {.sin_family = AF_INET};
        own.sin_addr.s_addr = htonl(0x7f000002u + (uint32_t)(opened++ % ADDRESSES));
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        bind(c->fd, (void *)&own, sizeof own);
    }
    c->sent = c->got = 0;
    c->connected = 0;
    c->wants_room = 1;
    c->started_at = now_ns();
    if (connect(c->fd, (void *)&server, sizeof server) && errno != EINPROGRESS) return -1;
    struct epoll_event event = {EPOLLIN | EPOLLOUT, {.u32 = index}};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static void watch(struct connection *c, uint32_t index, int wants_room) {
    if (c->wants_room == wants_room) return;
    c->wants_room = wants_room;
    struct epoll_event event = {EPOLLIN | (wants_room ? EPOLLOUT : 0), {.u32 = index}};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void end_connection(struct connection *c) {
    struct linger hard = {1, 0};
    if (resets) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(c->fd);
    c->fd = -1;
}

static void stamp(const struct connection *c, uint32_t index) {
    uint64_t mark = (uint64_t)index << 40 | (c->number & 0xffffffffff);
    memcpy(message, &mark, size < 9 ? size - 1 : 8);
}

/* Send what is left of the request; -1: the connection is lost. */
static int send_more(struct connection *c, uint32_t index) {
    stamp(c, index);
    while (c->sent < size) {
        ssize_t n = send(c->fd, message + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) return -1;
            break;
        }
        c->sent += (size_t)n;
    }
    watch(c, index, c->sent < size);
    return 0;
}

/* Take what has come; 1: the echo is complete, -1: the connection is lost. */
static int take(struct connection *c, uint32_t index) {
    ssize_t n = recv(c->fd, answer, sizeof answer, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) return -1;
    stamp(c, index);
    if ((size_t)n > c->sent - c->got || memcmp(answer, message + c->got, (size_t)n)) {
        wrong++;
        return -1;
    }
    c->got += (size_t)n;
    return c->got == size;
}

static int run_loop(int count, double warm_up, double seconds, int churn) {
    struct connection *all = calloc((size_t)count, sizeof *all);
    if (!all) return fail("memory");
    for (size_t i = 0; i < MAX_SIZE; i++) message[i] = (unsigned char)(i * 31 + (i >> 8));
    message[size - 1] = '\n'; /* for servers of lines */
    for (int i = 0; i < count; i++)
        if (open_connection(&all[i], (uint32_t)i)) return fail("connect");
    uint64_t answers = 0, all_answers = 0, measure = now_ns() + (uint64_t)(warm_up * 1e9), end = UINT64_MAX;
    double cpu = 0;
    int open = count;
    while (open) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(epoll_fd, events, MAX_EVENTS, 20);
        uint64_t now = now_ns();
        if (end == UINT64_MAX && now >= measure) {
            puts("measuring");
            fflush(stdout);
            memset(histogram, 0, sizeof histogram);
            answers = closed_by_server = wrong = 0;
            cpu = cpu_seconds();
            measure = now_ns();
            end = measure + (uint64_t)(seconds * 1e9);
        }
        if (now >= end) break;
        for (int i = 0; i < ready; i++) {
            uint32_t index = events[i].data.u32;
            struct connection *c = &all[index];
            int done = 0;
            if (events[i].events & EPOLLOUT) done = send_more(c, index);
            if (done >= 0 && events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) done = take(c, index);
            if (done == 0) continue;
            now = now_ns();
            if (done > 0) {
                histogram[bucket_of(now - c->started_at)]++;
                answers++;
                all_answers++;
                c->number++;
                if (!churn) {
                    c->started_at = now;
                    c->sent = c->got = 0;
                    done = send_more(c, index);
                }
            }
            if (done < 0) closed_by_server++;
            if (done < 0 || churn) {
                end_connection(c);
                if (!churn || open_connection(c, index)) open--;
            }
        }
    }
    if (end == UINT64_MAX) return fail("every connection is lost");
    double elapsed = (double)(now_ns() - measure) / 1e9;
    cpu = cpu_seconds() - cpu;
    printf("{\"requests\": %lu, \"all_requests\": %lu, \"seconds\": %.6f, \"p50\": %.9f, \"p99\": %.9f, \"p999\": %.9f, \"closed\": %lu, "
           "\"wrong\": %lu, \"cpu_seconds\": %.6f}\n",
           answers, all_answers, elapsed, percentile(answers, 0.5), percentile(answers, 0.99), percentile(answers, 0.999),
           closed_by_server, wrong, cpu);
    return 0;
}

static int run_hold(int count, double interval, double retry) {
    struct connection *all = calloc((size_t)count, sizeof *all);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    uint64_t step = (uint64_t)(interval * 1e9), pause = (uint64_t)(retry * 1e9), sent = 0, begin = now_ns();
    uint64_t next_scan = begin;
    int connected = 0, settled = 0, told = 0;
    if (!all) return fail("memory");
    for (int i = 0; i < count; i++) {
        if (open_connection(&all[i], (uint32_t)i)) return fail("connect");
        all[i].due = begin + (step ? step * (uint64_t)i / (uint64_t)count : 0); /* spread over the interval */
        if (i % 64 == 63) usleep(1000); /* the backlog of the server is not what is measured */
    }
    while (!(poll(&input, 1, 0) > 0 && read(0, answer, 1) <= 0)) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(epoll_fd, events, MAX_EVENTS, 5);
        uint64_t now = now_ns();
        for (int i = 0; i < ready; i++) {
            uint32_t index = events[i].data.u32;
            struct connection *c = &all[index];
            int lost = 0;
            if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
                ssize_t n = recv(c->fd, answer, sizeof answer, 0);
                lost = n == 0 || (n < 0 && errno != EAGAIN);
            }
            if (!lost && events[i].events & EPOLLOUT && !c->connected) {
                c->connected = 1;
                connected++;
                settled++;
                watch(c, index, 0);
            }
            if (lost) {
                if (c->connected) closed_by_server++, connected--;
                else refused++, settled++;
                end_connection(c);
                c->due = now + pause;
            }
        }
        if (!told && (settled >= count || now - begin > CONNECT_WITHIN * 1000000000ull)) {
            told = 1;
            puts("measuring");
            fflush(stdout);
        }
        if (now < next_scan || (!step && !pause)) continue;
        next_scan = now + 5000000;
        for (int i = 0; i < count; i++) {
            struct connection *c = &all[i];
            if (now < c->due) continue;
            if (c->fd < 0 && pause && open_connection(c, (uint32_t)i)) c->due = now + pause;
            if (c->fd >= 0 && c->connected && step) {
                sent += send(c->fd, "x", 1, MSG_NOSIGNAL) == 1;
                c->due += step;
            }
        }
    }
    printf("{\"open\": %d, \"closed\": %lu, \"refused\": %lu, \"bytes\": %lu, \"seconds\": %.6f, \"cpu_seconds\": %.6f}\n",
           connected, closed_by_server, refused, sent, (double)(now_ns() - begin) / 1e9, cpu_seconds());
    return 0;
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(0);
    int count = argc > 4 ? atoi(argv[4]) : 0;
    if (count > 0 && is_address(argv[2], argv[3], &server)) {
        if (argc == 7 && !strcmp(argv[1], "hold")) return run_hold(count, atof(argv[5]), atof(argv[6]));
        size = argc > 5 ? (size_t)atol(argv[5]) : 0;
        resets = argc == 9 && !strcmp(argv[8], "reset");
        if (size > 0 && size <= MAX_SIZE) {
            if (argc == 8 && !strcmp(argv[1], "echo")) return run_loop(count, atof(argv[6]), atof(argv[7]), 0);
            if (argc == 9 && !strcmp(argv[1], "churn") && (resets || !strcmp(argv[8], "close")))
                return run_loop(count, atof(argv[6]), atof(argv[7]), 1);
        }
    }
    fputs("usage: tcp_load echo HOST PORT CONNECTIONS SIZE WARM_UP SECONDS\n"
          "       tcp_load churn HOST PORT CONNECTIONS SIZE WARM_UP SECONDS close|reset\n"
          "       tcp_load hold HOST PORT CONNECTIONS INTERVAL RETRY\n", stderr);
    return 2;
}
