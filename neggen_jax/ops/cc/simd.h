// Vectors, as wide as those of the processor that the library is compiled for;
// see library.py. They have the operators of numbers, lane by lane; where that
// processor has AVX-512, or AVX2 and FMA, `NEGGEN_SIMD` is 1, and there is what
// kernels need beside these.

#ifndef NEGGEN_JAX_OPS_CC_SIMD_H_
#define NEGGEN_JAX_OPS_CC_SIMD_H_

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#define NEGGEN_SIMD 1
#include <immintrin.h>
#else
#define NEGGEN_SIMD 0
#endif

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#define NEGGEN_VNNI 1
#else
#define NEGGEN_VNNI 0
#endif

namespace neggen {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif NEGGEN_SIMD
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

inline Floats Load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void Store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// The same in all lanes.
inline Floats All(float x) { return x - Floats{}; }

// 0, 1, 2 and so on.
template <typename Numbers>
inline Numbers Range() {
  constexpr uint32_t kCounted[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                     8, 9, 10, 11, 12, 13, 14, 15};
  Numbers x;
  std::memcpy(&x, kCounted, sizeof x);
  return x;
}

// The former where they are equal, or one is not a number.
inline Floats Max(Floats x, Floats y) { return y > x ? y : x; }
inline Floats Min(Floats x, Floats y) { return y < x ? y : x; }

#if NEGGEN_SIMD

// x y + z, rounded once.
inline Floats MultiplyAdd(Floats x, Floats y, Floats z) {
#if defined(__AVX512F__)
  return Floats(_mm512_fmadd_ps(__m512(x), __m512(y), __m512(z)));
#else
  return Floats(_mm256_fmadd_ps(__m256(x), __m256(y), __m256(z)));
#endif
}

inline Floats Root(Floats x) {
#if defined(__AVX512F__)
  return Floats(_mm512_sqrt_ps(__m512(x)));
#else
  return Floats(_mm256_sqrt_ps(__m256(x)));
#endif
}

// The nearest whole number.
inline Floats Nearest(Floats x) {
#if defined(__AVX512F__)
  return Floats(_mm512_roundscale_ps(__m512(x), _MM_FROUND_TO_NEAREST_INT));
#else
  return Floats(_mm256_round_ps(__m256(x),
                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
}

// x 2^n, for whole n of -252 to 254.
inline Floats TimesPower(Floats x, Floats n) {
#if defined(__AVX512F__)
  return Floats(_mm512_scalef_ps(__m512(x), __m512(n)));
#else
  // In two steps, as one power may be no float; only the last one rounds.
  const Ints whole = __builtin_convertvector(n, Ints), half = whole >> 1;
  const Floats first = Floats((half + 127) << 23);
  const Floats last = Floats((whole - half + 127) << 23);
  return x * first * last;
#endif
}

// A bit for each lane, whether x exceeds y, or one of them is not a number.
inline uint32_t Exceeds(Floats x, Floats y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(__m512(x), __m512(y), _CMP_NLE_UQ);
#else
  return _mm256_movemask_ps(_mm256_cmp_ps(__m256(x), __m256(y), _CMP_NLE_UQ));
#endif
}

#endif  // NEGGEN_SIMD

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_SIMD_H_
