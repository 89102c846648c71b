/* out[N] = in, of the element type DTYPE of BYTES bytes. */
#include "program.h"

#include <string.h>

static int run(smelt_frame *frame)
{
    if ((uintptr_t)frame->inputs[0] % BYTES || (uintptr_t)frame->outputs[0] % BYTES)
        return SMELT_DATA_ERROR;
    memcpy(frame->outputs[0], frame->inputs[0], (size_t)frame->dims[0] * BYTES);
    return SMELT_OK;
}

static int bind(const smelt_tensor *inputs, int64_t *dims, char *error)
{
    (void)error;
    dims[0] = inputs[0].shape[0];
    return SMELT_OK;
}

static int64_t plan(const int64_t *dims, int64_t *offsets)
{
    (void)dims, (void)offsets;
    return 0;
}

static void output_shapes(const int64_t *dims, int64_t *shapes)
{
    shapes[0] = dims[0];
}

static const char *const dims[] = {"N"};
static const smelt_tensor_info input = {"in", DTYPE, 1, dims}, output = {"out", DTYPE, 1, dims};
static const smelt_program program = {SMELT_PROGRAM_ABI, "identity", "native", 0, 1, 1, &input,
                                      &output, 1, 1, dims, 0, 0, 0, bind, plan, output_shapes, run, 0, 0, 0};
const smelt_program *const smelt_programs[] = {&program, 0};
