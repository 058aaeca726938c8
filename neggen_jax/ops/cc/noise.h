// The random numbers of `jax.random.normal`, sixteen at once.

#ifndef NEGGEN_JAX_OPS_CC_NOISE_H_
#define NEGGEN_JAX_OPS_CC_NOISE_H_

#include <cstdint>

#include "avx512.h"

namespace neggen {

#if NEGGEN_AVX512

FOR_AVX512 inline __m512i All(uint32_t word) {
  return _mm512_set1_epi32(static_cast<int>(word));
}

// Threefry-2x32 of 20 rounds (Salmon et al., SC 2011), of counters `at` to
// `at + 15`, of which 16 divides the first: both words of each, as one.
FOR_AVX512 inline __m512i RandomBits(const uint32_t* key, uint64_t at) {
  constexpr int kTurns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5,
                                         4, 3, 2, 1, 0);
  __m512i high = All(static_cast<uint32_t>(at >> 32) + keys[0]);
  __m512i low =
      _mm512_add_epi32(lanes, All(static_cast<uint32_t>(at) + keys[1]));
#pragma GCC unroll 5
  for (uint32_t five = 0; five < 5; ++five) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      high = _mm512_add_epi32(high, low);
      low = _mm512_rolv_epi32(low, All(kTurns[five % 2][n]));
      low = _mm512_xor_epi32(low, high);
    }
    high = _mm512_add_epi32(high, All(keys[(five + 1) % 3]));
    low = _mm512_add_epi32(low, All(keys[(five + 2) % 3] + five + 1));
  }
  return _mm512_xor_epi32(high, low);
}

// The natural logarithm of normal numbers above 0, by the series of artanh.
FOR_AVX512 inline __m512 Logarithm(__m512 x) {
  // As a power of 2 times what lies around 1.
  const __m512 power =
      _mm512_getexp_ps(_mm512_mul_ps(x, _mm512_set1_ps(4.0f / 3)));
  const __m512 rest =
      _mm512_scalef_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), power));
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 ratio = _mm512_div_ps(_mm512_sub_ps(rest, one),
                                     _mm512_add_ps(rest, one));
  const __m512 square = _mm512_mul_ps(ratio, ratio);
  __m512 sum = _mm512_set1_ps(1.0f / 9);
  for (float over : {7.0f, 5.0f, 3.0f, 1.0f}) {
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(1.0f / over));
  }
  const __m512 twice = _mm512_add_ps(ratio, ratio);
  return _mm512_fmadd_ps(power, _mm512_set1_ps(0.693147181f),
                         _mm512_mul_ps(twice, sum));
}

FOR_AVX512 inline __m512 Polynomial(const float (&by)[9], __m512 x) {
  __m512 sum = _mm512_set1_ps(by[0]);
#pragma GCC unroll 8
  for (int n = 1; n < 9; ++n) {
    sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(by[n]));
  }
  return sum;
}

// Entries `at` to `at + 15`, of which 16 divides the first, of
// `jax.random.normal(key, shape)`, up to rounding: the inverse error function
// of uniform numbers, as Giles approximates it (GPU Computing Gems, 2011).
FOR_AVX512 inline __m512 Normal(const uint32_t* key, uint64_t at) {
  constexpr float kInner[9] = {2.81022636e-08f, 3.43273939e-07f,
                               -3.5233877e-06f, -4.39150654e-06f,
                               0.00021858087f,  -0.00125372503f,
                               -0.00417768164f, 0.246640727f,
                               1.50140941f};
  constexpr float kOuter[9] = {-0.000200214257f, 0.000100950558f,
                               0.00134934322f,   -0.00367342844f,
                               0.00573950773f,   -0.0076224613f,
                               0.00943887047f,   1.00167406f,
                               2.83297682f};
  // Between -1 and 1, neither of them.
  const __m512i mantissa = _mm512_or_epi32(_mm512_srli_epi32(RandomBits(key, at), 9),
                                           _mm512_set1_epi32(0x3f800000));
  const __m512 two = _mm512_set1_ps(2.0f), least = _mm512_set1_ps(-0.99999994f);
  const __m512 unit =
      _mm512_sub_ps(_mm512_castsi512_ps(mantissa), _mm512_set1_ps(1.0f));
  const __m512 x =
      _mm512_max_ps(least, _mm512_add_ps(_mm512_mul_ps(unit, two), least));
  const __m512 w = _mm512_sub_ps(
      _mm512_setzero_ps(),
      Logarithm(_mm512_fnmadd_ps(x, x, _mm512_set1_ps(1.0f))));
  __m512 by = Polynomial(kInner, _mm512_sub_ps(w, _mm512_set1_ps(2.5f)));
  const __mmask16 far = _mm512_cmp_ps_mask(w, _mm512_set1_ps(5.0f), _CMP_GE_OQ);
  if (far) {
    const __m512 root = _mm512_sub_ps(_mm512_sqrt_ps(w), _mm512_set1_ps(3.0f));
    by = _mm512_mask_mov_ps(by, far, Polynomial(kOuter, root));
  }
  return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.41421356f)), by);
}

#endif  // NEGGEN_AVX512

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_NOISE_H_
