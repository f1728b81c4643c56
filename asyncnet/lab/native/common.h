/* What every kind of load shares: clocks, histograms, the schedule of an open loop, the warm-up, and words for failures. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

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
#define SPIN 50000 /* ns before a request is due during which the clock is watched without rest */
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

/* The warm-up ends after its time or, with steady=WINDOW, as soon as three windows differ by 5 % at most. */
static uint64_t window_end, window_from, measure_at, measure_end = UINT64_MAX;
static double rates[3], cpu_before, delayed_before, warmed;
static uint64_t begun;

static void begin_warm_up(double seconds) {
    begun = window_from = now_ns();
    next_due = begun;
    measure_at = begun + (uint64_t)(seconds * 1e9);
    window_end = steady > 0 ? begun + (uint64_t)(steady * 1e9) : UINT64_MAX;
}

static int is_warm(uint64_t now, uint64_t answers) {
    static uint64_t before;
    if (measure_end != UINT64_MAX) return 0;
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

static void begin_measuring(double seconds) {
    puts("measuring");
    fflush(stdout);
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
