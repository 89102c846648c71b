/* Runs the linked-in model: run_model FOLDER INPUTS OUTPUTS THREADS
 *
 * A file of tensors: int32 count, then for each int32 dtype, int32 rank, int64 sizes[rank],
 * int64 bytes, the elements; everything little-endian. */
#include <stdio.h>
#include <stdlib.h>

#include "smelt.h"

static void *read_all(FILE *file, size_t bytes)
{
    void *data = malloc(bytes ? bytes : 1);
    if (!data || fread(data, 1, bytes, file) != bytes)
        exit(3);
    return data;
}

static int64_t read_number(FILE *file, size_t bytes)
{
    int64_t number = 0;
    if (fread(&number, 1, bytes, file) != bytes)
        exit(3);
    return number;
}

static void check(int code)
{
    if (!code)
        return;
    fprintf(stderr, "%s\n", smelt_error());
    exit(2);
}

int main(int count, char **arguments)
{
    if (count != 5)
        return 4;
    FILE *file = fopen(arguments[2], "rb");
    if (!file)
        return 4;
    int32_t inputs = (int32_t)read_number(file, 4);
    smelt_tensor *in = calloc((size_t)inputs + 1, sizeof *in);
    for (int32_t i = 0; i < inputs; i++) {
        in[i].dtype = (int32_t)read_number(file, 4);
        in[i].rank = (int32_t)read_number(file, 4);
        in[i].shape = read_all(file, (size_t)in[i].rank * 8);
        in[i].data = read_all(file, (size_t)read_number(file, 8));
    }
    fclose(file);

    smelt_model *model;
    smelt_session *session;
    check(smelt_open(arguments[1], &model));
    check(smelt_session_open(model, atoi(arguments[4]), &session));
    int32_t outputs = smelt_output_count(model);
    smelt_tensor *out = calloc((size_t)outputs + 1, sizeof *out);
    check(smelt_run(session, in, inputs, out, outputs));

    file = fopen(arguments[3], "wb");
    if (!file)
        return 4;
    fwrite(&outputs, 4, 1, file);
    for (int32_t i = 0; i < outputs; i++) {
        int64_t bytes = smelt_dtype_bytes(out[i].dtype);
        for (int32_t axis = 0; axis < out[i].rank; axis++)
            bytes *= out[i].shape[axis];
        fwrite(&out[i].dtype, 4, 1, file);
        fwrite(&out[i].rank, 4, 1, file);
        fwrite(out[i].shape, 8, (size_t)out[i].rank, file);
        fwrite(&bytes, 8, 1, file);
        fwrite(out[i].data, 1, (size_t)bytes, file);
    }
    fclose(file);
    smelt_session_close(session);
    smelt_close(model);
    return 0;
}
