/* A user's program of scale.c: everything of smelt.h that Python does not go through. */
#include "smelt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void expect_at(int line, int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "line %d: %s (%s)\n", line, what, smelt_error());
    exit(1);
}
#define EXPECT(holds) expect_at(__LINE__, holds, #holds)
#define SAYS(text) EXPECT(strstr(smelt_error(), text) != NULL)

static int is_right(const float *x, const float *w, float a, const smelt_tensor *y)
{
    int same = y->dtype == SMELT_F32 && y->rank == 2 && y->shape[1] == 4;
    const float *got = y->data;
    for (int64_t i = 0; i < 4 * y->shape[0]; i++) {
        float difference = got[i] - (a * x[i] + w[i % 4]);
        same = same && difference < 1e-5f && difference > -1e-5f;
    }
    return same;
}

static float x[400], own[401];

static void check_signature(const smelt_model *model)
{
    EXPECT(!strcmp(smelt_version(), SMELT_VERSION));
    EXPECT(!strcmp(smelt_model_name(model), "scale"));
    EXPECT(!strcmp(smelt_model_isa(model), "native"));
    EXPECT(smelt_input_count(model) == 2 && smelt_output_count(model) == 2);
    EXPECT(!strcmp(smelt_input_info(model, 0)->dims[0], "N"));
    EXPECT(!smelt_input_info(model, 2) && !smelt_output_info(model, -1));
    EXPECT(smelt_find_input(model, "a") == 1 && smelt_find_input(model, "y") == -1);
    EXPECT(smelt_find_output(model, "y") == 0);
    EXPECT(smelt_size_count(model) == 2 && smelt_bound_size_count(model) == 1);
    EXPECT(!strcmp(smelt_size_name(model, 1), "M") && !smelt_size_name(model, 2));
    EXPECT(smelt_dtype_bytes(SMELT_BF16) == 2 && smelt_dtype_bytes(99) == 0);
    EXPECT(!strcmp(smelt_dtype_name(SMELT_U4), "u4"));
}

static void check_shapes(smelt_session *session)
{
    int64_t shape[] = {50, 4};
    smelt_tensor in[] = {{NULL, shape, SMELT_F32, 2}, {NULL, NULL, SMELT_F32, 0}};
    EXPECT(!smelt_output_shape(session, 0) && smelt_size(session, 0) == -1);
    EXPECT(!smelt_set_shapes(session, in, 2));
    EXPECT(smelt_output_shape(session, 0)[0] == 50 && smelt_output_shape(session, 0)[1] == 4);
    EXPECT(smelt_output_shape(session, 1)[0] == -1);
    EXPECT(!smelt_output_shape(session, 2));
    EXPECT(smelt_size(session, 0) == 50 && smelt_size(session, 1) == -1);
    EXPECT(smelt_arena_bytes(session) == 256 + 64);
    shape[1] = 5;
    EXPECT(smelt_set_shapes(session, in, 2) == SMELT_BAD_ARGUMENT);
    SAYS("Input \"x\" must be f32[N, 4], but is f32[50, 5].");
    shape[1] = -4;
    EXPECT(smelt_set_shapes(session, in, 2) == SMELT_BAD_ARGUMENT);
    in[0].shape = NULL;
    EXPECT(smelt_set_shapes(session, in, 2) == SMELT_BAD_ARGUMENT);
    SAYS("without a shape");
    EXPECT(smelt_set_shapes(session, in, 1) == SMELT_BAD_ARGUMENT);
    SAYS("takes 2 inputs, not 1");
    EXPECT(smelt_output_shape(session, 0)[0] == 50);
}

static void check_run(smelt_session *session, const float *w)
{
    float a = 3;
    int64_t shape[] = {100, 4}, wrong[] = {99, 4};
    smelt_tensor in[] = {{x, shape, SMELT_F32, 2}, {&a, NULL, SMELT_F32, 0}};
    smelt_tensor out[2];
    memset(out, 0, sizeof out);

    /* The session's memory, handed in again while sizes change. */
    for (int64_t n = 0; n <= 100; n += 10) {
        shape[0] = n;
        EXPECT(!smelt_run(session, in, 2, out, 2));
        EXPECT(out[0].shape[0] == n && is_right(x, w, a, &out[0]));
        EXPECT(out[1].dtype == SMELT_I64 && out[1].rank == 1);
        EXPECT(smelt_size(session, 1) == out[1].shape[0]);
    }

    /* A failed run leaves none of its memory in the entries. */
    x[4] = -1234 - x[5] - x[6] - x[7];
    EXPECT(smelt_run(session, in, 2, out, 2) == SMELT_DATA_ERROR);
    SAYS("A row sums to -1234.");
    EXPECT(!out[0].data && !out[1].data);
    x[4] = 0.25f;

    /* The caller's memory, in place. */
    out[0] = (smelt_tensor){own, NULL, SMELT_F32, 2};
    EXPECT(!smelt_run(session, in, 2, out, 2));
    EXPECT(out[0].data == own && out[0].shape[0] == 100 && is_right(x, w, a, &out[0]));
    EXPECT(!smelt_run(session, in, 2, out, 2));
    shape[0] = 90;
    EXPECT(smelt_run(session, in, 2, out, 2) == SMELT_BAD_ARGUMENT);
    SAYS("The memory for output \"y\" must be for f32[90, 4].");
    out[0].shape = wrong;
    EXPECT(smelt_run(session, in, 2, out, 2) == SMELT_BAD_ARGUMENT);
    wrong[0] = 90;
    EXPECT(!smelt_run(session, in, 2, out, 2) && out[0].shape == wrong);
    out[0].dtype = SMELT_I32;
    EXPECT(smelt_run(session, in, 2, out, 2) == SMELT_BAD_ARGUMENT);

    /* Unaligned memory on both sides. */
    memcpy((char *)own + 1, x, sizeof x);
    in[0].data = (char *)own + 1;
    memset(out, 0, sizeof out);
    EXPECT(!smelt_run(session, in, 2, out, 2) && is_right(x, w, a, &out[0]));
    in[0].data = x;
    out[0].data = (char *)own + 1;
    out[0].shape = NULL;
    EXPECT(!smelt_run(session, in, 2, out, 2) && out[0].data == (char *)own + 1);
    memmove(own, (char *)own + 1, sizeof x);
    out[0].data = own;
    EXPECT(is_right(x, w, a, &out[0]));

    /* A size that depends on data is the session's business. */
    out[1].data = own;
    EXPECT(smelt_run(session, in, 2, out, 2) == SMELT_BAD_ARGUMENT);
    SAYS("The size of output \"rows\" depends on data");
    out[1].data = NULL;
    in[1].data = NULL;
    EXPECT(smelt_run(session, in, 2, out, 2) == SMELT_BAD_ARGUMENT);
    SAYS("Input \"a\" has no data.");
    EXPECT(smelt_run(session, in, 2, out, 1) == SMELT_BAD_ARGUMENT);
}

static void check_opening(const char *folder)
{
    static _Alignas(64) unsigned char memory[128];
    smelt_model *model;
    EXPECT(smelt_open("no/such/folder", &model) == SMELT_BAD_ARTIFACT && !model);
    SAYS("no/such/folder/weights.bin cannot be read: ");
    EXPECT(smelt_open_program(smelt_linked_programs(), "/dev/null", &model) == SMELT_BAD_ARTIFACT);
    SAYS("has fewer than the 64 bytes");
    EXPECT(smelt_open_memory(smelt_linked_programs(), memory, 63, &model) == SMELT_BAD_ARTIFACT);
    EXPECT(smelt_open_memory(smelt_linked_programs(), memory + 4, 64, &model) ==
           SMELT_BAD_ARGUMENT);
    EXPECT(!smelt_open_memory(smelt_linked_programs(), memory + 64, 64, &model));
    smelt_close(model);
    smelt_program old = **smelt_linked_programs();
    old.abi = SMELT_PROGRAM_ABI + 1;
    const smelt_program *const programs[] = {&old, NULL};
    EXPECT(smelt_open_program(programs, folder, &model) == SMELT_BAD_ARTIFACT);
    SAYS("compile it again");
    smelt_close(NULL);
    smelt_session_close(NULL);
}

/* Arguments: the artifact's folder. */
int main(int argc, char **argv)
{
    const float w[] = {1, -2, 0.5f, 8};
    EXPECT(argc == 2 && !smelt_error()[0]);
    for (int i = 0; i < 400; i++)
        x[i] = (float)((i * 37) % 41 - 20) / 16;
    check_opening(argv[1]);
    for (int threads = 1; threads <= 3; threads++) {
        smelt_model *model;
        smelt_session *session;
        EXPECT(!smelt_open(argv[1], &model));
        check_signature(model);
        EXPECT(!smelt_session_open(model, threads, &session));
        EXPECT(smelt_threads(session) == threads);
        smelt_close(model);
        check_shapes(session);
        check_run(session, w);
        EXPECT(!smelt_set_threads(session, 0) && smelt_threads(session) >= 1);
        smelt_session_close(session);
    }
    puts("fine");
    return 0;
}
