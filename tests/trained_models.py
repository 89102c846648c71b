"""Where the trained models for tests are: in SMELT_MODELS, else in `shared/models` beside the
checkout."""

from pathlib import Path

import pytest

from smelt import config

BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "models"


def models_folder() -> Path:
    """The folder of models; without one the test is skipped."""
    folder = config.models_dir() or BESIDE_THE_CHECKOUT
    if not (folder / "data").is_dir():
        pytest.skip(f"no trained models in {folder.name}: set SMELT_MODELS")
    return folder
