"""Cases of `onnx.backend.test` as arrays, and how their outputs are compared."""

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

# The suite's relative tolerance suits f32; f16 and bf16 results rounded in a different order differ
# by some units in the last place (2**-11 and 2**-8). A sum's rounding error goes with its largest
# term, not with what is left of it: so much of the largest output, 8 units for f32.
LOOSER = {np.dtype(np.float16): (2.0**-9, 2.0**-11),
          np.dtype(ml_dtypes.bfloat16): (2.0**-6, 2.0**-8),
          np.dtype(np.float32): (0.0, 2.0**-21)}


@dataclass(frozen=True)
class Case:
    """One model of the suite with its data sets, read on demand."""

    name: str
    source: Any

    @functools.cached_property
    def model(self) -> onnx.ModelProto:
        if self.source.model is not None:
            return self.source.model
        return onnx.load(Path(self.source.model_dir) / "model.onnx")

    def data_sets(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """(inputs, expected outputs), as arrays where they are tensors."""
        if self.source.data_sets is not None:
            for inputs, outputs in self.source.data_sets:
                yield [_array(x) for x in inputs], [_array(x) for x in outputs]
            return
        for folder in sorted(Path(self.source.model_dir).glob("test_data_set_*")):
            yield tuple(
                [_read(p) for p in sorted(folder.glob(f"{kind}_*.pb"),
                                          key=lambda p: int(p.stem.split("_")[1]))]
                for kind in ("input", "output"))  # type: ignore[misc]


def _array(x: Any) -> Any:
    return numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x


def _read(path: Path) -> np.ndarray:
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


@functools.cache
def cases(kind: str) -> dict[str, Case]:
    """The cases of one kind ("node", "simple", "pytorch-converted", "pytorch-operator")."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {t.name: Case(t.name, t) for t in load_model_tests(kind=kind)}


def compare(found: np.ndarray, expected: Any, rtol: float, atol: float) -> None:
    """Asserts equal type and shape, and equal elements within the suite's tolerance."""
    expected = np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype.kind in "biu" or "int" in expected.dtype.name:
        np.testing.assert_array_equal(found, expected)
        return
    relative, of_largest = LOOSER.get(expected.dtype, (0.0, 0.0))
    finite = np.abs(expected.astype(np.float64))
    scale = finite[np.isfinite(finite)].max(initial=0.0)
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=max(rtol, relative),
        atol=max(atol, of_largest * scale))
