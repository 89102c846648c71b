"""How the command line ends when its reader goes away, or Ctrl-C comes early."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_models

from smelt.cli import INTERRUPTED

ENDED = ["--help", "--version", "targets", "compile {model} -o {folder}/m.smelt",
         "run {model} --random", "bench {model} --seconds 0.05 --against=",
         "verify {model} --against interpreter", "inspect {model}", "inspect {model} --target cpu",
         "opt {model}", ""]


def reader_is_gone(arguments: list[str], errors: int = subprocess.PIPE) -> tuple[int, str]:
    """Exit code and standard error of a command whose standard output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        run = subprocess.run([sys.executable, "-m", "smelt", *arguments], stdout=write,
                             stderr=write if errors == subprocess.STDOUT else errors)
    finally:
        os.close(write)
    return run.returncode, (run.stderr or b"").decode()


@pytest.mark.parametrize("json", [False, True], ids=["words", "json"])
@pytest.mark.parametrize("command", ENDED)
def test_a_closed_pipe_ends_every_command_quietly(mlp: Path, tmp_path: Path, command: str,
                                                  json: bool):
    arguments = command.format(model=mlp, folder=tmp_path).split()
    if json and not command.startswith("-") and arguments:
        arguments.append("--json")
    code, text = reader_is_gone(arguments)
    assert code == 0 and "Traceback" not in text and "smelt:" not in text, text
    assert json or text == ""
    # What is made is made all the same.
    assert not command.startswith("compile") or (tmp_path / "m.smelt" / "manifest.json").is_file()


@pytest.mark.parametrize("errors", [subprocess.PIPE, subprocess.STDOUT])
@pytest.mark.parametrize("options", [[], ["--json"], ["--debug"]])
def test_a_closed_pipe_does_not_change_how_a_failure_ends(mlp: Path, tmp_path: Path, errors: int,
                                                          options: list[str]):
    x = np.ones((1, 12), np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=small_models.mlp_reference(small_models.mlp(), x)
             .astype(np.float32) + 1)
    arguments = ["verify", str(mlp), "--data", str(tmp_path / "d.npz"), "--against", "data"]
    code, text = reader_is_gone([*arguments, *options], errors)
    assert code == 8 and "BrokenPipe" not in text
    assert reader_is_gone(["nonsense", *options], errors)[0] == 2


# Ctrl-C comes when `sys.argv[1]` is imported for the first time.
INTERRUPT = """
import os, runpy, signal, sys
from importlib.abc import MetaPathFinder

class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == wanted:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
        return None

wanted = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("smelt", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["typer", "typer.main", "smelt.cli_commands", "smelt.options",
                                    "smelt.screen", "rich", "numpy", "smelt.compilation"])
def test_an_interrupt_during_imports_is_one_sentence(mlp: Path, module: str):
    run = subprocess.run([sys.executable, "-c", INTERRUPT, module, "run", str(mlp), "--random"],
                         capture_output=True, text=True)
    # Python itself may end by the signal, which shells call 130 as well.
    assert run.returncode in (INTERRUPTED, -signal.SIGINT), run.stderr
    assert "Traceback" not in run.stderr and run.stderr.count("\n") == 1
    assert "interrupted" in run.stderr


def test_no_arguments_print_the_help(smelt):
    bare, asked = smelt(), smelt("--help")
    assert bare.code == 0 and bare.err == "" and bare.out == asked.out
    assert bare.out.startswith("Usage: smelt") and "\n  compile " in bare.out
