"""Where encoded constants are decoded: inside the kernel that reads them, or while compiling."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.encoding.rounded import Rounded
from ...ir.graph.clone import clone_node
from ...ir.graph.core import Graph, Node, Value
from ...ir.graph.interpreter import run_node
from ...ir.graph.ops.encoded import encoding_of
from ..schedule.low_bit import reads
from .base import Pass, register
from .rewrite import is_returned, own_graphs


@register
@dataclass(frozen=True)
class DecodeAhead(Pass):
    """Makes constants of the `decode` nodes of constants whose readers are no kernels for their
    encoding, or would be slower for it; of the others, every reader gets one of its own, which
    fusion puts into its kernel.

    kernels: whether there are such kernels. most_rows: rows up to which a product of f32 rows is
    quicker with weights of a few bits.
    """

    name = "decode_ahead"
    kernels: bool = False
    most_rows: int = 32

    def run(self, graph: Graph) -> bool:
        modified = False
        for home in own_graphs(graph):
            for node in home.ordered():
                if node.op == "decode":
                    modified |= self._place(node, home)
        return modified

    def _place(self, node: Node, home: Graph) -> bool:
        value = node.output
        keep = [u for u in value.users if self._inside(value, u)]
        for user in keep:
            mapping: dict[Value, Value] = {}
            assert user.graph is not None
            clone_node(node, user.graph, mapping)
            _replace_input(user, value, mapping[value])
        if keep:
            self.notes.append(f"{_title(node)}: {node.attrs['encoding']} is decoded in the kernel "
                              f"of {', '.join(map(_title, keep))}")
        if not value.users and not is_returned(value):
            home.erase(node)
            return True
        if any(v is None or v.constant is None for v in node.inputs):
            return bool(keep)
        (array,) = run_node(node, [v.constant for v in node.inputs if v is not None])
        home.replace(value, home.add("constant", (), {"value": array}, origin=node.origin))
        home.erase(node)
        self.notes.append(f"{_title(node)}: {node.attrs['encoding']} is decoded while compiling")
        return True

    def _inside(self, value: Value, user: Node) -> bool:
        """Whether the user's kernel reads the encoded value."""
        if not self.kernels or user.op != "matmul" or user.inputs.count(value) != 1:
            return False
        left, right = user.inputs
        assert left is not None and right is not None and value.node is not None
        if right is value:
            return self._reads(right, left)
        return isinstance(encoding_of(value.node.attrs), Rounded) and self._reads(right, left)

    def _reads(self, weights: Value, left: Value) -> bool:
        """Whether there is a kernel for left x weights, quick enough."""
        node = weights.node
        if node is None or node.op != "decode" or node.attrs["axis"] or weights.rank != 2:
            return False
        k = weights.shape[0]
        if not isinstance(k, int) or any(v is None or v.constant is None for v in node.inputs):
            return False
        if not reads(encoding_of(node.attrs), k):
            return False
        rounded = left.node is not None and left.node.op == "decode"
        rows = left.shape[-2]
        return rounded or not isinstance(rows, int) or rows <= self.most_rows


def _title(node: Node) -> str:
    return node.origin or node.op


def _replace_input(user: Node, old: Value, new: Value) -> None:
    """Makes one node read `new` in the place of `old`."""
    user.inputs = [new if v is old else v for v in user.inputs]
    new.users[user] = old.users.pop(user)
