// Kernels for processors with AVX-512: whether there are any, and which.

#ifndef NEGGEN_JAX_OPS_CC_AVX512_H_
#define NEGGEN_JAX_OPS_CC_AVX512_H_

#ifndef NEGGEN_AVX512
#if defined(__x86_64__) && defined(__GNUC__)
#define NEGGEN_AVX512 1
#else
#define NEGGEN_AVX512 0
#endif
#endif

#if NEGGEN_AVX512
#include <immintrin.h>
#define FOR_AVX512 __attribute__((target("avx512f")))
#define FOR_VNNI __attribute__((target("avx512f,avx512vnni")))
#endif

namespace neggen {

// Whether this processor runs what is marked by `FOR_AVX512`.
inline bool HasAvx512() {
#if NEGGEN_AVX512
  return __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

// Whether it runs what is marked by `FOR_VNNI`: sums of products of bytes.
inline bool HasVnni() {
#if NEGGEN_AVX512
  return HasAvx512() && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_AVX512_H_
