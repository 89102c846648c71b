/* The machine's limits for one thread: f32 multiply-adds per second from registers, and bytes per
 * second of a running sum over an array larger than the caches. Prints "flops bandwidth". */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifndef LANES
#define LANES 16
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

static double flops(float seed)
{
    const long rounds = 4000000;
#define DECLARE(i) vec a##i = {seed + i};
    EACH(DECLARE)
    vec m = {0}, b = {0};
    m += 0.5f + seed, b += seed;
    double best = 0;
    for (int trial = 0; trial < 7; trial++) {
        double start = now();
        for (long r = 0; r < rounds; r++) {
#define STEP(i) a##i = a##i * m + b;
            EACH(STEP)
            __asm__ volatile("" ::: "memory");
        }
        double rate = 12.0 * 2 * LANES * (double)rounds / (now() - start);
        best = rate > best ? rate : best;
    }
    vec total = {0};
#define SUM(i) total += a##i;
    EACH(SUM)
    float sink = 0;
    for (int i = 0; i < LANES; i++) sink += total[i];
    if (sink == 1234567.0f) puts("");
    return best;
}

static double bandwidth(void)
{
    const size_t count = (size_t)1 << 28; /* floats: 1 GiB */
    float *data = aligned_alloc(64, count * sizeof *data);
    if (!data) return 0;
    for (size_t i = 0; i < count; i++) data[i] = (float)(i & 7);
    double best = 0;
    volatile float sink;
    for (int trial = 0; trial < 3; trial++) {
        vec a = {0}, b = {0}, c = {0}, d = {0};
        double start = now();
        for (size_t i = 0; i < count; i += 4 * LANES) {
            const vec *p = (const vec *)(data + i);
            a += p[0], b += p[1], c += p[2], d += p[3];
        }
        double rate = (double)(count * sizeof *data) / (now() - start);
        best = rate > best ? rate : best;
        a += b + c + d;
        sink = a[0];
        (void)sink;
    }
    free(data);
    return best;
}

int main(int argc, char **argv)
{
    (void)argv;
    printf("%.6g %.6g\n", flops((float)argc * 1e-3f), bandwidth());
    return 0;
}
