/* Models and sessions on a CUDA device: memory, copies and launches through the driver's table. */
#include "device.h"

#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ERROR_BYTES = 256, NAME_BYTES = 128, GRID_YZ = 65535 };

typedef struct model {
    const smelt_cuda_driver *driver;
    const smelt_program *program;
    const smelt_cuda_code *code;
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction *functions;
    CUdeviceptr weights;
    char name[NAME_BYTES];
} model;

typedef struct block {
    CUdeviceptr data;
    int64_t capacity;
} block;

typedef struct session {
    model *model;
    CUstream stream;
    block arena, *inputs, *outputs, *slots;
    uint64_t *input_data, *output_data, *slot_data;
    smelt_cuda_memory memory;
    int entered; /* the context is current */
    CUgraphExec graph; /* of the steps, for `graph_dims` and the memory as it is */
    int64_t *graph_dims;
    int repeated; /* whether the last run had these sizes and this memory */
} session;

static const char *text_of(const model *m, CUresult result)
{
    const char *text = NULL;
    m->driver->error_text(result, &text);
    return text ? text : "an unknown error";
}

/* A sentence about what a driver function said. */
static int failed(const model *m, char *error, CUresult result, const char *what)
{
    if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        snprintf(error, ERROR_BYTES, "%.100s has no memory left for this model while %.60s.", m->name,
                 what);
        return SMELT_OUT_OF_MEMORY;
    }
    snprintf(error, ERROR_BYTES, "%.80s failed while %.40s: %.110s.", m->name, what,
             text_of(m, result));
    return SMELT_DEVICE_ERROR;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Makes room for `bytes`; with `keep` the contents move along. */
static CUresult reserve(session *s, block *b, int64_t bytes, int keep)
{
    const smelt_cuda_driver *driver = s->model->driver;
    if (b->data && bytes <= b->capacity)
        return CUDA_SUCCESS;
    /* What grows once grows on, as caches do. */
    int64_t wanted = b->capacity + b->capacity / 2 > bytes ? b->capacity + b->capacity / 2 : bytes;
    CUdeviceptr fresh = 0;
    CUresult result = CUDA_SUCCESS;
    s->repeated = 0;
    /* Work under way may use the old memory. */
    if (b->data)
        result = driver->stream_wait(s->stream);
    if (!result && b->data && !keep) {
        driver->release(b->data);
        *b = (block){0, 0};
    }
    if (!result)
        result = driver->allocate(&fresh, wanted > 0 ? (size_t)wanted : 1);
    if (result == CUDA_ERROR_OUT_OF_MEMORY && wanted > bytes) {
        wanted = bytes;
        result = driver->allocate(&fresh, wanted > 0 ? (size_t)wanted : 1);
    }
    if (result)
        return result;
    if (b->data) {
        result = driver->copy(fresh, b->data, (size_t)b->capacity, s->stream);
        if (!result)
            result = driver->stream_wait(s->stream);
        driver->release(b->data);
    }
    *b = (block){fresh, wanted};
    return result;
}

static void release(const model *m, block *blocks, int32_t count)
{
    for (int32_t i = 0; blocks && i < count; i++)
        if (blocks[i].data)
            m->driver->release(blocks[i].data);
}

/* ---- models ---------------------------------------------------------------------------------- */

static void close_model(void *state)
{
    model *m = state;
    if (m->context && !m->driver->context_push(m->context)) {
        CUcontext popped;
        if (m->weights)
            m->driver->release(m->weights);
        if (m->module)
            m->driver->module_unload(m->module);
        m->driver->context_pop(&popped);
    }
    if (m->context)
        m->driver->context_release(m->device);
    free(m->functions);
    free(m);
}

static int load_code(model *m, char *error)
{
    CUresult result = CUDA_ERROR_NO_BINARY_FOR_GPU;
    for (int32_t i = 0; i < m->code->image_count && result == CUDA_ERROR_NO_BINARY_FOR_GPU; i++)
        result = m->driver->module_load(&m->module, m->code->images[i]);
    if (result == CUDA_ERROR_NO_BINARY_FOR_GPU) {
        int major = 0, minor = 0;
        m->driver->device_attribute(&major, COMPUTE_CAPABILITY_MAJOR, m->device);
        m->driver->device_attribute(&minor, COMPUTE_CAPABILITY_MINOR, m->device);
        snprintf(error, ERROR_BYTES,
                 "The model was compiled for %s, which %.80s (sm_%d%d) does not run: compile it "
                 "for cuda:sm_%d%d.", m->code->architectures, m->name, major, minor, major, minor);
        return SMELT_DEVICE_ERROR;
    }
    if (result)
        return failed(m, error, result, "loading the kernels");
    for (int32_t i = 0; i < m->code->kernel_count && !result; i++)
        result = m->driver->module_function(&m->functions[i], m->module, m->code->kernels[i].name);
    return result ? failed(m, error, result, "looking for a kernel") : SMELT_OK;
}

static int load_weights(model *m, const unsigned char *weights, char *error)
{
    size_t bytes = (size_t)m->program->weight_bytes;
    CUresult result = bytes ? m->driver->allocate(&m->weights, bytes) : CUDA_SUCCESS;
    if (!result && bytes)
        result = m->driver->copy_in(m->weights, weights, bytes, NULL);
    if (!result)
        result = m->driver->stream_wait(NULL);
    return result ? failed(m, error, result, "copying the weights") : SMELT_OK;
}

static int start_model(model *m, const unsigned char *weights, char *error)
{
    snprintf(m->name, sizeof m->name, "The CUDA device");
    CUresult result = m->driver->device_get(&m->device, 0);
    if (result)
        return failed(m, error, result, "opening it");
    m->driver->device_name(m->name, sizeof m->name, m->device);
    result = m->driver->context_retain(&m->context, m->device);
    if (!result)
        result = m->driver->context_push(m->context);
    if (result)
        return failed(m, error, result, "making a context");
    int code = load_code(m, error);
    if (!code)
        code = load_weights(m, weights, error);
    m->driver->context_pop(&m->context);
    return code;
}

static int open_model(const smelt_program *program, const unsigned char *weights, void **state,
                      char *error)
{
    const smelt_cuda_driver *driver = smelt_cuda_find_driver(error);
    if (!driver)
        return SMELT_DEVICE_ERROR;
    model *m = calloc(1, sizeof *m);
    const smelt_cuda_code *code = program->device_code;
    if (m)
        m->functions = calloc((size_t)code->kernel_count + 1, sizeof *m->functions);
    if (!m || !m->functions) {
        free(m);
        snprintf(error, ERROR_BYTES, "No memory to open the model.");
        return SMELT_OUT_OF_MEMORY;
    }
    m->driver = driver;
    m->program = program;
    m->code = code;
    int result = start_model(m, weights, error);
    if (result)
        close_model(m);
    else
        *state = m;
    return result;
}

static const char *model_name(const void *state)
{
    return ((const model *)state)->name;
}

/* ---- sessions -------------------------------------------------------------------------------- */

static void close_session(void *state)
{
    session *s = state;
    model *m = s->model;
    CUcontext popped;
    if (!m->driver->context_push(m->context)) {
        if (s->stream) {
            m->driver->stream_wait(s->stream);
            m->driver->stream_destroy(s->stream);
        }
        if (s->graph)
            m->driver->graph_exec_destroy(s->graph);
        release(m, &s->arena, 1);
        release(m, s->inputs, m->program->inputs);
        release(m, s->outputs, m->program->outputs);
        release(m, s->slots, m->program->dynamic_slots);
        m->driver->context_pop(&popped);
    }
    free(s->inputs);
    free(s->outputs);
    free(s->slots);
    free(s->input_data);
    free(s->output_data);
    free(s->slot_data);
    free(s->graph_dims);
    free(s);
}

static int open_session(void *state, void **result, char *error)
{
    model *m = state;
    const smelt_program *p = m->program;
    session *s = calloc(1, sizeof *s);
    if (s) {
        s->model = m;
        s->inputs = calloc((size_t)p->inputs + 1, sizeof *s->inputs);
        s->outputs = calloc((size_t)p->outputs + 1, sizeof *s->outputs);
        s->slots = calloc((size_t)p->dynamic_slots + 1, sizeof *s->slots);
        s->input_data = calloc((size_t)p->inputs + 1, sizeof *s->input_data);
        s->output_data = calloc((size_t)p->outputs + 1, sizeof *s->output_data);
        s->slot_data = calloc((size_t)p->dynamic_slots + 1, sizeof *s->slot_data);
        s->graph_dims = calloc((size_t)p->all_dims + 1, sizeof *s->graph_dims);
    }
    if (!s || !s->inputs || !s->outputs || !s->slots || !s->input_data || !s->output_data ||
        !s->slot_data || !s->graph_dims) {
        if (s)
            close_session(s);
        snprintf(error, ERROR_BYTES, "No memory for a session.");
        return SMELT_OUT_OF_MEMORY;
    }
    CUcontext popped;
    CUresult code = m->driver->context_push(m->context);
    if (!code) {
        code = m->driver->stream_create(&s->stream, STREAM_NON_BLOCKING);
        m->driver->context_pop(&popped);
    }
    if (code) {
        close_session(s);
        return failed(m, error, code, "making a stream");
    }
    *result = s;
    return SMELT_OK;
}

const smelt_device smelt_cuda_device = {open_model, close_model, open_session, close_session,
                                        model_name};

/* ---- a run ----------------------------------------------------------------------------------- */

int smelt_cuda_begin(smelt_frame *frame, const int64_t *inputs, const int64_t *outputs,
                     const smelt_cuda_memory **memory)
{
    session *s = frame->device;
    const model *m = s->model;
    *memory = &s->memory;
    CUresult result = m->driver->context_push(m->context);
    s->entered = !result;
    if (!result)
        result = reserve(s, &s->arena, frame->arena_bytes, 0);
    for (int32_t i = 0; i < m->program->inputs && !result; i++) {
        result = reserve(s, &s->inputs[i], inputs[i], 0);
        s->input_data[i] = s->inputs[i].data;
        if (!result && inputs[i] > 0)
            result = m->driver->copy_in(s->inputs[i].data, frame->inputs[i], (size_t)inputs[i],
                                        s->stream);
    }
    for (int32_t i = 0; i < m->program->outputs && !result; i++) {
        if (outputs[i] >= 0)
            result = reserve(s, &s->outputs[i], outputs[i], 0);
        s->output_data[i] = s->outputs[i].data;
    }
    s->memory = (smelt_cuda_memory){m->weights, s->arena.data, s->input_data, s->output_data,
                                    s->slot_data};
    return result ? failed(m, frame->error, result, "preparing a run") : SMELT_OK;
}

int smelt_cuda_end(smelt_frame *frame, int code)
{
    session *s = frame->device;
    const model *m = s->model;
    if (!s->entered)
        return code;
    CUresult result = m->driver->stream_wait(s->stream);
    CUcontext popped;
    m->driver->context_pop(&popped);
    s->entered = 0;
    return !code && result ? failed(m, frame->error, result, "running the kernels") : code;
}

/* The steps as a graph. A step that fails has written its own sentence. */
static int capture(smelt_frame *frame, smelt_cuda_steps steps)
{
    session *s = frame->device;
    const smelt_cuda_driver *driver = s->model->driver;
    CUgraph graph = NULL;
    CUresult result = driver->capture_begin(s->stream, CAPTURE_THREAD_LOCAL);
    if (result)
        return failed(s->model, frame->error, result, "capturing a graph");
    int code = steps(frame, &s->memory);
    result = driver->capture_end(s->stream, &graph);
    if (!code && !result)
        result = driver->graph_instantiate(&s->graph, graph, 0);
    if (graph)
        driver->graph_destroy(graph);
    return !code && result ? failed(s->model, frame->error, result, "capturing a graph") : code;
}

int smelt_cuda_replay(smelt_frame *frame, smelt_cuda_steps steps)
{
    session *s = frame->device;
    const smelt_cuda_driver *driver = s->model->driver;
    size_t bytes = (size_t)s->model->program->all_dims * sizeof *s->graph_dims;
    if (memcmp(s->graph_dims, frame->dims, bytes)) {
        memcpy(s->graph_dims, frame->dims, bytes);
        s->repeated = 0;
    }
    if (!s->repeated && s->graph) {
        driver->graph_exec_destroy(s->graph);
        s->graph = NULL;
    }
    int code = SMELT_OK;
    if (!s->repeated)
        code = steps(frame, &s->memory);
    else if (!s->graph)
        code = capture(frame, steps);
    CUresult result = !code && s->graph ? driver->graph_launch(s->graph, s->stream) : CUDA_SUCCESS;
    if (result)
        code = failed(s->model, frame->error, result, "running a graph");
    s->repeated = code ? 0 : 1;
    return code;
}

int smelt_cuda_launch(smelt_frame *frame, int32_t kernel, int64_t grid_x, int64_t grid_y,
                      int64_t grid_z, void **arguments)
{
    session *s = frame->device;
    const model *m = s->model;
    const smelt_cuda_kernel *k = &m->code->kernels[kernel];
    if (grid_x <= 0 || grid_y <= 0 || grid_z <= 0)
        return SMELT_OK;
    if (grid_x > INT32_MAX || grid_y > GRID_YZ || grid_z > GRID_YZ) {
        snprintf(frame->error, ERROR_BYTES,
                 "The kernel %.80s needs a grid of %lld x %lld x %lld blocks, more than a launch "
                 "may have: give smaller inputs.", k->name, (long long)grid_x, (long long)grid_y,
                 (long long)grid_z);
        return SMELT_DEVICE_ERROR;
    }
    CUresult result = m->driver->launch(
        m->functions[kernel], (unsigned)grid_x, (unsigned)grid_y, (unsigned)grid_z, k->threads[0],
        k->threads[1], k->threads[2], 0, s->stream, arguments, NULL);
    if (!result)
        return SMELT_OK;
    snprintf(frame->error, ERROR_BYTES, "The kernel %.60s failed: %.170s.", k->name,
             text_of(m, result));
    return SMELT_DEVICE_ERROR;
}

int smelt_cuda_dynamic(smelt_frame *frame, int32_t slot, int64_t bytes)
{
    session *s = frame->device;
    CUresult result = bytes < 0 ? CUDA_ERROR_INVALID_VALUE
                                : reserve(s, &s->slots[slot], bytes, 1);
    s->slot_data[slot] = s->slots[slot].data;
    return result ? failed(s->model, frame->error, result, "making room for a tensor") : SMELT_OK;
}

int smelt_cuda_copy(smelt_frame *frame, uint64_t target, uint64_t source, int64_t bytes)
{
    session *s = frame->device;
    if (bytes <= 0 || target == source)
        return SMELT_OK;
    CUresult result = s->model->driver->copy(target, source, (size_t)bytes, s->stream);
    return result ? failed(s->model, frame->error, result, "copying a tensor") : SMELT_OK;
}

int smelt_cuda_read(smelt_frame *frame, void *target, uint64_t source, int64_t bytes)
{
    session *s = frame->device;
    CUresult result = s->model->driver->copy_out(target, source, (size_t)bytes, s->stream);
    if (!result)
        result = s->model->driver->stream_wait(s->stream);
    return result ? failed(s->model, frame->error, result, "reading a number") : SMELT_OK;
}

int smelt_cuda_write(smelt_frame *frame, uint64_t target, const void *source, int64_t bytes)
{
    session *s = frame->device;
    CUresult result = s->model->driver->copy_in(target, source, (size_t)bytes, s->stream);
    if (!result) /* the source may be gone afterwards */
        result = s->model->driver->stream_wait(s->stream);
    return result ? failed(s->model, frame->error, result, "writing a number") : SMELT_OK;
}

int smelt_cuda_output(smelt_frame *frame, int32_t index, int32_t slot, uint64_t source,
                      int64_t bytes)
{
    session *s = frame->device;
    if (slot >= 0)
        frame->outputs[index] = smelt_dynamic(frame, slot, bytes);
    if (slot >= 0 && !frame->outputs[index])
        return SMELT_OUT_OF_MEMORY;
    if (bytes <= 0)
        return SMELT_OK;
    CUresult result = s->model->driver->copy_out(frame->outputs[index], source, (size_t)bytes,
                                                 s->stream);
    return result ? failed(s->model, frame->error, result, "copying an output") : SMELT_OK;
}
