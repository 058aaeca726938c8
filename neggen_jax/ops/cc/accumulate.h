// A piece of a product of matrices: as much as registers hold the sums of.

#ifndef NEGGEN_JAX_OPS_CC_ACCUMULATE_H_
#define NEGGEN_JAX_OPS_CC_ACCUMULATE_H_

#include <cstdint>

#include "simd.h"

namespace neggen {

#if NEGGEN_SIMD

// So many rows, and so many vectors of each: with AVX-512 there are twice as
// many registers as without.
constexpr int64_t kHigh = 6;
constexpr int64_t kStrips = kLanes == 16 ? 4 : 2;
constexpr int64_t kBroad = kStrips * kLanes;

// Adds to `high` rows of `c` what `length` rows of `b` give, the t-th times
// `a[i][t * kAlong]` for the i-th of those. Entries are added up in their
// order. `ahead(t)` is called meanwhile.
template <int64_t kAlong, typename Ahead>
inline void Accumulate(const float* const* a, int64_t length,
                                  const float* b, int64_t width,
                                  float* const* c, int64_t high,
                                  Ahead ahead) {
  Floats sums[kHigh][kStrips];
#pragma GCC unroll 6
  for (int64_t i = 0; i < kHigh; ++i) {
    for (int64_t n = 0; n < kStrips; ++n) {
      sums[i][n] = Load(c[i] + n * kLanes);
    }
  }
  for (int64_t t = 0; t < length; ++t) {
    Floats row[kStrips];
    for (int64_t n = 0; n < kStrips; ++n) {
      row[n] = Load(b + t * width + n * kLanes);
    }
    ahead(t);
    for (int64_t i = 0; i < kHigh; ++i) {
      const Floats entry = All(a[i][t * kAlong]);
      for (int64_t n = 0; n < kStrips; ++n) {
        sums[i][n] = MultiplyAdd(entry, row[n], sums[i][n]);
      }
    }
  }
#pragma GCC unroll 6
  for (int64_t i = 0; i < kHigh; ++i) {
    for (int64_t n = 0; n < kStrips; ++n) {
      if (i < high) Store(c[i] + n * kLanes, sums[i][n]);
    }
  }
}

#endif  // NEGGEN_SIMD

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_ACCUMULATE_H_
