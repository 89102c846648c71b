/* Runs on numpy arrays where they lie, so that a call from Python is one call of C.
 *
 * Nothing here includes Python's or numpy's headers: a library is not built for one version of them.
 * Where the fields of their objects lie, the caller finds out and tells (runtime/arrays.py). */
#ifndef SMELT_ARRAYS_H
#define SMELT_ARRAYS_H

#include "smelt.h"

/* Byte offsets of fields. */
typedef struct smelt_array_layout {
    const void *array_type; /* the type object of arrays; subclasses are not taken */
    int32_t type;           /* of any object: its type */
    int32_t count, items;   /* of a tuple: the number of items (ssize_t), the first of them */
    int32_t data, rank, shape, element, flags; /* of an array: as in PyArrayObject_fields */
} smelt_array_layout;

/* What stays the same from call to call. */
typedef struct smelt_array_call {
    const smelt_array_layout *layout;
    smelt_session *session;
    smelt_tensor *inputs, *outputs; /* one for each of the signature; those not given have no data */
    const int32_t *given, *returned; /* positions in the signature of what a call takes and gives */
    const void *const *elements;     /* of `given`: the numpy.dtype object that an array must have */
    int32_t given_count, returned_count;
} smelt_array_call;

enum {
    SMELT_OTHER_ARRAYS = -1, /* an input is no contiguous array of its element type */
    SMELT_OTHER_OUTPUTS = -2 /* the arrays for outputs are not those of the inputs' sizes */
};

/* Runs on a tuple of inputs, one for each of `given`, and a tuple of arrays to be written, one for
 * each of `returned` whose size the inputs tell. The others of `outputs` then say what the session's
 * memory holds for them. Returns what smelt_run() does, or one of the codes above: then nothing
 * ran. After SMELT_OTHER_OUTPUTS, smelt_output_shape() tells which arrays are wanted. */
SMELT_API int smelt_run_arrays(const smelt_array_call *call, const void *inputs,
                               const void *outputs);

#endif
