// Scores of a panel of queries, in float32.

#ifndef NEGGEN_JAX_OPS_CC_PANEL_H_
#define NEGGEN_JAX_OPS_CC_PANEL_H_

#include <cstdint>
#include <limits>

#include "accumulate.h"
#include "simd.h"

namespace neggen {

#if NEGGEN_SIMD

// A panel of queries goes through the items chunk by chunk. The scores of one
// chunk are all that is ever held, and fit into a core's own cache.
constexpr int64_t kPanel = 64;
constexpr int64_t kVectors = kPanel / kLanes;
// What is held begins where lines of the cache do.
constexpr int64_t kPlaces = 16, kLines = kPanel / kPlaces;
// Items whose greatest score is kept.
constexpr int64_t kGroup = 2 * kHigh;
constexpr int64_t kChunk = 256 * kGroup;

struct alignas(64) Line {
  float at[kPlaces];
};

// Of some queries of a panel `[dim][kPanel]`, scores of some items
// `[kHigh][dim]`, which are added up in the order of the entries.
inline void Products(const float* items, int64_t dim, const float* panel,
                     float* scores, Floats* most) {
  Floats sums[kHigh][kStrips];
  for (auto& row : sums) {
    for (auto& sum : row) sum = Floats{};
  }
  for (int64_t at = 0; at < dim; ++at) {
    Floats queries[kStrips];
    for (int64_t n = 0; n < kStrips; ++n) {
      queries[n] = Load(panel + at * kPanel + n * kLanes);
    }
    for (int64_t i = 0; i < kHigh; ++i) {
      const Floats entry = All(items[i * dim + at]);
      for (int64_t n = 0; n < kStrips; ++n) {
        sums[i][n] = MultiplyAdd(entry, queries[n], sums[i][n]);
      }
    }
  }
  for (int64_t i = 0; i < kHigh; ++i) {
    for (int64_t n = 0; n < kStrips; ++n) {
      Store(scores + i * kPanel + n * kLanes, sums[i][n]);
      most[n] = Max(most[n], sums[i][n]);
    }
  }
}

// Scores `[count][kPanel]` of `count` items, whole groups of them, and the
// greatest of each group.
inline void Scores(const float* items, int64_t count, int64_t dim,
                   const float* panel, float* scores, float* most) {
  for (int64_t first = 0; first < count; first += kGroup) {
    for (int64_t at = 0; at < kPanel; at += kBroad) {
      Floats greatest[kStrips];
      for (auto& x : greatest) {
        x = All(-std::numeric_limits<float>::infinity());
      }
      for (int64_t n = first; n < first + kGroup; n += kHigh) {
        Products(items + n * dim, dim, panel + at, scores + n * kPanel + at,
                 greatest);
      }
      for (int64_t n = 0; n < kStrips; ++n) {
        Store(most + first / kGroup * kPanel + at + n * kLanes, greatest[n]);
      }
    }
  }
}

#endif  // NEGGEN_SIMD

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_PANEL_H_
