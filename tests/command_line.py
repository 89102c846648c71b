"""Command lines run by the tests, and what they gave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def refused(result: Result, code: int, *parts: str) -> None:
    """Asserts a refusal in one sentence that holds `parts`, and nothing else."""
    assert result.code == code, f"{result.code}: {result.err}"
    assert result.out == "" and "Traceback" not in result.err
    assert result.err.startswith("smelt: ") and result.err.count("\n") == 1, result.err
    assert len(result.err) < 1000
    for part in parts:
        assert part in result.err, result.err
