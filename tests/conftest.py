"""`python -m pytest` puts the checkout on the path, where folders of the package (frontend, ir)
hide the folders of tests with the same name; the package itself is imported as `smelt`."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh random numbers; the seed is printed, so that a failure shows it."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)
