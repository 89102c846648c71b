"""Targets that CUDA tests run on: the emulated device everywhere, a GPU for tests marked `gpu`."""

import ctypes

import pytest


@pytest.fixture(scope="session")
def gpu() -> str:
    """The target for the GPU of this machine; without one, or a driver, the test is skipped."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        pytest.skip(f"no NVIDIA driver: {error}")
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        pytest.skip("the NVIDIA driver finds no GPU")
    for value, attribute in ((major, 75), (minor, 76)):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return f"cuda:sm_{major.value}{minor.value}"
