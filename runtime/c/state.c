/* States: outputs that a session feeds back to inputs. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static int is_size_name(const smelt_program *program, const char *text)
{
    for (int32_t i = 0; i < program->all_dims; i++)
        if (!strcmp(program->dim_names[i], text))
            return 1;
    return 0;
}

/* The value that the other inputs give a named size; 0 where none does. */
static int64_t size_from_inputs(const smelt_session *session, const smelt_tensor *inputs,
                                const char *name)
{
    const smelt_program *program = session->program;
    for (int32_t i = 0; i < program->inputs; i++) {
        const smelt_tensor_info *info = &program->input_info[i];
        if (session->link_of_input[i] >= 0 || inputs[i].rank != info->rank || !inputs[i].shape)
            continue;
        for (int32_t axis = 0; axis < info->rank; axis++)
            if (!strcmp(info->dims[axis], name))
                return inputs[i].shape[axis];
    }
    return 0;
}

static int start_shape(const smelt_session *session, const smelt_link *link,
                       const smelt_tensor *inputs)
{
    const smelt_tensor_info *info = &session->program->input_info[link->input];
    for (int32_t axis = 0; axis < info->rank; axis++) {
        const char *text = info->dims[axis];
        if (link->initial_shape)
            link->shape[axis] = link->initial_shape[axis];
        else if (smelt_is_number(text, &link->shape[axis]))
            continue;
        else if (is_size_name(session->program, text))
            link->shape[axis] = size_from_inputs(session, inputs, text);
        else
            return smelt_fail(SMELT_BAD_ARGUMENT,
                              "State \"%.80s\" has the size %.60s on axis %d: link it with an "
                              "initial shape.",
                              info->name, text, (int)axis);
    }
    return SMELT_OK;
}

static int start(smelt_session *session, smelt_link *link, const smelt_tensor *inputs)
{
    const smelt_tensor_info *info = &session->program->input_info[link->input];
    int code = start_shape(session, link, inputs);
    if (code)
        return code;
    int64_t bytes = smelt_tensor_bytes(info->dtype, info->rank, link->shape);
    smelt_block *block = &link->buffers[link->current];
    if (smelt_block_reserve(block, bytes))
        return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory for the state \"%.80s\".", info->name);
    if (link->initial_data)
        memcpy(block->data, link->initial_data, (size_t)bytes);
    else
        memset(block->data, 0, (size_t)bytes);
    return SMELT_OK;
}

int smelt_link_read(smelt_session *session, smelt_link *link, const smelt_tensor *inputs,
                    smelt_tensor *tensor)
{
    int code = link->started ? SMELT_OK : start(session, link, inputs);
    if (code)
        return code;
    const smelt_tensor_info *info = &session->program->input_info[link->input];
    *tensor = (smelt_tensor){link->buffers[link->current].data, link->shape, info->dtype,
                             info->rank};
    return SMELT_OK;
}

int smelt_link_stage(smelt_session *session, smelt_link *link)
{
    const smelt_tensor_info *info = &session->program->output_info[link->output];
    const void *data = session->output_data[link->output];
    smelt_block *block = &link->buffers[!link->current];
    if (data == block->data)
        return SMELT_OK;
    int64_t bytes = smelt_tensor_bytes(info->dtype, info->rank,
                                       session->output_shapes[link->output]);
    if (smelt_block_reserve(block, bytes))
        return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory for the state of output \"%.80s\".",
                          info->name);
    memcpy(block->data, data, (size_t)bytes);
    return SMELT_OK;
}

void smelt_link_commit(smelt_session *session, smelt_link *link)
{
    int32_t rank = session->program->output_info[link->output].rank;
    for (int32_t axis = 0; axis < rank; axis++)
        link->shape[axis] = session->output_shapes[link->output][axis];
    link->current = !link->current;
    link->started = 1;
}

void smelt_link_free(smelt_link *link)
{
    smelt_block_free(&link->buffers[0]);
    smelt_block_free(&link->buffers[1]);
    free(link->shape);
    free(link->initial_shape);
    free(link->initial_data);
    *link = (smelt_link){0};
}

static int check_link(const smelt_session *session, const char *output, const char *input,
                      const smelt_tensor *initial)
{
    const smelt_program *program = session->program;
    int32_t from = smelt_find_output(session->model, output);
    int32_t to = smelt_find_input(session->model, input);
    if (from < 0)
        return smelt_fail(SMELT_BAD_ARGUMENT, "The model has no output \"%.80s\".", output);
    if (to < 0)
        return smelt_fail(SMELT_BAD_ARGUMENT, "The model has no input \"%.80s\".", input);
    const smelt_tensor_info *a = &program->output_info[from], *b = &program->input_info[to];
    if (a->dtype != b->dtype || a->rank != b->rank)
        return smelt_fail(SMELT_BAD_ARGUMENT,
                          "Output \"%.80s\" (%s, rank %d) cannot feed input \"%.80s\" (%s, rank "
                          "%d).",
                          output, smelt_dtype_name(a->dtype), (int)a->rank, input,
                          smelt_dtype_name(b->dtype), (int)b->rank);
    int32_t other = session->link_of_output[from];
    if (other >= 0 && session->links[other].input != to)
        return smelt_fail(SMELT_BAD_ARGUMENT, "Output \"%.80s\" feeds another input already.",
                          output);
    if (initial && (initial->dtype != b->dtype || initial->rank != b->rank ||
                    (b->rank && !initial->shape) ||
                    smelt_tensor_bytes(b->dtype, b->rank, initial->shape) < 0))
        return smelt_fail(SMELT_BAD_ARGUMENT,
                          "The initial value of state \"%.80s\" must be %s of rank %d.", input,
                          smelt_dtype_name(b->dtype), (int)b->rank);
    return SMELT_OK;
}

static int copy_initial(smelt_link *link, const smelt_tensor *initial)
{
    size_t room = (size_t)initial->rank * sizeof *initial->shape;
    int64_t bytes = smelt_tensor_bytes(initial->dtype, initial->rank, initial->shape);
    link->initial_shape = malloc(room + 1);
    if (!link->initial_shape)
        return -1;
    if (room)
        memcpy(link->initial_shape, initial->shape, room);
    if (!initial->data)
        return 0;
    link->initial_data = malloc((size_t)bytes + 1);
    if (!link->initial_data)
        return -1;
    memcpy(link->initial_data, initial->data, (size_t)bytes);
    return 0;
}

int smelt_link_state(smelt_session *session, const char *output, const char *input,
                     const smelt_tensor *initial)
{
    int code = check_link(session, output, input, initial);
    if (code)
        return code;
    smelt_link link = {0};
    link.output = smelt_find_output(session->model, output);
    link.input = smelt_find_input(session->model, input);
    int32_t rank = session->program->input_info[link.input].rank;
    link.shape = calloc((size_t)rank + 1, sizeof *link.shape);
    if (!link.shape || (initial && copy_initial(&link, initial))) {
        smelt_link_free(&link);
        return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory for the state \"%.80s\".", input);
    }
    if (session->link_of_input[link.input] >= 0)
        smelt_unlink_state(session, input);
    session->link_of_input[link.input] = session->link_count;
    session->link_of_output[link.output] = session->link_count;
    session->links[session->link_count++] = link;
    return SMELT_OK;
}

int smelt_unlink_state(smelt_session *session, const char *input)
{
    int32_t to = smelt_find_input(session->model, input);
    int32_t index = to < 0 ? -1 : session->link_of_input[to];
    if (index < 0)
        return smelt_fail(SMELT_BAD_ARGUMENT, "No state is linked to the input \"%.80s\".", input);
    smelt_link *link = &session->links[index];
    session->link_of_input[link->input] = -1;
    session->link_of_output[link->output] = -1;
    /* What the last run handed out stays valid. */
    smelt_block *own = &session->output_blocks[link->output];
    smelt_block_free(own);
    *own = link->buffers[link->current];
    link->buffers[link->current] = (smelt_block){0};
    smelt_link_free(link);
    int32_t last = --session->link_count;
    if (index != last) {
        *link = session->links[last];
        session->link_of_input[link->input] = index;
        session->link_of_output[link->output] = index;
    }
    return SMELT_OK;
}

void smelt_reset_states(smelt_session *session)
{
    for (int32_t i = 0; i < session->link_count; i++)
        session->links[i].started = 0;
}

int smelt_state(smelt_session *session, const char *input, smelt_tensor *value)
{
    int32_t to = smelt_find_input(session->model, input);
    int32_t index = to < 0 ? -1 : session->link_of_input[to];
    if (index < 0)
        return smelt_fail(SMELT_BAD_ARGUMENT, "No state is linked to the input \"%.80s\".", input);
    const smelt_link *link = &session->links[index];
    const smelt_tensor_info *info = &session->program->input_info[to];
    *value = (smelt_tensor){NULL, NULL, info->dtype, info->rank};
    if (link->started) {
        value->data = link->buffers[link->current].data;
        value->shape = link->shape;
    } else if (link->initial_shape) {
        value->data = link->initial_data;
        value->shape = link->initial_shape;
    }
    return SMELT_OK;
}
