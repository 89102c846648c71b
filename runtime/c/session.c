/* Sessions: what one thread needs to run a model, and the run itself. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening and closing --------------------------------------------------------------------- */

static int32_t default_threads(void)
{
#ifndef SMELT_NO_THREADS
    const char *text = getenv("SMELT_NUM_THREADS");
    long number = text ? strtol(text, NULL, 10) : 0;
    if (number > 0 && number <= INT32_MAX)
        return (int32_t)number;
#endif
    return smelt_cpu_count();
}

int smelt_set_threads(smelt_session *session, int32_t threads)
{
    if (threads <= 0)
        threads = default_threads();
#ifdef SMELT_NO_THREADS
    threads = 1;
#endif
    if (session->program->device)
        threads = 1; /* the device has its own */
    int stale = session->pool && smelt_pool_is_stale(session->pool);
    if (threads == session->threads && !stale)
        return SMELT_OK;
    int64_t bytes = session->program->scratch_bytes;
    if (bytes && smelt_block_grow(&session->scratch, bytes * threads))
        return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory for %d threads.", (int)threads);
    smelt_pool *pool = threads > 1 ? smelt_pool_open(threads) : NULL;
    if (threads > 1 && !pool)
        return smelt_fail(SMELT_OUT_OF_MEMORY,
                          "%d threads cannot be started: ask for fewer.", (int)threads);
    smelt_pool_close(session->pool);
    session->pool = pool;
    session->threads = threads;
    return SMELT_OK;
}

int32_t smelt_threads(const smelt_session *session)
{
    return session->threads;
}

/* An array of zeros, or NULL and *failed = 1. */
static void *array(int64_t count, size_t size, int *failed)
{
    void *result = calloc((size_t)count + 1, size);
    if (!result)
        *failed = 1;
    return result;
}

static int allocate(smelt_session *s)
{
    const smelt_program *program = s->program;
    int failed = 0;
    int64_t ranks = 0;
    for (int32_t i = 0; i < program->outputs; i++)
        ranks += program->output_info[i].rank;
    s->dims = array(program->all_dims, sizeof *s->dims, &failed);
    s->candidate = array(program->all_dims, sizeof *s->candidate, &failed);
    s->offsets = array(program->temporaries, sizeof *s->offsets, &failed);
    s->inputs = array(program->inputs, sizeof *s->inputs, &failed);
    s->input_data = array(program->inputs, sizeof *s->input_data, &failed);
    s->input_copies = array(program->inputs, sizeof *s->input_copies, &failed);
    s->shapes = array(ranks, sizeof *s->shapes, &failed);
    s->output_shapes = array(program->outputs, sizeof *s->output_shapes, &failed);
    s->output_data = array(program->outputs, sizeof *s->output_data, &failed);
    s->callers = array(program->outputs, sizeof *s->callers, &failed);
    s->reported = array(program->outputs, sizeof *s->reported, &failed);
    s->output_blocks = array(program->outputs, sizeof *s->output_blocks, &failed);
    s->slots = array(program->dynamic_slots, sizeof *s->slots, &failed);
    s->links = array(program->inputs, sizeof *s->links, &failed);
    s->link_of_input = array(program->inputs, sizeof *s->link_of_input, &failed);
    s->link_of_output = array(program->outputs, sizeof *s->link_of_output, &failed);
    if (failed)
        return -1;
    int64_t *shape = s->shapes;
    for (int32_t i = 0; i < program->outputs; i++) {
        s->output_shapes[i] = shape;
        shape += program->output_info[i].rank;
        s->link_of_output[i] = -1;
    }
    for (int32_t i = 0; i < program->inputs; i++)
        s->link_of_input[i] = -1;
    return 0;
}

int smelt_session_open(smelt_model *model, int32_t threads, smelt_session **session)
{
    *session = NULL;
    smelt_session *s = calloc(1, sizeof *s);
    if (!s)
        return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory for a session.");
    smelt_model_retain(model);
    s->model = model;
    s->program = model->program;
    int code = allocate(s) ? smelt_fail(SMELT_OUT_OF_MEMORY, "No memory for a session.")
                           : smelt_set_threads(s, threads);
    if (!code && s->program->device) {
        code = s->program->device->open_session(model->device, &s->device, s->error);
        if (code)
            smelt_fail(code, "%s", s->error);
    }
    if (code)
        smelt_session_close(s);
    else
        *session = s;
    return code;
}

static void free_blocks(smelt_block *blocks, int32_t count)
{
    for (int32_t i = 0; blocks && i < count; i++)
        smelt_block_free(&blocks[i]);
    free(blocks);
}

void smelt_session_close(smelt_session *s)
{
    if (!s)
        return;
    smelt_pool_close(s->pool);
    if (s->device)
        s->program->device->close_session(s->device);
    for (int32_t i = 0; i < s->link_count; i++)
        smelt_link_free(&s->links[i]);
    smelt_block_free(&s->arena);
    smelt_block_free(&s->scratch);
    free_blocks(s->input_copies, s->program->inputs);
    free_blocks(s->output_blocks, s->program->outputs);
    free_blocks(s->slots, s->program->dynamic_slots);
    free(s->dims);
    free(s->candidate);
    free(s->offsets);
    free(s->inputs);
    free(s->input_data);
    free(s->shapes);
    free(s->output_shapes);
    free(s->output_data);
    free(s->callers);
    free(s->reported);
    free(s->links);
    free(s->link_of_input);
    free(s->link_of_output);
    smelt_close(s->model);
    free(s);
}

/* ---- inputs ---------------------------------------------------------------------------------- */

/* "[N, 3]" from the texts of a signature or, where they are NULL, from numbers. */
static const char *shape_text(char *buffer, size_t size, int32_t rank, const char *const *dims,
                              const int64_t *shape)
{
    size_t used = 0;
    buffer[used++] = '[';
    for (int32_t i = 0; i < rank && used + 4 < size; i++) {
        const char *comma = i ? ", " : "";
        int more = dims ? snprintf(buffer + used, size - used, "%s%s", comma, dims[i])
                        : snprintf(buffer + used, size - used, "%s%lld", comma,
                                   (long long)shape[i]);
        used += more > 0 ? (size_t)more : 0;
    }
    if (used > size - 2)
        used = size - 2;
    buffer[used] = ']';
    buffer[used + 1] = 0;
    return buffer;
}

static int wrong_input(const smelt_tensor_info *info, const smelt_tensor *tensor)
{
    char expected[128], given[128];
    const int64_t *shape = tensor->shape;
    int known = tensor->rank == 0 || (tensor->rank > 0 && shape);
    return smelt_fail(SMELT_BAD_ARGUMENT,
                      "Input \"%.80s\" must be %s%s, but is %s%s.", info->name,
                      smelt_dtype_name(info->dtype),
                      shape_text(expected, sizeof expected, info->rank, info->dims, NULL),
                      smelt_dtype_name(tensor->dtype),
                      known ? shape_text(given, sizeof given, tensor->rank, NULL, shape)
                            : " without a shape");
}

/* bind() looks at sizes only; what can be said of one input by itself is said here. */
static int check_input(const smelt_tensor_info *info, const smelt_tensor *tensor)
{
    if (tensor->dtype != info->dtype || tensor->rank != info->rank ||
        (tensor->rank && !tensor->shape))
        return wrong_input(info, tensor);
    for (int32_t axis = 0; axis < info->rank; axis++)
        if (tensor->shape[axis] < 0)
            return wrong_input(info, tensor);
    return SMELT_OK;
}

/* After bind() refused: a number in the signature that is not met explains it best. */
static int explain_refusal(const smelt_session *s)
{
    for (int32_t i = 0; i < s->program->inputs; i++) {
        const smelt_tensor_info *info = &s->program->input_info[i];
        for (int32_t axis = 0; axis < info->rank; axis++) {
            int64_t wanted;
            if (smelt_is_number(info->dims[axis], &wanted) && wanted != s->inputs[i].shape[axis])
                return wrong_input(info, &s->inputs[i]);
        }
    }
    return smelt_fail(SMELT_BAD_ARGUMENT, "%s",
                      s->error[0] ? s->error : "The shapes of the inputs do not fit together.");
}

static int plan(smelt_session *s)
{
    const smelt_program *program = s->program;
    s->planned = 0;
    for (int32_t i = 0; i < program->bound_dims; i++)
        s->dims[i] = s->candidate[i];
    s->arena_bytes = program->plan(s->dims, s->offsets);
    if (s->arena_bytes < 0 ||
        (!program->device && smelt_block_reserve(&s->arena, s->arena_bytes)))
        return smelt_fail(SMELT_OUT_OF_MEMORY,
                          "No memory for the temporaries of inputs of this size.");
    s->planned = 1;
    s->reshaped = 1;
    return SMELT_OK;
}

/* Takes over the inputs, binds their sizes and plans anew if those changed. */
static int bind_inputs(smelt_session *s, const smelt_tensor *inputs, int32_t count)
{
    const smelt_program *program = s->program;
    if (count != program->inputs || (count && !inputs))
        return smelt_fail(SMELT_BAD_ARGUMENT, "The model takes %d inputs, not %d.",
                          (int)program->inputs, (int)count);
    for (int32_t i = 0; i < count; i++) {
        s->inputs[i] = inputs[i];
        int32_t link = s->link_of_input[i];
        int code = SMELT_OK;
        if (link >= 0 && !inputs[i].data)
            code = smelt_link_read(s, &s->links[link], inputs, &s->inputs[i]);
        if (!code)
            code = check_input(&program->input_info[i], &s->inputs[i]);
        if (code)
            return code;
    }
    s->error[0] = 0;
    if (program->bind(s->inputs, s->candidate, s->error))
        return explain_refusal(s);
    int same = s->planned;
    for (int32_t i = 0; i < program->bound_dims && same; i++)
        same = s->dims[i] == s->candidate[i];
    for (int32_t i = program->bound_dims; i < program->all_dims; i++)
        s->dims[i] = -1; /* until data binds them again */
    int code = same ? SMELT_OK : plan(s);
    if (!code && (!same || program->all_dims > program->bound_dims))
        program->output_shapes(s->dims, s->shapes);
    return code;
}

static int is_aligned(const void *data, int32_t dtype)
{
    return (uintptr_t)data % (uintptr_t)smelt_dtype_bytes(dtype) == 0;
}

/* Points input_data at the data of the inputs, or at copies that are aligned to the element. */
static int place_inputs(smelt_session *s)
{
    for (int32_t i = 0; i < s->program->inputs; i++) {
        const smelt_tensor *tensor = &s->inputs[i];
        s->input_data[i] = tensor->data;
        if (tensor->data && is_aligned(tensor->data, tensor->dtype))
            continue;
        int64_t bytes = smelt_tensor_bytes(tensor->dtype, tensor->rank, tensor->shape);
        const char *name = s->program->input_info[i].name;
        if (bytes < 0 || (bytes > 0 && !tensor->data))
            return smelt_fail(SMELT_BAD_ARGUMENT, "Input \"%.80s\" has no data.", name);
        if (smelt_block_reserve(&s->input_copies[i], bytes))
            return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory to align the input \"%.80s\".", name);
        if (bytes)
            memcpy(s->input_copies[i].data, tensor->data, (size_t)bytes);
        s->input_data[i] = s->input_copies[i].data;
    }
    return SMELT_OK;
}

/* ---- outputs --------------------------------------------------------------------------------- */

static int is_dynamic(const smelt_session *s, int32_t index)
{
    for (int32_t axis = 0; axis < s->program->output_info[index].rank; axis++)
        if (s->output_shapes[index][axis] < 0)
            return 1;
    return 0;
}

/* Whether the caller brings memory, and not what an earlier run handed out. */
static int is_callers(const smelt_session *s, int32_t index, const smelt_tensor *output)
{
    const void *data = output->data;
    int32_t link = s->link_of_output[index];
    if (!data || data == s->reported[index] || data == s->output_blocks[index].data)
        return 0;
    return link < 0 || (data != s->links[link].buffers[0].data &&
                        data != s->links[link].buffers[1].data);
}

static int check_output(const smelt_session *s, int32_t index, const smelt_tensor *output)
{
    const smelt_tensor_info *info = &s->program->output_info[index];
    const int64_t *shape = s->output_shapes[index];
    if (is_dynamic(s, index))
        return smelt_fail(SMELT_BAD_ARGUMENT,
                          "The size of output \"%.80s\" depends on data: give NULL for its memory.",
                          info->name);
    int fits = output->dtype == info->dtype;
    if (output->shape == shape) /* an entry of an earlier run */
        fits = fits && !s->reshaped;
    else if (output->shape)
        fits = fits && output->rank == info->rank &&
               !memcmp(output->shape, shape, (size_t)info->rank * sizeof *shape);
    if (fits)
        return SMELT_OK;
    char expected[128];
    return smelt_fail(SMELT_BAD_ARGUMENT, "The memory for output \"%.80s\" must be for %s%s.",
                      info->name, smelt_dtype_name(info->dtype),
                      shape_text(expected, sizeof expected, info->rank, NULL, shape));
}

/* Points output_data at the caller's memory where it can be written, else at the session's. */
static int place_outputs(smelt_session *s, smelt_tensor *outputs, int32_t count)
{
    const smelt_program *program = s->program;
    if (count != program->outputs || (count && !outputs))
        return smelt_fail(SMELT_BAD_ARGUMENT, "The model has %d outputs, not %d.",
                          (int)program->outputs, (int)count);
    for (int32_t i = 0; i < count; i++) {
        const smelt_tensor_info *info = &program->output_info[i];
        int callers = s->callers[i] = is_callers(s, i, &outputs[i]);
        int code = callers ? check_output(s, i, &outputs[i]) : SMELT_OK;
        if (code)
            return code;
        /* The memory of the last run may go now: no entry must name it if this run fails. */
        s->reported[i] = NULL;
        if (!callers)
            outputs[i].data = NULL;
        if (callers && is_aligned(outputs[i].data, info->dtype)) {
            s->output_data[i] = outputs[i].data;
        } else if (is_dynamic(s, i)) {
            s->output_data[i] = NULL;
        } else {
            int32_t index = s->link_of_output[i];
            smelt_link *link = index < 0 ? NULL : &s->links[index];
            smelt_block *block = link ? &link->buffers[!link->current] : &s->output_blocks[i];
            int64_t bytes = smelt_tensor_bytes(info->dtype, info->rank, s->output_shapes[i]);
            if (smelt_block_reserve(block, bytes))
                return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory for the output \"%.80s\".",
                                  info->name);
            s->output_data[i] = block->data;
        }
    }
    return SMELT_OK;
}

/* Fills the caller's entries. */
static int report_outputs(smelt_session *s, smelt_tensor *outputs)
{
    const smelt_program *program = s->program;
    if (program->all_dims > program->bound_dims)
        program->output_shapes(s->dims, s->shapes);
    for (int32_t i = 0; i < program->outputs; i++) {
        const smelt_tensor_info *info = &program->output_info[i];
        void *data = s->output_data[i];
        int64_t *shape = s->output_shapes[i];
        int64_t bytes = smelt_tensor_bytes(info->dtype, info->rank, shape);
        if (bytes < 0 || (bytes && !data))
            return smelt_fail(SMELT_DATA_ERROR, "The run left the output \"%.80s\" without %s.",
                              info->name, bytes < 0 ? "a size" : "data");
        int callers = s->callers[i];
        if (callers && outputs[i].data != data)
            memcpy(outputs[i].data, data, (size_t)bytes);
        if (!callers)
            outputs[i].data = s->reported[i] = data;
        /* The caller's own shape stays, so that it is checked again when the entry is reused. */
        if (!callers || !outputs[i].shape)
            outputs[i].shape = shape;
        outputs[i].dtype = info->dtype;
        outputs[i].rank = info->rank;
    }
    s->reshaped = 0;
    return SMELT_OK;
}

static int keep_states(smelt_session *s)
{
    for (int32_t i = 0; i < s->link_count; i++) {
        int code = smelt_link_stage(s, &s->links[i]);
        if (code)
            return code;
    }
    for (int32_t i = 0; i < s->link_count; i++)
        smelt_link_commit(s, &s->links[i]);
    return SMELT_OK;
}

/* ---- running --------------------------------------------------------------------------------- */

void *smelt_dynamic(smelt_frame *frame, int32_t slot, int64_t bytes)
{
    smelt_session *s = frame->session;
    if (!smelt_block_grow(&s->slots[slot], bytes))
        return s->slots[slot].data;
    snprintf(frame->error, SMELT_ERROR_BYTES, "No memory for a tensor of %lld bytes.",
             (long long)bytes);
    return NULL;
}

static int execute(smelt_session *s)
{
    int code = SMELT_OK;
    if (s->pool && smelt_pool_is_stale(s->pool))
        code = smelt_set_threads(s, s->threads);
    if (code)
        return code;
    smelt_frame frame = {
        .weights = s->model->weights,
        .arena = s->arena.data,
        .arena_bytes = s->arena_bytes,
        .scratch = s->scratch.data,
        .offsets = s->offsets,
        .dims = s->dims,
        .inputs = s->input_data,
        .outputs = s->output_data,
        .pool = s->pool,
        .session = s,
        .device = s->device,
        .error = s->error,
    };
    s->error[0] = 0;
    smelt_pool_run(s->pool, 1);
    code = s->program->run(&frame);
    smelt_pool_run(s->pool, 0);
    if (!code)
        return SMELT_OK;
    const char *sentence = code == SMELT_OUT_OF_MEMORY ? "No memory for this run."
                                                       : "The model cannot run on this data.";
    return smelt_fail(code, "%s", s->error[0] ? s->error : sentence);
}

static int enter(smelt_session *s)
{
    if (!smelt_flag_raise(&s->running))
        return SMELT_OK;
    return smelt_fail(SMELT_BAD_ARGUMENT,
                      "The session is running in another thread: open one for each thread.");
}

static void leave(smelt_session *s)
{
    smelt_flag_lower(&s->running);
}

int smelt_run(smelt_session *session, const smelt_tensor *inputs, int32_t input_count,
              smelt_tensor *outputs, int32_t output_count)
{
    int code = enter(session);
    if (code)
        return code;
    code = bind_inputs(session, inputs, input_count);
    if (!code)
        code = place_inputs(session);
    if (!code)
        code = place_outputs(session, outputs, output_count);
    if (!code)
        code = execute(session);
    if (!code)
        code = report_outputs(session, outputs);
    if (!code)
        code = keep_states(session);
    leave(session);
    return code;
}

int smelt_set_shapes(smelt_session *session, const smelt_tensor *inputs, int32_t input_count)
{
    int code = enter(session);
    if (code)
        return code;
    code = bind_inputs(session, inputs, input_count);
    leave(session);
    return code;
}

const int64_t *smelt_output_shape(const smelt_session *session, int32_t index)
{
    int known = session->planned && index >= 0 && index < session->program->outputs;
    return known ? session->output_shapes[index] : NULL;
}

int64_t smelt_size(const smelt_session *session, int32_t index)
{
    int known = session->planned && index >= 0 && index < session->program->all_dims;
    return known ? session->dims[index] : -1;
}

int64_t smelt_arena_bytes(const smelt_session *session)
{
    return session->planned ? session->arena_bytes : 0;
}
