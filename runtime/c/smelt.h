/* smelt: runs a compiled model from C.
 *
 *     smelt_model *model;
 *     smelt_session *session;
 *     if (smelt_open("model.smelt", &model)) puts(smelt_error());
 *     if (smelt_session_open(model, 0, &session)) puts(smelt_error());
 *     int64_t shape[] = {1, 64};
 *     smelt_tensor x = {pixels, shape, SMELT_F32, 2}, y = {0};
 *     if (smelt_run(session, &x, 1, &y, 1)) puts(smelt_error());
 *     const float *scores = y.data;
 *     smelt_session_close(session);
 *     smelt_close(model);
 *
 * A model is its code and its weights: immutable, and free to use from any number of threads. A
 * session is what one thread needs to run it: temporaries, worker threads, states. Sessions of one
 * model share the weights and may run at the same time; one session runs in one thread at a time
 * (a second caller gets SMELT_BAD_ARGUMENT). A runtime built without threads synchronises nothing:
 * only one thread at a time may call it.
 *
 * Functions that return int return SMELT_OK (0) or an error code of program.h, and then
 * smelt_error() has a sentence about it. Pointers handed out belong to the model or the session.
 *
 * Results do not depend on the number of threads. */
#ifndef SMELT_H
#define SMELT_H

#include "program.h"

#define SMELT_VERSION "0.1.0"

#if defined(_WIN32)
#define SMELT_API __declspec(dllexport)
#elif defined(__GNUC__)
#define SMELT_API __attribute__((visibility("default")))
#else
#define SMELT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Element types. Types narrower than a byte take one byte per element. */
enum {
    SMELT_BOOL = 1,
    SMELT_I8 = 2,
    SMELT_I16 = 3,
    SMELT_I32 = 4,
    SMELT_I64 = 5,
    SMELT_U8 = 6,
    SMELT_U16 = 7,
    SMELT_U32 = 8,
    SMELT_U64 = 9,
    SMELT_F16 = 10,
    SMELT_BF16 = 11,
    SMELT_F32 = 12,
    SMELT_F64 = 13,
    SMELT_F8E4M3FN = 14,
    SMELT_F8E4M3FNUZ = 15,
    SMELT_F8E5M2 = 16,
    SMELT_F8E5M2FNUZ = 17,
    SMELT_F8E8M0 = 18,
    SMELT_F4E2M1 = 19,
    SMELT_I4 = 20,
    SMELT_U4 = 21,
    SMELT_I2 = 22,
    SMELT_U2 = 23
};

typedef struct smelt_model smelt_model;
typedef struct smelt_session smelt_session;

/* The version of the runtime, SMELT_VERSION. */
SMELT_API const char *smelt_version(void);

/* The last failure in this thread, as a sentence in UTF-8; "" before the first. */
SMELT_API const char *smelt_error(void);

/* Bytes of one element; 0 for a number that is no element type. */
SMELT_API int64_t smelt_dtype_bytes(int32_t dtype);

/* The type's name, such as "f32"; "?" for a number that is no element type. */
SMELT_API const char *smelt_dtype_name(int32_t dtype);

/* ---- models ---------------------------------------------------------------------------------- */

/* Opens the linked-in model with the weights of an artifact folder (folder/weights.bin). Fails with
 * SMELT_UNSUPPORTED_CPU when this CPU runs none of the variants, with SMELT_BAD_ARTIFACT when the
 * weights are missing or of another model, with SMELT_DEVICE_ERROR when the device that the model is
 * for is missing or cannot run it. */
SMELT_API int smelt_open(const char *folder, smelt_model **model);

/* Opens one of `programs` (ends with NULL; the first that the CPU supports) with a weights file,
 * which is mapped into memory; `path` is not read when the model has no weights. For programs that
 * link several models. */
SMELT_API int smelt_open_program(const smelt_program *const *programs, const char *path,
                                 smelt_model **model);

/* The same with weights in memory: 64-byte aligned, not copied, to outlive the model. */
SMELT_API int smelt_open_memory(const smelt_program *const *programs, const void *weights,
                                int64_t bytes, smelt_model **model);

/* The variants that are linked in, best first, then NULL. */
SMELT_API const smelt_program *const *smelt_linked_programs(void);

/* Closes the model; sessions that are still open keep what they need of it. NULL is ignored. */
SMELT_API void smelt_close(smelt_model *model);

/* The model's name, and the instruction set of the variant in use. */
SMELT_API const char *smelt_model_name(const smelt_model *model);
SMELT_API const char *smelt_model_isa(const smelt_model *model);

/* The hardware that runs the model: "cpu", or what its driver calls the device. */
SMELT_API const char *smelt_model_device(const smelt_model *model);

/* The signature. The info of an index out of range is NULL; an unknown name has the index -1. */
SMELT_API int32_t smelt_input_count(const smelt_model *model);
SMELT_API int32_t smelt_output_count(const smelt_model *model);
SMELT_API const smelt_tensor_info *smelt_input_info(const smelt_model *model, int32_t index);
SMELT_API const smelt_tensor_info *smelt_output_info(const smelt_model *model, int32_t index);
SMELT_API int32_t smelt_find_input(const smelt_model *model, const char *name);
SMELT_API int32_t smelt_find_output(const smelt_model *model, const char *name);

/* Named sizes: those that input shapes bind come first, then those that data binds in a run. */
SMELT_API int32_t smelt_size_count(const smelt_model *model);
SMELT_API int32_t smelt_bound_size_count(const smelt_model *model);
SMELT_API const char *smelt_size_name(const smelt_model *model, int32_t index);

/* ---- sessions -------------------------------------------------------------------------------- */

/* Opens a session that runs on `threads` threads, the caller's included; 0 takes the number in the
 * environment variable SMELT_NUM_THREADS, else one per CPU open to the process. A runtime built
 * without threads always has one. A child made by fork() may go on using the session. */
SMELT_API int smelt_session_open(smelt_model *model, int32_t threads, smelt_session **session);
SMELT_API void smelt_session_close(smelt_session *session);

/* Changes the number of threads, counted as in smelt_session_open. */
SMELT_API int smelt_set_threads(smelt_session *session, int32_t threads);
SMELT_API int32_t smelt_threads(const smelt_session *session);

/* Runs the model. `inputs` and `outputs` have one entry for each of the signature, in its order.
 *
 * An input that is not aligned to its element is copied first. `data` may be NULL if the tensor has
 * no elements, or to read a linked state.
 *
 * An output with data NULL goes to memory of the session, valid until its next run. Other `data` is
 * written in place and must not overlap an input; `dtype` must be set, and `shape` if not NULL is
 * checked. An output whose size depends on data must have data NULL. On success every entry of
 * `outputs` is filled in; a shape that the caller did not set is the session's, valid until the next
 * run. The same entries may be handed in again: where the session's memory was, it is again; the
 * caller's memory is refused if the shape became another and the entry does not say so.
 *
 * After a failure, outputs are undefined and states are as before. */
SMELT_API int smelt_run(smelt_session *session, const smelt_tensor *inputs, int32_t input_count,
                        smelt_tensor *outputs, int32_t output_count);

/* Prepares a run with inputs of these types and shapes (data is not read): checks them, plans and
 * allocates temporaries, and makes output shapes known. */
SMELT_API int smelt_set_shapes(smelt_session *session, const smelt_tensor *inputs,
                               int32_t input_count);

/* The shape of an output under the latest shapes, of as many entries as its info's rank; an entry
 * that depends on data is -1 until the run. NULL before the first smelt_set_shapes or smelt_run.
 * Valid until the next of either. */
SMELT_API const int64_t *smelt_output_shape(const smelt_session *session, int32_t index);

/* The value of a named size under the latest shapes, -1 if it is not known. */
SMELT_API int64_t smelt_size(const smelt_session *session, int32_t index);

/* Bytes of temporaries under the latest shapes. */
SMELT_API int64_t smelt_arena_bytes(const smelt_session *session);

/* ---- states ---------------------------------------------------------------------------------- */

/* Feeds an output of each run to an input of the next: a cache or a recurrent state that stays with
 * the session. The input's entry in smelt_run then has data NULL (its shape is not looked at);
 * data given there replaces the state for that run. The linked output's entry behaves as ever.
 *
 * `initial` is the value before the first run, copied; its data may be NULL for zeros. With
 * `initial` NULL the state starts as zeros, its shape from the signature: a named size takes the
 * value that the other inputs give it, and is 0 where none does (a cache that starts empty).
 *
 * Linking an input again replaces its link. */
SMELT_API int smelt_link_state(smelt_session *session, const char *output, const char *input,
                               const smelt_tensor *initial);

/* Ends the link of an input. */
SMELT_API int smelt_unlink_state(smelt_session *session, const char *input);

/* Puts every state back to its initial value. */
SMELT_API void smelt_reset_states(smelt_session *session);

/* The present value of the state linked to an input, valid until the next run. Data is NULL when
 * the state has no elements, or is zeros of a shape that the next run decides (then shape is NULL
 * too). */
SMELT_API int smelt_state(smelt_session *session, const char *input, smelt_tensor *value);

#ifdef __cplusplus
}
#endif

#endif
