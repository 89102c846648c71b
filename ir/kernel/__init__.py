"""The loop-level IR that schedules transform and emitters print.

May import `ir` only.
"""

from .nodes import (
    Alloc,
    Barrier,
    Block,
    Buffer,
    Call,
    Do,
    For,
    If,
    Kernel,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    While,
)

__all__ = ["Alloc", "Barrier", "Block", "Buffer", "Call", "Do", "For", "If", "Kernel", "Let",
           "Load", "Prefetch", "Stmt", "Store", "While"]
