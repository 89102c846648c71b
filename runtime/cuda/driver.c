/* The CUDA driver, loaded when the first model is opened, so that a program starts without it. */
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static smelt_cuda_driver driver;
static char failure[256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const struct {
    void *entry;
    const char *name;
} functions[] = {
    {&driver.init, "cuInit"},
    {&driver.error_text, "cuGetErrorString"},
    {&driver.device_get, "cuDeviceGet"},
    {&driver.device_name, "cuDeviceGetName"},
    {&driver.device_attribute, "cuDeviceGetAttribute"},
    {&driver.context_retain, "cuDevicePrimaryCtxRetain"},
    {&driver.context_release, "cuDevicePrimaryCtxRelease_v2"},
    {&driver.context_push, "cuCtxPushCurrent_v2"},
    {&driver.context_pop, "cuCtxPopCurrent_v2"},
    {&driver.module_load, "cuModuleLoadData"},
    {&driver.module_unload, "cuModuleUnload"},
    {&driver.module_function, "cuModuleGetFunction"},
    {&driver.allocate, "cuMemAlloc_v2"},
    {&driver.release, "cuMemFree_v2"},
    {&driver.copy_in, "cuMemcpyHtoDAsync_v2"},
    {&driver.copy_out, "cuMemcpyDtoHAsync_v2"},
    {&driver.copy, "cuMemcpyDtoDAsync_v2"},
    {&driver.launch, "cuLaunchKernel"},
    {&driver.stream_create, "cuStreamCreate"},
    {&driver.stream_destroy, "cuStreamDestroy_v2"},
    {&driver.stream_wait, "cuStreamSynchronize"},
    {&driver.capture_begin, "cuStreamBeginCapture_v2"},
    {&driver.capture_end, "cuStreamEndCapture"},
    {&driver.graph_instantiate, "cuGraphInstantiateWithFlags"},
    {&driver.graph_launch, "cuGraphLaunch"},
    {&driver.graph_exec_destroy, "cuGraphExecDestroy"},
    {&driver.graph_destroy, "cuGraphDestroy"},
};

static void load(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(failure, sizeof failure,
                 "No NVIDIA driver was found (%.120s): install one, or compile the model for "
                 "cuda:emulated or cpu.", dlerror());
        return;
    }
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *found = dlsym(library, functions[i].name);
        if (!found) {
            snprintf(failure, sizeof failure,
                     "The NVIDIA driver is too old: it has no %s; install a newer one.",
                     functions[i].name);
            return;
        }
        *(void **)functions[i].entry = found;
    }
    CUresult result = driver.init(0);
    if (result) {
        const char *text = NULL;
        driver.error_text(result, &text);
        snprintf(failure, sizeof failure, "The NVIDIA driver does not start: %.160s.",
                 text ? text : "an unknown error");
    }
}

const smelt_cuda_driver *smelt_cuda_find_driver(char *error)
{
    pthread_once(&once, load);
    if (!failure[0])
        return &driver;
    snprintf(error, sizeof failure, "%s", failure);
    return NULL;
}
