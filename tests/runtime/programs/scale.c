/* As the compiler would write it: y[N, 4] = a * x + w and, of a size that depends on data,
 * rows[M] = the rows of x whose sum is positive. */
#include "program.h"

#include <string.h>

enum { COLUMNS = 4 };

typedef struct {
    const float *x, *w;
    const float *a;
    float *y, *sums;
} task_args;

static void scale(void *raw, int64_t begin, int64_t end, int32_t worker)
{
    task_args *t = raw;
    (void)worker;
    for (int64_t row = begin; row < end; row++) {
        t->sums[row] = 0;
        for (int64_t column = 0; column < COLUMNS; column++) {
            int64_t i = row * COLUMNS + column;
            t->y[i] = *t->a * t->x[i] + t->w[column];
            t->sums[row] += t->x[i];
        }
    }
}

static int run(smelt_frame *frame)
{
    int64_t rows = frame->dims[0];
    float *sums = (float *)(frame->arena + frame->offsets[0]);
    unsigned char *positive = frame->arena + frame->offsets[1];
    task_args args = {frame->inputs[0], (const float *)frame->weights, frame->inputs[1],
                      frame->outputs[0], sums};
    smelt_parallel(frame->pool, rows, 8, scale, &args);
    int64_t count = 0;
    for (int64_t row = 0; row < rows; row++) {
        positive[row] = sums[row] > 0;
        count += positive[row];
        if (sums[row] == -1234.0f) {
            strcpy(frame->error, "A row sums to -1234.");
            return SMELT_DATA_ERROR;
        }
    }
    frame->dims[1] = count;
    int64_t *found = smelt_dynamic(frame, 0, count * (int64_t)sizeof *found);
    if (!found)
        return SMELT_OUT_OF_MEMORY;
    for (int64_t row = 0, at = 0; row < rows; row++)
        if (positive[row])
            found[at++] = row;
    frame->outputs[1] = found;
    return SMELT_OK;
}

static int bind(const smelt_tensor *inputs, int64_t *dims, char *error)
{
    if (inputs[0].shape[1] != COLUMNS) {
        strcpy(error, "columns");
        return SMELT_BAD_ARGUMENT;
    }
    dims[0] = inputs[0].shape[0];
    if (dims[0] > 1000000) {
        strcpy(error, "N may be at most 1000000.");
        return SMELT_BAD_ARGUMENT;
    }
    return SMELT_OK;
}

static int64_t plan(const int64_t *dims, int64_t *offsets)
{
    const int64_t bytes[] = {dims[0] * 4, dims[0]};
    const int32_t first[] = {0, 1}, last[] = {1, 2};
    return smelt_plan_arena(2, bytes, first, last, offsets);
}

static void output_shapes(const int64_t *dims, int64_t *shapes)
{
    shapes[0] = dims[0];
    shapes[1] = COLUMNS;
    shapes[2] = dims[1];
}

static int never(void)
{
    return 0;
}

static const char *const x_dims[] = {"N", "4"}, *const row_dims[] = {"M"};
static const smelt_tensor_info inputs[] = {{"x", 12, 2, x_dims}, {"a", 12, 0, 0}};
static const smelt_tensor_info outputs[] = {{"y", 12, 2, x_dims}, {"rows", 5, 1, row_dims}};
static const char *const names[] = {"N", "M"};

#define VARIANT(isa, supported) \
    {SMELT_PROGRAM_ABI, "scale", isa, supported, 2, 2, inputs, outputs, 1, 2, names, 2, 1, 64, \
     bind, plan, output_shapes, run, 0, 0, 0}

static const smelt_program special = VARIANT("x86-64-v9", never);
static const smelt_program other = VARIANT("armv99", never);
const smelt_program *const smelt_programs[] = {&special, &other,
#ifndef NO_VARIANT
                                               &(const smelt_program)VARIANT("native", 0),
#endif
                                               0};
