/* What the files of the runtime share with one another. */
#ifndef SMELT_INTERNAL_H
#define SMELT_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* under -std=c11: mmap, syscall, sched_getaffinity */
#endif

#include <stddef.h>

#include "smelt.h"

/* What threads share: how many use a model, and whether a session runs. A runtime without threads
 * is called by one at a time, and then these are plain numbers. */
#ifdef SMELT_NO_THREADS
#define SMELT_THREAD_LOCAL
typedef int smelt_count;
typedef int smelt_flag;

static inline void smelt_count_up(smelt_count *count)
{
    ++*count;
}

static inline int smelt_count_down(smelt_count *count)
{
    return --*count;
}

static inline int smelt_flag_raise(smelt_flag *flag)
{
    int before = *flag;
    *flag = 1;
    return before;
}

static inline void smelt_flag_lower(smelt_flag *flag)
{
    *flag = 0;
}
#else
#include <stdatomic.h>

#define SMELT_THREAD_LOCAL _Thread_local
typedef atomic_int smelt_count;
typedef atomic_int smelt_flag;

static inline void smelt_count_up(smelt_count *count)
{
    atomic_fetch_add_explicit(count, 1, memory_order_relaxed);
}

/* How many are left. */
static inline int smelt_count_down(smelt_count *count)
{
    return atomic_fetch_sub_explicit(count, 1, memory_order_acq_rel) - 1;
}

/* What it was before. */
static inline int smelt_flag_raise(smelt_flag *flag)
{
    return atomic_exchange_explicit(flag, 1, memory_order_acquire);
}

static inline void smelt_flag_lower(smelt_flag *flag)
{
    atomic_store_explicit(flag, 0, memory_order_release);
}
#endif

enum { SMELT_ALIGNMENT = 64, SMELT_ERROR_BYTES = 256 };

/* Keeps the sentence for smelt_error() and returns `code`. */
int smelt_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Memory that is kept and grown, aligned to SMELT_ALIGNMENT. */
typedef struct smelt_block {
    void *data;
    int64_t capacity;
} smelt_block;

/* Makes room for `bytes` (at least 1, so that data is never NULL); the contents are lost if it has
 * to grow. Returns 0, or -1 without memory or for a negative number; the block is then empty. */
int smelt_block_reserve(smelt_block *block, int64_t bytes);

/* The same, but keeps the contents, also after a failure. */
int smelt_block_grow(smelt_block *block, int64_t bytes);
void smelt_block_free(smelt_block *block);

/* Bytes of a tensor; -1 when a dimension is negative or the product overflows. */
int64_t smelt_tensor_bytes(int32_t dtype, int32_t rank, const int64_t *shape);

/* Whether `text` is a whole number, which goes to `value`; else 0 does. */
int smelt_is_number(const char *text, int64_t *value);

/* The first bytes of a file, mapped where the system can, else read. */
typedef struct smelt_mapping {
    const unsigned char *data;
    int64_t bytes;
    int mapped;
} smelt_mapping;

/* Opens a file that must have at least `bytes` bytes: variants of a model share one file. */
int smelt_mapping_open(smelt_mapping *mapping, const char *path, int64_t bytes);
void smelt_mapping_close(smelt_mapping *mapping);

struct smelt_model {
    const smelt_program *program;
    const unsigned char *weights;
    smelt_mapping mapping;
    void *device;      /* what the program's device keeps for the model */
    smelt_count users; /* the caller and every session */
};

void smelt_model_retain(smelt_model *model);

/* CPUs open to this process, at least 1. */
int32_t smelt_cpu_count(void);

/* A pool of threads - 1 workers; NULL when they cannot be made. */
smelt_pool *smelt_pool_open(int32_t threads);
void smelt_pool_close(smelt_pool *pool);

/* A run begins (1) or ends (0): workers that wait spin longer in between. NULL is ignored. */
void smelt_pool_run(smelt_pool *pool, int begins);

/* Whether the pool was made before a fork() of this process, so that its workers are gone. Closing
 * such a pool only gives its memory up. */
int smelt_pool_is_stale(const smelt_pool *pool);

/* An output fed to an input. Two buffers: a run reads one and writes the other. */
typedef struct smelt_link {
    int32_t output, input;
    int started;           /* buffers[current] and shape hold the value */
    int current;
    smelt_block buffers[2];
    int64_t *shape;        /* rank entries */
    int64_t *initial_shape; /* NULL: derived from the signature */
    void *initial_data;    /* NULL: zeros */
} smelt_link;

struct smelt_session {
    smelt_model *model;
    const smelt_program *program;
    smelt_flag running;
    int32_t threads;
    smelt_pool *pool; /* NULL for one thread */
    void *device;     /* what the program's device keeps for the session */

    int planned; /* dims, offsets, arena and shapes belong together */
    int64_t *dims, *candidate; /* candidate: what bind() says of the inputs at hand */
    int64_t *offsets;
    int64_t arena_bytes;
    smelt_block arena, scratch;

    smelt_tensor *inputs;
    const void **input_data;
    smelt_block *input_copies;

    int reshaped; /* since the last run that succeeded */
    int64_t *shapes; /* of all outputs, one after another */
    int64_t **output_shapes;
    void **output_data;
    int *callers;    /* by output: the caller's entry has its own memory */
    void **reported; /* by output: session memory that the last run handed out */
    smelt_block *output_blocks;
    smelt_block *slots;

    int32_t link_count;
    smelt_link *links; /* room for one per input */
    int32_t *link_of_input, *link_of_output; /* -1: none */

    char error[SMELT_ERROR_BYTES];
};

/* Points `tensor` at the state's value for a run with these inputs, or at its start. */
int smelt_link_read(smelt_session *session, smelt_link *link, const smelt_tensor *inputs,
                    smelt_tensor *tensor);

/* Brings what the run wrote for the linked output to the buffer that the state does not read; then
 * smelt_link_commit() makes it the state's value. */
int smelt_link_stage(smelt_session *session, smelt_link *link);
void smelt_link_commit(smelt_session *session, smelt_link *link);
void smelt_link_free(smelt_link *link);

#endif
