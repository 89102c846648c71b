/* out[M] = 0, 1, ..., n - 1, appended one by one; the n-th power of two bytes at once if n < 0. */
#include "program.h"

static int run(smelt_frame *frame)
{
    int64_t n = *(const int64_t *)frame->inputs[0];
    if (n == 0)
        return SMELT_DATA_ERROR;
    if (n < 0 && !smelt_dynamic(frame, 0, INT64_C(1) << -n))
        return SMELT_OUT_OF_MEMORY;
    for (int64_t i = 0; i < n; i++) {
        int64_t *out = smelt_dynamic(frame, 0, (i + 1) * (int64_t)sizeof *out);
        if (!out)
            return SMELT_OUT_OF_MEMORY;
        out[i] = i;
        frame->outputs[0] = out;
    }
    frame->dims[0] = n;
    return SMELT_OK;
}

static int bind(const smelt_tensor *inputs, int64_t *dims, char *error)
{
    (void)inputs, (void)dims, (void)error;
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

static const char *const dims[] = {"M"};
static const smelt_tensor_info input = {"n", 5, 0, 0}, output = {"out", 5, 1, dims};
static const smelt_program program = {SMELT_PROGRAM_ABI, "append", "native", 0, 1, 1, &input,
                                      &output, 0, 1, dims, 0, 1, 0, bind, plan, output_shapes, run, 0, 0, 0};
const smelt_program *const smelt_programs[] = {&program, 0};
