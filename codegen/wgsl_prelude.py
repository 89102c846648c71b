"""WGSL helper functions that emitted shaders may call. Only those used are printed.

WGSL leaves NaN and infinities to the implementation and has no literals for them, so whatever
depends on them looks at bits. A number passed to a function is no constant expression, which is
how infinities are made.
"""

from __future__ import annotations

HELPERS: dict[str, str] = {
    "bits_to_f32": "fn bits_to_f32(x: u32) -> f32 { return bitcast<f32>(x); }",
    "is_nan": """fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}""",
    "is_inf": """fn is_inf(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u;
}""",
    "min_f32": "fn min_f32(a: f32, b: f32) -> f32 { return select(b, a, a < b || is_nan(a)); }",
    "max_f32": "fn max_f32(a: f32, b: f32) -> f32 { return select(b, a, a > b || is_nan(a)); }",
    "to_i32": """fn to_i32(x: f32) -> i32 {
    if (is_nan(x)) { return 0i; }
    if (x >= 2147483648.0f) { return 2147483647i; }
    return i32(max(x, -2147483648.0f));
}""",
    "to_u32": """fn to_u32(x: f32) -> u32 {
    if (is_nan(x)) { return 0u; }
    if (x >= 4294967296.0f) { return 4294967295u; }
    return u32(max(x, 0.0f));
}""",
    "div_i32": """fn div_i32(a: i32, b: i32) -> i32 {
    return select(a / b, select(0i, 0i - a, b == -1i), b == 0i || b == -1i);
}""",
    "rem_i32": """fn rem_i32(a: i32, b: i32) -> i32 {
    return select(a % b, 0i, b == 0i || b == -1i);
}""",
    "floordiv_i32": """fn floordiv_i32(a: i32, b: i32) -> i32 {
    let r = rem_i32(a, b);
    return div_i32(a, b) - select(0i, 1i, r != 0i && (r < 0i) != (b < 0i));
}""",
    "mod_i32": """fn mod_i32(a: i32, b: i32) -> i32 {
    let r = rem_i32(a, b);
    return r + select(0i, b, r != 0i && (r < 0i) != (b < 0i));
}""",
    "div_u32": "fn div_u32(a: u32, b: u32) -> u32 { return select(a / b, 0u, b == 0u); }",
    "rem_u32": "fn rem_u32(a: u32, b: u32) -> u32 { return select(a % b, 0u, b == 0u); }",
    "shl_i32": """fn shl_i32(a: i32, n: i32) -> i32 {
    return select(0i, a << (u32(n) & 31u), u32(n) < 32u);
}""",
    "shl_u32": """fn shl_u32(a: u32, n: u32) -> u32 {
    return select(0u, a << (n & 31u), n < 32u);
}""",
    "shr_i32": "fn shr_i32(a: i32, n: i32) -> i32 { return a >> min(u32(n), 31u); }",
    "shr_u32": """fn shr_u32(a: u32, n: u32) -> u32 {
    return select(0u, a >> (n & 31u), n < 32u);
}""",
    "pow_i32": """fn pow_i32(base: i32, exponent: i32) -> i32 {
    if (exponent < 0i) {
        if (base == 1i) { return 1i; }
        return select(0i, select(1i, -1i, (exponent & 1i) != 0i), base == -1i);
    }
    var result = 1i;
    var power = base;
    for (var left = exponent; left > 0i; left = left >> 1u) {
        if ((left & 1i) != 0i) { result = result * power; }
        power = power * power;
    }
    return result;
}""",
    "pow_u32": """fn pow_u32(base: u32, exponent: u32) -> u32 {
    var result = 1u;
    var power = base;
    for (var left = exponent; left > 0u; left = left >> 1u) {
        if ((left & 1u) != 0u) { result = result * power; }
        power = power * power;
    }
    return result;
}""",
    "pow_f32": """fn pow_f32(x: f32, y: f32) -> f32 {
    if (y == 0.0f || x == 1.0f) { return 1.0f; }
    let odd = y == floor(y) && abs(y) < 16777216.0f && (i32(y) & 1i) != 0i;
    if (y == 1.0f) { return x; }
    if (y == 2.0f) { return x * x; }
    if (x == 0.0f) {
        let zero = select(bits_to_f32(0x7f800000u), 0.0f, y > 0.0f);
        return select(zero, bitcast<f32>(bitcast<u32>(zero) | (bitcast<u32>(x) & 0x80000000u)),
                      odd);
    }
    let result = pow(abs(x), y);
    if (x > 0.0f || is_nan(x)) { return select(result, x, is_nan(x)); }
    if (y != floor(y)) { return bits_to_f32(0x7fc00000u); }
    return select(result, 0.0f - result, odd);
}""",
    "rem_f32": """fn rem_f32(a: f32, b: f32) -> f32 {
    let r = select(a % b, a, is_inf(b) && abs(a) < abs(b));
    return select(r, bitcast<f32>(bitcast<u32>(a) & 0x80000000u), r == 0.0f);
}""",
    "mod_f32": """fn mod_f32(a: f32, b: f32) -> f32 {
    let r = rem_f32(a, b);
    if (r == 0.0f) { return bitcast<f32>(bitcast<u32>(b) & 0x80000000u); }
    return select(r, r + b, (r < 0.0f) != (b < 0.0f));
}""",
    "f16_to_f32": "fn f16_to_f32(x: u32) -> f32 { return unpack2x16float(x).x; }",
    "f32_to_f16": """fn f32_to_f16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) { return sign | 0x7e00u; }
    if (size >= 0x477ff000u) { return sign | 0x7c00u; }
    if (size < 0x38800000u) {
        // The last place of numbers from 0.5 on is 2**-24, as that of small numbers of f16.
        return sign | (bitcast<u32>(bitcast<f32>(size) + 0.5f) - 0x3f000000u);
    }
    return sign | ((size - 0x38000000u + 0xfffu + ((size >> 13u) & 1u)) >> 13u);
}""",
    "f32_to_bf16": """fn f32_to_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return (bits >> 16u) | 0x40u; }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}""",
}

DEPENDS: dict[str, tuple[str, ...]] = {
    "min_f32": ("is_nan",), "max_f32": ("is_nan",), "to_i32": ("is_nan",), "to_u32": ("is_nan",),
    "floordiv_i32": ("div_i32", "rem_i32"), "mod_i32": ("rem_i32",),
    "pow_f32": ("bits_to_f32", "is_nan"), "rem_f32": ("is_inf",), "mod_f32": ("rem_f32",),
}


def closure(used: set[str]) -> list[str]:
    """The helpers with those that they call, called before caller."""
    found: dict[str, None] = {}

    def add(name: str) -> None:
        for needed in DEPENDS.get(name, ()):
            add(needed)
        found[name] = None

    for name in sorted(used):
        add(name)
    return list(found)
