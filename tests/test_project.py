"""The project's own rules: sizes, import directions, environment variables, start-up, packaging."""

import ast
import inspect
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import networkx as nx
import pytest

import smelt
import smelt.errors

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 600
MAX_COLUMNS = 100

# Folders at the root that are no part of the package.
OUTSIDE = {"tests", "examples", "docs", "bench"}

# Which parts of the package a part may import, and which other distributions. The longest prefix
# counts. Modules at the root that are not named here are the face, which may import anything.
RULES: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "config": (set(), set()),
    "ir": ({"ir"}, {"numpy", "ml_dtypes", "networkx"}),
    "runtime": ({"runtime"}, {"numpy"}),
    "passes": ({"ir", "passes"}, {"numpy", "ml_dtypes", "networkx"}),
    "codegen": ({"ir", "codegen"}, {"numpy", "ml_dtypes"}),
    "frontend": ({"ir", "frontend"}, {"numpy", "ml_dtypes", "onnx"}),
    "frontend.onnx": ({"ir", "frontend.onnx"}, {"numpy", "ml_dtypes", "onnx"}),
    "targets": (
        {"ir", "passes", "codegen", "targets", "runtime.abi"},
        {"numpy", "ml_dtypes", "networkx"},
    ),
}
ANYONE = {"errors", "config"}
# Optional distributions, imported inside the functions that need them.
LAZY = {"frontend": {"torch"}, "runtime": {"wgpu"}, "targets": {"tvm"}}


# --- the files and their imports -----------------------------------------------------------------


@cache
def tracked(suffix: str = "") -> list[PurePosixPath]:
    """Files that git tracks or would add, below the root."""
    listed = subprocess.run(
        # A checkout may belong to another user, in a container for example.
        ["git", "-c", "safe.directory=*",
         "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )
    if listed.returncode:
        pytest.skip("the project's rules are checked in a git checkout")
    paths = (PurePosixPath(name) for name in listed.stdout.split("\0") if name)
    return sorted(p for p in paths if p.name.endswith(suffix) and (ROOT / p).is_file())


def text_of(path: PurePosixPath) -> str | None:
    """The file's text, or None for a binary file."""
    data = (ROOT / path).read_bytes()
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def in_package(path: PurePosixPath) -> bool:
    first = path.parts[0]
    return path != PurePosixPath("setup.py") and first not in OUTSIDE and first[0] != "."


@dataclass(frozen=True)
class Import:
    """One imported module: `inside` the package ("ir.dtype"; "" is the root), or a distribution."""

    target: str
    inside: bool
    line: int
    at_import: bool  # runs when the importing module is imported
    typing_only: bool


def module_name(path: PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def executed(
    body: list[ast.AST], at_import: bool = True, typing_only: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """Every import statement, whether importing the module runs it, and if for types alone."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_import and not typing_only, typing_only
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from executed(list(node.body), False, typing_only)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from executed(list(node.body), at_import, True)
            yield from executed(list(node.orelse), at_import, typing_only)
        else:
            yield from executed(list(ast.iter_child_nodes(node)), at_import, typing_only)


@cache
def imports() -> dict[str, list[Import]]:
    """The imports of every module of the package, by module."""
    files = {module_name(p): p for p in tracked(".py") if in_package(p)}
    return {name: list(imports_of(name, path, set(files))) for name, path in files.items()}


def imports_of(name: str, path: PurePosixPath, modules: set[str]) -> Iterator[Import]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node, at_import, typing_only in executed([ast.parse((ROOT / path).read_text())]):
        for alias in node.names:
            if isinstance(node, ast.Import):
                absolute, base = True, alias.name.split(".")
            else:
                absolute = node.level == 0
                base = [] if absolute else package[: len(package) - node.level + 1]
                base = base + (node.module.split(".") if node.module else [])
            if absolute and base[0] != "smelt":
                yield Import(base[0], False, node.lineno, at_import, typing_only)
                continue
            base = base[1:] if absolute else base
            if not base and alias.name == "__version__":
                continue
            full = ".".join([*base, alias.name])
            target = full if full in modules else ".".join(base)
            yield Import(target, True, node.lineno, at_import, typing_only)


def within(module: str, folders: set[str]) -> bool:
    return any(module == folder or module.startswith(folder + ".") for folder in folders)


def rule_of(module: str) -> str | None:
    """The longest prefix of the module that has a rule; None for the face."""
    parts = module.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in RULES), None)


def forbidden(module: str, found: Import) -> bool:
    """Whether the rules forbid `module` this import."""
    rule = rule_of(module)
    if rule is None:
        return False
    inside, outside = RULES[rule]
    if found.inside:
        return not within(found.target, inside | ANYONE)
    lazy = set() if found.at_import else LAZY.get(module.split(".")[0], set())
    return found.target not in outside | lazy | set(sys.stdlib_module_names)


# --- size and spelling ---------------------------------------------------------------------------


def test_python_files_are_short_and_narrow():
    wrong = []
    for path in tracked(".py"):
        lines = (ROOT / path).read_text().splitlines()
        if len(lines) > MAX_LINES:
            wrong.append(f"{path}: {len(lines)} lines, at most {MAX_LINES}")
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_COLUMNS:
                wrong.append(f"{path}:{number}: {len(line)} columns, at most {MAX_COLUMNS}")
    assert not wrong, "\n".join(wrong)


def test_no_file_names_a_folder_of_one_machine():
    home = r"(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+|tmp/bash_\w+)/"
    wrong = [
        f"{path}:{number}: {line.strip()[:80]}"
        for path in tracked()
        for number, line in enumerate((text_of(path) or "").splitlines(), 1)
        if re.search(home, line)
    ]
    assert not wrong, "\n".join(wrong)


# --- imports -------------------------------------------------------------------------------------


def test_every_folder_of_the_package_has_a_rule():
    folders = {name.split(".")[0] for name in imports() if "." in name}
    assert folders <= set(RULES), f"state what these may import in RULES: {folders - set(RULES)}"


def test_every_folder_of_the_package_is_a_package():
    folders = {parent for p in tracked(".py") if in_package(p) for parent in p.parents}
    missing = [str(f) for f in sorted(folders) if not (ROOT / f / "__init__.py").is_file()]
    assert not missing, f"these folders have modules but no __init__.py: {missing}"


def test_imports_follow_the_layers():
    wrong = [
        f"{module or '__init__'}, line {found.line}: may not import {found.target or 'smelt'}"
        for module, all_found in imports().items()
        for found in all_found
        if forbidden(module, found)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles():
    graph = nx.DiGraph()
    for module, all_found in imports().items():
        for found in all_found:
            if found.inside and found.at_import and found.target != module:
                graph.add_edge(module, found.target)
    cycles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    assert not cycles, f"modules that import each other: {cycles}"


@pytest.mark.parametrize(
    ("module", "found", "expected"),
    [
        ("ir.graph.graph", Import("passes.fuse", True, 1, True, False), True),
        ("ir.graph.graph", Import("errors", True, 1, True, False), False),
        ("runtime.module", Import("ir", True, 1, False, False), True),
        ("targets.cpu", Import("runtime.abi", True, 1, True, False), False),
        ("targets.cpu", Import("runtime.artifact", True, 1, True, False), True),
        ("frontend.onnx.convert", Import("frontend.torch", True, 1, True, False), True),
        ("frontend.torch", Import("frontend.onnx", True, 1, True, False), False),
        ("frontend.torch", Import("torch", False, 1, True, False), True),
        ("frontend.torch", Import("torch", False, 1, False, False), False),
        ("cli_bench", Import("onnxruntime", False, 1, True, False), False),
    ],
)
def test_the_rules_mean_what_they_say(module: str, found: Import, expected: bool):
    assert forbidden(module, found) is expected


# --- environment variables -----------------------------------------------------------------------

# os.environ["X"], os.environ.get("X"), getenv("X") in C or Python, process.env.X
READS = re.compile(r"(?:environ|getenv|setenv|delenv|process\.env)\W[^\n]{0,16}?(SMELT_[A-Z0-9_]+)")


def mentioned(path: PurePosixPath) -> set[str]:
    return set(READS.findall(text_of(path) or ""))


def test_docs_declare_every_environment_variable():
    text = (ROOT / "docs/debugging.md").read_text()
    declared = set(re.findall(r"^\| `(SMELT_[A-Z0-9_]+)` \|", text, re.MULTILINE))
    this_file = PurePosixPath("tests/test_project.py")
    used = {path: mentioned(path) for path in tracked() if path != this_file}
    undeclared = {str(path): names - declared for path, names in used.items() if names - declared}
    assert not undeclared, f"declare these in docs/debugging.md: {undeclared}"
    read = set().union(*(names for path, names in used.items() if in_package(path)))
    assert declared == read, f"declared but never read: {declared - read}"


def test_python_reads_environment_variables_in_one_place():
    reading = re.compile(r"environ\W[^\n]{0,16}?SMELT_")
    wrong = [
        str(path)
        for path in tracked(".py")
        if in_package(path) and str(path) != "config.py" and reading.search(text_of(path) or "")
    ]
    assert not wrong, f"read environment variables through smelt.config: {wrong}"


# --- documentation -------------------------------------------------------------------------------


def test_docs_list_every_exit_code():
    text = (ROOT / "docs/debugging.md").read_text()
    rows = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.M)}
    classes = inspect.getmembers(smelt.errors, inspect.isclass)
    codes = {name: cls.exit_code for name, cls in classes}
    assert rows == codes
    assert len(set(codes.values())) == len(codes)


def test_docs_links_resolve():
    broken = []
    for path in tracked(".md"):
        text = re.sub(r"```.*?```", "", (ROOT / path).read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target = link.split("#")[0]
            if "://" in link or link.startswith("mailto:") or not target:
                continue
            if not (ROOT / path.parent / target).exists():
                broken.append(f"{path}: {link}")
    assert not broken, "\n".join(broken)


# --- start-up and packaging ----------------------------------------------------------------------


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints, started outside the checkout."""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(sys.executable).anchor, capture_output=True,
        text=True, env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_tests_run_on_this_checkout():
    assert Path(smelt.__file__).resolve() == ROOT / "__init__.py", "run `pip install -e .` here"


def test_import_is_quick():
    code = "import time; t = time.process_time(); import smelt; print(time.process_time() - t)"
    # Seconds of the processor, of which other processes take none; 0.003 are usual.
    assert min(float(python(code)) for _ in range(5)) < 0.05


def test_runtime_needs_numpy_only():
    code = (
        "import sys; before = set(sys.modules); import smelt.runtime\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = python(code).split()
    others = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert others <= {"smelt", "numpy"}
    parts = {name.split(".")[1] for name in loaded if name.startswith("smelt.")}
    assert parts <= {"runtime", "errors", "config"}


def test_public_names_resolve():
    for name in smelt.__all__:
        assert getattr(smelt, name) is not None
        assert name in dir(smelt)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = smelt.nonsense


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path):
    source = tmp_path / "smelt-source"
    for path in tracked():
        copy = source / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / path).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(source)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    # Of the root itself only modules belong to the package, of its folders all but notes.
    wanted = {
        f"smelt/{p}"
        for p in tracked()
        if in_package(p) and (p.suffix == ".py" or (len(p.parts) > 1 and p.suffix != ".md"))
    }
    assert held == wanted
    used = python("import smelt; print(smelt.__file__)", PYTHONPATH=str(tmp_path / "site"))
    assert Path(used).is_relative_to(tmp_path)
