/* Which variant of the linked-in model a CPU would run: chosen_variant FOLDER FEATURES
 *
 * The features are bits of program.h; this file's smelt_cpu_features() takes the place of the
 * runtime's, which looks at the CPU. */
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

static uint32_t features;

uint32_t smelt_cpu_features(void)
{
    return features;
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 4;
    features = (uint32_t)atoi(arguments[2]);
    smelt_model *model;
    int code = smelt_open(arguments[1], &model);
    puts(code ? smelt_error() : smelt_model_isa(model));
    if (!code)
        smelt_close(model);
    return code;
}
