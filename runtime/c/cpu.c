/* What this CPU can do, for programs compiled for one instruction-set level. Compilers differ in
 * how their own builtins for this link into a shared library. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* under -std=c11: syscall */
#endif

#include "program.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>

/* Whether all bits of `mask` are set. */
static int has(unsigned word, unsigned mask) { return (word & mask) == mask; }

uint32_t smelt_cpu_features(void) {
    unsigned a, b, c, d, low, high;
    uint32_t found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    /* SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT */
    if (!has(c, 1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23)) return 0;
    found |= SMELT_CPU_X86_64_V2;
    /* FMA, MOVBE, OSXSAVE, AVX, F16C; then the registers that the system keeps */
    if (!has(c, 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29)) return found;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!has(low, 0x06)) return found;
    unsigned b7, c7;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return found;
    /* BMI1, AVX2, BMI2, and LZCNT */
    if (!has(b7, 1u << 3 | 1u << 5 | 1u << 8)) return found;
    if (!__get_cpuid(0x80000001u, &a, &b, &c, &d) || !has(c, 1u << 5)) return found;
    found |= SMELT_CPU_X86_64_V3;
    unsigned a71 = 0;
    __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    if (has(a71, 1u << 4)) found |= SMELT_CPU_AVX_VNNI;
    /* AVX-512 F, DQ, CD, BW, VL, and the registers that go with them */
    if (!has(low, 0xe6) || !has(b7, 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31))
        return found;
    found |= SMELT_CPU_X86_64_V4;
    if (has(c7, 1u << 11)) found |= SMELT_CPU_AVX512_VNNI;
    if (has(a71, 1u << 5)) found |= SMELT_CPU_AVX512_BF16;
    return found;
}
#else
uint32_t smelt_cpu_features(void) { return 0; }
#endif

#if defined(__x86_64__) && defined(__linux__) && (defined(__GNUC__) || defined(__clang__))
#include <sys/syscall.h>
#include <unistd.h>

int smelt_allow_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 1u << 27)) return 0; /* OSXSAVE */
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!has(low, 3u << 17)) return 0; /* the system keeps the tiles' shapes and contents */
    /* AMX-BF16, AMX-TILE */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(d, 1u << 22 | 1u << 24)) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
int smelt_allow_tiles(void) { return 0; }
#endif
