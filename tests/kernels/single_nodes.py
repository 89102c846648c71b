"""One graph node run by its procedural kernel, next to the operator's numpy reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from smelt.ir import dtype as dt
from smelt.ir.expr import evaluate, size
from smelt.ir.graph.core import Graph, TensorType
from smelt.ir.graph.definition import OpContext, lookup
from smelt.ir.kernel.interpreter import run_kernel
from smelt.ir.kernel.nodes import Kernel
from smelt.ir.kernel.verifier import verify
from smelt.passes.lower.procedural import Site, find

# Axes whose size an operator must know: (operand, axis).
STATIC = {"scatter_nd": [(1, a) for a in range(1, 4)], "nms": [(0, 2)],
          "couple_probabilities": [(0, 1)]}
STATIC.update(dict.fromkeys(("lstm", "gru", "rnn"), [(0, 2), (1, 0), (1, 3), (1, 4), (2, 0)]))
JUNK = {"f": -77.25, "i": -77, "u": 77, "b": 1}


def node_of(op: str, arrays: Sequence[np.ndarray | None], attrs: dict[str, Any],
            symbolic: bool = False):
    """A node on inputs of these types; `symbolic` makes every size of the inputs a name. Returns
    the node and the values of the names."""
    graph = Graph()
    sizes: dict[str, int] = {}
    inputs = []
    for i, array in enumerate(arrays):
        shape: list = list(() if array is None else array.shape)
        if symbolic:
            # Sizes that are equal get the same name, as operands that belong together have.
            sizes.update({f"d{n}": n for n in shape})
            shape = [n if (i, a) in STATIC.get(op, ()) else size(f"d{n}")
                     for a, n in enumerate(shape)]
        inputs.append(None if array is None else graph.add_input(
            f"x{i}", TensorType(dt.from_numpy(array), tuple(shape))))
    return graph.add_node(op, inputs, dict(attrs)), sizes


def kernel_of(node) -> tuple[Kernel, list[TensorType]]:
    """The kernel of a node and the types of its scratch parameters."""
    write = find(node.op)
    assert write is not None, f"no kernel for {node.op}"
    site = Site(node, node.op)
    write(site)
    return site.kernel(), site.scratches


def by_kernel(op: str, arrays: Sequence[np.ndarray | None], attrs: dict[str, Any],
              symbolic: bool = False) -> list[np.ndarray]:
    """The outputs that the kernel writes; scratch and outputs hold junk before."""
    node, sizes = node_of(op, arrays, attrs, symbolic)
    kernel, scratches = kernel_of(node)
    verify(kernel)
    types = [*scratches, *(v.type for v in node.outputs)]
    written = [np.full([evaluate(d, sizes) for d in t.shape], JUNK.get(t.dtype.kind[0], 0),
                       np.float64 if t.dtype.is_float else np.int64).astype(t.dtype.numpy)
               for t in types]
    run_kernel(kernel, [*(np.ascontiguousarray(a) for a in arrays if a is not None), *written],
               {v.name: sizes[v.name] for v in kernel.sizes})
    return written[len(written) - len(node.outputs):]


def by_reference(op: str, arrays: Sequence[np.ndarray | None], attrs: dict[str, Any]):
    node, _ = node_of(op, arrays, attrs)
    reference = lookup(op).reference
    assert reference is not None
    result = reference(OpContext(node), *arrays)
    return list(result) if isinstance(result, tuple) else [result]


def check(op: str, arrays: Sequence[np.ndarray | None], attrs: dict[str, Any],
          expected: Sequence[np.ndarray] | None = None, rtol: float = 0.0, atol: float = 0.0):
    """Kernel (static and symbolic sizes) against `expected`, by default the reference."""
    wanted = by_reference(op, arrays, attrs) if expected is None else expected
    for symbolic in (False, True):
        for got, want in zip(by_kernel(op, arrays, attrs, symbolic), wanted, strict=True):
            want = np.asarray(want)
            assert got.shape == want.shape
            assert got.dtype == want.dtype
            if dt.from_numpy(want).is_float:
                # numpy knows the NaN of its own types only.
                got, want = got.astype(np.float64), want.astype(np.float64)
                np.testing.assert_allclose(got, want, rtol, atol)
            else:
                np.testing.assert_array_equal(got, want)
