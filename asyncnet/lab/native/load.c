/* Load for servers: one thread, one epoll, every byte and the order checked.
 *
 *     load echo HOST PORT CONNECTIONS SIZE WARM_UP SECONDS [OPTIONS]
 *     load churn HOST PORT CONNECTIONS SIZE WARM_UP SECONDS close|reset [OPTIONS]
 *     load udp HOST PORT PEERS SIZE WARM_UP SECONDS [OPTIONS]
 *     load hold HOST PORT CONNECTIONS INTERVAL RETRY
 *     load stall HOST PORT CONNECTIONS BYTES
 *     load tftp HOST PORT NAME FILE CLIENTS BLOCK_SIZE WINDOW_SIZE LIMIT [SECONDS [OPTIONS]]
 *
 * echo, churn, udp: closed loop unless rate= is given: each connection sends SIZE bytes, and again when they have come back. A
 * request of the churn is a connection of its own: connect, send, wait for the echo, end, by close() or by a reset. A
 * datagram that does not come back within RESEND seconds is lost. A load ends early when the server has closed
 * everything.
 *
 * rate=R makes an open loop of R requests a second, with arrivals=constant or arrivals=poisson (and seed=N). The latency then counts
 * from the moment at which a request was to be sent, also when every connection was busy at that moment; "service" counts from
 * when it was sent, and "lag" is how late the generator itself was, when a connection was free. steady=WINDOW ends the
 * warm-up as soon as the rates of three windows, in seconds, differ by 5 % at most.
 *
 * hold: keeps connections open until standard input ends. Each sends a byte every INTERVAL seconds (0: never); one that
 * the server closes comes back after RETRY seconds (0: never).
 *
 * stall: each connection sends a line and reads nothing until standard input ends; then it reads BYTES bytes, where byte
 * i is i modulo 251, and compares them.
 *
 * tftp: every client downloads NAME once, all at the same time, and compares it with FILE; LIMIT is in seconds. With
 * SECONDS, it downloads again and again for that time, or at rate= transfers a second. Block size 0 asks for no option at
 * all. A client reads datagram by datagram, as most do, and acknowledges a gap once, and again after 2 ms.
 *
 * The first eight bytes of a request carry its number, and every byte is compared; the last one is a line feed over TCP.
 * TCP clients have 200 addresses, from 127.0.0.2 on, when the server is on loopback, so that ports do not run out.
 *
 * Standard output: the line "measuring", after a warm-up LEAD seconds before what counts begins, or when all connections
 * are there; then one line of JSON.
 * Times are in seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* What every kind of load shares: clocks, histograms, the schedule of an open loop, the warm-up, words for failures. */

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

/* Seconds that this process was ready to run and had no core (the second field of schedstat). */
static double delayed_seconds(void) {
    unsigned long long ran = 0, waited = 0;
    FILE *file = fopen("/proc/self/schedstat", "r");
    if (!file) return 0;
    if (fscanf(file, "%llu %llu", &ran, &waited) != 2) waited = 0;
    fclose(file);
    return (double)waited / 1e9;
}

/* A log-linear histogram of nanoseconds: 64 buckets for each power of two, so 1.6 % wide at most. */
#define SUB 64
#define BUCKETS (59 * SUB)
struct histogram {
    uint64_t count, most, buckets[BUCKETS];
};
static struct histogram latency, service, lag;

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

static void record(struct histogram *h, uint64_t ns) {
    h->buckets[bucket_of(ns)]++;
    h->count++;
    if (ns > h->most) h->most = ns;
}

static double percentile(const struct histogram *h, double share) {
    uint64_t seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen && seen >= share * (double)h->count) return fmin(value_of(i), (double)h->most) / 1e9;
    }
    return 0;
}

static void print_percentiles(const struct histogram *h, const char *prefix) {
    printf("\"%sp50\": %.9f, \"%sp90\": %.9f, \"%sp99\": %.9f, \"%sp999\": %.9f, \"%smax\": %.9f, ", prefix,
           percentile(h, 0.5), prefix, percentile(h, 0.9), prefix, percentile(h, 0.99), prefix, percentile(h, 0.999),
           prefix, (double)h->most / 1e9);
}

/* The latencies as pairs of seconds and how often, so that histograms of one run can be merged and drawn. */
static void print_histogram(const struct histogram *h) {
    const char *between = "";
    printf("\"histogram\": [");
    for (unsigned i = 0; i < BUCKETS; i++)
        if (h->buckets[i]) {
            printf("%s[%.9f, %lu]", between, value_of(i) / 1e9, (unsigned long)h->buckets[i]);
            between = ", ";
        }
    printf("]");
}

/* Options after the fixed arguments, as NAME=VALUE. */
static double rate, steady;
static int poisson;
static uint64_t randomness = 0x9e3779b97f4a7c15u;

static int take_options(int argc, char **argv, int from) {
    for (int i = from; i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        if (!value++) return 0;
        if (!strncmp(argv[i], "rate=", 5)) rate = atof(value);
        else if (!strncmp(argv[i], "steady=", 7)) steady = atof(value);
        else if (!strncmp(argv[i], "seed=", 5)) randomness ^= strtoull(value, NULL, 10) * 0xbf58476d1ce4e5b9u;
        else if (!strcmp(argv[i], "arrivals=poisson")) poisson = 1;
        else if (strcmp(argv[i], "arrivals=constant")) return 0;
    }
    return rate >= 0 && steady >= 0;
}

/* The open loop: requests have a time at which they are to be sent, whatever the server does. One that finds every
 * connection busy waits here and keeps its time. */
#define MOST_WAITING (1u << 20)
#define SPIN 1000000 /* ns before a request is due during which the clock is watched without rest */
static uint64_t waiting[MOST_WAITING], first_waiting, past_waiting, next_due, unsent;

static uint64_t gap(void) {
    double gap = 1e9 / rate;
    if (poisson) {
        randomness ^= randomness >> 12, randomness ^= randomness << 25, randomness ^= randomness >> 27;
        double share = (double)((randomness * 0x2545f4914f6cdd1du) >> 11) / 9007199254740992.0;
        gap *= -log(1 - share);
    }
    return (uint64_t)gap + 1;
}

static void take_due(uint64_t now) {
    for (; rate > 0 && next_due <= now; next_due += gap()) {
        if (past_waiting - first_waiting < MOST_WAITING) waiting[past_waiting++ % MOST_WAITING] = next_due;
        else unsent++;
    }
}

/* Wait for events, but not beyond the moment when the next request is due. */
static int wait_for_events(int epoll, struct epoll_event *events, int most, int longest_ms) {
    if (rate <= 0) return epoll_wait(epoll, events, most, longest_ms);
    uint64_t now = now_ns();
    if (next_due > now + SPIN) {
        uint64_t left = next_due - now - SPIN;
        if (left > (uint64_t)longest_ms * 1000000) left = (uint64_t)longest_ms * 1000000;
        struct pollfd ready = {.fd = epoll, .events = POLLIN};
        struct timespec time = {(time_t)(left / 1000000000), (long)(left % 1000000000)};
        ppoll(&ready, 1, &time, NULL);
    }
    return epoll_wait(epoll, events, most, 0);
}

#define LEAD 0.05

/* The warm-up ends after its time or, with steady=WINDOW, as soon as three windows differ by 5 % at most. */
static uint64_t window_end, window_from, measure_at, measure_end = UINT64_MAX;
static double rates[3], cpu_before, delayed_before, warmed;
static uint64_t begun, announced_at, lead;

static void begin_warm_up(double seconds) {
    begun = window_from = now_ns();
    next_due = begun;
    measure_at = begun + (uint64_t)(seconds * 1e9);
    lead = seconds > 0 ? (uint64_t)(LEAD * 1e9) : 0;
    window_end = steady > 0 ? begun + (uint64_t)(steady * 1e9) : UINT64_MAX;
}

static int is_warm(uint64_t now, uint64_t answers) {
    static uint64_t before;
    if (announced_at) return 0;
    if (now < measure_at && now >= window_end) {
        memmove(rates, rates + 1, sizeof rates - sizeof *rates);
        rates[2] = (double)(answers - before) / (double)(now - window_from);
        double low = fmin(rates[0], fmin(rates[1], rates[2])), high = fmax(rates[0], fmax(rates[1], rates[2]));
        before = answers;
        window_from = now;
        window_end = now + (uint64_t)(steady * 1e9);
        if (low > 0 && high <= low * 1.05) measure_at = now;
    }
    return now >= measure_at;
}

/* Say that the measurement begins soon: who reads then what the server has used disturbs the load. */
static void announce(uint64_t now) {
    puts("measuring");
    fflush(stdout);
    announced_at = now;
}

static int is_due(uint64_t now) {
    return announced_at && measure_end == UINT64_MAX && now >= announced_at + lead;
}

static void begin_measuring(double seconds) {
    memset(&latency, 0, sizeof latency);
    memset(&service, 0, sizeof service);
    memset(&lag, 0, sizeof lag);
    unsent = 0;
    cpu_before = cpu_seconds();
    delayed_before = delayed_seconds();
    measure_at = now_ns();
    warmed = (double)(measure_at - begun) / 1e9;
    measure_end = measure_at + (uint64_t)(seconds * 1e9);
}

/* The part of the result that all loads have. */
static void print_result(uint64_t requests, uint64_t all_requests) {
    double elapsed = (double)(now_ns() - measure_at) / 1e9;
    printf("{\"generator\": \"c\", \"requests\": %lu, \"all_requests\": %lu, \"seconds\": %.6f, \"warm_up\": %.6f, "
           "\"offered\": %.3f, \"unsent\": %lu, \"waiting\": %lu, \"cpu_seconds\": %.6f, \"delayed_seconds\": %.6f, ",
           (unsigned long)requests, (unsigned long)all_requests, elapsed, warmed, rate, (unsigned long)unsent,
           (unsigned long)(past_waiting - first_waiting), cpu_seconds() - cpu_before,
           delayed_seconds() - delayed_before);
    print_percentiles(&latency, "");
    print_percentiles(&service, "service_");
    print_percentiles(&lag, "lag_");
}

static int fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    return 1;
}

static int is_address(const char *host, const char *port, struct sockaddr_in *address) {
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    return inet_pton(AF_INET, host, &address->sin_addr) == 1;
}

/* Loads that echo. */
#define RESEND 0.2
#define MAX_SIZE (1 << 20)
#define MAX_DATAGRAM 65507
#define MAX_EVENTS 512
#define ADDRESSES 200
#define CONNECT_WITHIN 10

enum kind { ECHO, CHURN, UDP };

struct connection {
    int fd, connected, reset, wants_room, busy;
    uint64_t number, answered, due, intended, started_at;
    size_t sent, got;
};

static struct sockaddr_in server;
static size_t size = 1;
static unsigned char message[MAX_SIZE], answer[MAX_SIZE];
static int epoll_fd, resets;
static enum kind kind;
static uint64_t opened, refused, closed_by_server, wrong, lost, late, doubled;

static int open_connection(struct connection *c, uint32_t index) {
    int one = 1;
    c->fd = socket(AF_INET, (kind == UDP ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK, 0);
    if (c->fd < 0) return -1;
    c->sent = c->got = 0;
    c->connected = kind == UDP;
    c->reset = 0;
    c->wants_room = kind != UDP;
    if (kind != UDP) {
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (ntohl(server.sin_addr.s_addr) >> 24 == 127) {
            struct sockaddr_in own = {.sin_family = AF_INET};
            own.sin_addr.s_addr = htonl(0x7f000002u + (uint32_t)(opened++ % ADDRESSES));
            setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
            bind(c->fd, (void *)&own, sizeof own);
        }
    }
    if (connect(c->fd, (void *)&server, sizeof server) && errno != EINPROGRESS) return -1;
    struct epoll_event event = {EPOLLIN | (kind == UDP ? 0 : EPOLLOUT), {.u32 = index}};
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
    size_t most = kind == UDP ? size : size - 1;
    memcpy(message, &mark, most < 8 ? most : 8);
}

/* Send what is left of the request; -1: the connection is lost. */
static int send_more(struct connection *c, uint32_t index) {
    if (!c->busy) {
        watch(c, index, 0);
        return 0;
    }
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
    c->reset = n < 0 && errno == ECONNRESET; /* so it was connected, though nobody has told us */
    if (n <= 0) return -1;
    stamp(c, index);
    if (!c->busy || (size_t)n > c->sent - c->got || memcmp(answer, message + c->got, (size_t)n)) {
        wrong++;
        return -1;
    }
    c->got += (size_t)n;
    return c->got == size;
}

/* The same for a datagram. A peer has one request on its way, so an older number is an answer that came too late, or
 * that has come before. */
static int take_datagram(struct connection *c, uint32_t index) {
    ssize_t n = recv(c->fd, answer, sizeof answer, 0);
    if (n < 0) {
        refused += errno != EAGAIN;
        return 0;
    }
    stamp(c, index);
    if (c->busy && (size_t)n == size && !memcmp(answer, message, size)) {
        c->answered = c->number;
        return 1;
    }
    uint64_t mark = 0;
    if (size >= 8 && n >= 8) memcpy(&mark, answer, 8);
    if ((size_t)n == size && size >= 8 && mark >> 40 == index && (mark & 0xffffffffff) <= c->number) {
        if ((mark & 0xffffffffff) == c->answered) doubled++;
        else if (c->busy && (mark & 0xffffffffff) == c->number) wrong++;
        else late++;
    } else wrong++;
    return 0;
}

/* Give a connection its next request. */
static int start(struct connection *c, uint32_t index, uint64_t intended, uint64_t now) {
    c->number++;
    c->busy = 1;
    c->intended = intended;
    c->started_at = now;
    c->sent = c->got = 0;
    if (kind == CHURN) return open_connection(c, index);
    if (!c->connected) return 0; /* it leaves when the connection is there */
    if (kind != UDP) return send_more(c, index);
    stamp(c, index);
    refused += send(c->fd, message, size, 0) != (ssize_t)size;
    return 0;
}

/* An open loop's requests go to the connections that are free; those that find none keep their time. */
static uint32_t *idle, idle_count, first_idle, places; /* a ring: the one that is free longest comes first */

static void make_idle(uint32_t index) {
    idle[(first_idle + idle_count++) % places] = index;
}

static void start_waiting(struct connection *all) {
    while (idle_count && first_waiting < past_waiting) {
        uint64_t intended = waiting[first_waiting % MOST_WAITING], now = now_ns();
        uint32_t index = idle[first_idle];
        first_idle = (first_idle + 1) % places;
        idle_count--;
        struct connection *c = &all[index];
        if (c->fd < 0 && kind != CHURN) continue; /* the server has closed it, which is counted */
        first_waiting++;
        if (intended >= c->due) record(&lag, now - intended);
        if (start(c, index, intended, now)) {
            closed_by_server++;
            if (c->fd >= 0) end_connection(c);
            c->busy = 0;
            if (kind == CHURN) make_idle(index);
        }
    }
}

static void finish(struct connection *c, uint32_t index, uint64_t now) {
    c->busy = 0;
    c->due = now; /* free since then */
    if (rate > 0) make_idle(index);
}

/* What has not come back in time is lost, and its peer goes on. */
static void find_lost(struct connection *all, int count, uint64_t now) {
    for (int i = 0; i < count; i++) {
        struct connection *c = &all[i];
        if (!c->busy || now < c->started_at + (uint64_t)(RESEND * 1e9)) continue; /* it may be younger than now */
        lost++;
        if (rate > 0) finish(c, (uint32_t)i, now);
        else start(c, (uint32_t)i, now, now);
    }
}

static int begin_connections(struct connection *all, int count) {
    for (size_t i = 0; i < MAX_SIZE; i++) message[i] = (unsigned char)(i * 31 + (i >> 8));
    if (kind != UDP) message[size - 1] = '\n'; /* for servers of lines */
    for (int i = 0; i < count; i++) {
        uint64_t now = now_ns();
        all[i].fd = -1;
        if (kind != CHURN && open_connection(&all[i], (uint32_t)i)) return fail("connect");
        if (rate > 0) make_idle((uint32_t)i);
        else if (start(&all[i], (uint32_t)i, now, now)) return fail("connect");
    }
    return 0;
}

/* One event of one connection; 1: a request is answered, -1: the connection is lost. */
static int handle(struct connection *c, uint32_t index, uint32_t events) {
    int done = 0;
    if (c->fd < 0) return 0;
    if (kind == UDP) return take_datagram(c, index);
    if (events & EPOLLOUT && !(events & (EPOLLERR | EPOLLHUP))) {
        c->connected = 1;
        done = send_more(c, index);
    }
    if (done >= 0 && events & (EPOLLIN | EPOLLERR | EPOLLHUP)) done = take(c, index);
    return done;
}

static int run_loop(int count, double warm_up, double seconds) {
    struct connection *all = calloc((size_t)count, sizeof *all);
    places = (uint32_t)count;
    idle = calloc(places, sizeof *idle);
    if (!all || !idle) return fail("memory");
    uint64_t answers = 0, all_answers = 0, next_scan = 0;
    int open = count;
    begin_warm_up(warm_up);
    if (begin_connections(all, count)) return 1;
    while (open) {
        struct epoll_event events[MAX_EVENTS];
        int ready = wait_for_events(epoll_fd, events, MAX_EVENTS, 20);
        uint64_t now = now_ns();
        if (is_warm(now, all_answers)) announce(now);
        if (is_due(now)) {
            begin_measuring(seconds);
            answers = refused = closed_by_server = wrong = lost = late = doubled = 0;
        }
        if (now >= measure_end) break;
        take_due(now);
        start_waiting(all);
        for (int i = 0; i < ready; i++) {
            uint32_t index = events[i].data.u32;
            struct connection *c = &all[index];
            int done = handle(c, index, events[i].events);
            if (done == 0) continue;
            now = now_ns();
            if (done > 0) {
                record(&latency, now - c->intended);
                record(&service, now - c->started_at);
                answers++;
                all_answers++;
                if (kind == CHURN) end_connection(c);
                finish(c, index, now);
                if (rate <= 0) done = start(c, index, now, now);
                if (done >= 0) continue;
            }
            int was_connected = c->connected || c->reset;
            if (was_connected || kind != CHURN) closed_by_server++;
            else refused++;
            if (c->fd >= 0) end_connection(c);
            if (c->busy && kind == CHURN && was_connected) { /* one connection broke, the server may go on */
                finish(c, index, now);
                if (rate > 0 || !start(c, index, now, now)) continue;
            }
            open--;
        }
        start_waiting(all);
        if (kind == UDP && now >= next_scan) {
            next_scan = now + (uint64_t)(RESEND * 1e9) / 4;
            find_lost(all, count, now);
        }
    }
    if (measure_end == UINT64_MAX) {
        fputs("load: every connection is lost\n", stderr);
        return 1;
    }
    print_result(answers, all_answers);
    printf("\"closed\": %lu, \"refused\": %lu, \"wrong\": %lu, \"lost\": %lu, \"late\": %lu, \"doubled\": %lu, ",
           closed_by_server, refused, wrong, lost, late, doubled);
    print_histogram(&latency);
    puts("}");
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
            if (events[i].events & EPOLLOUT && !(events[i].events & EPOLLERR) && !c->connected) {
                c->connected = 1;
                connected++;
                settled++;
                watch(c, index, 0);
            }
            if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
                ssize_t n = recv(c->fd, answer, sizeof answer, 0);
                lost = n == 0 || (n < 0 && errno != EAGAIN);
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
    printf("{\"generator\": \"c\", \"open\": %d, \"closed\": %lu, \"refused\": %lu, \"bytes\": %lu, \"seconds\": %.6f, \"cpu_seconds\": %.6f}\n",
           connected, closed_by_server, refused, sent, (double)(now_ns() - begin) / 1e9, cpu_seconds());
    return 0;
}

/* Connections that ask for much and read nothing, until standard input ends. */
static int run_stall(int count, uint64_t bytes) {
    struct connection *all = calloc((size_t)count, sizeof *all);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    uint64_t begin = now_ns(), total = 0;
    int connected = 0, complete = 0, told = 0, left = count, reading = 0;
    delayed_before = delayed_seconds();
    if (!all) return fail("memory");
    for (int i = 0; i < count; i++)
        if (open_connection(&all[i], (uint32_t)i)) return fail("connect");
    while (left) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(epoll_fd, events, MAX_EVENTS, 5);
        if (!told && (connected + count - left >= count || now_ns() - begin > CONNECT_WITHIN * 1000000000ull)) {
            told = 1;
            puts("measuring");
            fflush(stdout);
        }
        if (told && !reading && poll(&input, 1, 0) > 0 && read(0, answer, 1) <= 0) {
            reading = 1;
            for (int i = 0; i < count; i++) {
                struct epoll_event event = {EPOLLIN, {.u32 = (uint32_t)i}};
                if (all[i].fd >= 0) epoll_ctl(epoll_fd, EPOLL_CTL_MOD, all[i].fd, &event);
            }
        }
        for (int i = 0; i < ready; i++) {
            struct connection *c = &all[events[i].data.u32];
            if (!c->connected && events[i].events & EPOLLOUT && !(events[i].events & EPOLLERR)) {
                struct epoll_event event = {0, {.u32 = events[i].data.u32}};
                c->connected = send(c->fd, "x\n", 2, MSG_NOSIGNAL) == 2;
                connected += c->connected;
                epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
                continue;
            }
            ssize_t n = reading || !c->connected ? recv(c->fd, answer, sizeof answer, 0) : -1;
            if (n < 0 && reading && errno == EAGAIN) continue;
            for (ssize_t k = 0; k < n; k++)
                if (answer[k] != (c->got + (size_t)k) % 251) {
                    wrong++;
                    n = 0;
                }
            if (n > 0) c->got += (size_t)n, total += (uint64_t)n;
            if (n > 0 && c->got < bytes) continue;
            if (c->got == bytes) complete++;
            else closed_by_server++; /* also one that was reset while it did not read */
            end_connection(c);
            left--;
        }
    }
    if (!told) puts("measuring"); /* nobody is left to wait for */
    printf("{\"generator\": \"c\", \"complete\": %d, \"closed\": %lu, \"wrong\": %lu, \"bytes\": %lu, \"seconds\": %.6f, "
           "\"delayed_seconds\": %.6f}\n",
           complete, closed_by_server, wrong, total, (double)(now_ns() - begin) / 1e9,
           delayed_seconds() - delayed_before);
    return 0;
}


/* TFTP downloads: each client is a socket of its own, and compares every block with the original file. */

#define CLIENT_RESEND 1000000000u /* ns without progress after which a client sends its last packet again */
#define GAP_QUIET 2000000u        /* ns between two ACKs that report the same gap */
#define PER_EVENT 64              /* datagrams read from one socket before the next has its turn */

struct download {
    int fd, known, over, in_window, block_size, window_size;
    struct sockaddr_in peer;
    uint64_t next, received, intended, started_at, sent_at, gap, gap_at;
    unsigned char last[600];
    size_t last_length;
};

/* What is downloaded, and how it goes. */
static const char *wanted;
static const unsigned char *original;
static uint64_t original_bytes, resent, gaps, total_bytes, done, failed;
static int block_size, window_size;

static void send_last(struct download *d, uint64_t now) {
    const struct sockaddr_in *to = d->known ? &d->peer : &server;
    sendto(d->fd, d->last, d->last_length, 0, (const void *)to, sizeof *to);
    d->sent_at = now;
}

static void acknowledge(struct download *d, uint64_t block, uint64_t now) {
    d->last[0] = 0, d->last[1] = 4, d->last[2] = (unsigned char)(block >> 8), d->last[3] = (unsigned char)block;
    d->last_length = 4;
    d->in_window = 0;
    send_last(d, now);
}

static void take_oack(struct download *d, const char *at, const char *end) {
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

static size_t make_request(unsigned char *packet) {
    char number[16];
    size_t length = 2;
    packet[0] = 0, packet[1] = 1;
    length += put_text(packet + length, wanted);
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

/* Every transfer has a socket of its own, as its server tells transfers apart by their ports. */
static int begin_download(struct download *d, uint32_t index, uint64_t intended, uint64_t now) {
    int buffer = 2 << 20;
    *d = (struct download){.next = 1, .window_size = 1, .block_size = 512, .intended = intended, .started_at = now};
    d->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (d->fd < 0) return fail("socket");
    setsockopt(d->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    struct epoll_event event = {EPOLLIN, {.u32 = index}};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, d->fd, &event)) return fail("epoll_ctl");
    d->last_length = make_request(d->last);
    send_last(d, now);
    return 0;
}

/* Take one packet; 1: the transfer is over. */
static int take_packet(struct download *d, size_t got, uint64_t now) {
    unsigned opcode = answer[1], number = (unsigned)answer[2] << 8 | answer[3];
    if (opcode == 5) {
        if (!failed++) fprintf(stderr, "load: the server says: %.100s\n", answer + 4);
        return 1;
    }
    if (opcode == 6 && d->next == 1 && !d->received) {
        take_oack(d, (char *)answer + 2, (char *)answer + got);
        acknowledge(d, 0, now);
    } else if (opcode == 3 && number == (d->next & 0xffff)) {
        uint64_t length = got - 4;
        if (d->received + length > original_bytes || memcmp(original + d->received, answer + 4, length)) wrong++;
        d->received += length;
        total_bytes += length;
        int last = length < (uint64_t)d->block_size;
        if (++d->in_window >= d->window_size || last) acknowledge(d, d->next, now);
        d->next++;
        if (!last) return 0;
        now = now_ns();
        if (d->received == original_bytes) {
            record(&latency, now - d->intended);
            record(&service, now - d->started_at);
            done++;
        } else failed++;
        return 1;
    } else if (opcode == 3) {
        gaps++;
        if (d->gap == d->next && now - d->gap_at <= GAP_QUIET) return 0;
        d->gap = d->next, d->gap_at = now;
        if (d->window_size > 1 || number == ((d->next - 1) & 0xffff)) acknowledge(d, d->next - 1, now);
    }
    return 0;
}

static int take_packets(struct download *d, uint64_t now) {
    for (int turn = 0; turn < PER_EVENT; turn++) {
        struct sockaddr_in from;
        socklen_t from_length = sizeof from;
        ssize_t got = recvfrom(d->fd, answer, sizeof answer, 0, (void *)&from, &from_length);
        if (got < 4) return 0;
        if (!d->known) d->peer = from, d->known = 1;
        if (from.sin_port == d->peer.sin_port && take_packet(d, (size_t)got, now)) return 1;
    }
    return 0;
}

/* A client that hears nothing for a second asks again. */
static void send_again(struct download *all, int count, uint64_t now) {
    for (int i = 0; i < count; i++)
        if (!all[i].over && now > all[i].sent_at + CLIENT_RESEND) {
            resent++;
            send_last(&all[i], now);
        }
}

static int start_downloads(struct download *all) {
    while (idle_count && first_waiting < past_waiting) {
        uint64_t intended = waiting[first_waiting++ % MOST_WAITING], now = now_ns();
        uint32_t index = idle[first_idle];
        first_idle = (first_idle + 1) % places;
        idle_count--;
        if (intended >= all[index].sent_at) record(&lag, now - intended);
        if (begin_download(&all[index], index, intended, now)) return 1;
    }
    return 0;
}

/* Each client once, or again and again for some seconds. */
static int run_tftp(int count, double limit, double seconds) {
    struct download *all = calloc((size_t)count, sizeof *all);
    int left = count;
    uint64_t next_scan = 0, all_done = 0;
    places = (uint32_t)count;
    idle = calloc(places, sizeof *idle);
    if (!all || !idle) return fail("memory");
    begin_warm_up(0);
    announce(now_ns());
    usleep((useconds_t)(LEAD * 1e6));
    next_due = now_ns();
    begin_measuring(seconds > 0 ? seconds : limit);
    for (int i = 0; i < count; i++) {
        all[i].over = 1;
        uint64_t now = now_ns();
        if (rate > 0) make_idle((uint32_t)i);
        else if (begin_download(&all[i], (uint32_t)i, now, now)) return 1;
    }
    while (left) {
        struct epoll_event events[MAX_EVENTS];
        int ready = wait_for_events(epoll_fd, events, MAX_EVENTS, 50);
        uint64_t now = now_ns();
        if (now > measure_end) break;
        take_due(now);
        if (start_downloads(all)) return 1;
        for (int i = 0; i < ready; i++) {
            uint32_t index = events[i].data.u32;
            struct download *d = &all[index];
            if (d->over || !take_packets(d, now)) continue;
            close(d->fd);
            d->over = 1;
            now = now_ns();
            d->sent_at = now;
            all_done++;
            if (rate > 0) make_idle(index);
            else if (seconds <= 0) left--;
            else if (begin_download(d, index, now, now)) return 1;
        }
        if (now >= next_scan) {
            next_scan = now + CLIENT_RESEND / 5;
            send_again(all, count, now);
        }
    }
    print_result(done, all_done);
    printf("\"bytes\": %lu, \"done\": %lu, \"failed\": %lu, \"wrong\": %lu, \"resent\": %lu, \"gaps\": %lu, ",
           total_bytes, done, seconds > 0 ? failed : (uint64_t)count - done, wrong, resent, gaps);
    print_histogram(&latency);
    puts("}");
    return 0;
}

static int open_original(const char *path) {
    int file = open(path, O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status)) return fail(path);
    original_bytes = (uint64_t)status.st_size;
    if (original_bytes) original = mmap(NULL, original_bytes, PROT_READ, MAP_SHARED, file, 0);
    return original == MAP_FAILED ? fail(path) : 0;
}

static int usage(void) {
    fputs("usage: load echo HOST PORT CONNECTIONS SIZE WARM_UP SECONDS [OPTIONS]\n"
          "       load churn HOST PORT CONNECTIONS SIZE WARM_UP SECONDS close|reset [OPTIONS]\n"
          "       load udp HOST PORT PEERS SIZE WARM_UP SECONDS [OPTIONS]\n"
          "       load hold HOST PORT CONNECTIONS INTERVAL RETRY\n"
          "       load stall HOST PORT CONNECTIONS BYTES\n"
          "       load tftp HOST PORT NAME FILE CLIENTS BLOCK_SIZE WINDOW_SIZE LIMIT [SECONDS [OPTIONS]]\n"
          "options: rate=R arrivals=constant|poisson seed=N steady=WINDOW\n", stderr);
    return 2;
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1); /* arrivals keep their time */
    epoll_fd = epoll_create1(0);
    if (argc < 6 || !is_address(argv[2], argv[3], &server)) return usage();
    const char *mode = argv[1];
    if (!strcmp(mode, "tftp")) {
        int count = argc >= 10 ? atoi(argv[6]) : 0;
        wanted = argv[4];
        if (count <= 0 || strlen(wanted) >= 400 || !take_options(argc, argv, 11)) return usage();
        block_size = atoi(argv[7]), window_size = atoi(argv[8]);
        if (open_original(argv[5])) return 1;
        return run_tftp(count, atof(argv[9]), argc > 10 ? atof(argv[10]) : 0);
    }
    int count = atoi(argv[4]);
    if (count <= 0) return usage();
    if (argc == 7 && !strcmp(mode, "hold")) return run_hold(count, atof(argv[5]), atof(argv[6]));
    if (argc == 6 && !strcmp(mode, "stall")) return run_stall(count, strtoull(argv[5], NULL, 10));
    size = (size_t)atol(argv[5]);
    int options = 8;
    if (!strcmp(mode, "churn")) {
        resets = argc > 8 && !strcmp(argv[8], "reset");
        if (argc < 9 || (!resets && strcmp(argv[8], "close"))) return usage();
        kind = CHURN, options = 9;
    } else if (!strcmp(mode, "udp")) kind = UDP;
    else if (strcmp(mode, "echo")) return usage();
    if (argc < 8 || size == 0 || size > (kind == UDP ? MAX_DATAGRAM : MAX_SIZE)) return usage();
    return take_options(argc, argv, options) ? run_loop(count, atof(argv[6]), atof(argv[7])) : usage();
}
