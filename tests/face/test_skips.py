"""On a machine that checks everything, no test is skipped for want of a tool."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
TESTS = """
import pytest

def test_fine(): pass

def test_tool(): pytest.skip("needs a lathe")

def test_module(): pytest.importorskip("no_such_module")

@pytest.mark.skipif(True, reason="needs a mill")
def test_mark(): pass

@pytest.fixture
def furnace(): pytest.skip("needs a furnace")

def test_fixture(furnace): pass

@pytest.mark.gpu
def test_gpu(): pytest.skip("needs a GPU")

@pytest.mark.xfail
def test_known(): assert False
"""


@pytest.mark.parametrize(("ci", "counts"), [
    # pytest calls a failure before a test's first line an error.
    ("1", "2 failed, 1 passed, 1 skipped, 1 xfailed, 3 errors"),
    ("", "1 passed, 6 skipped, 1 xfailed")])
def test_skips_are_failures_in_ci(tmp_path: Path, ci: str, counts: str):
    inner = tmp_path / "project" / "tests"
    inner.mkdir(parents=True)
    shutil.copy(CONFTEST, inner)
    (inner / "test_tools.py").write_text(TESTS)
    (inner / "test_whole.py").write_text("import pytest\n"
                                         "pytest.importorskip('no_such_module')\n")
    (inner.parent / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q",
         "--continue-on-collection-errors"], cwd=inner.parent, capture_output=True, text=True,
        env={**os.environ, "CI": ci})
    assert run.stdout.splitlines()[-1].startswith(f"{counts} in "), run.stdout
    for reason in ("needs a lathe", "no_such_module", "needs a mill", "needs a furnace"):
        assert (f"where CI is set. Skipped: {reason}" in run.stdout
                or f"where CI is set. Skipped: could not import '{reason}'" in run.stdout
                ) == bool(ci), run.stdout
