"""A part of a kernel that is written plainly, scheduled, and only then joins the kernel."""

from __future__ import annotations

from ...ir.kernel.builder import Builder
from ...ir.kernel.nodes import Kernel


class Fragment(Builder):
    """A builder for statements of another builder's kernel. `kernel()` is the part as a kernel of
    its own, for primitives to change; `join` puts it where the other builder is."""

    def __init__(self, whole: Builder):
        super().__init__(whole.name, whole.origin)
        self.whole = whole
        self.params = whole.params
        self._count = whole._count

    def join(self, kernel: Kernel) -> None:
        self.whole._count = self._count
        self.whole.emit(kernel.body)
