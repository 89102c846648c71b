"""The CUDA C++ of every template compiles for the architectures that `smelt targets` lists, by
NVRTC, and by nvcc where that is found. nvcc takes seconds, so it compiles less."""

import pytest
from cuda.test_templates import INTEGERS, doubles, integers
from webgpu import test_generic_kernels as generic
from webgpu import test_templates as templates
from webgpu.device_graphs import fresh

from smelt.codegen.c import Needs
from smelt.codegen.cuda import print_kernel, translation_unit
from smelt.errors import ModelError, TargetError
from smelt.ir import dtype as dt
from smelt.ir.expr import size
from smelt.ir.kernel.builder import Builder
from smelt.ir.kernel.verifier import verify
from smelt.passes.schedule.gpu import check_limits
from smelt.targets.cuda import toolchain
from smelt.targets.cuda.target import LIMITS, SUGGESTED, lower_for

TEMPLATES = (templates.fused_rows, templates.reductions, generic.functions, generic.movement,
             doubles, integers(dt.i8), integers(dt.i64), integers(dt.u64))


def source_of(*makes, symbolic: bool = False) -> str:
    """One .cu file with the kernels of several graphs, which all pass the verifier."""
    needs, found = Needs(), {}
    for make in makes:
        for kernel in lower_for(fresh(make, symbolic).graph).kernels():
            verify(kernel)
            printed = print_kernel(kernel, needs, "kernel_symbol")
            if printed.text not in found:
                found[printed.text] = print_kernel(kernel, needs, f"k{len(found)}")
    return translation_unit(list(found.values()), needs)


@pytest.fixture(scope="module")
def nvrtc():
    found = toolchain.nvrtc()
    if found is None:
        pytest.skip("needs NVRTC: install smelt[cuda]")
    return found


@pytest.mark.parametrize("architecture", SUGGESTED)
@pytest.mark.parametrize("makes", [TEMPLATES, (templates.convolutions, templates.rows)],
                         ids=["generic", "templates"])
def test_nvrtc_compiles_static_sizes(makes, architecture, nvrtc):
    assert nvrtc.cubin(source_of(*makes), architecture)[:4] == b"\x7fELF"


def test_nvrtc_compiles_symbolic_sizes(nvrtc):
    text = source_of(templates.products, templates.fused_rows, symbolic=True)
    assert nvrtc.cubin(text, SUGGESTED[0])[:4] == b"\x7fELF"


if nvcc := toolchain.nvcc():
    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", SUGGESTED)
    def test_nvcc_compiles(architecture):
        text = source_of(templates.fused_rows, *map(integers, INTEGERS))
        assert nvcc.cubin(text, architecture)[:4] == b"\x7fELF"


def test_a_complaint_of_the_compiler_is_one_sentence(nvrtc):
    with pytest.raises(TargetError, match="NVRTC failed on the kernels for sm_80: .*error"):
        nvrtc.cubin("nonsense;", "sm_80")


# Text ---------------------------------------------------------------------------------------------


def test_a_kernel_reads_as_written():
    b = Builder("scale")
    n = size("n")
    x, y = b.param("x", dt.f32, (n,)), b.param("new", dt.f32, (n,))
    with b.loop("g", (n + 63) // 64, "grid.x") as g, b.loop("t", 64, "block.x") as t:
        i = b.let("i", g * 64 + t)
        with b.when(i < n):
            b.store(y, i, x[i] * 2.0)
    printed = print_kernel(b.kernel(), Needs())
    assert printed.threads == (64, 1, 1) and not printed.barriers
    assert printed.text == """\
extern "C" __global__ void __launch_bounds__(64) scale(SMELT_GLOBAL(const float) x,
        SMELT_GLOBAL(float) new1, int64_t n) {
    SMELT_EXTENT(x, n);
    SMELT_EXTENT(new1, n);
    const int64_t g = (int64_t)blockIdx.x;
    const int32_t t = (int32_t)threadIdx.x;
    const int64_t i = (int64_t)((int64_t)g * 64) + t;
    if (i < n) {
        new1[i] = x[i] * 2.0f;
    }
}
"""


def test_vectors_and_blocks_of_open_size_have_no_spelling():
    b = Builder("wide")
    x, y = b.param("x", dt.f32, (8,)), b.param("y", dt.f32, (8,))
    with b.loop("g", 1, "grid.x"), b.loop("t", size("n"), "block.x"):
        b.store(y, 0, x[0])
    with pytest.raises(ValueError, match="constant size"):
        print_kernel(b.kernel(), Needs())


def test_memory_of_a_launch_counts_elements_by_their_size():
    """48 KiB hold 6144 numbers of f64, or as many bytes as there are."""
    for dtype, most in ((dt.f64, 6144), (dt.f32, 12288), (dt.u8, 49152)):
        for count in (most, most + 1):
            b = Builder("large", "layer7/Sum")
            y = b.param("y", dtype, (1,))
            with b.loop("g", 1, "grid.x"):
                held = b.alloc("held", dtype, (count,), "shared")
                with b.loop("t", 1, "block.x"):
                    b.store(held, 0, 1)
                    b.store(y, 0, held[0])
            if count == most:
                check_limits(b.kernel(), LIMITS)
            else:
                with pytest.raises(ModelError, match=r"layer7/Sum.*49152 bytes"):
                    check_limits(b.kernel(), LIMITS)
