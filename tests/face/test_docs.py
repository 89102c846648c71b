"""The documentation is true: tables are current, examples run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import smelt as package
from smelt.cli import main

ROOT = Path(package.__file__).parent
DIGITS = ROOT / "examples" / "digits"

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(),
                                reason="documentation is checked in a checkout")


def blocks(file: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.S | re.M)


def test_docs_table_of_operators_is_current():
    from smelt.frontend.onnx.coverage import page

    if onnx.defs.onnx_opset_version() < 28:
        pytest.skip("an older onnx knows fewer operators")
    text = (ROOT / "docs" / "operators.md").read_text()
    assert text == page(), "run: python -m smelt.frontend.onnx.coverage > docs/operators.md"


def test_docs_name_commands_that_exist(smelt):
    commands = set(re.findall(r"^  ([a-z]+) +[A-Z]", smelt("--help").out, re.M))
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text()
        used = set(re.findall(r"(?:`|^\$ )smelt ([a-z]+)(?= |`|$)", text, re.M))
        assert used <= commands, f"{file.name}: {used - commands}"
        for command, option in re.findall(r"smelt ([a-z]+)[^`\n|]*? (--[a-z-]+)", text):
            assert option in smelt(command, "--help").out, f"{file.name}: {command} {option}"


def test_docs_readme_tour_runs(smelt, tmp_path: Path, monkeypatch):
    """The commands, the Python and the C program of the README, on the bundled example."""
    shutil.copytree(DIGITS, tmp_path / "examples" / "digits")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    tour = text.split("## Five minutes")[1].split("## Commands")[0]
    tour += text.split("## Targets")[1].split("## Documentation")[0]
    commands = re.findall(r"^\$ (smelt .*)$", tour, re.M)
    assert len(commands) >= 6
    for command in commands:
        arguments = command.split()[1:]
        if arguments[0] == "bench":
            arguments += ["--seconds", "0.1"]
        result = smelt(*arguments)
        assert result.code == 0, f"{command}: {result.err}"
    assert (tmp_path / "digits.html").stat().st_size > 5000

    python = next(b for b in blocks("README.md", "python") if "digits" in b)
    run = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.splitlines()[-1]) > 0.95  # the accuracy of the example

    (program,) = blocks("README.md", "c")
    (tmp_path / "program.c").write_text(program + """
int main(void) {
    static float pixels[64];
    int64_t shape[4] = {1, 1, 8, 8};
    for (int i = 0; i < 64; i++) pixels[i] = (float)i / 64;
    return run(pixels, shape);
}
""")
    build = re.search(r"^\$ (cc .*)$", tour, re.M)
    assert build is not None
    run = subprocess.run(f"{build[1]} -o program && ./program", shell=True, capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stderr
    x = (np.arange(64, dtype=np.float32) / 64).reshape(1, 1, 8, 8)
    expected = package.load("digits.smelt")(x)[0, 0]
    assert float(run.stdout.split()[-1]) == pytest.approx(expected, abs=1e-5)


def test_docs_list_the_command_lines_own_exit_codes():
    text = (ROOT / "docs" / "debugging.md").read_text()
    from smelt.cli import INTERRUPTED, UNEXPECTED

    assert f"| {UNEXPECTED} | a bug" in text and f"| {INTERRUPTED} | interrupted" in text
    assert main(["--version"]) == 0
