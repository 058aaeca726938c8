// The random numbers of `jax.random.normal`, as many at once as vectors have.

#ifndef NEGGEN_JAX_OPS_CC_NOISE_H_
#define NEGGEN_JAX_OPS_CC_NOISE_H_

#include <cstdint>

#include "simd.h"

namespace neggen {

#if NEGGEN_SIMD

// Threefry-2x32 of 20 rounds (Salmon et al., SC 2011), of the counters from
// `at` on, which is a multiple of their number: both words of each, as one.
inline Words RandomBits(const uint32_t* key, uint64_t at) {
  constexpr int kTurns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
  Words high = Words{} + (static_cast<uint32_t>(at >> 32) + keys[0]);
  Words low =
      Range<Words>() + (static_cast<uint32_t>(at) + keys[1]);
#pragma GCC unroll 5
  for (uint32_t five = 0; five < 5; ++five) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      const int turn = kTurns[five % 2][n];
      high += low;
      low = (low << turn) | (low >> (32 - turn));
      low ^= high;
    }
    high += keys[(five + 1) % 3];
    low += keys[(five + 2) % 3] + five + 1;
  }
  return high ^ low;
}

// The natural logarithm of normal numbers above 0, by the series of artanh.
inline Floats Logarithm(Floats x) {
  // As a power of 2 times what lies around 1: the power is in the upper bits.
  const Ints power = (Ints(x * (4.0f / 3)) >> 23) - 127;
  const Floats rest = Floats(Ints(x) - (power << 23));
  const Floats ratio = (rest - 1.0f) / (rest + 1.0f);
  const Floats square = ratio * ratio;
  Floats sum = All(1.0f / 9);
  for (float over : {7.0f, 5.0f, 3.0f, 1.0f}) {
    sum = MultiplyAdd(sum, square, All(1.0f / over));
  }
  return MultiplyAdd(__builtin_convertvector(power, Floats), All(0.693147181f),
                     (ratio + ratio) * sum);
}

inline Floats Polynomial(const float (&by)[9], Floats x) {
  Floats sum = All(by[0]);
#pragma GCC unroll 8
  for (int n = 1; n < 9; ++n) sum = MultiplyAdd(sum, x, All(by[n]));
  return sum;
}

// Entries from `at` on, which is a multiple of their number, of
// `jax.random.normal(key, shape)`, up to rounding: the inverse error function
// of uniform numbers, as Giles approximates it (GPU Computing Gems, 2011).
inline Floats Normal(const uint32_t* key, uint64_t at) {
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
  const Floats unit = Floats((RandomBits(key, at) >> 9) | 0x3f800000u) - 1.0f;
  const Floats least = All(-0.99999994f);
  const Floats x = Max(unit * 2.0f + least, least);
  const Floats w = -Logarithm(MultiplyAdd(-x, x, All(1.0f)));
  Floats by = Polynomial(kInner, w - 2.5f);
  const Floats edge = All(4.9999995f);  // from 5 on
  if (Exceeds(w, edge)) {
    by = w > edge ? Polynomial(kOuter, Root(w) - 3.0f) : by;
  }
  return x * 1.41421356f * by;
}

#endif  // NEGGEN_SIMD

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_NOISE_H_
