"""C helpers that emitted kernels may call. Only those used are printed.

Each entry of HELPERS is a complete `static inline` function (or type); DEPENDS names the helpers a
helper itself calls.
"""

from __future__ import annotations

HELPERS: dict[str, str] = {
    "floordiv_i64": """static inline int64_t floordiv_i64(int64_t a, int64_t b) {
    if (b == 0) return 0;
    if (b == -1) return (int64_t)(0 - (uint64_t)a);
    int64_t q = a / b;
    return q - ((a % b != 0) & ((a < 0) != (b < 0)));
}""",
    "mod_i64": """static inline int64_t mod_i64(int64_t a, int64_t b) {
    if (b == 0 || b == -1) return 0;
    int64_t r = a % b;
    return r + (((r != 0) & ((r < 0) != (b < 0))) ? b : 0);
}""",
    "div_i64": """static inline int64_t div_i64(int64_t a, int64_t b) {
    return b == 0 ? 0 : b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b;
}""",
    "div_u64": """static inline uint64_t div_u64(uint64_t a, uint64_t b) {
    return b == 0 ? 0 : a / b;
}""",
    "rem_i64": """static inline int64_t rem_i64(int64_t a, int64_t b) {
    return b == 0 || b == -1 ? 0 : a % b;
}""",
    "rem_u64": """static inline uint64_t rem_u64(uint64_t a, uint64_t b) {
    return b == 0 ? 0 : a % b;
}""",
    "pow_u64": """static inline uint64_t pow_u64(uint64_t power, uint64_t exponent) {
    uint64_t result = 1;
    for (; exponent; exponent >>= 1) {
        if (exponent & 1) result *= power;
        power *= power;
    }
    return result;
}""",
    "pow_i64": """static inline int64_t pow_i64(int64_t base, int64_t exponent) {
    if (exponent < 0) {
        if (base == 1) return 1;
        return base == -1 ? (exponent & 1 ? -1 : 1) : 0;
    }
    return (int64_t)pow_u64((uint64_t)base, (uint64_t)exponent);
}""",
    "fmod_f32": """static inline float fmod_f32(float a, float b) {
    float r = fmodf(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r == 0 ? copysignf(0, b) : r;
}""",
    "fmod_f64": """static inline double fmod_f64(double a, double b) {
    double r = fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r == 0 ? copysign(0, b) : r;
}""",
    "bits_f32": """static inline float bits_f32(uint32_t x) {
    float r;
    memcpy(&r, &x, 4);
    return r;
}""",
    "f32_bits": """static inline uint32_t f32_bits(float x) {
    uint32_t r;
    memcpy(&r, &x, 4);
    return r;
}""",
    "bits_f64": """static inline double bits_f64(uint64_t x) {
    double r;
    memcpy(&r, &x, 8);
    return r;
}""",
    "f64_bits": """static inline uint64_t f64_bits(double x) {
    uint64_t r;
    memcpy(&r, &x, 8);
    return r;
}""",
    "pack4": """static inline int32_t pack4(const void *p) {
    int32_t r;
    memcpy(&r, p, 4);
    return r;
}""",
    "pack4_n": """static inline int32_t pack4_n(const void *p, int64_t n) {
    int32_t r = 0;
    memcpy(&r, p, (size_t)n);
    return r;
}""",
    "small_to_f32": """/* A float of e exponent bits, m mantissa bits and this bias;
 * special: 0 IEEE infinities, 1 only the all-ones code is NaN, 2 negative zero is NaN,
 * 3 finite only. */
static inline float small_to_f32(uint32_t x, int e, int m, int bias, int special) {
    uint32_t sign = (x >> (e + m)) & 1, exponent = (x >> m) & ((1u << e) - 1);
    uint32_t mantissa = x & ((1u << m) - 1), top = (1u << e) - 1;
    if (special == 0 && exponent == top) {
        uint32_t payload = mantissa ? 0x400000u | mantissa << (23 - m) : 0;
        return bits_f32(sign << 31 | 0x7f800000u | payload);
    }
    if (special == 1 && exponent == top && mantissa == (1u << m) - 1)
        return bits_f32(sign << 31 | 0x7fc00000u);
    if (special == 2 && x == 1u << (e + m)) return bits_f32(0x7fc00000u);
    float value;
    if (exponent == 0) {
        value = (float)mantissa * bits_f32((uint32_t)(127 + 1 - bias - m) << 23);
    } else {
        value = bits_f32((exponent + 127 - (uint32_t)bias) << 23 | mantissa << (23 - m));
    }
    return sign ? -value : value;
}""",
    "f32_to_small": """static inline uint32_t f32_to_small(double wide, int e, int m, int bias,
                                    int special) {
    uint64_t bits = f64_bits(wide);
    uint32_t sign = (uint32_t)(bits >> 63), top = (1u << e) - 1, ones = (1u << m) - 1;
    uint64_t magnitude = bits & 0x7fffffffffffffffull;
    uint32_t nan = special == 0 ? (sign << (e + m) | top << m | 1u << (m - 1))
                 : special == 1 ? (sign << (e + m) | top << m | ones) : 1u << (e + m);
    uint32_t limit = special == 0 ? top << m : special == 1 ? (top << m | ones) : top << m | ones;
    uint32_t overflow = special == 3 ? (sign << (e + m) | limit)
                      : special == 0 ? (sign << (e + m) | top << m) : nan;
    /* without a NaN, that becomes the zero of the other sign, as in ml_dtypes */
    if (magnitude > 0x7ff0000000000000ull) return special == 3 ? (sign ^ 1) << (e + m) : nan;
    if (magnitude == 0x7ff0000000000000ull) return overflow;
    if (magnitude == 0) return special == 2 ? 0 : sign << (e + m);
    int exponent = (int)(magnitude >> 52) - 1023;
    uint64_t mantissa = (magnitude & 0xfffffffffffffull) | 0x10000000000000ull;
    int shift = 52 - m;
    if (exponent < 1 - bias) shift += 1 - bias - exponent;
    if (shift > 62) return special == 2 ? 0 : sign << (e + m);
    uint64_t kept = mantissa >> shift, rest = mantissa & ((1ull << shift) - 1);
    uint64_t half = 1ull << (shift - 1);
    kept += rest > half || (rest == half && (kept & 1));
    uint64_t code = exponent < 1 - bias ? kept
                  : ((uint64_t)(exponent + bias - 1) << m) + kept;
    if (special == 0 ? code >= limit : special == 1 ? code >= limit : code > limit) return overflow;
    if (special == 2 && code == 0) return 0;
    return sign << (e + m) | (uint32_t)code;
}""",
    "e8m0_to_f32": """static inline float e8m0_to_f32(uint32_t x) {
    return x == 255 ? bits_f32(0x7fc00000u) : x == 0 ? bits_f32(0x00400000u) : bits_f32(x << 23);
}""",
    "f32_to_e8m0": """static inline uint32_t f32_to_e8m0(double wide) {
    if (!(wide > 0)) return 255;
    /* 1.5 is a tie between 1 and 2, of which 2 is the even one */
    uint64_t bits = f64_bits(wide);
    int code = (int)(bits >> 52) - 1023 + 127 + (int)(bits >> 51 & 1);
    return code > 254 ? 255 : code < 0 ? 0 : (uint32_t)code;
}""",
    "f16_to_f32": """static inline float f16_to_f32(uint32_t h) {
    uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return bits_f32(sign | 0x7f800000u | (rest & 0x3ff) << 13);
    if (rest >= 0x400u) return bits_f32(sign | ((rest + 0x1c000u) << 13));
    float value = (float)rest * 5.9604644775390625e-8f;
    return sign ? -value : value;
}""",
    "f32_to_bf16": """static inline uint32_t f32_to_bf16(float x) {
    uint32_t bits = f32_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40u;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}""",
}

DEPENDS: dict[str, tuple[str, ...]] = {
    "pow_i64": ("pow_u64",),
    "small_to_f32": ("bits_f32",), "f32_to_small": ("f64_bits",),
    "e8m0_to_f32": ("bits_f32",), "f32_to_e8m0": ("f64_bits",), "f16_to_f32": ("bits_f32",),
    "f32_to_bf16": ("f32_bits",),
}

SMALL_FLOATS: dict[str, tuple[int, int, int, int]] = {
    # exponent bits, mantissa bits, bias, special
    "f16": (5, 10, 15, 0),
    "bf16": (8, 7, 127, 0),  # writing only: reading is a shift
    "f8e4m3fn": (4, 3, 7, 1),
    "f8e4m3fnuz": (4, 3, 8, 2),
    "f8e5m2": (5, 2, 15, 0),
    "f8e5m2fnuz": (5, 2, 16, 2),
    "f4e2m1": (2, 1, 1, 3),
}


def closure(names: set[str]) -> list[str]:
    """The helpers and all that they call, in an order that compiles."""
    result: list[str] = []
    stack = sorted(names, reverse=True)
    while stack:
        name = stack[-1]
        missing = [d for d in DEPENDS.get(name, ()) if d not in result]
        if name in result:
            stack.pop()
        elif missing:
            stack.extend(missing)
        else:
            result.append(stack.pop())
    return result
