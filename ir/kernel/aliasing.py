"""Which inputs a kernel may write its output over.

It may when it reads element i of the input only to store element i of its output.
"""

from __future__ import annotations

from ..expr import Expr, walk, wrap
from .nodes import Buffer, Kernel, Load, Store, expressions, statements


def reusable(kernel: Kernel) -> list[int]:
    """Positions of the parameters whose memory the kernel's only output may take."""
    if kernel.outputs != 1 or not kernel.params:
        return []
    *inputs, out = kernel.params
    spoiled: set[Buffer] = set()
    used: set[Buffer] = set()
    for s in statements(kernel.body):
        store = s if isinstance(s, Store) and s.buffer is out else None
        for e in expressions(s):
            for x in walk(e):
                if not isinstance(x, Load):
                    continue
                used.add(x.buffer)
                same = store is not None and x.index == store.index \
                    and x.lanes == store.value.lanes and x.count in (store.count, None)
                if not same:
                    spoiled.add(x.buffer)
        if isinstance(s, Store) and s.buffer is not out:
            spoiled.add(s.buffer)
    if out in used:
        return []
    return [k for k, x in enumerate(inputs)
            if x in used and x not in spoiled and _bytes(x) is _bytes(out)]


def _bytes(buffer: Buffer) -> Expr:
    total = wrap(buffer.dtype.itemsize)
    for d in buffer.shape:
        total = total * wrap(d)
    return total
