/* Tensors out of numpy arrays. */
#include "arrays.h"

#include "internal.h"

#include <stddef.h>
#include <string.h>

enum { C_CONTIGUOUS = 1 }; /* NPY_ARRAY_C_CONTIGUOUS */

static const void *pointer_at(const void *object, int32_t offset)
{
    void *value;
    memcpy(&value, (const char *)object + offset, sizeof value);
    return value;
}

static int32_t int_at(const void *object, int32_t offset)
{
    int32_t value;
    memcpy(&value, (const char *)object + offset, sizeof value);
    return value;
}

static ptrdiff_t size_at(const void *object, int32_t offset)
{
    ptrdiff_t value;
    memcpy(&value, (const char *)object + offset, sizeof value);
    return value;
}

static const void *item(const smelt_array_layout *layout, const void *tuple, int32_t index)
{
    return pointer_at(tuple, layout->items + index * (int32_t)sizeof(void *));
}

/* Points `tensor` at an array's memory. */
static void describe(const smelt_array_layout *layout, const void *array, int32_t dtype,
                     smelt_tensor *tensor)
{
    tensor->data = (void *)pointer_at(array, layout->data);
    tensor->shape = pointer_at(array, layout->shape);
    tensor->dtype = dtype;
    tensor->rank = int_at(array, layout->rank);
}

static int is_plain(const smelt_array_layout *layout, const void *object, const void *element)
{
    return pointer_at(object, layout->type) == layout->array_type &&
           pointer_at(object, layout->element) == element &&
           (int_at(object, layout->flags) & C_CONTIGUOUS);
}

static int take_inputs(const smelt_array_call *call, const void *inputs)
{
    const smelt_array_layout *layout = call->layout;
    if (size_at(inputs, layout->count) != call->given_count)
        return SMELT_OTHER_ARRAYS;
    for (int32_t i = 0; i < call->given_count; i++) {
        const int32_t index = call->given[i];
        const void *array = item(layout, inputs, i);
        if (!is_plain(layout, array, call->elements[i]))
            return SMELT_OTHER_ARRAYS;
        describe(layout, array, call->session->program->input_info[index].dtype,
                 &call->inputs[index]);
    }
    return SMELT_OK;
}

static int is_known(const int64_t *shape, int32_t rank)
{
    for (int32_t axis = 0; axis < rank; axis++)
        if (shape[axis] < 0)
            return 0;
    return 1;
}

/* After smelt_set_shapes(). The arrays were made for the call: of them only the shape may be wrong.
 */
static int take_outputs(const smelt_array_call *call, const void *outputs)
{
    const smelt_array_layout *layout = call->layout;
    const ptrdiff_t count = size_at(outputs, layout->count);
    int32_t used = 0;
    for (int32_t i = 0; i < call->returned_count; i++) {
        const int32_t index = call->returned[i];
        const smelt_tensor_info *info = &call->session->program->output_info[index];
        const int64_t *shape = call->session->output_shapes[index];
        smelt_tensor *tensor = &call->outputs[index];
        if (!is_known(shape, info->rank)) {
            tensor->data = NULL;
            continue;
        }
        if (used == count)
            return SMELT_OTHER_OUTPUTS;
        describe(layout, item(layout, outputs, used++), info->dtype, tensor);
        if (tensor->rank != info->rank ||
            memcmp(tensor->shape, shape, (size_t)info->rank * sizeof *shape))
            return SMELT_OTHER_OUTPUTS;
    }
    return used == count ? SMELT_OK : SMELT_OTHER_OUTPUTS;
}

int smelt_run_arrays(const smelt_array_call *call, const void *inputs, const void *outputs)
{
    const smelt_program *program = call->session->program;
    int code = take_inputs(call, inputs);
    if (!code)
        code = smelt_set_shapes(call->session, call->inputs, program->inputs);
    if (!code)
        code = take_outputs(call, outputs);
    if (!code)
        code = smelt_run(call->session, call->inputs, program->inputs, call->outputs,
                         program->outputs);
    return code;
}
