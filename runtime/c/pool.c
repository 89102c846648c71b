/* A fork-join pool of threads.
 *
 * The caller publishes a job, works on it too, closes it and waits for the workers that joined. A
 * worker that wakes up too late finds the job closed and never delays anyone. Chunks are claimed by
 * an atomic counter; which thread runs a chunk does not matter to its result. */
#include "internal.h"

#include <stdlib.h>

#ifdef SMELT_NO_THREADS

int32_t smelt_cpu_count(void)
{
    return 1;
}

smelt_pool *smelt_pool_open(int32_t threads)
{
    (void)threads;
    return NULL;
}

void smelt_pool_close(smelt_pool *pool)
{
    (void)pool;
}

int smelt_pool_is_stale(const smelt_pool *pool)
{
    (void)pool;
    return 0;
}

void smelt_pool_run(smelt_pool *pool, int begins)
{
    (void)pool, (void)begins;
}

void smelt_parallel(smelt_pool *pool, int64_t count, int64_t grain, smelt_task fn, void *args)
{
    (void)pool, (void)grain;
    if (count > 0)
        fn(args, 0, count, 0);
}

#else

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    CHUNKS_PER_THREAD = 4,      /* evens out unequal threads */
    /* How long a worker spins before it sleeps: waking it costs some 50 us in a virtual machine,
     * most of it the caller's. Within a run the next job is never far. */
    SPIN_BETWEEN_RUNS = 50000,  /* ns */
    SPIN_IN_RUN = 1000000,      /* ns */
    SPINS_PER_CLOCK = 32,
    SPINS_BEFORE_YIELD = 2000,
    FAN_OUT = 2,                /* sleepers that one thread wakes; those wake the next */
    STACK_BYTES = 2 << 20       /* musl's default of 128 KiB is little for kernels' local arrays */
};

static const uint32_t OPEN = UINT32_C(1) << 31;

/* The floating-point environment (rounding, flushing of denormals) of the thread that runs the
 * model holds for its workers too. */
#if defined(__SSE2__)
#include <xmmintrin.h>
typedef unsigned float_mode;
static float_mode get_float_mode(void)
{
    return _mm_getcsr();
}
static void set_float_mode(float_mode mode)
{
    if (_mm_getcsr() != mode)
        _mm_setcsr(mode);
}
#else
#include <fenv.h>
typedef fenv_t float_mode;
static float_mode get_float_mode(void)
{
    fenv_t mode;
    fegetenv(&mode);
    return mode;
}
static void set_float_mode(float_mode mode)
{
    fesetenv(&mode);
}
#endif

typedef struct {
    smelt_task fn;
    void *args;
    int64_t count;
    int32_t chunks;
    float_mode mode;
} job;

struct smelt_pool {
    /* Written by the caller while no job is open. */
    _Alignas(64) job job;
    int running; /* a job is open, so that a call from within a task runs it serially */
    _Alignas(64) atomic_int next; /* chunk to claim */
    /* OPEN while workers may join, plus the number of workers in the job. */
    _Alignas(64) atomic_uint state;
    /* Counts jobs; workers wait for it to change. */
    _Alignas(64) atomic_uint calls;
    atomic_int sleepers, stop, started;
    atomic_int in_run;
#ifndef __linux__
    pthread_mutex_t mutex;
    pthread_cond_t changed;
#endif
    _Alignas(64) int32_t workers;
    int spins;
    unsigned generation;
    pthread_t threads[];
};

static void relax(void)
{
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int32_t smelt_cpu_count(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set))
        return CPU_COUNT(&set);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 && online < INT_MAX ? (int32_t)online : 1;
}

/* ---- sleeping until `calls` is no longer `seen` ---------------------------------------------- */

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>

static void sleep_while(smelt_pool *pool, unsigned seen)
{
    syscall(SYS_futex, &pool->calls, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void wake(smelt_pool *pool, int threads)
{
    syscall(SYS_futex, &pool->calls, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}
#else
static void sleep_while(smelt_pool *pool, unsigned seen)
{
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(&pool->calls) == seen)
        pthread_cond_wait(&pool->changed, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void wake(smelt_pool *pool, int threads)
{
    (void)threads;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->mutex);
}
#endif

/* The counter changes before sleepers are looked at, and a worker counts itself a sleeper before it
 * looks at the counter: one of the two sees the other. */
static void announce(smelt_pool *pool, int threads)
{
    atomic_fetch_add(&pool->calls, 1);
    if (atomic_load(&pool->sleepers) > 0)
        wake(pool, threads);
}

/* Whether the call came before it was time to sleep. */
static int spin_for_call(smelt_pool *pool, unsigned seen)
{
    int64_t start = 0;
    for (unsigned spins = 1; pool->spins; spins++) {
        if (atomic_load_explicit(&pool->calls, memory_order_acquire) != seen)
            return 1;
        relax();
        if (spins % SPINS_PER_CLOCK)
            continue;
        int64_t time = now();
        if (!start)
            start = time;
        int in_run = atomic_load_explicit(&pool->in_run, memory_order_relaxed);
        if (time - start >= (in_run ? SPIN_IN_RUN : SPIN_BETWEEN_RUNS))
            break;
    }
    return 0;
}

static void wait_for_call(smelt_pool *pool, unsigned seen)
{
    if (spin_for_call(pool, seen))
        return;
    int slept = 0;
    atomic_fetch_add(&pool->sleepers, 1);
    if (atomic_load(&pool->calls) == seen) {
        sleep_while(pool, seen);
        slept = 1;
    }
    int others = atomic_fetch_sub(&pool->sleepers, 1) - 1;
    if (slept && others > 0)
        wake(pool, FAN_OUT);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

static void run_chunks(smelt_pool *pool, int32_t worker)
{
    const job *job = &pool->job;
    int64_t base = job->count / job->chunks, extra = job->count % job->chunks;
    for (;;) {
        int32_t chunk = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (chunk >= job->chunks)
            return;
        int64_t begin = chunk * base + (chunk < extra ? chunk : extra);
        job->fn(job->args, begin, begin + base + (chunk < extra), worker);
    }
}

static void join_job(smelt_pool *pool, int32_t worker)
{
    unsigned state = atomic_load_explicit(&pool->state, memory_order_relaxed);
    while (state & OPEN) {
        if (!atomic_compare_exchange_weak_explicit(&pool->state, &state, state + 1,
                                                   memory_order_acquire, memory_order_relaxed))
            continue;
        set_float_mode(pool->job.mode);
        run_chunks(pool, worker);
        atomic_fetch_sub_explicit(&pool->state, 1, memory_order_release);
        return;
    }
}

static void *work(void *argument)
{
    smelt_pool *pool = argument;
    const int32_t worker = 1 + atomic_fetch_add(&pool->started, 1);
    unsigned seen = 0;
    while (!atomic_load_explicit(&pool->stop, memory_order_acquire)) {
        unsigned calls = atomic_load_explicit(&pool->calls, memory_order_acquire);
        if (calls == seen) {
            wait_for_call(pool, seen);
            continue;
        }
        seen = calls;
        join_job(pool, worker);
    }
    return NULL;
}

void smelt_pool_run(smelt_pool *pool, int begins)
{
    if (pool)
        atomic_store_explicit(&pool->in_run, begins, memory_order_relaxed);
}

void smelt_parallel(smelt_pool *pool, int64_t count, int64_t grain, smelt_task fn, void *args)
{
    if (count <= 0)
        return;
    int64_t chunks = pool ? count / (grain > 0 ? grain : 1) : 1;
    if (chunks <= 1 || pool->running) {
        fn(args, 0, count, 0);
        return;
    }
    int64_t most = (int64_t)(pool->workers + 1) * CHUNKS_PER_THREAD;
    if (chunks > most)
        chunks = most;
    pool->running = 1;
    pool->job = (job){fn, args, count, (int32_t)chunks, get_float_mode()};
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->state, OPEN, memory_order_release);
    announce(pool, chunks - 1 < FAN_OUT ? (int)chunks - 1 : FAN_OUT);
    run_chunks(pool, 0);
    atomic_fetch_and_explicit(&pool->state, ~OPEN, memory_order_relaxed);
    for (int spins = 0; atomic_load_explicit(&pool->state, memory_order_acquire); spins++) {
        if (spins < SPINS_BEFORE_YIELD)
            relax();
        else
            sched_yield();
    }
    pool->running = 0;
}

/* ---- opening and closing --------------------------------------------------------------------- */

static atomic_uint generation;

static void forked(void)
{
    atomic_fetch_add(&generation, 1);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, forked);
}

int smelt_pool_is_stale(const smelt_pool *pool)
{
    return pool->generation != atomic_load_explicit(&generation, memory_order_relaxed);
}

static int start_worker(smelt_pool *pool, const pthread_attr_t *attributes)
{
    if (pthread_create(&pool->threads[pool->workers], attributes, work, pool))
        return -1;
    pool->workers++;
    return 0;
}

smelt_pool *smelt_pool_open(int32_t threads)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    smelt_block block = {0};
    if (smelt_block_reserve(&block, (int64_t)sizeof(smelt_pool) +
                                        (int64_t)threads * (int64_t)sizeof(pthread_t)))
        return NULL;
    smelt_pool *pool = block.data;
    memset(pool, 0, sizeof *pool);
    atomic_init(&pool->next, 0);
    atomic_init(&pool->state, 0);
    atomic_init(&pool->calls, 0);
    atomic_init(&pool->sleepers, 0);
    atomic_init(&pool->stop, 0);
    atomic_init(&pool->started, 0);
    atomic_init(&pool->in_run, 0);
    pool->generation = atomic_load(&generation);
    /* Spinning takes the CPU from a thread that has work when there are more threads than CPUs. */
    pool->spins = threads <= smelt_cpu_count();
#ifndef __linux__
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->changed, NULL);
#endif
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    /* The application's signals are for the application's threads. */
    sigset_t all, previous;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous);
    int failed = 0;
    while (pool->workers < threads - 1 && !failed)
        failed = start_worker(pool, &attributes);
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    pthread_attr_destroy(&attributes);
    if (failed) {
        smelt_pool_close(pool);
        return NULL;
    }
    return pool;
}

void smelt_pool_close(smelt_pool *pool)
{
    if (!pool)
        return;
    if (!smelt_pool_is_stale(pool)) {
        atomic_store_explicit(&pool->stop, 1, memory_order_release);
        announce(pool, INT_MAX);
        for (int32_t i = 0; i < pool->workers; i++)
            pthread_join(pool->threads[i], NULL);
#ifndef __linux__
        pthread_cond_destroy(&pool->changed);
        pthread_mutex_destroy(&pool->mutex);
#endif
    }
    free(pool);
}

#endif
