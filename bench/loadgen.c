/* A load generator that costs less than the servers it measures: one thread, one epoll, requests prebuilt by the
 * caller, replies only counted. (The same loop in Python costs more than the server, so its figures would be its own.)
 *
 *   loadgen --port P --requests FILE [--connections N] [--depth D] [--lines L] [--expect PREFIX]
 *           (--seconds S [--warmup S] | --count N)
 *
 * FILE is a sequence of requests, each as a little-endian uint32 length and that many bytes. Every connection owns a
 * contiguous slice of them and goes round it, so that connections touch different keys and one send carries many
 * requests. A reply is L newlines (default 1), which counts Karma's JSON lines and Redis' integers alike; the first
 * bytes of each must be PREFIX, so a run in which the server refuses the work fails instead of looking fast.
 *
 * Prints one JSON line. Latencies are measured with one request in flight per connection (depth 1), because with more
 * they tell how long the queue is that we made ourselves. SIGTERM ends a timed run early and still prints.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    LATENCY_BUCKETS = 1000000, /* one a microsecond; slower replies share the last, the maximum is kept exactly */
    READ_BYTES = 1 << 18,
    EVENTS_PER_WAIT = 256,
    IDLE_LIMIT_MS = 60000, /* a server silent for this long is hung, and a benchmark must end */
};

struct connection {
    int fd;
    size_t first, end;  /* slice of the requests: [first, end) */
    size_t next;        /* first request not completely written */
    size_t position;    /* byte in `bytes` to be written next */
    uint64_t credit;    /* requests that may be written now */
    uint64_t remaining; /* requests not yet granted as credit */
    uint64_t sent_ns;
    size_t line;        /* newlines of the current reply already seen */
    size_t matched;     /* bytes of the expected prefix already seen */
    bool waits_for_room;
};

static char *bytes;
static size_t *offsets, request_count;
static const char *expect = "";
static size_t expect_bytes, lines_per_reply = 1;
static uint32_t latencies[LATENCY_BUCKETS];
static uint64_t latency_count, latency_max_ns;
static volatile sig_atomic_t stopped;

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "loadgen: %s: %s\n", what, detail);
    exit(1);
}

static void stop(int signal_number) {
    (void)signal_number;
    stopped = 1;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Reads the file and squeezes the lengths out, so that neighbouring requests can leave in one send. */
static void load_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path, strerror(errno));
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    bytes = malloc(size + 1);
    offsets = malloc((size / 4 + 2) * sizeof *offsets);
    if (!bytes || !offsets || fread(bytes, 1, size, file) != size) fail(path, "cannot be read into memory");
    fclose(file);
    size_t written = 0;
    for (size_t at = 0; at < size;) {
        uint32_t length;
        if (size - at < sizeof length) fail(path, "ends inside a length");
        memcpy(&length, bytes + at, sizeof length);
        at += sizeof length;
        if (length == 0 || size - at < length) fail(path, "holds an empty request or ends inside one");
        memmove(bytes + written, bytes + at, length);
        offsets[request_count++] = written;
        written += length;
        at += length;
    }
    offsets[request_count] = written;
}

static int connect_to(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void grant(struct connection *c, uint64_t requests, uint64_t at_ns) {
    if (requests) c->sent_ns = at_ns;
    if (requests > c->remaining) requests = c->remaining;
    c->credit += requests;
    c->remaining -= requests;
}

/* Writes what the credit allows, as few sends as the end of the slice and the socket's room permit. */
static void flush(int epoll, struct connection *c) {
    bool full = false;
    while (c->credit && !full) {
        size_t last = c->end - c->next < c->credit ? c->end : c->next + c->credit;
        ssize_t sent = send(c->fd, bytes + c->position, offsets[last] - c->position, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) fail("send", strerror(errno));
        full = sent < 0;
        c->position += full ? 0 : (size_t)sent;
        while (c->next < last && offsets[c->next + 1] <= c->position) c->next++, c->credit--;
        if (c->next == c->end) {
            c->next = c->first;
            c->position = offsets[c->first];
        }
    }
    if (full != c->waits_for_room) {
        struct epoll_event event = {.events = full ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
        c->waits_for_room = full;
    }
}

/* Counts the replies that end in this piece and compares how each begins; both survive any split of the stream. */
static uint64_t count_replies(struct connection *c, const char *at, const char *end) {
    uint64_t replies = 0;
    while (at < end) {
        size_t wanted = c->line ? 0 : expect_bytes - c->matched;
        if (wanted) {
            size_t here = (size_t)(end - at) < wanted ? (size_t)(end - at) : wanted;
            if (memcmp(at, expect + c->matched, here)) {
                const char *newline = memchr(at, '\n', (size_t)(end - at));
                fprintf(stderr, "loadgen: a reply does not begin with %s: %.*s%.*s\n", expect, (int)c->matched, expect,
                        (int)((newline ? newline : end) - at), at);
                exit(1);
            }
            c->matched += here;
            at += here;
            continue;
        }
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline) break;
        at = newline + 1;
        if (++c->line == lines_per_reply) {
            c->line = c->matched = 0;
            replies++;
        }
    }
    return replies;
}

static void record_latency(uint64_t ns) {
    uint64_t us = ns / 1000;
    latencies[us < LATENCY_BUCKETS ? us : LATENCY_BUCKETS - 1]++;
    latency_count++;
    if (ns > latency_max_ns) latency_max_ns = ns;
}

static uint64_t percentile_us(double fraction) {
    uint64_t wanted = (uint64_t)(fraction * (double)latency_count), seen = 0;
    for (size_t us = 0; us < LATENCY_BUCKETS; us++)
        if ((seen += latencies[us]) > wanted) return us;
    return LATENCY_BUCKETS - 1;
}

int main(int argc, char **argv) {
    int port = 0, connection_count = 1, option;
    uint64_t depth = 1, count = 0;
    double seconds = 0, warmup_seconds = 0;
    const char *requests_path = NULL;
    static const struct option names[] = {
        {"port", 1, 0, 'p'},    {"requests", 1, 0, 'r'}, {"connections", 1, 0, 'c'}, {"depth", 1, 0, 'd'},  {"lines", 1, 0, 'l'},
        {"expect", 1, 0, 'e'},  {"seconds", 1, 0, 's'},  {"warmup", 1, 0, 'w'},      {"count", 1, 0, 'n'},  {0, 0, 0, 0},
    };
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'r': requests_path = optarg; break;
        case 'c': connection_count = atoi(optarg); break;
        case 'd': depth = strtoull(optarg, NULL, 10); break;
        case 'l': lines_per_reply = strtoull(optarg, NULL, 10); break;
        case 'e': expect = optarg, expect_bytes = strlen(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'w': warmup_seconds = atof(optarg); break;
        case 'n': count = strtoull(optarg, NULL, 10); break;
        default: return 2;
    }
    if (!port || !requests_path || connection_count < 1 || !depth || !lines_per_reply || (seconds > 0) == (count > 0))
        fail("usage", "needs --port, --requests and one of --seconds and --count");
    load_requests(requests_path);
    if (request_count < (size_t)connection_count) fail(requests_path, "holds fewer requests than there are connections");
    struct sigaction on_term = {.sa_handler = stop};
    sigaction(SIGTERM, &on_term, NULL);

    int epoll = epoll_create1(0);
    size_t n = (size_t)connection_count;
    struct connection *connections = calloc(n, sizeof *connections);
    for (size_t i = 0; i < n; i++) {
        struct connection *c = &connections[i];
        c->fd = connect_to(port);
        c->first = c->next = i * request_count / n;
        c->end = (i + 1) * request_count / n;
        c->position = offsets[c->first];
        c->remaining = count ? (i + 1) * count / n - i * count / n : UINT64_MAX;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
    }
    uint64_t begin_ns = now_ns(), measure_ns = begin_ns + (uint64_t)(warmup_seconds * 1e9), at_ns = begin_ns;
    uint64_t end_ns = count ? UINT64_MAX : measure_ns + (uint64_t)(seconds * 1e9), replies = 0;
    bool measuring = warmup_seconds <= 0;
    for (size_t i = 0; i < n; i++) {
        grant(&connections[i], depth, at_ns);
        flush(epoll, &connections[i]);
    }
    static char input[READ_BYTES];
    struct epoll_event events[EVENTS_PER_WAIT];
    while (!stopped && at_ns < end_ns && !(count && replies == count)) {
        int ready = epoll_wait(epoll, events, EVENTS_PER_WAIT, IDLE_LIMIT_MS);
        if (ready < 0 && errno != EINTR) fail("epoll_wait", strerror(errno));
        if (ready == 0) fail("no reply", "the server has been silent for a minute");
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            ssize_t got = recv(c->fd, input, sizeof input, MSG_DONTWAIT);
            if (got == 0) fail("recv", "the server closed the connection");
            if (got < 0 && errno != EAGAIN) fail("recv", strerror(errno));
            uint64_t done = got > 0 ? count_replies(c, input, input + got) : 0;
            at_ns = now_ns();
            if (measuring) replies += done;
            if (measuring && done && depth == 1) record_latency(at_ns - c->sent_ns);
            grant(c, done, at_ns);
            if (c->credit) flush(epoll, c);
        }
        if (!measuring && at_ns >= measure_ns) measuring = true, measure_ns = at_ns;
    }
    double took = (double)(now_ns() - measure_ns) / 1e9;
    printf("{\"requests\":%llu,\"seconds\":%.6f,\"ops_per_second\":%.1f", (unsigned long long)replies, took,
           (double)replies / took);
    if (latency_count)
        printf(",\"p50_us\":%llu,\"p99_us\":%llu,\"max_us\":%llu", (unsigned long long)percentile_us(0.5),
               (unsigned long long)percentile_us(0.99), (unsigned long long)(latency_max_ns / 1000));
    printf("}\n");
    return 0;
}
