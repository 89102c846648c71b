/* As the compiler would write it, with two states:
 * sum_out[N, 2] = sum + x, present[N + P, 2] = past then x, y[] = sum of present. */
#include "program.h"

#include <string.h>

static int run(smelt_frame *frame)
{
    const float *x = frame->inputs[0], *sum = frame->inputs[1], *past = frame->inputs[2];
    float *y = frame->outputs[0], *sum_out = frame->outputs[1], *present = frame->outputs[2];
    int64_t n = 2 * frame->dims[0], p = 2 * frame->dims[1];
    if (n && x[0] == -1234.0f)
        return SMELT_DATA_ERROR;
    *y = 0;
    for (int64_t i = 0; i < n; i++)
        sum_out[i] = sum[i] + x[i];
    memcpy(present, past, (size_t)p * sizeof *x);
    memcpy(present + p, x, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n + p; i++)
        *y += present[i];
    return SMELT_OK;
}

static int bind(const smelt_tensor *inputs, int64_t *dims, char *error)
{
    for (int i = 0; i < 3; i++)
        if (inputs[i].shape[1] != 2)
            return SMELT_BAD_ARGUMENT;
    dims[0] = inputs[0].shape[0];
    dims[1] = inputs[2].shape[0];
    if (inputs[1].shape[0] != dims[0]) {
        strcpy(error, "N differs between inputs \"x\" and \"sum\".");
        return SMELT_BAD_ARGUMENT;
    }
    return SMELT_OK;
}

static int64_t plan(const int64_t *dims, int64_t *offsets)
{
    (void)dims, (void)offsets;
    return 0;
}

static void output_shapes(const int64_t *dims, int64_t *shapes)
{
    const int64_t all[] = {dims[0], 2, dims[0] + dims[1], 2};
    memcpy(shapes, all, sizeof all);
}

static const char *const n_dims[] = {"N", "2"}, *const p_dims[] = {"P", "2"};
static const char *const present_dims[] = {"N + P", "2"};
static const smelt_tensor_info inputs[] = {
    {"x", 12, 2, n_dims}, {"sum", 12, 2, n_dims}, {"past", 12, 2, p_dims}};
static const smelt_tensor_info outputs[] = {
    {"y", 12, 0, 0}, {"sum_out", 12, 2, n_dims}, {"present", 12, 2, present_dims}};
static const char *const names[] = {"N", "P"};
static const smelt_program program = {
    SMELT_PROGRAM_ABI, "recurrent", "native", 0, 3, 3, inputs, outputs, 2, 2, names, 0, 0, 0,
    bind, plan, output_shapes, run, 0, 0, 0};
const smelt_program *const smelt_programs[] = {&program, 0};
