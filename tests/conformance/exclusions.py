"""Cases of onnx's own suite that the compiled `cpu` target does not pass: what the importer refuses
and random numbers. Compilation itself excludes none."""

from frontend.exclusions import DIFFERENT, REFUSED

EXCLUDED: dict[str, str] = REFUSED | DIFFERENT


def listed(name: str, cases: dict[str, str]) -> str | None:
    """What `cases` says of a case; a key ending in `*` stands for all that begin so."""
    stems = (k for k in cases if k.endswith("*") and name.startswith(k[:-1]))
    return cases.get(name) or next((cases[k] for k in stems), None)
