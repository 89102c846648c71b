"""Which operators are supported, as docs/operators.md:

    python -m smelt.frontend.onnx.coverage > docs/operators.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from onnx.defs import OpSchema, get_all_schemas_with_history

from ...ir.graph.definition import REQUIRED, OpDef
from ...ir.graph.definition import registry as core_operators
from . import importers  # noqa: F401  (fills the registry)
from .functions import NEWEST
from .registry import supported

TITLES = {"": "ai.onnx", "ai.onnx.ml": "ai.onnx.ml", "com.microsoft": "com.microsoft"}
OWN, BODY, NONE = "yes", "function body", "no"


def page() -> str:
    """The whole page."""
    return "\n".join([*_head(), *_domains(), *_core()]) + "\n"


def _head() -> Iterator[str]:
    yield "# Operators"
    yield ""
    yield ("This page is generated: `python -m smelt.frontend.onnx.coverage > docs/operators.md`. "
           "A test checks that it is current.")
    yield ""
    yield ("smelt reads models of the opsets 7 to "
           f"{NEWEST['']} of `ai.onnx`. Each ONNX operator is imported by decomposing it into the "
           "core operators at the end of this page. *yes* means that it has an importer, "
           "*function body* that it is expanded by the definition that ONNX gives for it, *no* "
           "that models with it are refused. An importer may still refuse a variant, with a "
           "sentence that says which; strings and sequences are refused unless they fold away "
           "at compile time.")


def _domains() -> Iterator[str]:
    imported = supported()
    for domain in sorted({d for d, _ in imported} | set(NEWEST)):
        rows = list(_rows(domain, imported))
        counts = {kind: sum(r[2] == kind for r in rows) for kind in (OWN, BODY, NONE)}
        yield ""
        yield f"## {TITLES.get(domain, domain)}"
        yield ""
        parts = [f"{counts[OWN]} with an importer"]
        parts += [f"{counts[BODY]} by function body"] if counts[BODY] else []
        parts += [f"{counts[NONE]} not supported"] if counts[NONE] else []
        yield ", ".join(parts) + "."
        yield ""
        yield from _table(("operator", "versions", "supported"), rows)


def _rows(domain: str, imported: dict[tuple[str, str], list[int]],
          ) -> Iterator[tuple[str, str, str]]:
    """(operator, versions, support) of everything known in a domain, by name."""
    schemas: dict[str, list[OpSchema]] = {}
    for schema in get_all_schemas_with_history():
        if schema.domain == domain and schema.since_version <= NEWEST.get(domain, 0):
            schemas.setdefault(schema.name, []).append(schema)
    for name in sorted({*schemas, *(n for d, n in imported if d == domain)}):
        versions = sorted({s.since_version for s in schemas.get(name, ())})
        # onnx's type stubs lack some of the schema's attributes.
        latest: Any = max(schemas.get(name, ()), key=lambda s: s.since_version, default=None)
        if (domain, name) in imported:
            support = OWN
        elif latest and (latest.has_function or latest.has_context_dependent_function):
            support = BODY
        else:
            support = NONE
        if latest is not None and latest.deprecated:
            support += ", removed from ONNX" if support == NONE else ""
        yield name, ", ".join(map(str, versions)), support


def _core() -> Iterator[str]:
    operators = core_operators()
    yield ""
    yield "## Core operators"
    yield ""
    yield (f"The {len(operators)} operators of the graph IR. *Kind* decides how fusion treats one; "
           "*from* says what its meaning is defined by: a formula over indices, from which "
           "interpreter, fusion and loops follow, or a numpy function with a kernel written by "
           "hand.")
    yield ""
    rows = [(d.name, d.kind, _source(d), _attributes(d), " ".join(d.doc.split()))
            for d in operators.values()]
    yield from _table(("operator", "kind", "from", "attributes", "meaning"), rows)


def _source(definition: OpDef) -> str:
    if definition.body or definition.bodies:
        return "formula"
    return "numpy" if definition.reference else "structure"


def _attributes(definition: OpDef) -> str:
    return ", ".join(name if default is REQUIRED else f"{name}={_shown(default)}"
                     for name, default in definition.attrs.items())


def _shown(value: object) -> str:
    return repr(value) if not isinstance(value, str) else value or '""'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
