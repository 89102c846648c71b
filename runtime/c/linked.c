/* The model that is linked in. A file of its own: a program that links several models and opens them
 * by smelt_open_program() takes this one from none of the archives. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const smelt_program *const *smelt_linked_programs(void)
{
    return smelt_programs;
}

int smelt_open(const char *folder, smelt_model **model)
{
    static const char file[] = "/weights.bin";
    *model = NULL;
    char *path = malloc(strlen(folder) + sizeof file);
    if (!path)
        return smelt_fail(SMELT_OUT_OF_MEMORY, "No memory to open the model.");
    strcpy(path, folder);
    strcat(path, file);
    int code = smelt_open_program(smelt_programs, path, model);
    free(path);
    return code;
}
