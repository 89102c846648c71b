/* Fork-joins of the pool: every index exactly once, chunks no shorter than the grain, no two at a
 * time with one number, nested calls.
 * Arguments: threads, calls. Prints nanoseconds per call of a tiny job. */
#include "internal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_THREADS = 64 };

typedef struct {
    unsigned char *seen;
    int64_t grain;
    smelt_pool *pool;
    atomic_int short_chunks, shared_numbers;
    atomic_int busy[MOST_THREADS];
} check;

static void visit(void *raw, int64_t begin, int64_t end, int32_t worker)
{
    check *c = raw;
    if (end - begin < c->grain)
        atomic_fetch_add(&c->short_chunks, 1);
    if (worker < 0 || worker >= MOST_THREADS || atomic_fetch_add(&c->busy[worker], 1))
        atomic_fetch_add(&c->shared_numbers, 1);
    for (int64_t i = begin; i < end; i++)
        c->seen[i]++;
    atomic_fetch_sub(&c->busy[worker & (MOST_THREADS - 1)], 1);
}

static void nested(void *raw, int64_t begin, int64_t end, int32_t worker)
{
    check *c = raw;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        check inner = {c->seen + i * 10, 1, c->pool, 0, 0, {0}};
        smelt_parallel(c->pool, 10, 1, visit, &inner);
    }
}

static void nothing(void *raw, int64_t begin, int64_t end, int32_t worker)
{
    (void)raw, (void)begin, (void)end, (void)worker;
}

static void expect(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "failed: %s\n", what);
    exit(1);
}

int main(int argc, char **argv)
{
    expect(argc == 3, "two arguments");
    int threads = atoi(argv[1]), calls = atoi(argv[2]);
    smelt_pool *pool = threads > 1 ? smelt_pool_open(threads) : NULL;
    expect(threads == 1 || pool, "the pool opens");
    unsigned char *seen = malloc(100000);
    srand(1);
    for (int call = 0; call < calls; call++) {
        int64_t count = rand() % 300, grain = rand() % 20;
        check c = {seen, count < grain ? count : grain, pool, 0, 0, {0}};
        for (int64_t i = 0; i < count; i++)
            seen[i] = 0;
        smelt_parallel(pool, count, grain, visit, &c);
        for (int64_t i = 0; i < count; i++)
            expect(seen[i] == 1, "every index once");
        expect(!c.short_chunks, "chunks of at least the grain");
        expect(!c.shared_numbers, "one chunk at a time for each number");
        if (call % 100 == 99) { /* long enough for workers to fall asleep */
            struct timespec pause = {0, 300000};
            nanosleep(&pause, NULL);
        }
    }
    for (int i = 0; i < 1000; i++)
        seen[i] = 0;
    check c = {seen, 1, pool, 0, 0, {0}};
    smelt_parallel(pool, 100, 1, nested, &c);
    for (int i = 0; i < 1000; i++)
        expect(seen[i] == 1, "nested calls visit every index once");
    smelt_parallel(pool, 0, 1, visit, NULL);
    smelt_parallel(pool, -5, 1, visit, NULL);

    struct timespec start, stop;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int call = 0; call < calls; call++)
        smelt_parallel(pool, threads, 1, nothing, NULL);
    clock_gettime(CLOCK_MONOTONIC, &stop);
    double elapsed = (stop.tv_sec - start.tv_sec) * 1e9 + (stop.tv_nsec - start.tv_nsec);
    printf("%.0f\n", elapsed / calls);
    smelt_pool_close(pool);
    free(seen);
    return 0;
}
