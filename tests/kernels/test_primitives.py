"""The primitives of schedules: what they make of a kernel, that this computes the same, and what
they refuse, with the place in the text."""

from collections.abc import Callable

import numpy as np
import pytest
from cpu.native_graphs import Cases, check

from smelt.errors import ModelError
from smelt.ir.expr import evaluate, size
from smelt.ir.kernel.interpreter import KernelFault, run_kernel
from smelt.ir.kernel.nodes import For, Kernel, statements
from smelt.ir.kernel.text import parse_kernel, print_kernel
from smelt.ir.kernel.verifier import verify
from smelt.passes.schedule import primitives
from smelt.passes.schedule.dependence import proves
from smelt.passes.schedule.primitives import (
    ScheduleError,
    bind,
    fuse,
    reorder,
    split,
    stage,
    tile,
    unroll,
    vectorise,
)
from smelt.targets.cpu import target as cpu

Program = Callable[[Kernel], Kernel]

SCALE = """\
kernel k(n; x: f32[n], y: f32[n]) outputs 1 {
  for i < n {
    y[i] = mul(x[i], 2.0:f32)
  }
}
"""
MATRIX = """\
kernel k(n, m; x: f32[n, m], y: f32[n, m]) outputs 1 {
  for i < n {
    for j < m {
      y[i, j] = neg(x[i, j])
    }
  }
}
"""
TURNED = """\
kernel k(; x: f32[768], y: f32[768]) outputs 1 {
  for i < 24 {
    for j < 32 {
      y[i*32 + j] = x[j*24 + i]
    }
  }
}
"""
ROWS = """\
kernel k(n; x: f32[n, 8], y: f32[n]) outputs 1 {
  for i < n {
    alloc s: f32[] register
    s[] = 0.0:f32
    for j < 8 {
      let v: f32 = x[i, j]
      s[] = add(s[], mul(v, v))
    }
    y[i] = s[]
  }
}
"""
COLUMNS = """\
kernel k(n; x: f32[n, 24], y: f32[24]) outputs 1 {
  for c < 3 {
    for j < 8 {
      alloc s: f32[] register
      s[] = 0.0:f32
      for i < n {
        let v: f32 = x[i, c*8 + j]
        s[] = add(s[], mul(v, v))
      }
      y[c*8 + j] = s[]
    }
  }
}
"""
WINDOW = """\
kernel k(n; x: f32[2*n + 1], w: f32[3], y: f32[n]) outputs 1 {
  for b < n // 8 {
    for i < 8 {
      for j < 3 {
        y[b*8 + i] = add(y[b*8 + i], mul(x[b*16 + i*2 + j], w[j]))
      }
    }
  }
}
"""

AFTER: dict[str, tuple[str, Program, str]] = {
    "split_guard": (SCALE, lambda k: split(k, "i", 8), """
  for i_o < ((n + 7) // 8) {
    for i_i < 8 {
      if lt((i_i + (i_o * 8)), n) {
        y[(i_i + (i_o * 8))] = mul(x[(i_i + (i_o * 8))], 2.0:f32)
      }
    }
  }
"""),
    "split_cut": (SCALE, lambda k: split(k, "i", 8, "cut"), """
  for i_o < (n // 8) {
    for i_i < 8 {
      y[(i_i + (i_o * 8))] = mul(x[(i_i + (i_o * 8))], 2.0:f32)
    }
  }
  for i_t < (n % 8) {
    y[(i_t + ((n // 8) * 8))] = mul(x[(i_t + ((n // 8) * 8))], 2.0:f32)
  }
"""),
    "reorder": (MATRIX, lambda k: reorder(k, "i", "j"), """
  for j < m {
    for i < n {
      y[i, j] = neg(x[i, j])
    }
  }
"""),
    "fuse": (MATRIX, lambda k: fuse(k, "i", "j"), """
  for i_j < (m * n) {
    let i: i64 in < n = (i_j // m)
    let j: i64 in < m = (i_j % m)
    y[i, j] = neg(x[i, j])
  }
"""),
    "tile": (MATRIX, lambda k: tile(k, "i", "j", 4, 8), """
  for i_o < ((n + 3) // 4) {
    for j_o < ((m + 7) // 8) {
      for i_i < 4 {
        if lt((i_i + (i_o * 4)), n) {
          for j_i < 8 {
            if lt((j_i + (j_o * 8)), m) {
              y[(i_i + (i_o * 4)), (j_i + (j_o * 8))] = neg(x[(i_i + (i_o * 4)), (j_i + (j_o * 8))])
            }
          }
        }
      }
    }
  }
"""),
    "unroll": (ROWS, lambda k: unroll(split(k, "j", 4), "j_o"), """
  for i < n {
    alloc s: f32[] register
    s[] = 0.0:f32
    for j_i < 4 {
      let v: f32 = x[i, j_i]
      s[] = add(s[], mul(v, v))
    }
    for j_i_2 < 4 {
      let v_2: f32 = x[i, (j_i_2 + 4)]
      s[] = add(s[], mul(v_2, v_2))
    }
    y[i] = s[]
  }
"""),
    "vectorise_tail": (SCALE, lambda k: vectorise(split(k, "i", 8), "i_i"), """
  for i_o < ((n + 7) // 8) {
    let i_i_n: i64 = min((n - (i_o * 8)), 8)
    y[(i_o * 8), count=i_i_n] = mul(x<8>[(i_o * 8), count=i_i_n], broadcast<8>(2.0:f32))
  }
"""),
    "vectorise_scalars": (COLUMNS, lambda k: vectorise(k, "j"), """
  for c < 3 {
    alloc s: f32<8>[] register
    s[] = broadcast<8>(0.0:f32)
    for i < n {
      alloc v_v: f32<8>[] register
      v_v[] = x<8>[i, (c * 8)]
      s[] = add(s[], mul(v_v[], v_v[]))
    }
    y[(c * 8)] = s[]
  }
"""),
    "vectorise_gather": (TURNED, lambda k: vectorise(split(k, "j", 16), "j_i"), """
  for i < 24 {
    for j_o < 2 {
      y[((i * 32) + (j_o * 16))] = x[ramp<16, 24>((i + (j_o * 384)))]
    }
  }
"""),
    "bind_axes": (MATRIX, lambda k: bind(bind(k, "i", "grid.x"), "j", "block.x"), """
  grid.x i < n {
    block.x j < m {
      y[i, j] = neg(x[i, j])
    }
  }
"""),
    "bind_parallel": (SCALE, lambda k: bind(k, "i", "parallel", 64), """
  parallel i < n grain 64 {
    y[i] = mul(x[i], 2.0:f32)
  }
"""),
    "stage_window": (WINDOW, lambda k: stage(k, "x", "i"), """
  for b < (n // 8) {
    alloc x_tile: f32[17] local
    for x_tile_c < 17 {
      x_tile[x_tile_c] = x[((b * 16) + x_tile_c)]
    }
    for i < 8 {
      for j < 3 {
        y[((b * 8) + i)] = add(y[((b * 8) + i)], mul(x_tile[((i * 2) + j)], w[j]))
      }
    }
  }
"""),
    "stage_turned": (
        TURNED, lambda k: stage(tile(k, "i", "j", 8, 8), "x", "i_i", along="j_i", name="t"), """
  for i_o < 3 {
    for j_o < 4 {
      alloc t: f32[8, 8] local
      for t_c < 8 {
        for t_c_2 < 8 {
          t[t_c_2, t_c] = x[((((i_o * 8) + (j_o * 192)) + (t_c * 24)) + t_c_2)]
        }
      }
      for i_i < 8 {
        for j_i < 8 {
          y[((((i_i * 32) + (i_o * 256)) + j_i) + (j_o * 8))] = t[i_i, j_i]
        }
      }
    }
  }
"""),
}


def arrays(kernel: Kernel, sizes: dict[str, int], seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [[evaluate(d, sizes) for d in b.shape] for b in kernel.params]
    return [np.asarray(rng.integers(-9, 10, shape)).astype(b.dtype.numpy)
            for b, shape in zip(kernel.params, shapes, strict=True)]


def results(kernel: Kernel, sizes: dict[str, int], seed: int = 1) -> list[np.ndarray]:
    buffers = arrays(kernel, sizes, seed)
    run_kernel(kernel, buffers, sizes, seed=seed)
    return buffers


def same(before: Kernel, after: Kernel, sizes: dict[str, int]) -> None:
    for a, b in zip(results(before, sizes), results(after, sizes), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", AFTER)
def test_what_primitives_make_of_a_kernel(name: str):
    text, program, body = AFTER[name]
    before = parse_kernel(text)
    after = program(before)
    assert str(after).splitlines()[1:-1] == body.strip("\n").splitlines()
    assert print_kernel(parse_kernel(str(after))) == str(after)
    verify(after)
    for n, m in ((1, 1), (8, 3), (16, 24), (29, 17), (0, 5)):
        same(before, after, {"n": n, "m": m})


def test_a_transpose_as_a_schedule():
    """Tiles of symbolic sizes, staged so that lanes are contiguous on both sides, in parallel."""
    k = parse_kernel("""
    kernel t(n, m; x: f32[n*m], y: f32[n*m]) outputs 1 {
      for i < n {
        for j < m {
          y[i*m + j] = mul(x[j*n + i], 2.0:f32)
        }
      }
    }""")
    after = stage(tile(k, "i", "j", 8, 8), "x", "i_i", along="j_i")
    after = vectorise(after, "j_i")
    after = bind(fuse(after, "i_o", "j_o"), "i_o_j_o", "parallel")
    verify(after)
    for n, m in ((8, 8), (17, 3), (5, 40), (0, 4)):
        same(k, after, {"n": n, "m": m})


# Refusals -----------------------------------------------------------------------------------------

SHIFT = """\
kernel k(n; x: f32[n, n], y: f32[n, n]) outputs 1 {
  for i < n - 1 {
    for j < n - 1 {
      y[i + 1, j] = add(y[i, j + 1], x[i, j])
    }
  }
}
"""
PREFIX = """\
kernel k(; x: f32[9], y: f32[9]) outputs 1 {
  for i < 8 {
    y[i + 1] = add(y[i], x[i])
  }
}
"""
TOTAL = """\
kernel k(n, m; x: f32[n, m], y: f32[1]) outputs 1 {
  for i < n {
    for j < m {
      y[0] = add(y[0], mul(x[i, j], 0.3:f32))
    }
  }
}
"""
OVERLAP = """\
kernel k(n; x: f32[n], y: f32[2*n + 8]) outputs 1 {
  for i < n {
    for j < 4 {
      y[i*2 + j] = mul(x[i], 2.0:f32)
    }
  }
}
"""
ILLEGAL: dict[str, tuple[str, Program]] = {
    "a dependence that turns round": (SHIFT, lambda k: reorder(k, "i", "j")),
    "tiles of it": (SHIFT, lambda k: tile(k, "i", "j", 2, 2)),
    "a sum of floats": (TOTAL, lambda k: reorder(k, "i", "j")),
    "a sum in parallel": (TOTAL, lambda k: bind(k, "i", "parallel")),
    "a prefix in parallel": (PREFIX, lambda k: bind(k, "i", "parallel")),
    "a prefix in lanes": (PREFIX, lambda k: vectorise(k, "i")),
    "places that overlap": (OVERLAP, lambda k: bind(k, "i", "grid.x")),
    "the last store wins": (OVERLAP, lambda k: reorder(k, "i", "j")),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_is_refused_would_compute_something_else(name: str, monkeypatch):
    text, program = ILLEGAL[name]
    before, sizes = parse_kernel(text), {"n": 7, "m": 5}
    with pytest.raises(ScheduleError):
        program(before)
    wanted = results(before, sizes)
    monkeypatch.setattr(primitives, "conflicts", lambda *_: iter(()))
    try:
        after = program(before)
        verify(after)
        found = [results(after, sizes, seed) for seed in (1,)]
    except (KernelFault, ModelError):
        return
    assert any(not np.array_equal(a, b) for f in found for a, b in zip(wanted, f, strict=True))


def test_reductions_may_change_order_when_asked_or_exact():
    k = parse_kernel(TOTAL)
    after = reorder(k, "i", "j", associative=True)
    a, b = (results(x, {"n": 7, "m": 5})[1] for x in (k, after))
    np.testing.assert_allclose(a, b, 1e-5)  # 35 terms of at most 2.7, rounded in another order
    largest = parse_kernel(TOTAL.replace("add(", "max("))
    same(largest, reorder(largest, "i", "j"), {"n": 7, "m": 5})


MESSAGES: dict[str, tuple[str, Program, str]] = {
    "dependence": (SHIFT, lambda k: reorder(k, "i", "j"), """\
kernel k: reorder(i, j): iterations may meet in y in another order
    kernel k(n; x: f32[n, n], y: f32[n, n]) outputs 1 {
      for i < (n - 1) {
        for j < (n - 1) {
          y[(i + 1), j] = add(y[i, (j + 1)], x[i, j])
          ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
        }
      }
    ..."""),
    "reduction": (TOTAL.replace("0.3", "0.5"), lambda k: bind(k, "j", "parallel"), """\
kernel k: bind(j, parallel): iterations of j may meet in y
    kernel k(n, m; x: f32[n, m], y: f32[1]) outputs 1 {
      for i < n {
        for j < m {
          y[0] = add(y[0], mul(x[i, j], 0.5:f32))
          ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
        }
      }
    ..."""),
    "symbolic unroll": (SCALE, lambda k: unroll(k, "i"), """\
kernel k: unroll(i): how often it runs is known at run time only: n
    kernel k(n; x: f32[n], y: f32[n]) outputs 1 {
      for i < n {
      ~~~~~~~~~
        y[i] = mul(x[i], 2.0:f32)
      }
    ..."""),
    "symbolic lanes": (SCALE, lambda k: vectorise(k, "i"), """\
kernel k: vectorise(i): n is no number of lanes: a power of two is
    kernel k(n; x: f32[n], y: f32[n]) outputs 1 {
      for i < n {
      ~~~~~~~~~
        y[i] = mul(x[i], 2.0:f32)
      }
    ..."""),
    "lanes along another axis": (
        MATRIX, lambda k: vectorise(split(k, "i", 4, "cut"), "i_i"), """\
kernel k: vectorise(i_i): the lanes are not along the last axis of x
    kernel k(n, m; x: f32[n, m], y: f32[n, m]) outputs 1 {
      for i_o < (n // 4) {
        for i_i < 4 {
          for j < m {
            y[(i_i + (i_o * 4)), j] = neg(x[(i_i + (i_o * 4)), j])
            ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
          }
        }
    ..."""),
    "imperfect nest": (ROWS, lambda k: fuse(k, "i", "j"), """\
kernel k: fuse(i, j): j is not all that i repeats
    kernel k(n; x: f32[n, 8], y: f32[n]) outputs 1 {
      for i < n {
        alloc s: f32[] register
        ~~~~~~~~~~~~~~~~~~~~~~~
        s[] = 0.0:f32
        ~~~~~~~~~~~~~
        for j < 8 {
          let v: f32 = x[i, j]
          s[] = add(s[], mul(v, v))
        }
        y[i] = s[]
        ~~~~~~~~~~
      }
    }"""),
    "no box": (MATRIX, lambda k: stage(k, "x", "j"), """\
kernel k: stage(x, j): how far j goes is known at run time only
    kernel k(n, m; x: f32[n, m], y: f32[n, m]) outputs 1 {
      for i < n {
        for j < m {
          y[i, j] = neg(x[i, j])
          ~~~~~~~~~~~~~~~~~~~~~~
        }
      }
    ..."""),
    "no loop": (SCALE, lambda k: unroll(k, "q"), "kernel k: it has no loop q, only: i"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_refusals_show_the_place(name: str):
    text, program, message = MESSAGES[name]
    with pytest.raises(ScheduleError) as caught:
        program(parse_kernel(text))
    assert str(caught.value) == message


def test_extents_that_the_loop_itself_changes_stay():
    k = parse_kernel("""
    kernel k(n; x: f32[n], y: f32[n]) outputs 1 {
      alloc c: i64[] register
      c[] = 3
      for i < c[] {
        c[] = c[] + 1
        y[i] = x[i]
      }
    }""")
    with pytest.raises(ScheduleError, match="changes what its extent was read from"):
        split(k, "i", 2)


def test_proofs():
    n, m, i, j = size("n"), size("m"), size("i"), size("j")
    inside = [n - 1 - i, m - 1 - j]
    assert proves(n * m - 1 - (i * m + j), inside)
    assert not proves(n * m - 2 - (i * m + j), inside)
    assert not proves(n - 1 - j, inside)


# Compiled -----------------------------------------------------------------------------------------


def test_a_scheduled_kernel_runs_natively(monkeypatch):
    k = parse_kernel(TURNED)
    k = vectorise(stage(tile(k, "i", "j", 8, 8), "x", "i_i", along="j_i"), "j_i")
    k = bind(fuse(k, "i_o", "j_o"), "i_o_j_o", "parallel")

    def rule(low, node) -> bool:
        if node.op == "transpose":
            low.launch(k, [low.storage(node.inputs[0]), low.storage(node.output)])
        return node.op == "transpose"

    monkeypatch.setattr(cpu, "RULES", (rule, *cpu.RULES))
    c = Cases(1)
    c.output(c.graph.add("transpose", [c.input(32, 24)], {"perm": (1, 0)}))
    program = check(c, "cpu:x86-64-v3", 0, 0)
    assert next(iter(program.kernels())).name == "k"


def test_large_transposes_are_scheduled_in_blocks():
    c = Cases(2)
    for shape, perm in (((1024, 528), (1, 0)), ((2, 1040, 513), (0, 2, 1))):
        c.output(c.graph.add("transpose", [c.input(*shape)], {"perm": perm}))
    program = check(c, "cpu:x86-64-v3", 0, 0)
    for kernel in program.kernels():
        names = [s.var.name for s in statements(kernel.body) if isinstance(s, For)]
        assert any(n.endswith("_i") for n in names), names
