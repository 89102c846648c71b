"""The CPU variants: compiler flags, vector registers, and how a program tests for them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...codegen.c_vector import (
    AVX2,
    AVX512,
    NEON,
    SCALAR,
    SSE,
    WASM_SIMD,
    VectorIsa,
    with_dot2,
    with_dot4,
    with_tiles,
)
from ...errors import TargetError


@dataclass(frozen=True)
class Variant:
    """One instruction-set level. `flags` are for gcc and clang; `zig` names the cross target (""
    for the host); `supported` is a C condition, "" when the code runs everywhere it can load.
    `system` are compiler flags for every file, `link` those that make `library`; without `threads`
    the system has none. `beside` are files of runtime/ that go along, by their names in the
    artifact."""

    name: str
    vector: VectorIsa
    flags: tuple[str, ...] = ()
    zig: str = ""
    supported: str = ""
    doc: str = ""
    system: tuple[str, ...] = ("-fPIC", "-pthread")
    link: tuple[str, ...] = ("-shared", "-pthread")
    library: str = "model.so"
    threads: bool = True
    beside: tuple[tuple[str, str], ...] = ()


def has(*features: str) -> str:
    """The C condition that this CPU has features of runtime/c/program.h."""
    return " && ".join(f"(smelt_cpu_features() & SMELT_CPU_{f})" for f in features)


VARIANTS: dict[str, Variant] = {v.name: v for v in (
    Variant("x86-64-v2", SSE, ("-march=x86-64-v2",), "", has("X86_64_V2"),
            "SSE4.2: every 64-bit PC since 2009"),
    Variant("x86-64-v3", AVX2, ("-march=x86-64-v3",), "", has("X86_64_V3"),
            "AVX2 and FMA: Haswell, Zen and later"),
    Variant("x86-64-v4", AVX512, ("-march=x86-64-v4", "-mprefer-vector-width=512"), "",
            has("X86_64_V4"), "AVX-512 F/BW/CD/DQ/VL: Skylake-SP, Zen 4 and later"),
    Variant("aarch64", NEON, (), "aarch64-linux-gnu.2.28", "", "64-bit Arm with NEON"),
    Variant("wasm32", WASM_SIMD, ("-msimd128",), "wasm32-wasi", "", "WebAssembly with SIMD",
            system=("-DSMELT_NO_MMAP",), link=("-mexec-model=reactor", "-s"), library="model.wasm",
            threads=False,  # node takes a file for an ES module by the name .mjs
            beside=tuple((name, f"js/{name}") for name in (
                "model.mjs", "model.d.mts", "files.mjs", "tensors.mjs"))),
)}


@cache
def cpu_features() -> frozenset[str]:
    """The feature names of this machine's CPU as Linux lists them; empty when unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _native_avx512(features: frozenset[str]) -> Variant:
    """The variant of this machine when it has AVX-512, with the extensions of it that it has."""
    vector, needed = AVX512, ["X86_64_V4"]
    for feature, extend in (("avx512_vnni", with_dot4), ("avx512_bf16", with_dot2)):
        if feature in features:
            vector = extend(vector)
            needed.append(feature.upper())
    if vector.dot2 and {"amx_tile", "amx_bf16"} <= features:
        vector = with_tiles(vector)  # what uses them asks for them itself
    return Variant("native", vector, ("-march=native", "-mprefer-vector-width=512"), "",
                   has(*needed), "this machine (AVX-512)")


@cache
def native() -> Variant:
    """The variant that uses all of this machine."""
    machine = platform.machine()
    flags = ("-march=native",)
    if machine in ("x86_64", "AMD64"):
        features = cpu_features()
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= features:
            return _native_avx512(features)
        if {"avx2", "fma"} <= features:
            dot4 = "avx_vnni" in features
            return Variant("native", with_dot4(AVX2) if dot4 else AVX2, flags, "",
                           has("X86_64_V3", *(["AVX_VNNI"] if dot4 else [])),
                           "this machine (AVX2)")
        return Variant("native", SSE, flags, "", "", "this machine (SSE)")
    if machine in ("aarch64", "arm64"):
        return Variant("native", NEON, ("-mcpu=native",), "", "", "this machine (NEON)")
    return Variant("native", SCALAR, (), "", "", f"this machine ({machine})")


def find_variants(text: str) -> list[Variant]:
    """The variants of a target's text, such as "" (this machine) or "x86-64-v3+x86-64-v4".

    Best first, so that the first that a CPU supports is the one to use. Raises TargetError.
    """
    if not text or text == "native":
        return [native()]
    found = []
    for name in text.split("+"):
        if name not in VARIANTS:
            raise TargetError(f"unknown CPU variant {name!r}: use generic, native or one or more "
                              f"of {', '.join(VARIANTS)} joined by +")
        found.append(VARIANTS[name])
    families = {v.zig for v in found}
    if len(families) > 1:
        raise TargetError(f"the variants of {text!r} are for different machines: compile one "
                          "artifact for each")
    return sorted(found, key=lambda v: -v.vector.bits)
