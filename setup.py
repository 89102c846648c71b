"""Lists the sub-packages and their data files; everything else is in pyproject.toml."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

OUTSIDE = ("tests", "examples", "docs", "bench", "build", "dist")
DATA = ("c", "cpp", "css", "cu", "cuh", "h", "hpp", "html", "json", "mjs", "mts", "sv", "tcl", "v",
        "wgsl")


class BuildPy(build_py):
    """Leaves this file out of the package, whose folder it shares."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[:2] != ("smelt", "setup")]


inner = find_packages(".", exclude=[p for name in OUTSIDE for p in (name, f"{name}.*")])
setup(
    packages=["smelt", *(f"smelt.{name}" for name in inner)],
    package_data={f"smelt.{name}": [f"**/*.{ext}" for ext in DATA] for name in inner},
    cmdclass={"build_py": BuildPy},
)
