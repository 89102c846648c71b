"""`python -m pytest` puts the checkout on the path, where folders of the package (frontend, ir)
hide the folders of tests with the same name; the package itself is imported as `smelt`.

Where the environment variable CI is set, a test that would be skipped fails, for a machine that
checks everything has every tool; tests marked `gpu` excepted."""

import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs deaf to Ctrl-C, and processes hand that on; some tests send one.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh random numbers; the seed is printed, so that a failure shows it."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after the marks skipif and xfail have had their say
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport,
                                                              pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail") and item.get_closest_marker("gpu") is None:
        refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Makes a failure of a skipped test or file where CI is set."""
    if report.skipped and os.environ.get("CI"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped where CI is set. {why}"
