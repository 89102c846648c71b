/* A CUDA driver that computes nothing, to see what is said when one fails. The environment variable
 * STUB_FAILS, such as cuMemAlloc_v2=2, names a function and the number that it returns. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int result(const char *name)
{
    const char *text = getenv("STUB_FAILS");
    size_t length = strlen(name);
    return text && !strncmp(text, name, length) && text[length] == '=' ? atoi(text + length + 1)
                                                                       : 0;
}

#define SUCCEEDS(name, ...) int name(__VA_ARGS__) { return result(#name); }

SUCCEEDS(cuInit, unsigned flags)
SUCCEEDS(cuDevicePrimaryCtxRelease_v2, int device)
SUCCEEDS(cuCtxPushCurrent_v2, void *context)
SUCCEEDS(cuModuleUnload, void *module)
SUCCEEDS(cuStreamDestroy_v2, void *stream)
SUCCEEDS(cuStreamSynchronize, void *stream)
SUCCEEDS(cuStreamBeginCapture_v2, void *stream, int mode)
SUCCEEDS(cuGraphDestroy, void *graph)
SUCCEEDS(cuGraphExecDestroy, void *exec)
SUCCEEDS(cuGraphLaunch, void *exec, void *stream)

static int give(const char *name, void **what)
{
    static int something;
    *what = &something;
    return result(name);
}

int cuDevicePrimaryCtxRetain(void **context, int device) { return give(__func__, context); }
int cuCtxPopCurrent_v2(void **context) { return give(__func__, context); }
int cuModuleLoadData(void **module, const void *image)
{
    /* STUB_LOADS=1: the first image is for other hardware */
    static int loads;
    int first = getenv("STUB_LOADS") && !loads++;
    return first ? 209 : give(__func__, module);
}

int cuModuleGetFunction(void **f, void *module, const char *name) { return give(__func__, f); }
int cuStreamEndCapture(void *stream, void **graph) { return give(__func__, graph); }
int cuStreamCreate(void **stream, unsigned flags) { return give(__func__, stream); }

int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags)
{
    return give(__func__, exec);
}

int cuGetErrorString(int error, const char **text)
{
    static char words[32];
    snprintf(words, sizeof words, "error %d", error);
    *text = words;
    return 0;
}

int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return result(__func__);
}

int cuDeviceGetName(char *name, int size, int device)
{
    snprintf(name, (size_t)size, "Stub 1000");
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    *value = attribute == 75 ? 8 : 6;
    return 0;
}

int cuMemAlloc_v2(uint64_t *memory, size_t bytes)
{
    *memory = (uint64_t)(uintptr_t)calloc(1, bytes);
    return result(__func__);
}

int cuMemFree_v2(uint64_t memory)
{
    free((void *)(uintptr_t)memory);
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t bytes, void *stream)
{
    memcpy((void *)(uintptr_t)target, source, bytes);
    return result(__func__);
}

int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t bytes, void *stream)
{
    memcpy(target, (const void *)(uintptr_t)source, bytes);
    return result(__func__);
}

int cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t bytes, void *stream)
{
    memcpy((void *)(uintptr_t)target, (const void *)(uintptr_t)source, bytes);
    return result(__func__);
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra)
{
    return result(__func__);
}
