"""Every test of the face uses a cache of its own run, not the user's."""

from pathlib import Path

import onnx
import pytest
import small_models
from command_line import Result

from smelt.cli import main


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder; compiled objects are shared between tests, for speed."""
    monkeypatch.setenv("SMELT_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def smelt(capfd: pytest.CaptureFixture[str]):
    """Runs a command line in this process: smelt("run", path, ...) -> Result."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """A small model as a file; see small_models.mlp."""
    path = tmp_path / "mlp.onnx"
    onnx.save(small_models.mlp(), path)
    return path
