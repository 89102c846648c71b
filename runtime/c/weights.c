/* Weights files: mapped on POSIX systems, so that processes share them and pages load on demand. */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if !defined(SMELT_NO_MMAP) && (defined(__unix__) || defined(__APPLE__))
#define SMELT_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

static int too_short(const char *path, int64_t expected)
{
    return smelt_fail(SMELT_BAD_ARTIFACT,
                      "The weights file %s has fewer than the %lld bytes that the model needs: "
                      "it is damaged or of another model.",
                      path, (long long)expected);
}

static int unreadable(const char *path)
{
    return smelt_fail(SMELT_BAD_ARTIFACT, "The weights file %s cannot be read: %s.", path,
                      strerror(errno));
}

#ifdef SMELT_MMAP

enum { LARGE = 4 << 20 };

int smelt_mapping_open(smelt_mapping *mapping, const char *path, int64_t bytes)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return unreadable(path);
    struct stat status;
    if (fstat(file, &status)) {
        int code = unreadable(path);
        close(file);
        return code;
    }
    if (status.st_size < bytes) {
        close(file);
        return too_short(path, bytes);
    }
    void *data = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, file, 0);
    int code = data == MAP_FAILED ? unreadable(path) : SMELT_OK;
#ifdef MADV_HUGEPAGE
    /* Pages that are not in the system's cache yet are then read as huge ones, which spares address
     * translations. Where the file system cannot, nothing changes. */
    if (!code && bytes >= LARGE)
        madvise(data, (size_t)bytes, MADV_HUGEPAGE);
#endif
    close(file);
    if (!code)
        *mapping = (smelt_mapping){data, bytes, 1};
    return code;
}

void smelt_mapping_close(smelt_mapping *mapping)
{
    if (mapping->mapped)
        munmap((void *)mapping->data, (size_t)mapping->bytes);
    *mapping = (smelt_mapping){0};
}

#else

int smelt_mapping_open(smelt_mapping *mapping, const char *path, int64_t bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return unreadable(path);
    smelt_block block = {0};
    int code = SMELT_OK;
    if (smelt_block_reserve(&block, bytes))
        code = smelt_fail(SMELT_OUT_OF_MEMORY, "No memory for %lld bytes of weights.",
                          (long long)bytes);
    else if (fread(block.data, 1, (size_t)bytes, file) != (size_t)bytes)
        code = ferror(file) ? unreadable(path) : too_short(path, bytes);
    fclose(file);
    if (code)
        smelt_block_free(&block);
    else
        *mapping = (smelt_mapping){block.data, bytes, 0};
    return code;
}

void smelt_mapping_close(smelt_mapping *mapping)
{
    free((void *)mapping->data);
    *mapping = (smelt_mapping){0};
}

#endif
