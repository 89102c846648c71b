"""The tensor-graph IR: values with symbolic shapes, nodes, regions, one definition per operator.

May import `ir` only.
"""

from .core import Graph, Node, TensorType, Value
from .definition import OpDef, lookup

__all__ = ["Graph", "Node", "OpDef", "TensorType", "Value", "lookup"]
