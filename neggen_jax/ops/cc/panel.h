// Scores of a panel of queries, in float32.

#ifndef NEGGEN_JAX_OPS_CC_PANEL_H_
#define NEGGEN_JAX_OPS_CC_PANEL_H_

#include <cstdint>
#include <limits>

#include "avx512.h"

namespace neggen {

// A panel of queries goes through the items chunk by chunk. The scores of one
// chunk are all that is ever held, and fit into a core's own cache.
constexpr int64_t kWidth = 16;
constexpr int64_t kVectors = 4;
constexpr int64_t kPanel = kVectors * kWidth;
// Items whose scores are summed at once: as many as registers have room for.
constexpr int64_t kAtOnce = 6;
// Items whose greatest score is kept.
constexpr int64_t kGroup = 2 * kAtOnce;
constexpr int64_t kChunk = 256 * kGroup;

#if NEGGEN_AVX512

struct alignas(64) Line {
  float at[kWidth];
};

// Of the queries of a panel `[dim][kPanel]`, scores of some items
// `[kAtOnce][dim]`, which are added up in the order of the entries.
FOR_AVX512 inline void Products(const float* items, int64_t dim,
                                const float* panel, float* scores,
                                __m512* most) {
  __m512 sums[kAtOnce][kVectors];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm512_setzero_ps();
  }
  for (int64_t at = 0; at < dim; ++at) {
    __m512 queries[kVectors];
    for (int64_t n = 0; n < kVectors; ++n) {
      queries[n] = _mm512_load_ps(panel + at * kPanel + n * kWidth);
    }
    for (int64_t i = 0; i < kAtOnce; ++i) {
      const __m512 entry = _mm512_set1_ps(items[i * dim + at]);
      for (int64_t n = 0; n < kVectors; ++n) {
        sums[i][n] = _mm512_fmadd_ps(entry, queries[n], sums[i][n]);
      }
    }
  }
  for (int64_t i = 0; i < kAtOnce; ++i) {
    for (int64_t n = 0; n < kVectors; ++n) {
      _mm512_store_ps(scores + i * kPanel + n * kWidth, sums[i][n]);
      most[n] = _mm512_max_ps(sums[i][n], most[n]);
    }
  }
}

// Scores `[count][kPanel]` of `count` items, whole groups of them, and the
// greatest of each group.
FOR_AVX512 inline void Scores(const float* items, int64_t count, int64_t dim,
                              const float* panel, float* scores, float* most) {
  for (int64_t first = 0; first < count; first += kGroup) {
    __m512 greatest[kVectors];
    for (auto& x : greatest) {
      x = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    }
    for (int64_t n = first; n < first + kGroup; n += kAtOnce) {
      Products(items + n * dim, dim, panel, scores + n * kPanel, greatest);
    }
    for (int64_t n = 0; n < kVectors; ++n) {
      _mm512_store_ps(most + first / kGroup * kPanel + n * kWidth, greatest[n]);
    }
  }
}

// Four entries each of items `n`, `n + 4`, `n + 8` and `n + 12`.
FOR_AVX512 inline __m512 Entries(const float* const* items, int64_t n,
                                 int64_t at) {
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(items[n] + at));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(items[n + 4] + at), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(items[n + 8] + at), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(items[n + 12] + at), 3);
}

// One query's scores of items that lie anywhere, each to the bit that of
// `Scores`: entries of all items come into one register, one after the other.
FOR_AVX512 inline __m512 ScoresOf(const float* const* items, int64_t dim,
                                  const float* query) {
  __m512 sum = _mm512_setzero_ps();
  int64_t at = 0;
  for (; at + 4 <= dim; at += 4) {
    const __m512 a = Entries(items, 0, at), b = Entries(items, 1, at);
    const __m512 c = Entries(items, 2, at), d = Entries(items, 3, at);
    const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
    const __m512d ba = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d dc = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    const __m512d entries[] = {
        _mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd),
        _mm512_unpacklo_pd(ba, dc), _mm512_unpackhi_pd(ba, dc)};
    for (int64_t n = 0; n < 4; ++n) {
      sum = _mm512_fmadd_ps(_mm512_castpd_ps(entries[n]),
                            _mm512_set1_ps(query[at + n]), sum);
    }
  }
  for (; at < dim; ++at) {
    Line entries;
    for (int64_t n = 0; n < kWidth; ++n) entries.at[n] = items[n][at];
    sum = _mm512_fmadd_ps(_mm512_load_ps(entries.at),
                          _mm512_set1_ps(query[at]), sum);
  }
  return sum;
}

#endif  // NEGGEN_AVX512

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_PANEL_H_
