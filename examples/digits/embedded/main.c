/* Recognises one digit. On a device, put the result where the device needs it instead of printing
 * it: the model itself needs no operating system, no heap and no file. */
#include "digits.h"
#include <stdio.h>

/* An 8 x 8 picture, 0 is paper and 16 is ink, as a sensor might leave it in memory. */
static const uint8_t picture[DIGITS_IN0_COUNT] = {
    0,  0,  0,  3, 16,  3,  0, 0,
    0,  0,  0, 10, 16, 11,  0, 0,
    0,  0,  4, 16, 16,  8,  0, 0,
    0,  2, 14, 12, 16,  5,  0, 0,
    0, 10, 16, 14, 16, 16, 11, 0,
    0,  5, 12, 13, 16,  8,  3, 0,
    0,  0,  0,  2, 15,  3,  0, 0,
    0,  0,  0,  4, 12,  0,  0, 0,
};

static float image[DIGITS_IN0_COUNT], probability[DIGITS_OUT0_COUNT];

int main(void)
{
    for (int i = 0; i < DIGITS_IN0_COUNT; i++)
        image[i] = (float)picture[i] / 16.0f;
    digits_run(image, probability);
    int best = 0;
    for (int i = 1; i < DIGITS_OUT0_COUNT; i++)
        if (probability[i] > probability[best])
            best = i;
    printf("This is a %d (%.1f %%).\n", best, 100.0 * (double)probability[best]);
    return 0;
}
