/* Models: choosing the variant that the CPU runs, opening the weights, the signature. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int select_program(const smelt_program *const *programs, const smelt_program **chosen)
{
    char names[SMELT_ERROR_BYTES] = "";
    for (; *programs; programs++) {
        const smelt_program *program = *programs;
        if (program->abi != SMELT_PROGRAM_ABI)
            return smelt_fail(SMELT_BAD_ARTIFACT,
                              "The model was generated for version %u of the runtime's interface, "
                              "which is %d here: compile it again.",
                              (unsigned)program->abi, SMELT_PROGRAM_ABI);
        if (!program->supported || program->supported()) {
            *chosen = program;
            return SMELT_OK;
        }
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", program->isa);
    }
    return smelt_fail(SMELT_UNSUPPORTED_CPU,
                      "The model needs a CPU with %s, which this one is not: compile it for this "
                      "CPU.",
                      names[0] ? names : "an instruction set that it does not name");
}

static int make_model(const smelt_program *program, smelt_mapping mapping, const void *weights,
                      smelt_model **result)
{
    smelt_model *model = calloc(1, sizeof *model);
    if (!model) {
        smelt_mapping_close(&mapping);
        return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory to open the model.");
    }
    model->program = program;
    model->mapping = mapping;
    model->weights = weights;
    smelt_count_up(&model->users);
    int code = SMELT_OK;
    if (program->device) {
        char error[SMELT_ERROR_BYTES] = "";
        code = program->device->open_model(program, weights, &model->device, error);
        if (code)
            smelt_fail(code, "%s", error);
    }
    if (code)
        smelt_close(model);
    else
        *result = model;
    return code;
}

int smelt_open_program(const smelt_program *const *programs, const char *path, smelt_model **model)
{
    const smelt_program *program;
    smelt_mapping mapping = {0};
    *model = NULL;
    int code = select_program(programs, &program);
    if (!code && program->weight_bytes > 0)
        code = smelt_mapping_open(&mapping, path, program->weight_bytes);
    return code ? code : make_model(program, mapping, mapping.data, model);
}

int smelt_open_memory(const smelt_program *const *programs, const void *weights, int64_t bytes,
                      smelt_model **model)
{
    const smelt_program *program;
    *model = NULL;
    int code = select_program(programs, &program);
    if (code)
        return code;
    if (bytes < program->weight_bytes)
        return smelt_fail(SMELT_BAD_ARTIFACT, "The model needs %lld bytes of weights, not %lld.",
                          (long long)program->weight_bytes, (long long)bytes);
    if ((uintptr_t)weights % SMELT_ALIGNMENT)
        return smelt_fail(SMELT_BAD_ARGUMENT, "The weights must be aligned to %d bytes.",
                          SMELT_ALIGNMENT);
    return make_model(program, (smelt_mapping){0}, weights, model);
}

void smelt_model_retain(smelt_model *model)
{
    smelt_count_up(&model->users);
}

void smelt_close(smelt_model *model)
{
    if (!model || smelt_count_down(&model->users))
        return;
    if (model->device)
        model->program->device->close_model(model->device);
    smelt_mapping_close(&model->mapping);
    free(model);
}

const char *smelt_model_name(const smelt_model *model)
{
    return model->program->name;
}

const char *smelt_model_isa(const smelt_model *model)
{
    return model->program->isa;
}

const char *smelt_model_device(const smelt_model *model)
{
    const smelt_device *device = model->program->device;
    return device ? device->name(model->device) : "cpu";
}

int32_t smelt_input_count(const smelt_model *model)
{
    return model->program->inputs;
}

int32_t smelt_output_count(const smelt_model *model)
{
    return model->program->outputs;
}

const smelt_tensor_info *smelt_input_info(const smelt_model *model, int32_t index)
{
    const smelt_program *program = model->program;
    return index >= 0 && index < program->inputs ? program->input_info + index : NULL;
}

const smelt_tensor_info *smelt_output_info(const smelt_model *model, int32_t index)
{
    const smelt_program *program = model->program;
    return index >= 0 && index < program->outputs ? program->output_info + index : NULL;
}

static int32_t find(const smelt_tensor_info *infos, int32_t count, const char *name)
{
    for (int32_t i = 0; i < count; i++)
        if (!strcmp(infos[i].name, name))
            return i;
    return -1;
}

int32_t smelt_find_input(const smelt_model *model, const char *name)
{
    return find(model->program->input_info, model->program->inputs, name);
}

int32_t smelt_find_output(const smelt_model *model, const char *name)
{
    return find(model->program->output_info, model->program->outputs, name);
}

int32_t smelt_size_count(const smelt_model *model)
{
    return model->program->all_dims;
}

int32_t smelt_bound_size_count(const smelt_model *model)
{
    return model->program->bound_dims;
}

const char *smelt_size_name(const smelt_model *model, int32_t index)
{
    const smelt_program *program = model->program;
    return index >= 0 && index < program->all_dims ? program->dim_names[index] : NULL;
}
