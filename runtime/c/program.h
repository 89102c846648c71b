/* What generated code and the runtime share. Generated code includes this file and nothing else of
 * the runtime; the public interface for users is smelt.h. */
#ifndef SMELT_PROGRAM_H
#define SMELT_PROGRAM_H

#include <stdint.h>

#define SMELT_PROGRAM_ABI 3

enum {
    SMELT_OK = 0,
    SMELT_BAD_ARGUMENT = 1,   /* a caller's shape, dtype or name is wrong */
    SMELT_OUT_OF_MEMORY = 2,
    SMELT_BAD_ARTIFACT = 3,
    SMELT_UNSUPPORTED_CPU = 4,
    SMELT_DATA_ERROR = 5,     /* the data asks for the impossible, such as a negative size */
    SMELT_DEVICE_ERROR = 6    /* a device or its driver is missing, too old, or failed */
};

/* Element types, numbered as in runtime/abi.py. */
typedef struct smelt_tensor {
    void *data;            /* row-major, aligned to the element; outputs: NULL asks the session to own it */
    const int64_t *shape;  /* rank entries; NULL for rank 0 */
    int32_t dtype;
    int32_t rank;
} smelt_tensor;

typedef struct smelt_tensor_info {
    const char *name;          /* UTF-8, as in the model */
    int32_t dtype;
    int32_t rank;
    const char *const *dims;   /* rank texts: a number or an expression of named sizes */
} smelt_tensor_info;

typedef struct smelt_pool smelt_pool;
typedef struct smelt_frame smelt_frame;

/* Runs fn over [0, count) in chunks of at least `grain`; returns when all are done. Chunks go to the
 * pool's threads; with a NULL pool the caller runs fn(args, 0, count, 0). `worker` numbers the
 * threads of the pool from 0 (the caller): no two chunks run at a time with the same number. */
typedef void (*smelt_task)(void *args, int64_t begin, int64_t end, int32_t worker);
void smelt_parallel(smelt_pool *pool, int64_t count, int64_t grain, smelt_task fn, void *args);

/* Features of this CPU, any of the bits below; 0 where there is nothing to tell apart. */
uint32_t smelt_cpu_features(void);
enum {
    SMELT_CPU_X86_64_V2 = 1, /* the levels of the x86-64 psABI */
    SMELT_CPU_X86_64_V3 = 2,
    SMELT_CPU_X86_64_V4 = 4,
    SMELT_CPU_AVX_VNNI = 8,
    SMELT_CPU_AVX512_VNNI = 16,
    SMELT_CPU_AVX512_BF16 = 32
};

/* Asks the system, once for the process, to let it use the tile registers of AMX with bf16 products
 * (Linux keeps them from programs that do not ask); 1 when it may, 0 when not, or without them. */
int smelt_allow_tiles(void);

/* What one run sees. `dims` holds the sizes that inputs bind, then those that data binds. */
struct smelt_frame {
    const unsigned char *weights;
    unsigned char *arena;        /* NULL for programs of a device, which has its own */
    int64_t arena_bytes;
    unsigned char *scratch;      /* scratch_bytes for each worker, 64-byte aligned */
    const int64_t *offsets;      /* byte offsets of temporaries, from plan() */
    int64_t *dims;
    const void *const *inputs;
    void **outputs;              /* NULL entries are dynamic outputs, set by run() */
    smelt_pool *pool;
    void *session;               /* for smelt_dynamic */
    void *device;                /* what the program's device keeps for the session */
    char *error;                 /* 256 bytes for a sentence when run() fails */
};

/* Memory for a tensor whose size depends on data: slot `slot` of the session, kept and grown from
 * run to run, 64-byte aligned. Growing within a run moves the contents along. NULL, and a sentence,
 * when there is none. */
void *smelt_dynamic(smelt_frame *frame, int32_t slot, int64_t bytes);

/* Best-fit offsets for `count` temporaries alive from step first[i] to last[i] inclusive; returns
 * the arena's size, negative when a size is negative or memory is short (then plan() returns a
 * negative number too). Offsets are multiples of 64. Same algorithm as passes/plan.py. */
int64_t smelt_plan_arena(int32_t count, const int64_t *bytes, const int32_t *first,
                         const int32_t *last, int64_t *offsets);

/* What runs a program's kernels in the place of this CPU. It keeps something for each model and for
 * each session. Functions that fail return an error code and write a sentence (256 bytes). */
struct smelt_program;
typedef struct smelt_device {
    int (*open_model)(const struct smelt_program *program, const unsigned char *weights,
                      void **model, char *error);
    void (*close_model)(void *model);
    int (*open_session)(void *model, void **session, char *error);
    void (*close_session)(void *session);
    const char *(*name)(const void *model);  /* of the hardware */
} smelt_device;

typedef struct smelt_program {
    uint32_t abi;                /* SMELT_PROGRAM_ABI */
    const char *name;
    const char *isa;             /* "x86-64-v4", "native", "aarch64", ... */
    int (*supported)(void);      /* whether this CPU runs the code; NULL: always */
    int32_t inputs, outputs;
    const smelt_tensor_info *input_info, *output_info;
    int32_t bound_dims;          /* sizes bound by input shapes */
    int32_t all_dims;            /* and by data, in dims order */
    const char *const *dim_names;
    int32_t temporaries;         /* length of offsets */
    int32_t dynamic_slots;
    int64_t weight_bytes;
    /* Checks input shapes and dtypes and fills dims[0..bound_dims); on failure writes a sentence
     * (256 bytes) and returns SMELT_BAD_ARGUMENT. */
    int (*bind)(const smelt_tensor *inputs, int64_t *dims, char *error);
    /* Fills offsets; returns the arena's bytes. */
    int64_t (*plan)(const int64_t *dims, int64_t *offsets);
    /* Shapes of all outputs one after another; sizes that data binds must be set (after run). Before
     * a run they read as -1 and the entry is -1. */
    void (*output_shapes)(const int64_t *dims, int64_t *shapes);
    int (*run)(smelt_frame *frame);
    int64_t scratch_bytes;       /* working memory of one thread, a multiple of 64 */
    const smelt_device *device;  /* NULL: this CPU */
    const void *device_code;     /* what the device runs */
} smelt_program;

/* The variants of the linked-in model, best first, then NULL: defined by the generated host file.
 * The first that this CPU supports is used. */
extern const smelt_program *const smelt_programs[];

#endif
