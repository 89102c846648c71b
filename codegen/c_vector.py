"""Vector types and operations in C: GCC vector extensions, with an instruction set's own spelling
where the extensions lack one (rounding, fused multiply-add, min/max, masked tails)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..ir.dtype import DType

ELEMENT = {"f32": "float", "i32": "int32_t", "u32": "uint32_t", "u8": "uint8_t", "i8": "int8_t",
           "bool": "int32_t", "f64": "double", "i64": "int64_t", "i16": "int16_t",
           "u16": "uint16_t", "u64": "uint64_t", "bf16": "uint16_t", "f16": "uint16_t"}


@dataclass(frozen=True)
class VectorIsa:
    """An instruction set's vectors. `bits` is the register width (0: none); `spelling` maps
    (operation, element, lanes) to a C template over {0}, {1}, {2}; `header` is included when one
    of them is used."""

    name: str
    bits: int = 0
    header: str = ""
    spelling: dict[tuple[str, str, int], str] = field(default_factory=dict)
    fma: bool = False
    registers: int = 16
    dot4: bool = False
    dot2: bool = False
    tiles: bool = False

    @property
    def lanes(self) -> int:
        """Lanes of 32 bits, 1 without vectors."""
        return max(1, self.bits // 32)


def type_name(dtype: DType, lanes: int) -> str:
    """The C vector type of a value; booleans are masks of 32-bit lanes."""
    return f"v{lanes}{'i32' if dtype.is_bool else dtype.name}"


def element_type(dtype: DType) -> str:
    return ELEMENT[dtype.name]


def typedef(name: str) -> str:
    """The declaration of a vector type named by `type_name`, and of its unaligned form."""
    lanes, element = split(name)
    c = ELEMENT[element]
    size = lanes * _bytes(element)
    return (f"typedef {c} {name} __attribute__((vector_size({size})));\n"
            f"typedef {c} {name}_u __attribute__((vector_size({size}), aligned({_bytes(element)}), "
            f"may_alias));")


def split(name: str) -> tuple[int, str]:
    """("v16f32") -> (16, "f32")."""
    digits = 1
    while name[digits].isdigit():
        digits += 1
    return int(name[1:digits]), name[digits:]


def _bytes(element: str) -> int:
    return int(element.lstrip("bfiu")) // 8


_ARITY = {"fma": 3, "dot4_u8i8": 3, "dot2_i16": 3, "dot2_bf16": 3, "scale": 2, "max": 2, "min": 2,
          "max_number": 2, "min_number": 2}


def helper(name: str, isa: VectorIsa) -> tuple[str, set[str], bool]:
    """(text, vector types it needs, whether the ISA header is needed) of a vector helper.

    `name` is operation_type, such as "fma_v16f32" or "load_n_v16f32".
    """
    operation, _, vector = name.rpartition("_")
    lanes, element = split(vector)
    c = ELEMENT[element]
    spelled = isa.spelling.get((operation, element, lanes))
    arguments = _ARITY.get(operation, 1)
    if operation == "load_n":
        body = (f"return {spelled};" if spelled else
                f"{vector} r = {{0}};\n    memcpy(&r, p, (size_t)n * sizeof({c}));\n    return r;")
        return (f"static inline {vector} {name}(const {c} *p, int64_t n) {{\n    {body}\n}}",
                {vector, f"v{lanes}i32"}, bool(spelled))
    if operation == "store_n":
        body = f"{spelled};" if spelled else f"memcpy(p, &x, (size_t)n * sizeof({c}));"
        return (f"static inline void {name}({c} *p, {vector} x, int64_t n) {{\n    {body}\n}}",
                {vector, f"v{lanes}i32"}, bool(spelled))
    if operation.startswith("repeat"):
        return _repeat(name, int(operation.removeprefix("repeat")), lanes, element, spelled)
    if operation.startswith("horizontal"):
        return _horizontal(name, operation[len("horizontal_"):], lanes, element, isa)
    if operation == "dot2_bf16":
        pairs = f"v{lanes}i32"
        assert spelled is not None, isa.name
        return (f"static inline {vector} {name}({vector} a, {pairs} b, {pairs} c) {{\n"
                f"    return ({vector}){spelled.format('a', 'b', 'c')};\n}}", {vector, pairs}, True)
    if element == "bf16" and operation in ("widen", "narrow"):
        return _bf16_conversion(name, operation, lanes, isa)
    if element == "f16" and operation == "widen":
        return _f16_widening(name, lanes, spelled)
    if operation in ("widen", "narrow"):
        wide = f"v{lanes}i32"
        source, target = (vector, wide) if operation == "widen" else (wide, vector)
        # A conversion of lanes just loaded is taken apart by gcc 12; the instruction is not.
        body = f"({target}){spelled}" if spelled else f"__builtin_convertvector(a, {target})"
        return (f"static inline {target} {name}({source} a) {{\n    return {body};\n}}",
                {vector, wide}, bool(spelled))
    parameters = ", ".join(f"{vector} {x}" for x in "abc"[:arguments])
    if spelled:
        body = f"return ({vector}){spelled.format('a', 'b', 'c')};"
    elif operation in ("max", "min"):
        mask = f"v{lanes}i{_bytes(element) * 8}"
        sign = ">" if operation == "max" else "<"
        test = f"(a {sign} b) | (a != a)" if element[0] == "f" else f"(a {sign} b)"
        body = (f"{mask} m = {test};\n"
                f"    return ({vector})((m & ({mask})a) | (~m & ({mask})b));")
        return f"static inline {vector} {name}({parameters}) {{\n    {body}\n}}", {
            vector, mask}, False
    elif operation == "dot2_i16":
        low = "(({0} << 16) >> 16)"
        body = (f"return a + {low.format('b')} * {low.format('c')} + (b >> 16) * (c >> 16);")
    else:
        suffix = "f" if element == "f32" else ""
        function = {"round": "rint", "fma": "fma"}.get(operation, operation) + suffix
        call = ", ".join(f"{x}[i]" for x in "abc"[:arguments])
        body = (f"{vector} r;\n    for (int i = 0; i < {lanes}; ++i) r[i] = {function}({call});\n"
                f"    return r;")
    return (f"static inline {vector} {name}({parameters}) {{\n    {body}\n}}", {vector},
            bool(spelled))


def _repeat(name: str, count: int, lanes: int, element: str, spelled: str | None):
    """`count` consecutive elements again and again. Two of 32 bits are broadcast as one of 64:
    as vectors, gcc 12 would bring them in through the stack."""
    vector, c = f"v{lanes}{element}", ELEMENT[element]
    types, lines = {vector}, []
    if spelled:
        lines.append(f"return ({vector}){spelled};")
    elif count * _bytes(element) == 8:
        pairs = f"v{lanes // count}i64"
        types.add(pairs)
        lines.append(f"int64_t x;\n    memcpy(&x, p, sizeof x);\n    "
                     f"return ({vector})(x - ({pairs}){{0}});")
    else:
        types.add(f"v{count}{element}")
        source = f"*(const v{count}{element}_u *)p"
        while count < lanes:
            count *= 2
            types.add(f"v{count}{element}")
            picks = ", ".join(str(i % (count // 2)) for i in range(count))
            lines.append(f"const v{count // 2}{element} x{count} = {source};")
            source = f"__builtin_shufflevector(x{count}, x{count}, {picks})"
        lines.append(f"return {source};")
    body = "\n    ".join(lines)
    return (f"static inline {vector} {name}(const {c} *p) {{\n    {body}\n}}", types,
            bool(spelled))


def _bf16_conversion(name: str, operation: str, lanes: int,
                     isa: VectorIsa) -> tuple[str, set[str], bool]:
    """The helper between bf16, whose bits are the upper half of an f32's, and f32 lanes. Narrowing
    rounds to nearest even and keeps NaN; an instruction for it takes denormals for zeros."""
    half, wide, bits = f"v{lanes}bf16", f"v{lanes}f32", f"v{lanes}u32"
    if operation == "widen":
        # A conversion of lanes just loaded is taken apart by gcc 12; the instruction is not.
        spelled = isa.spelling.get(("widen", "bf16", lanes))
        upper = f"({bits}){spelled}" if spelled else f"__builtin_convertvector(a, {bits})"
        return (f"static inline {wide} {name}({half} a) {{\n"
                f"    return ({wide})({upper} << 16);\n}}", {half, wide, bits}, bool(spelled))
    exact = (f"{bits} x = ({bits})a, nan = ({bits})(a != a);\n"
             f"    {bits} r = ((x + 0x7fff + ((x >> 16) & 1)) & ~nan) | ((x | 0x400000) & nan);\n"
             f"    return __builtin_convertvector(r >> 16, {half});")
    quick = isa.spelling.get(("narrow", "bf16", lanes), "").format("a")
    denormals = isa.spelling.get(("denormals", "f32", lanes), "").format("a")
    test = f"if (!{denormals}) return ({half}){quick};\n    " if quick else ""
    return (f"static inline {half} {name}({wide} a) {{\n    {test}{exact}\n}}",
            {half, wide, bits}, bool(quick))


def _f16_widening(name: str, lanes: int, spelled: str | None) -> tuple[str, set[str], bool]:
    """The helper from f16 to f32 lanes. Without an instruction: the exponent's place is moved, and
    multiplying by the difference of the biases makes the number, also of a denormal one."""
    half, wide, bits = f"v{lanes}f16", f"v{lanes}f32", f"v{lanes}u32"
    body = f"return ({wide}){spelled};" if spelled else (
        f"{bits} h = __builtin_convertvector(a, {bits}), rest = (h & 0x7fff) << 13;\n"
        f"    {bits} infinite = ({bits})(rest >= 0x7c00u << 13) & 0x7f800000;\n"
        f"    return ({wide})(({bits})(({wide})rest * 0x1p112f) | infinite | (h & 0x8000) << 16);")
    return (f"static inline {wide} {name}({half} a) {{\n    {body}\n}}", {half, wide, bits},
            bool(spelled))


def _horizontal(name: str, kind: str, lanes: int, element: str, isa: VectorIsa):
    c = ELEMENT[element]
    spelled = isa.spelling.get((f"horizontal_{kind}", element, lanes))
    if spelled:
        body = f"return {spelled.format('x')};"
        return (f"static inline {c} {name}(v{lanes}{element} x) {{\n    {body}\n}}",
                {f"v{lanes}{element}"}, True)
    sign = {"sum": "{0} + {1}", "prod": "{0} * {1}"}.get(kind)
    lines, types, source = [], {f"v{lanes}{element}"}, "x"
    width = lanes
    while width > 1:
        half = width // 2
        parts = []
        for start in (0, half):
            picks = ", ".join(str(start + i) for i in range(half))
            parts.append(f"__builtin_shufflevector({source}, {source}, {picks})" if half > 1
                         else f"{source}[{start}]")
        kindname = f"v{half}{element}" if half > 1 else c
        if half > 1:
            types.add(kindname)
        if sign:
            value = sign.format(*parts)
        else:
            compare = ">" if kind == "max" else "<"
            lines.append(f"{kindname} p{half} = {parts[0]}, q{half} = {parts[1]};")
            p, q = f"p{half}", f"q{half}"
            if half > 1:
                mask = f"v{half}i{_bytes(element) * 8}"
                types.add(mask)
                nan = f" | ({p} != {p})" if element[0] == "f" else ""
                lines.append(f"{mask} m{half} = ({p} {compare} {q}){nan};")
                value = f"({kindname})((m{half} & ({mask}){p}) | (~m{half} & ({mask}){q}))"
            else:
                nan = f" || {p} != {p}" if element[0] == "f" else ""
                value = f"({p} {compare} {q}{nan}) ? {p} : {q}"
        lines.append(f"{kindname} r{half} = {value};")
        source, width = f"r{half}", half
    body = "\n    ".join([*lines, f"return {source};"])
    return (f"static inline {c} {name}(v{lanes}{element} x) {{\n    {body}\n}}", types, False)


def _avx512() -> dict[tuple[str, str, int], str]:
    table = {
        ("fma", "f32", 16): "_mm512_fmadd_ps((__m512){0}, (__m512){1}, (__m512){2})",
        ("max", "f32", 16): "_mm512_mask_mov_ps(_mm512_max_ps((__m512){0}, (__m512){1}), "
                            "_mm512_cmp_ps_mask((__m512){0}, (__m512){0}, 3), (__m512){0})",
        ("min", "f32", 16): "_mm512_mask_mov_ps(_mm512_min_ps((__m512){0}, (__m512){1}), "
                            "_mm512_cmp_ps_mask((__m512){0}, (__m512){0}, 3), (__m512){0})",
        ("max_number", "f32", 16): "_mm512_max_ps((__m512){0}, (__m512){1})",
        ("min_number", "f32", 16): "_mm512_min_ps((__m512){0}, (__m512){1})",
        ("sqrt", "f32", 16): "_mm512_sqrt_ps((__m512){0})",
        ("dot2_i16", "i32", 16): "_mm512_add_epi32((__m512i){0}, "
                                 "_mm512_madd_epi16((__m512i){1}, (__m512i){2}))",
        ("repeat4", "f32", 16): "_mm512_broadcast_f32x4(_mm_loadu_ps(p))",
        ("scale", "f32", 16): "_mm512_scalef_ps((__m512){0}, (__m512){1})",
        ("scale", "f32", 8): "_mm256_scalef_ps((__m256){0}, (__m256){1})",
        ("load_n", "f32", 16):
            "(v16f32)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)",
        ("load_n", "i32", 16):
            "(v16i32)_mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p)",
        ("widen", "f16", 16): "_mm512_cvtph_ps((__m256i)a)",
        ("widen", "bf16", 16): "_mm512_cvtepu16_epi32((__m256i)a)",
        ("widen", "u8", 16): "_mm512_cvtepu8_epi32((__m128i)a)",
        ("widen", "i8", 16): "_mm512_cvtepi8_epi32((__m128i)a)",
        ("narrow", "u8", 16): "_mm512_cvtepi32_epi8((__m512i)a)",
        ("narrow", "i8", 16): "_mm512_cvtepi32_epi8((__m512i)a)",
        ("load_n", "u8", 16): "(v16u8)_mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), p)",
        ("load_n", "i8", 16): "(v16i8)_mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), p)",
        ("store_n", "u8", 16):
            "_mm_mask_storeu_epi8(p, (__mmask16)((1u << n) - 1), (__m128i)x)",
        ("store_n", "i8", 16):
            "_mm_mask_storeu_epi8(p, (__mmask16)((1u << n) - 1), (__m128i)x)",
        ("store_n", "f32", 16):
            "_mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x)",
        ("store_n", "i32", 16):
            "_mm512_mask_storeu_epi32(p, (__mmask16)((1u << n) - 1), (__m512i)x)",
    }
    for element in ("u16", "i16", "f16", "bf16"):
        # 32 lanes are copied only.
        table["load_n", element, 32] = (
            f"(v32{element})_mm512_maskz_loadu_epi16((__mmask32)((UINT64_C(1) << n) - 1), p)")
        table["store_n", element, 32] = (
            "_mm512_mask_storeu_epi16(p, (__mmask32)((UINT64_C(1) << n) - 1), (__m512i)x)")
        table["load_n", element, 16] = (
            f"(v16{element})_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p)")
        table["store_n", element, 16] = (
            "_mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)x)")
    halves = [", ".join(map(str, range(k, k + 8))) for k in (0, 8)]
    table["load_n", "i64", 16] = (
        "(v16i64)__builtin_shufflevector("
        "(__v8di)_mm512_maskz_loadu_epi64((__mmask8)((1u << n) - 1), p), "
        "(__v8di)_mm512_maskz_loadu_epi64((__mmask8)(((1u << n) - 1) >> 8), p + 8), "
        f"{halves[0]}, {halves[1]})")
    table["store_n", "i64", 16] = (
        "_mm512_mask_storeu_epi64(p, (__mmask8)((1u << n) - 1), "
        f"(__m512i)__builtin_shufflevector(x, x, {halves[0]})); "
        "_mm512_mask_storeu_epi64(p + 8, (__mmask8)(((1u << n) - 1) >> 8), "
        f"(__m512i)__builtin_shufflevector(x, x, {halves[1]}))")
    for kind in ("max", "min"):
        # The reduction drops NaN, which must win.
        table[f"horizontal_{kind}", "f32", 16] = (
            "_mm512_cmp_ps_mask((__m512){0}, (__m512){0}, 3) ? NAN : "
            f"_mm512_reduce_{kind}_ps((__m512){{0}})")
    for name, mode in (("round", 8), ("floor", 9), ("ceil", 10), ("trunc", 11)):
        table[name, "f32", 16] = f"_mm512_roundscale_ps((__m512){{0}}, {mode})"
    return table


def _avx2() -> dict[tuple[str, str, int], str]:
    table = {
        ("fma", "f32", 8): "_mm256_fmadd_ps((__m256){0}, (__m256){1}, (__m256){2})",
        ("max_number", "f32", 8): "_mm256_max_ps((__m256){0}, (__m256){1})",
        ("min_number", "f32", 8): "_mm256_min_ps((__m256){0}, (__m256){1})",
        ("sqrt", "f32", 8): "_mm256_sqrt_ps((__m256){0})",
        ("dot2_i16", "i32", 8): "_mm256_add_epi32((__m256i){0}, "
                                "_mm256_madd_epi16((__m256i){1}, (__m256i){2}))",
        ("repeat4", "f32", 8): "_mm256_broadcast_ps((const __m128 *)p)",
        ("widen", "f16", 8): "_mm256_cvtph_ps((__m128i)a)",  # F16C, of x86-64-v3
        ("widen", "bf16", 8): "_mm256_cvtepu16_epi32((__m128i)a)",
    }
    for element, letter in (("u8", "u"), ("i8", "i")):
        table["widen", element, 8] = f"_mm256_cvtep{letter}8_epi32(_mm_cvtsi64_si128((int64_t)a))"
        table["narrow", element, 8] = (
            "_mm_cvtsi128_si64(_mm_unpacklo_epi32(" + ", ".join(
                f"_mm_shuffle_epi8({half}, _mm_set1_epi32(0x0c080400))" for half in (
                    "_mm256_castsi256_si128((__m256i)a)",
                    "_mm256_extracti128_si256((__m256i)a, 1)")) + "))")
    # A lane's number below n selects it.
    mask = "(__m256i)((v8i32){0, 1, 2, 3, 4, 5, 6, 7} < ((int32_t)n - (v8i32){0}))"
    for element, cast, suffix in (("f32", "__m256", "ps"), ("i32", "__m256i", "epi32")):
        table["load_n", element, 8] = f"(v8{element})_mm256_maskload_{suffix}(p, {mask})"
        table["store_n", element, 8] = f"_mm256_maskstore_{suffix}(p, {mask}, ({cast})x)"
    for name, mode in (("round", 8), ("floor", 9), ("ceil", 10), ("trunc", 11)):
        table[name, "f32", 8] = f"_mm256_round_ps((__m256){{0}}, {mode})"
    for kind in ("max", "min"):
        half = (f"_mm_{kind}_ps(_mm256_castps256_ps128((__m256){{0}}), "
                "_mm256_extractf128_ps((__m256){0}, 1))")
        quarter = f"_mm_{kind}_ps({half}, _mm_movehl_ps({half}, {half}))"
        table[f"horizontal_{kind}", "f32", 8] = (
            "_mm256_movemask_ps(_mm256_cmp_ps((__m256){0}, (__m256){0}, 3)) ? NAN : "
            f"_mm_cvtss_f32(_mm_{kind}_ss({quarter}, _mm_movehdup_ps({quarter})))")
        table[kind, "f32", 8] = (
            f"_mm256_blendv_ps(_mm256_{kind}_ps((__m256){{0}}, (__m256){{1}}), (__m256){{0}}, "
            "_mm256_cmp_ps((__m256){0}, (__m256){0}, 3))")
    return table


def _neon() -> dict[tuple[str, str, int], str]:
    table = {
        ("fma", "f32", 4): "vfmaq_f32((float32x4_t){2}, (float32x4_t){0}, (float32x4_t){1})",
        ("max", "f32", 4): "vmaxq_f32((float32x4_t){0}, (float32x4_t){1})",
        ("min", "f32", 4): "vminq_f32((float32x4_t){0}, (float32x4_t){1})",
        ("max_number", "f32", 4): "vmaxq_f32((float32x4_t){0}, (float32x4_t){1})",
        ("min_number", "f32", 4): "vminq_f32((float32x4_t){0}, (float32x4_t){1})",
        ("sqrt", "f32", 4): "vsqrtq_f32((float32x4_t){0})",
        ("widen", "f16", 4): "vcvt_f32_f16((float16x4_t)a)",
        ("dot2_i16", "i32", 4): "vaddq_s32((int32x4_t){0}, vpaddq_s32("
                                "vmull_s16(vget_low_s16((int16x8_t){1}), "
                                "vget_low_s16((int16x8_t){2})), "
                                "vmull_high_s16((int16x8_t){1}, (int16x8_t){2})))",
    }
    for kind in ("max", "min"):
        table[f"horizontal_{kind}", "f32", 4] = f"v{kind}vq_f32((float32x4_t){{0}})"
    for name, letter in (("round", "n"), ("floor", "m"), ("ceil", "p"), ("trunc", "")):
        table[name, "f32", 4] = f"vrnd{letter}q_f32((float32x4_t){{0}})"
    return table


def with_dot4(isa: VectorIsa) -> VectorIsa:
    """The instruction set with four-way u8 x i8 dot products (VNNI)."""
    wide = isa.lanes
    name = {16: "_mm512_dpbusd_epi32", 8: "_mm256_dpbusd_epi32"}[wide]
    register = f"__m{isa.bits}i"
    table = {**isa.spelling, ("dot4_u8i8", "i32", wide): (
        f"{name}(({register}){{0}}, ({register}){{1}}, ({register}){{2}})")}
    return replace(isa, name=f"{isa.name}-vnni", spelling=table, dot4=True)


def with_dot2(isa: VectorIsa) -> VectorIsa:
    """The instruction set with dot products of bf16 pairs and conversions to bf16 (AVX512_BF16)."""
    table = {**isa.spelling}
    for lanes, bits, prefix in ((16, 512, "_mm512"), (8, 256, "_mm256")):
        table["dot2_bf16", "f32", lanes] = (
            f"{prefix}_dpbf16_ps((__m{bits}){{0}}, (__m{bits}bh){{1}}, (__m{bits}bh){{2}})")
        table["narrow", "bf16", lanes] = f"{prefix}_cvtneps_pbh((__m{bits}){{0}})"
        table["denormals", "f32", lanes] = f"{prefix}_fpclass_ps_mask((__m{bits}){{0}}, 0x20)"
    return replace(isa, name=f"{isa.name}-bf16", spelling=table, dot2=True)


def with_tiles(isa: VectorIsa) -> VectorIsa:
    """The instruction set with tile registers and their bf16 products (AMX)."""
    return replace(isa, name=f"{isa.name}-amx", tiles=True)


SCALAR = VectorIsa("scalar")
SSE = VectorIsa("sse4", 128, "immintrin.h", {
    ("dot2_i16", "i32", 4): "_mm_add_epi32((__m128i){0}, "
                            "_mm_madd_epi16((__m128i){1}, (__m128i){2}))"})
AVX2 = VectorIsa("avx2", 256, "immintrin.h", _avx2(), fma=True)
AVX512 = VectorIsa("avx512", 512, "immintrin.h", {**_avx2(), **_avx512()}, fma=True, registers=32)
NEON = VectorIsa("neon", 128, "arm_neon.h", _neon(), fma=True, registers=32)
WASM_SIMD = VectorIsa("wasm-simd", 128, "wasm_simd128.h", {
    ("dot2_i16", "i32", 4): "wasm_i32x4_add((v128_t){0}, "
                            "wasm_i32x4_dot_i16x8((v128_t){1}, (v128_t){2}))"})
