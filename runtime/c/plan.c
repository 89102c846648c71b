/* Places temporaries in the arena.
 *
 * Greedy by size with best fit (Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural
 * Net Inference"): sizes rounded up to 64 in descending order, equal ones by index; each goes into
 * the smallest gap that holds it between placed ones alive at the same time (the lowest of equal
 * gaps), else behind the last of them. Empty ones get offset 0. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t size;
    int32_t index;
} request;

typedef struct {
    int64_t offset, end;
    int32_t first, last;
} placed;

static int by_size(const void *left, const void *right)
{
    const request *a = left, *b = right;
    if (a->size != b->size)
        return a->size > b->size ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* Inserts into `done` (ordered by offset) and returns the offset. */
static int64_t place(placed *done, int32_t count, int64_t size, int32_t first, int32_t last)
{
    int64_t end = 0, best = -1, best_gap = INT64_MAX;
    for (int32_t i = 0; i < count; i++) {
        if (done[i].first > last || done[i].last < first)
            continue;
        int64_t gap = done[i].offset - end;
        if (gap >= size && gap < best_gap) {
            best = end;
            best_gap = gap;
        }
        if (done[i].end > end)
            end = done[i].end;
    }
    int64_t offset = best >= 0 ? best : end;
    int32_t at = count;
    while (at > 0 && done[at - 1].offset > offset)
        at--;
    memmove(done + at + 1, done + at, (size_t)(count - at) * sizeof *done);
    done[at] = (placed){offset, offset + size, first, last};
    return offset;
}

int64_t smelt_plan_arena(int32_t count, const int64_t *bytes, const int32_t *first,
                         const int32_t *last, int64_t *offsets)
{
    size_t room = (size_t)(count > 0 ? count : 1);
    request *requests = malloc(room * sizeof *requests);
    placed *done = malloc(room * sizeof *done);
    int64_t arena = requests && done ? 0 : -1;
    int64_t total = 0;
    int32_t wanted = 0;
    for (int32_t i = 0; i < count && arena == 0; i++) {
        offsets[i] = 0;
        /* The sum bounds every offset, so that nothing below overflows. */
        if (bytes[i] < 0 || bytes[i] > INT64_MAX - SMELT_ALIGNMENT - total) {
            arena = -1;
            break;
        }
        int64_t size = (bytes[i] + SMELT_ALIGNMENT - 1) / SMELT_ALIGNMENT * SMELT_ALIGNMENT;
        total += size;
        if (size)
            requests[wanted++] = (request){size, i};
    }
    if (arena == 0) {
        qsort(requests, (size_t)wanted, sizeof *requests, by_size);
        for (int32_t i = 0; i < wanted; i++) {
            int32_t index = requests[i].index;
            int64_t size = requests[i].size;
            offsets[index] = place(done, i, size, first[index], last[index]);
            if (offsets[index] + size > arena)
                arena = offsets[index] + size;
        }
    }
    free(requests);
    free(done);
    return arena;
}
