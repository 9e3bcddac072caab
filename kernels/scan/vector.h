/* Vectors of LANES floats, as wide as the instruction set that this is compiled for, and the few
 * functions of them that the scan needs, each to about 1e-7 relative.
 *
 * Built without -ffast-math: it would fold the rounding in exp2_of away. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef uint16_t hvec __attribute__((vector_size(LANES * 2)));
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Room for vectors; NULL without memory. Windows has its own functions for it. */
#if defined(_WIN32)
#include <malloc.h>
#define EXPORT __declspec(dllexport)
INLINE void *reserve(size_t bytes) { return _aligned_malloc(bytes + 64, 64); }
INLINE void release(void *room) { _aligned_free(room); }
#else
#define EXPORT
INLINE void *reserve(size_t bytes) { return aligned_alloc(64, (bytes / 64 + 1) * 64); }
INLINE void release(void *room) { free(room); }
#endif

INLINE vec all(float x) { return x - (vec){0}; }

INLINE vec load(const float *p, int64_t count)
{
    vec v = {0};
    if (count == LANES) memcpy(&v, p, sizeof v);
    else memcpy(&v, p, count * sizeof(float));
    return v;
}

INLINE void store(float *p, vec v, int64_t count)
{
    if (count == LANES) memcpy(p, &v, sizeof v);
    else memcpy(p, &v, count * sizeof(float));
}

/* Between 16 and 32 bits; gcc 12 makes a detour of what __builtin_convertvector says plainly. */
INLINE uvec widen(hvec x)
{
#if defined(__AVX512F__)
    return (uvec)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
    return (uvec)_mm256_cvtepu16_epi32((__m128i)x);
#else
    return __builtin_convertvector(x, uvec);
#endif
}

INLINE hvec narrow(uvec x)
{
#if defined(__AVX512F__)
    return (hvec)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
    return (hvec)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
#else
    return __builtin_convertvector(x, hvec);
#endif
}

/* load and store of bfloat16, the upper half of a float; rounded to nearest, ties to even. */
INLINE vec load_half(const uint16_t *p, int64_t count)
{
    hvec v = {0};
    if (count == LANES) memcpy(&v, p, sizeof v);
    else memcpy(&v, p, count * sizeof *p);
    return (vec)(widen(v) << 16);
}

INLINE void store_half(uint16_t *p, vec v, int64_t count)
{
    uvec bits = (uvec)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uvec number = (uvec)(v == v);                    /* rounding might make infinity of what is none */
    hvec h = narrow((rounded & number) | (0x7fc0 & ~number));
    if (count == LANES) memcpy(p, &h, sizeof h);
    else memcpy(p, &h, count * sizeof *p);
}

INLINE float total(vec v)
{
    float sum[LANES];
    memcpy(sum, &v, sizeof v);
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int i = 0; i < half; i++) sum[i] += sum[i + half];
    return sum[0];
}

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* b where a is not a number. */
INLINE vec largest(vec a, vec b)
{
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

/* b where a is not a number. */
INLINE vec smallest(vec a, vec b)
{
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return choose(a < b, a, b);
#endif
}

INLINE vec magnitude(vec x) { return (vec)((ivec)x & 0x7fffffff); }

/* Keeps a product from being fused with what is added to it. */
#if defined(__aarch64__)
#define PRODUCT(x) __asm__("" : "+w"(x))
#elif defined(__SSE__)
#define PRODUCT(x) __asm__("" : "+v"(x))
#else
#define PRODUCT(x)
#endif

/* 2^t for |t| <= 126: minimax polynomial on [-1/2, 1/2], exactly 1 at 0. To 1e-7 relative near 0,
 * where decays are slow; to 1e-7 of 1 elsewhere. */
INLINE vec exp2_at(vec t)
{
    const float round = 12582912.0f;                 /* 1.5 * 2^23: its last bits count ones */
    PRODUCT(t);                                      /* Zen adds on other ports than it multiplies on */
    vec shifted = t + round;
    vec r = t - (shifted - round);
    vec p = r * 0.0013264727f + 0.009671513f;
    p = p * r + 0.055507336f;
    p = p * r + 0.24022242f;
    p = p * r + 0.693147f;
    p = p * r + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

INLINE vec exp2_of(vec x, vec y) { return exp2_at(x * y); }

INLINE vec exp2_clamped(vec x, vec y) { return exp2_at(smallest(largest(x * y, all(-126)), all(126))); }

/* softplus and its slope; the identity above 20 comes out by rounding. */
INLINE vec softplus(vec x, vec *slope)
{
    vec e = exp2_at(largest(magnitude(x) * -1.44269504f, all(-126)));
    vec p = e * 0.00536482f - 0.030065775f;          /* log(1 + e) / e, minimax on [0, 1], 1 at 0 */
    p = p * e + 0.07920451f;
    p = p * e - 0.137538f;
    p = p * e + 0.19153655f;
    p = p * e - 0.24857163f;
    p = p * e + 0.33321324f;
    p = p * e - 0.49999648f;
    p = p * e + 1.0f;
    if (slope) *slope = choose(x > 0, all(1), e) / (1 + e);
    return largest(all(0), x) + p * e;
}

INLINE vec sigmoid(vec x) { return 1 / (1 + exp2_clamped(x, all(-1.44269504f))); }
