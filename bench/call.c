/* Runs a linked-in model over and over, driven by smelt.measure: a line of settings, which are not
 * read, then lines {"round": seconds}. Arguments: the artifact's folder, a file of inputs as
 * call.py writes it, a file for the outputs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model.h"

#define MOST 256

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double now(void) { return seconds_of(CLOCK_MONOTONIC); }

static void fail(const char *why)
{
    printf("{\"error\": \"%s\"}\n", why);
    exit(1);
}

static void read_exactly(void *into, size_t bytes, FILE *file)
{
    if (bytes && fread(into, 1, bytes, file) != bytes) fail("the inputs end early");
}

static int64_t number(FILE *file)
{
    int64_t value = 0;
    read_exactly(&value, sizeof value, file);
    return value;
}

static int64_t bytes_of(const smelt_tensor *t)
{
    int64_t bytes = smelt_dtype_bytes(t->dtype);
    for (int k = 0; k < t->rank; k++) bytes *= t->shape[k];
    return bytes;
}

static int read_inputs(const char *path, smelt_tensor *inputs)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail("the inputs cannot be read");
    int count = (int)number(file);
    if (count > MOST) fail("too many inputs");
    for (int i = 0; i < count; i++) {
        inputs[i].dtype = (int32_t)number(file);
        inputs[i].rank = (int32_t)number(file);
        int64_t *shape = malloc(sizeof *shape * (size_t)(inputs[i].rank + 1));
        for (int k = 0; k < inputs[i].rank; k++) shape[k] = number(file);
        inputs[i].shape = shape;
        size_t bytes = (size_t)bytes_of(&inputs[i]);
        inputs[i].data = aligned_alloc(64, (bytes + 64) / 64 * 64);
        read_exactly(inputs[i].data, bytes, file);
    }
    fclose(file);
    return count;
}

int main(int argc, char **argv)
{
    static smelt_tensor inputs[MOST], outputs[MOST];
    char line[65536];
    smelt_model *model;
    smelt_session *session;
    if (argc != 4 || !fgets(line, sizeof line, stdin)) return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int given = read_inputs(argv[2], inputs);
    double start = now();
    if (smelt_open(argv[1], &model) || smelt_session_open(model, 1, &session)) fail(smelt_error());
    int count = smelt_output_count(model);
    if (given != smelt_input_count(model) || count > MOST) fail("other inputs than the model's");
    double loaded = now();
#define RUN() if (smelt_run(session, inputs, given, outputs, count)) fail(smelt_error())
    RUN();
    double first = now();
    FILE *file = fopen(argv[3], "wb");
    if (!file) fail("the outputs cannot be written");
    for (int i = 0; i < count; i++)
        fwrite(outputs[i].data, 1, (size_t)bytes_of(&outputs[i]), file);
    fclose(file);
    printf("{\"version\": \"%s\", \"compile\": 0, \"load\": %.9f, \"first\": %.9f, \"base\": 0}\n",
           smelt_version(), loaded - start, first - loaded);
    while (fgets(line, sizeof line, stdin)) {
        const char *at = strchr(line, ':');
        double wanted = at ? atof(at + 1) : 0;
        double busy = seconds_of(CLOCK_PROCESS_CPUTIME_ID), begin = now();
        RUN();
        double once = now() - begin, each = once;
        if (once < wanted) {
            long runs = (long)(wanted / (once > 1e-7 ? once : 1e-7));
            start = now();
            for (long r = 0; r < runs; r++) RUN();
            each = (now() - start) / (double)runs;
        }
        double wall = now() - begin;
        printf("{\"seconds\": %.12f, \"memory\": 0, \"cores\": %.3f}\n", each,
               (seconds_of(CLOCK_PROCESS_CPUTIME_ID) - busy) / wall);
    }
    smelt_session_close(session);
    smelt_close(model);
    return 0;
}
