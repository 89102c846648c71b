"""The fork-join pool, by a C program that checks every index of every job."""

import subprocess
from pathlib import Path

import pytest

from smelt.runtime import sources

PROGRAM = Path(__file__).parent / "programs" / "pool_check.c"
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-g"]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory):
    """check(threads, calls, *flags): nanoseconds per empty job."""
    files = sources()
    include = files["internal.h"].parent
    built: dict[tuple[str, ...], Path] = {}

    def run(threads: int, calls: int, *flags: str) -> float:
        if flags not in built:
            built[flags] = tmp_path_factory.mktemp("pool") / "check"
            command = ["gcc", *FLAGS, *flags, f"-I{include}", str(PROGRAM), str(files["pool.c"]),
                       str(files["memory.c"]), "-lpthread", "-o", str(built[flags])]
            subprocess.run(command, check=True)
        done = subprocess.run(
            [built[flags], str(threads), str(calls)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        print(f"{threads} threads: {done.stdout} ns")
        return float(done.stdout)

    return run


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 16])
def test_every_index_exactly_once(check, threads):
    check(threads, 2000)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_no_data_races(check, threads):
    check(threads, 1000, "-fsanitize=thread")


@pytest.mark.parametrize("threads", [2, 4])
def test_no_stray_accesses(check, threads):
    check(threads, 1000, "-fsanitize=address,undefined")


@pytest.mark.parametrize("threads", [1, 4])
def test_without_threads_the_caller_does_it_all(check, threads):
    if threads == 1:
        check(threads, 1000, "-DSMELT_NO_THREADS")
        return
    with pytest.raises(AssertionError, match="the pool opens"):
        check(threads, 1000, "-DSMELT_NO_THREADS")


def test_one_thread_costs_no_synchronisation(check):
    assert check(1, 100000) < 100  # a call and a return
