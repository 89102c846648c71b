/* What generated host code calls to run a program's kernels on a CUDA device. */
#ifndef SMELT_CUDA_DEVICE_H
#define SMELT_CUDA_DEVICE_H

#include "program.h"

typedef struct smelt_cuda_kernel {
    const char *name;
    uint32_t threads[3];  /* of a block, along x, y and z */
} smelt_cuda_kernel;

/* A program's `device_code`: `images` are what cuModuleLoadData takes, of which the first that the
 * device runs is used. */
typedef struct smelt_cuda_code {
    const void *const *images;
    int32_t image_count;
    const char *architectures;  /* "sm_80", "sm_90a+sm_80", or "emulated" */
    int32_t kernel_count;
    const smelt_cuda_kernel *kernels;
} smelt_cuda_code;

/* Addresses on the device during a run. */
typedef struct smelt_cuda_memory {
    uint64_t weights, arena;
    const uint64_t *inputs;
    const uint64_t *outputs;  /* of those whose size is known before the run */
    const uint64_t *slots;    /* of tensors whose size depends on data */
} smelt_cuda_memory;

/* The launches and copies of a run. */
typedef int (*smelt_cuda_steps)(smelt_frame *frame, const smelt_cuda_memory *memory);

extern const smelt_device smelt_cuda_device;

/* All of these return SMELT_OK, or an error code after writing a sentence to frame->error. */

/* Begins a run: memory for everything, and inputs on their way to the device. `inputs` and `outputs`
 * are bytes; -1 for an output whose size depends on data. smelt_cuda_end() is due in any case. */
int smelt_cuda_begin(smelt_frame *frame, const int64_t *inputs, const int64_t *outputs,
                     const smelt_cuda_memory **memory);

/* Does the steps of a run, which must be the same in every run with these sizes: the first of them
 * one by one, the second while a CUDA graph is captured, those after it as that graph, which spares
 * the host most of a launch's work. Other sizes, or memory that had to grow, begin anew. */
int smelt_cuda_replay(smelt_frame *frame, smelt_cuda_steps steps);

/* Waits for the device and ends the run, of which `code` tells how it went so far. */
int smelt_cuda_end(smelt_frame *frame, int code);

/* Starts a kernel of the table over a grid of blocks; nothing when an axis has none. `arguments` are
 * addresses of the values of its parameters. */
int smelt_cuda_launch(smelt_frame *frame, int32_t kernel, int64_t grid_x, int64_t grid_y,
                      int64_t grid_z, void **arguments);

/* Memory for a tensor whose size depends on data, as smelt_dynamic() but on the device. */
int smelt_cuda_dynamic(smelt_frame *frame, int32_t slot, int64_t bytes);

int smelt_cuda_copy(smelt_frame *frame, uint64_t target, uint64_t source, int64_t bytes);

/* Waits for the device, then copies from it. */
int smelt_cuda_read(smelt_frame *frame, void *target, uint64_t source, int64_t bytes);
int smelt_cuda_write(smelt_frame *frame, uint64_t target, const void *source, int64_t bytes);

/* Copies output `index` to the caller; the memory is smelt_dynamic()'s when `slot` is not -1. */
int smelt_cuda_output(smelt_frame *frame, int32_t index, int32_t slot, uint64_t source,
                      int64_t bytes);

#endif
