"""Node processes that tests keep open, and the npm packages that those use."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

BROWSER = Path(__file__).parent / "browser"
NODE = shutil.which("node")
LOCKED = ("package.json", "package-lock.json")


def cache_folder() -> Path:
    """A folder of this user's, outside the checkout."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home / "smelt-tests"
    except OSError:
        pass
    return Path(tempfile.gettempdir()) / f"smelt-tests-{os.getuid()}"


def node_packages() -> Path:
    """The folder node_modules with the packages of tests/browser/package-lock.json, installed on
    first use. Skips the test where node or npm is missing, or the packages cannot be had."""
    npm = shutil.which("npm")
    if NODE is None or npm is None:
        pytest.skip("needs node and npm")
    lock = hashlib.sha256((BROWSER / LOCKED[1]).read_bytes()).hexdigest()[:16]
    folder = cache_folder() / f"npm-{lock}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # of two test processes one installs
        if not (folder / "complete").exists():
            for name in LOCKED:
                shutil.copy(BROWSER / name, folder)
            done = subprocess.run(
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund",
                 f"--cache={folder / 'downloads'}"],
                cwd=folder, capture_output=True, text=True)
            shutil.rmtree(folder / "downloads", ignore_errors=True)
            if done.returncode:
                pytest.skip(f"npm cannot install the packages: {done.stderr.strip()[-300:]}")
            (folder / "complete").touch()
    return folder / "node_modules"


class NodeProcess:
    """A script of tests/browser that answers each line of JSON with one line of JSON; answers
    {"error": text} fail the test. Scripts import packages by NODE_PACKAGES, for ES modules are not
    looked for in NODE_PATH."""

    def __init__(self, script: str, **environment: str):
        packages = node_packages()
        self.process = subprocess.Popen(
            [str(NODE), str(BROWSER / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "NODE_PACKAGES": packages.as_uri() + "/", **environment})

    def ask(self, **question: Any) -> Any:
        """The answer's "result"."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        assert line, f"node ended with {self.process.wait()}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer.get("result")

    def close(self) -> None:
        """Ends the process, which closes what it opened when its input ends."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
