/* Memory blocks, element types, sizes, and the text of the last error. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__) && !defined(SMELT_NO_MMAP)
#include <sys/mman.h>
#endif

/* Large blocks start at multiples of this, so that the system can back them with huge pages, which
 * spares page faults and address translations. */
enum { HUGE_PAGE = 2 << 20 };

static SMELT_THREAD_LOCAL char last_error[2 * SMELT_ERROR_BYTES];

int smelt_fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return code;
}

const char *smelt_error(void)
{
    return last_error;
}

const char *smelt_version(void)
{
    return SMELT_VERSION;
}

static smelt_block allocate(int64_t bytes)
{
    smelt_block block = {NULL, 0};
    size_t alignment = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : SMELT_ALIGNMENT;
    if (bytes < 0 || (uint64_t)bytes > SIZE_MAX - alignment)
        return block;
    size_t size = ((size_t)bytes + alignment - 1) / alignment * alignment;
    if (!size)
        size = alignment;
    block.data = aligned_alloc(alignment, size);
    if (!block.data)
        return block;
    block.capacity = (int64_t)size;
#ifdef MADV_HUGEPAGE
    if (alignment == HUGE_PAGE)
        madvise(block.data, size, MADV_HUGEPAGE);
#endif
    return block;
}

/* What grows once grows on, as caches and stacks do: by half, not by a little each time. */
static smelt_block allocate_growing(int64_t bytes, int64_t before)
{
    smelt_block block = {NULL, 0};
    int64_t half_more = before + before / 2;
    if (bytes >= 0 && half_more > bytes)
        block = allocate(half_more);
    return block.data ? block : allocate(bytes);
}

int smelt_block_reserve(smelt_block *block, int64_t bytes)
{
    if (block->data && bytes >= 0 && bytes <= block->capacity)
        return 0;
    int64_t before = block->capacity;
    smelt_block_free(block);
    *block = allocate_growing(bytes, before);
    return block->data ? 0 : -1;
}

int smelt_block_grow(smelt_block *block, int64_t bytes)
{
    if (block->data && bytes >= 0 && bytes <= block->capacity)
        return 0;
    smelt_block larger = allocate_growing(bytes, block->capacity);
    if (!larger.data)
        return -1;
    if (block->data)
        memcpy(larger.data, block->data, (size_t)block->capacity);
    smelt_block_free(block);
    *block = larger;
    return 0;
}

void smelt_block_free(smelt_block *block)
{
    free(block->data);
    block->data = NULL;
    block->capacity = 0;
}

static const struct {
    const char *name;
    int64_t bytes;
} dtypes[] = {
    {"?", 0},
    [SMELT_BOOL] = {"bool", 1},
    [SMELT_I8] = {"i8", 1},
    [SMELT_I16] = {"i16", 2},
    [SMELT_I32] = {"i32", 4},
    [SMELT_I64] = {"i64", 8},
    [SMELT_U8] = {"u8", 1},
    [SMELT_U16] = {"u16", 2},
    [SMELT_U32] = {"u32", 4},
    [SMELT_U64] = {"u64", 8},
    [SMELT_F16] = {"f16", 2},
    [SMELT_BF16] = {"bf16", 2},
    [SMELT_F32] = {"f32", 4},
    [SMELT_F64] = {"f64", 8},
    [SMELT_F8E4M3FN] = {"f8e4m3fn", 1},
    [SMELT_F8E4M3FNUZ] = {"f8e4m3fnuz", 1},
    [SMELT_F8E5M2] = {"f8e5m2", 1},
    [SMELT_F8E5M2FNUZ] = {"f8e5m2fnuz", 1},
    [SMELT_F8E8M0] = {"f8e8m0", 1},
    [SMELT_F4E2M1] = {"f4e2m1", 1},
    [SMELT_I4] = {"i4", 1},
    [SMELT_U4] = {"u4", 1},
    [SMELT_I2] = {"i2", 1},
    [SMELT_U2] = {"u2", 1},
};

static int32_t known(int32_t dtype)
{
    return dtype > 0 && dtype < (int32_t)(sizeof dtypes / sizeof dtypes[0]) ? dtype : 0;
}

int64_t smelt_dtype_bytes(int32_t dtype)
{
    return dtypes[known(dtype)].bytes;
}

const char *smelt_dtype_name(int32_t dtype)
{
    return dtypes[known(dtype)].name;
}

int smelt_is_number(const char *text, int64_t *value)
{
    *value = 0;
    int number = *text != 0;
    for (const char *c = text; number && *c; c++) {
        number = *c >= '0' && *c <= '9' && *value < INT64_MAX / 10;
        *value = number ? *value * 10 + (*c - '0') : 0;
    }
    return number;
}

int64_t smelt_tensor_bytes(int32_t dtype, int32_t rank, const int64_t *shape)
{
    int64_t bytes = smelt_dtype_bytes(dtype);
    int empty = 0;
    for (int32_t i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return -1;
        empty |= shape[i] == 0;
    }
    for (int32_t i = 0; i < rank && !empty; i++) {
        if (shape[i] > INT64_MAX / bytes)
            return -1;
        bytes *= shape[i];
    }
    return empty ? 0 : bytes;
}
