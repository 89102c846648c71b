/* The machine's limits for a number of threads: f32 multiply-adds from registers, and a running sum
 * over arrays of growing sizes, which the caches hold or not. Prints the flop/s, then a line "bytes
 * bytes/s" for each size; bytes are those of all threads together. As a library it offers one
 * thread's multiply-adds, to be timed in turns with other work. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#ifndef LANES
#define LANES 16
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));

#define MOST_SIZES 8
#define TRIALS 60

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static pthread_barrier_t barrier;
static int threads, sizes;
static size_t size_of[MOST_SIZES];
static double peak, rate_of[MOST_SIZES];
static float sinks[1024];

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* Multiply-adds of 12 chains: 24 * LANES operations a round. */
float smelt_multiply_add(long rounds, float seed)
{
#define DECLARE(i) vec a##i = {seed + i};
    EACH(DECLARE)
    vec m = {0}, b = {0}, total = {0};
    m += 0.5f + seed, b += seed;
    for (long r = 0; r < rounds; r++) {
#define STEP(i) a##i = a##i * m + b;
        EACH(STEP)
        __asm__ volatile("" ::: "memory");
    }
#define SUM(i) total += a##i;
    EACH(SUM)
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += total[i];
    return sum;
}

static float read_all(const float *data, size_t count, long passes)
{
    vec a = {0}, b = {0}, c = {0}, d = {0};
    for (long r = 0; r < passes; r++) {
        for (size_t i = 0; i < count; i += 4 * LANES) {
            const vec *p = (const vec *)(data + i);
            a += p[0], b += p[1], c += p[2], d += p[3];
        }
        __asm__ volatile("" ::: "memory");
    }
    a += b + c + d;
    return a[0];
}

/* All threads do the same work between two barriers; the first one holds the watch. */
static void *work(void *argument)
{
    const int me = (int)(size_t)argument;
    const float seed = (float)(me + 1) * 1e-3f;
    const long rounds = 1000000;
    for (int trial = 0; trial < TRIALS; trial++) {
        pthread_barrier_wait(&barrier);
        double start = now();
        sinks[me] += smelt_multiply_add(rounds, seed);
        pthread_barrier_wait(&barrier);
        double rate = 12.0 * 2 * LANES * (double)rounds * threads / (now() - start);
        if (me == 0 && rate > peak) peak = rate;
    }
    const size_t most = size_of[sizes - 1] / (size_t)threads / (16 * LANES) * (16 * LANES);
    float *data = aligned_alloc(64, most);
    if (!data) exit(1);
    for (size_t i = 0; i < most / sizeof *data; i++) data[i] = (float)(i & 7);
    for (int k = 0; k < sizes; k++) {
        size_t bytes = size_of[k] / (size_t)threads / (16 * LANES) * (16 * LANES);
        long passes = (long)(((size_t)64 << 20) / bytes) + 1;
        for (int trial = 0; trial < 3; trial++) {
            pthread_barrier_wait(&barrier);
            double start = now();
            sinks[me] += read_all(data, bytes / sizeof *data, passes);
            pthread_barrier_wait(&barrier);
            double rate = (double)bytes * (double)passes * threads / (now() - start);
            if (me == 0 && rate > rate_of[k]) rate_of[k] = rate;
        }
    }
    free(data);
    return NULL;
}

int main(int argc, char **argv)
{
    threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > 1024) return 2;
    long shared = -1;
#ifdef _SC_LEVEL3_CACHE_SIZE
    shared = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    const size_t top = (size_t)1 << 30;
    size_t last = shared > 0 ? 4 * (size_t)shared : top;
    if (last < (size_t)256 << 20) last = (size_t)256 << 20;
    if (last > top) last = top;
#ifdef _SC_AVPHYS_PAGES
    long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0 && last > (size_t)pages / 4 * (size_t)page)
        last = (size_t)pages / 4 * (size_t)page;
    if (last < ((size_t)1 << 20) * (size_t)threads) last = ((size_t)1 << 20) * (size_t)threads;
#endif
    for (size_t bytes = ((size_t)256 << 10) * (size_t)threads; bytes < last && sizes < 5; bytes *= 4)
        size_of[sizes++] = bytes;
    size_of[sizes++] = last;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    pthread_t others[1024];
    for (int i = 1; i < threads; i++)
        if (pthread_create(&others[i], NULL, work, (void *)(size_t)i)) return 1;
    work(0);
    for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
    float total = 0;
    for (int i = 0; i < threads; i++) total += sinks[i];
    if (total == 1234567.0f) puts("");
    printf("%.6g\n", peak);
    for (int k = 0; k < sizes; k++) printf("%zu %.6g\n", size_of[k], rate_of[k]);
    return 0;
}
