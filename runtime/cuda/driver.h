/* What is used of the CUDA driver, as a table: driver.c fills it from libcuda.so.1, emulation.cpp with
 * functions that run on the CPU. So everything above it is the same code in both. */
#ifndef SMELT_CUDA_DRIVER_H
#define SMELT_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Names, types and numbers as in NVIDIA's cuda.h. */
enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_LAUNCH_FAILED = 719
};
enum { COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76 }; /* CUdevice_attribute */
enum { STREAM_NON_BLOCKING = 1 };
enum { CAPTURE_THREAD_LOCAL = 1 };

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

typedef struct smelt_cuda_driver {
    CUresult (*init)(unsigned flags);
    CUresult (*error_text)(CUresult error, const char **text);
    CUresult (*device_get)(CUdevice *device, int ordinal);
    CUresult (*device_name)(char *name, int size, CUdevice device);
    CUresult (*device_attribute)(int *value, int attribute, CUdevice device);
    CUresult (*context_retain)(CUcontext *context, CUdevice device);
    CUresult (*context_release)(CUdevice device);
    CUresult (*context_push)(CUcontext context);
    CUresult (*context_pop)(CUcontext *context);
    CUresult (*module_load)(CUmodule *module, const void *image);
    CUresult (*module_unload)(CUmodule module);
    CUresult (*module_function)(CUfunction *function, CUmodule module, const char *name);
    CUresult (*allocate)(CUdeviceptr *memory, size_t bytes);
    CUresult (*release)(CUdeviceptr memory);
    CUresult (*copy_in)(CUdeviceptr target, const void *source, size_t bytes, CUstream stream);
    CUresult (*copy_out)(void *target, CUdeviceptr source, size_t bytes, CUstream stream);
    CUresult (*copy)(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream);
    CUresult (*launch)(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                       CUstream stream, void **arguments, void **extra);
    CUresult (*stream_create)(CUstream *stream, unsigned flags);
    CUresult (*stream_destroy)(CUstream stream);
    CUresult (*stream_wait)(CUstream stream);
    CUresult (*capture_begin)(CUstream stream, int mode);
    CUresult (*capture_end)(CUstream stream, CUgraph *graph);
    CUresult (*graph_instantiate)(CUgraphExec *exec, CUgraph graph, unsigned long long flags);
    CUresult (*graph_launch)(CUgraphExec exec, CUstream stream);
    CUresult (*graph_exec_destroy)(CUgraphExec exec);
    CUresult (*graph_destroy)(CUgraph graph);
} smelt_cuda_driver;

/* The driver, ready for use; NULL and a sentence (256 bytes) where there is none. */
const smelt_cuda_driver *smelt_cuda_find_driver(char *error);

#ifdef __cplusplus
}
#endif

#endif
