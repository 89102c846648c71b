/* The CUDA driver's functions on the CPU, for kernels compiled with emulation.h.
 *
 * Blocks run one after another. Threads of a block whose kernel has barriers are fibres: each runs on
 * a stack of its own up to the next barrier, then the next one does. Fibres are made by makecontext()
 * and switched by _setjmp() and _longjmp(), which save no signal masks (Engelschall, "Portable
 * Multithreading", 2000). */
#include "emulation.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include "driver.h"

namespace smelt {

Now now;

namespace {

enum { STACK_BYTES = 256 << 10, MOST_THREADS = 1024, MOST_ARGUMENTS = 512, NO_LINE = 0 };

struct Fibre {
    ucontext_t start;
    jmp_buf place;
    void *stack;
    int started, done, line; /* line: of the barrier that it waits at */
};

Fibre *fibres[MOST_THREADS];
Fibre *running;        /* NULL where threads need no fibres */
jmp_buf scheduler;     /* where a fibre returns to */
jmp_buf failed;        /* where a fault ends the launch */
thread_local char fault[256]; /* for the thread that launched */
int something; /* its address stands for contexts */
const Kernel *kernel;
void **arguments;
Index grid, size;      /* blocks of the launch, threads of a block */
pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;

[[noreturn]] void fail(const char *format, ...)
{
    int used = snprintf(fault, sizeof fault, "block (%u, %u, %u), thread (%u, %u, %u): ",
                        now.block.x, now.block.y, now.block.z, now.thread.x, now.thread.y,
                        now.thread.z);
    va_list list;
    va_start(list, format);
    vsnprintf(fault + used, sizeof fault - (size_t)used, format, list);
    va_end(list);
    running = nullptr;
    _longjmp(failed, 1);
}

void select(int32_t number)
{
    uint32_t n = (uint32_t)number;
    now.number = number;
    now.thread = {n % size.x, n / size.x % size.y, n / size.x / size.y};
}

/* The life of a fibre: a kernel's thread again and again. */
void live()
{
    for (;;) {
        kernel->call(arguments);
        running->done = 1;
        if (!_setjmp(running->place))
            _longjmp(scheduler, 1);
    }
}

Fibre *fibre(int32_t number)
{
    Fibre *&f = fibres[number];
    if (!f)
        f = (Fibre *)calloc(1, sizeof *f);
    if (f && !f->stack)
        f->stack = malloc(STACK_BYTES);
    if (!f || !f->stack)
        fail("there is no memory for %d threads", number + 1);
    return f;
}

/* Runs one thread up to its next barrier or its end. */
void resume(Fibre *f)
{
    if (_setjmp(scheduler))
        return;
    running = f;
    if (f->started)
        _longjmp(f->place, 1);
    f->started = 1;
    getcontext(&f->start);
    f->start.uc_stack.ss_sp = f->stack;
    f->start.uc_stack.ss_size = STACK_BYTES;
    f->start.uc_link = nullptr;
    makecontext(&f->start, live, 0);
    setcontext(&f->start);
}

/* Whether all threads are at their ends; a fault unless they are all there or at one barrier. */
bool all_done(int32_t threads)
{
    for (int32_t i = 1; i < threads; i++) {
        const Fibre *a = fibres[0], *b = fibres[i];
        if (a->done == b->done && a->line == b->line)
            continue;
        const Fibre *waits = a->done ? b : a;
        select(a->done ? i : 0);
        if (a->done != b->done)
            fail("waits at the barrier of line %d, which thread %d never reaches", waits->line,
                 a->done ? 0 : i);
        fail("waits at the barrier of line %d, thread %d at that of line %d", a->line, i, b->line);
    }
    return fibres[0]->done;
}

void run_block()
{
    int32_t threads = (int32_t)(size.x * size.y * size.z);
    now.first_interval = ++now.interval;
    if (!kernel->barriers) {
        for (int32_t i = 0; i < threads; i++) {
            select(i);
            kernel->call(arguments);
        }
        return;
    }
    for (int32_t i = 0; i < threads; i++) {
        fibre(i)->done = 0;
        fibre(i)->line = NO_LINE;
    }
    do {
        for (int32_t i = 0; i < threads; i++) {
            select(i);
            resume(fibres[i]);
        }
        running = nullptr;
        now.interval++;
    } while (!all_done(threads));
}

/* After a fault fibres are somewhere within a kernel: they begin anew. */
void abandon()
{
    for (Fibre *f : fibres)
        if (f)
            f->started = 0;
}

CUresult run_grid()
{
    if (_setjmp(failed)) {
        abandon();
        return CUDA_ERROR_LAUNCH_FAILED;
    }
    fault[0] = 0;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                now.block = {x, y, z};
                run_block();
            }
    return CUDA_SUCCESS;
}

/* ---- the driver's functions ------------------------------------------------------------------ */

CUresult init(unsigned)
{
    return CUDA_SUCCESS;
}

CUresult error_text(CUresult error, const char **text)
{
    *text = error == CUDA_ERROR_LAUNCH_FAILED ? fault
          : error == CUDA_ERROR_NOT_FOUND     ? "there is no kernel of that name"
                                              : "invalid argument";
    return CUDA_SUCCESS;
}

CUresult device_get(CUdevice *device, int ordinal)
{
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult device_name(char *name, int bytes, CUdevice)
{
    snprintf(name, (size_t)bytes, "the emulated CUDA device");
    return CUDA_SUCCESS;
}

CUresult device_attribute(int *value, int, CUdevice)
{
    *value = 0;
    return CUDA_SUCCESS;
}

CUresult context_retain(CUcontext *context, CUdevice)
{
    *context = (CUcontext)&something;
    return CUDA_SUCCESS;
}

CUresult context_release(CUdevice)
{
    return CUDA_SUCCESS;
}

CUresult context_push(CUcontext)
{
    return CUDA_SUCCESS;
}

CUresult context_pop(CUcontext *context)
{
    *context = (CUcontext)&something;
    return CUDA_SUCCESS;
}

CUresult module_load(CUmodule *module, const void *image)
{
    *module = (CUmodule)image;
    return CUDA_SUCCESS;
}

CUresult module_unload(CUmodule)
{
    return CUDA_SUCCESS;
}

CUresult module_function(CUfunction *function, CUmodule module, const char *name)
{
    for (const Kernel *k = (const Kernel *)module; k->name; k++)
        if (!strcmp(k->name, name)) {
            *function = (CUfunction)k;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

CUresult allocate(CUdeviceptr *memory, size_t bytes)
{
    void *data = bytes <= PTRDIFF_MAX - 256 ? aligned_alloc(256, (bytes + 255) / 256 * 256)
                                            : nullptr;
    *memory = (CUdeviceptr)(uintptr_t)data;
    return data ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult release(CUdeviceptr memory)
{
    free((void *)(uintptr_t)memory);
    return CUDA_SUCCESS;
}

CUresult copy_in(CUdeviceptr target, const void *source, size_t bytes, CUstream)
{
    memcpy((void *)(uintptr_t)target, source, bytes);
    return CUDA_SUCCESS;
}

CUresult copy_out(void *target, CUdeviceptr source, size_t bytes, CUstream)
{
    memcpy(target, (const void *)(uintptr_t)source, bytes);
    return CUDA_SUCCESS;
}

/* One launch, or a copy where there is no kernel. */
struct Node {
    const Kernel *kernel;
    Index grid, size;
    uint64_t values[];
};

struct Graph {
    Node **nodes;
    int count;
    bool failed; /* for want of memory */
};

/* A stream runs everything at once; while it captures, it only notes it down. */
struct Stream {
    Graph *capture;
};

Node *add(Graph *graph, int values)
{
    Node **nodes = (Node **)realloc(graph->nodes, (size_t)(graph->count + 1) * sizeof *nodes);
    Node *node = (Node *)calloc(1, sizeof(Node) + (size_t)values * sizeof(uint64_t));
    if (nodes)
        graph->nodes = nodes;
    if (!nodes || !node) {
        free(node);
        graph->failed = true;
        return nullptr;
    }
    return graph->nodes[graph->count++] = node;
}

CUresult copy(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream)
{
    Graph *graph = stream ? ((Stream *)stream)->capture : nullptr;
    if (graph) {
        Node *node = add(graph, 3);
        if (!node)
            return CUDA_ERROR_OUT_OF_MEMORY;
        node->values[0] = target;
        node->values[1] = source;
        node->values[2] = bytes;
        return CUDA_SUCCESS;
    }
    memmove((void *)(uintptr_t)target, (const void *)(uintptr_t)source, bytes);
    return CUDA_SUCCESS;
}

CUresult run(const Kernel *what, Index blocks, Index threads, void **values)
{
    pthread_mutex_lock(&one_launch);
    kernel = what;
    arguments = values;
    grid = blocks;
    size = threads;
    CUresult result = run_grid();
    pthread_mutex_unlock(&one_launch);
    return result;
}

CUresult launch(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                unsigned block_x, unsigned block_y, unsigned block_z, unsigned, CUstream stream,
                void **values, void **)
{
    const Kernel *what = (const Kernel *)function;
    Index blocks = {grid_x, grid_y, grid_z}, threads = {block_x, block_y, block_z};
    if ((uint64_t)block_x * block_y * block_z > MOST_THREADS || what->arguments > MOST_ARGUMENTS)
        return CUDA_ERROR_INVALID_VALUE;
    Graph *graph = stream ? ((Stream *)stream)->capture : nullptr;
    if (!graph)
        return run(what, blocks, threads, values);
    Node *node = add(graph, what->arguments);
    if (!node)
        return CUDA_ERROR_OUT_OF_MEMORY;
    node->kernel = what;
    node->grid = blocks;
    node->size = threads;
    for (int i = 0; i < what->arguments; i++)
        memcpy(&node->values[i], values[i], sizeof node->values[i]);
    return CUDA_SUCCESS;
}

CUresult stream_create(CUstream *stream, unsigned)
{
    *stream = (CUstream)calloc(1, sizeof(Stream));
    return *stream ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult stream_destroy(CUstream stream)
{
    free(stream);
    return CUDA_SUCCESS;
}

CUresult capture_begin(CUstream stream, int)
{
    Graph *graph = (Graph *)calloc(1, sizeof(Graph));
    ((Stream *)stream)->capture = graph;
    return graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult capture_end(CUstream stream, CUgraph *graph)
{
    *graph = (CUgraph)((Stream *)stream)->capture;
    ((Stream *)stream)->capture = nullptr;
    return ((Graph *)*graph)->failed ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

/* The executable graph takes the nodes over. */
CUresult graph_instantiate(CUgraphExec *exec, CUgraph graph, unsigned long long)
{
    Graph *whole = (Graph *)calloc(1, sizeof(Graph)), *captured = (Graph *)graph;
    if (!whole)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *whole = *captured;
    *captured = {};
    *exec = (CUgraphExec)whole;
    return CUDA_SUCCESS;
}

CUresult graph_launch(CUgraphExec exec, CUstream)
{
    const Graph *graph = (const Graph *)exec;
    CUresult result = CUDA_SUCCESS;
    for (int i = 0; i < graph->count && !result; i++) {
        Node *node = graph->nodes[i];
        void *values[MOST_ARGUMENTS];
        if (!node->kernel) {
            result = copy(node->values[0], node->values[1], node->values[2], nullptr);
            continue;
        }
        for (int k = 0; k < node->kernel->arguments; k++)
            values[k] = &node->values[k];
        result = run(node->kernel, node->grid, node->size, values);
    }
    return result;
}

CUresult graph_destroy(CUgraph graph)
{
    Graph *whole = (Graph *)graph;
    for (int i = 0; i < whole->count; i++)
        free(whole->nodes[i]);
    free(whole->nodes);
    free(whole);
    return CUDA_SUCCESS;
}

CUresult graph_exec_destroy(CUgraphExec exec)
{
    return graph_destroy((CUgraph)exec);
}

CUresult stream_wait(CUstream)
{
    return CUDA_SUCCESS;
}

const smelt_cuda_driver driver = {
    init, error_text, device_get, device_name, device_attribute, context_retain, context_release,
    context_push, context_pop, module_load, module_unload, module_function, allocate, release,
    copy_in, copy_out, copy, launch, stream_create, stream_destroy, stream_wait, capture_begin,
    capture_end, graph_instantiate, graph_launch, graph_exec_destroy, graph_destroy,
};

/* When the library goes, the stacks go with it. */
__attribute__((destructor)) void free_fibres()
{
    for (Fibre *&f : fibres)
        if (f) {
            free(f->stack);
            free(f);
            f = nullptr;
        }
}

} // namespace

void barrier(int line)
{
    Fibre *self = running;
    if (!self)
        fail("a barrier in line %d of a kernel that was said to have none", line);
    self->line = line;
    if (!_setjmp(self->place))
        _longjmp(scheduler, 1);
}

void outside(const char *buffer, int64_t index, int64_t elements)
{
    fail("index %lld of %s is outside its %lld elements", (long long)index, buffer,
         (long long)elements);
}

void race(const char *buffer, int64_t index, int32_t other, const char *accesses)
{
    const char *someone = "another thread";
    char name[32];
    if (other >= 0) {
        snprintf(name, sizeof name, "thread %d", other);
        someone = name;
    }
    fail("a race on element %lld of shared %s: %s %s", (long long)index, buffer, someone,
         accesses);
}

void unwritten(const char *buffer, int64_t index)
{
    fail("element %lld of shared %s is read before the block has written it", (long long)index,
         buffer);
}

} // namespace smelt

extern "C" const smelt_cuda_driver *smelt_cuda_find_driver(char *)
{
    return &smelt::driver;
}
