"""Models for CUDA: the C code between generated host code and the driver, the emulation of kernels
on the CPU, and the class that loads such models. May import numpy and the runtime."""
