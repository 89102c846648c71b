"""The tests of the emulated device on a GPU. Its arithmetic is that of the CPU but for functions of
f64, so tolerances are the same; and results must be those of the emulation, bit for bit."""

import numpy as np
import pytest
from bits import assert_same_bits
from cuda.test_models import MODELS, check_model
from cuda.test_templates import INTEGERS, doubles, integers
from small_models import mlp
from webgpu import test_generic_kernels as generic
from webgpu import test_templates as templates
from webgpu.device_graphs import check, fresh

import smelt

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("make", "rtol", "atol"), [
    (templates.rows, 1e-5, 1e-6), (templates.fused_rows, 1e-5, 1e-6),
    (templates.products, 2e-5, 2e-4), (templates.reductions, 1e-5, 1e-4),
    (generic.movement, 1e-5, 1e-6), (generic.reductions, 1e-5, 1e-6)])
def test_templates(make, rtol, atol, symbolic, gpu):
    check(fresh(make, symbolic), rtol, atol, by_kernels=False, target=gpu)


@pytest.mark.parametrize(("make", "rtol", "atol"), [
    (templates.convolutions, 2e-5, 2e-4), (generic.functions, 1e-5, 1e-6),
    (doubles, 1e-12, 1e-12), *((integers(d), 0, 0) for d in INTEGERS)])
def test_operators(make, rtol, atol, gpu):
    check(fresh(make), rtol, atol, by_kernels=False, target=gpu)


@pytest.mark.parametrize("make", [templates.rows, templates.products, templates.convolutions])
def test_the_emulation_has_the_bits_of_the_gpu(make, gpu):
    cases = fresh(make)
    seed = cases.rng.bit_generator.state
    results = []
    for target in (gpu, "cuda:emulated"):
        cases.rng.bit_generator.state = seed
        _, run = cases.compiled(target)
        results.append(run(1))
    assert_same_bits(*results)


def test_open_sizes(gpu, rng):
    with smelt.compile(mlp(), target=gpu, cache=False) as module, \
            smelt.compile(mlp(), target="cuda:emulated", cache=False) as emulated:
        for n in (1, 7, 0, 300, 2):
            x = rng.standard_normal((n, 12)).astype(np.float32)
            assert_same_bits([module(x)], [emulated(x)])


@pytest.mark.parametrize("name", MODELS)
def test_trained_model(name, gpu):
    check_model(name, gpu)
