// The k best items of each query, by inner product.

#ifndef NEGGEN_JAX_OPS_CC_RANK_H_
#define NEGGEN_JAX_OPS_CC_RANK_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "avx512.h"
#include "order.h"
#include "parallel.h"

namespace neggen {

// A panel of queries goes through the items chunk by chunk. The scores of one
// chunk are all that is ever held, and fit into a core's own cache: each is
// computed, is compared with the bound of its query, and in all but a few cases
// that is all. Threads share panels: many threads want many queries.
constexpr int64_t kWidth = 16;
constexpr int64_t kVectors = 4;
constexpr int64_t kPanel = kVectors * kWidth;
// Items whose scores are summed at once: as many as registers have room for.
constexpr int64_t kAtOnce = 6;
// Items whose greatest score is kept.
constexpr int64_t kGroup = 2 * kAtOnce;
constexpr int64_t kChunk = 256 * kGroup;

// What a query must not be shown.
struct Excluded {
  std::vector<int32_t> starts, items;

  // Of pairs in any order, those of the queries and items that there are.
  Excluded(const int32_t* queries, const int32_t* columns, int64_t pairs,
           int64_t rows, int64_t count)
      : starts(rows + 1, 0) {
    auto is_one = [=](int64_t n) {
      return queries[n] >= 0 && queries[n] < rows && columns[n] >= 0 &&
             columns[n] < count;
    };
    for (int64_t n = 0; n < pairs; ++n) {
      if (is_one(n)) ++starts[queries[n] + 1];
    }
    for (int64_t row = 0; row < rows; ++row) starts[row + 1] += starts[row];
    items.resize(starts[rows]);
    std::vector<int32_t> next(starts.begin(), starts.end() - 1);
    for (int64_t n = 0; n < pairs; ++n) {
      if (is_one(n)) items[next[queries[n]]++] = columns[n];
    }
  }

  // Calls `found` with each of a query's items from `first` on, as it is
  // counted from there.
  template <typename Found>
  void In(int64_t row, int64_t first, int64_t count, Found found) const {
    for (int32_t n = starts[row]; n < starts[row + 1]; ++n) {
      const int64_t item = items[n] - first;
      if (item >= 0 && item < count) found(item);
    }
  }
};

#if NEGGEN_AVX512

struct alignas(64) Line {
  float at[kWidth];
};

// What a thread works in.
struct Scratch {
  std::vector<Line> panel, scores, most, rest;
  std::vector<uint64_t> best;
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

// What `Key` makes of the bits of floats, and of keys: its own inverse.
FOR_AVX512 inline __m512i Ordered(__m512i bits) {
  const __m512i sign = _mm512_srai_epi32(bits, 31);
  return _mm512_xor_si512(
      bits, _mm512_and_si512(sign, _mm512_set1_epi32(0x7fffffff)));
}

// For each query what k groups' greatest scores exceed: so do its k best.
// Found bit by bit; the last ones make no difference worth their time.
FOR_AVX512 inline void Bounds(const float* most, int64_t groups, int64_t k,
                              float* bounds) {
  constexpr int kLast = 12;
  const __m512i flip = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  const __m512i one = _mm512_set1_epi32(1);
  for (int64_t n = 0; n < kPanel; n += kWidth) {
    __m512i found = _mm512_setzero_si512();
    for (int bit = 31; bit >= kLast; --bit) {
      const __m512i tried = _mm512_or_si512(
          found, _mm512_set1_epi32(static_cast<int>(1u << bit)));
      __m512i count = _mm512_setzero_si512();
      for (int64_t group = 0; group < groups; ++group) {
        const __m512i key = _mm512_xor_si512(
            Ordered(_mm512_castps_si512(
                _mm512_load_ps(most + group * kPanel + n))),
            flip);
        count = _mm512_mask_add_epi32(
            count, _mm512_cmpge_epu32_mask(key, tried), count, one);
      }
      const __mmask16 enough = _mm512_cmpge_epi32_mask(
          count, _mm512_set1_epi32(static_cast<int>(k)));
      found = _mm512_mask_mov_epi32(found, enough, tried);
    }
    // The next lower value, which is exceeded by those that are equal; but
    // between the smallest and 0 processors may see no difference.
    const __m512 below = _mm512_castsi512_ps(
        Ordered(_mm512_xor_si512(_mm512_sub_epi32(found, one), flip)));
    const __m512 least = _mm512_set1_ps(-std::numeric_limits<float>::min());
    const __mmask16 tiny =
        _mm512_cmp_ps_mask(below, least, _CMP_GT_OQ) &
        _mm512_cmp_ps_mask(below, _mm512_sub_ps(_mm512_setzero_ps(), least),
                           _CMP_LT_OQ);
    _mm512_store_ps(bounds + n, _mm512_mask_mov_ps(below, tiny, least));
  }
}

// Calls `found` with each item and query whose score exceeds the query's
// bound, or is not a number.
template <typename Found>
FOR_AVX512 inline void Above(const float* scores, int64_t count,
                             const float* bounds, Found found) {
  __m512 bound[kVectors];
  for (int64_t n = 0; n < kVectors; ++n) {
    bound[n] = _mm512_load_ps(bounds + n * kWidth);
  }
  for (int64_t item = 0; item < count; ++item) {
    uint64_t those = 0;
    for (int64_t n = 0; n < kVectors; ++n) {
      const __m512 x = _mm512_load_ps(scores + item * kPanel + n * kWidth);
      const __mmask16 some = _mm512_cmp_ps_mask(x, bound[n], _CMP_NLE_UQ);
      those |= static_cast<uint64_t>(some) << (n * kWidth);
    }
    for (; those; those &= those - 1) found(item, __builtin_ctzll(those));
  }
}

// The k best items of the queries of a panel, in whose place `rows` stand.
inline void RankPanel(const float* queries, int64_t rows, int64_t first,
                      const float* items, int64_t count, int64_t dim, int64_t k,
                      const Excluded& excluded, float* values,
                      int32_t* columns) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  // Allocated once: new pages would take longer than what is done in them.
  static thread_local Scratch scratch;
  scratch.panel.resize(dim * kVectors);
  scratch.scores.resize(kChunk * kVectors);
  scratch.most.resize(kChunk / kGroup * kVectors);
  scratch.rest.resize((kGroup * dim + kWidth - 1) / kWidth);
  // Two k from before, and those of a chunk.
  const int64_t room = kChunk + 2 * k;
  scratch.best.resize(kPanel * room);
  float* panel = scratch.panel[0].at;
  float* scores = scratch.scores[0].at;
  float* most = scratch.most[0].at;
  int64_t sizes[kPanel] = {};
  alignas(64) float bounds[kPanel];
  for (int64_t n = 0; n < kPanel; ++n) {
    // Nothing exceeds that of a query that is not there.
    bounds[n] = n < rows ? kNever : -kNever;
    for (int64_t at = 0; at < dim; ++at) {
      panel[at * kPanel + n] = n < rows ? queries[n * dim + at] : 0.0f;
    }
  }
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t held = std::min(kChunk, count - start);
    const int64_t whole = held / kGroup * kGroup;
    Scores(items + start * dim, whole, dim, panel, scores, most);
    if (whole < held) {
      float* rest = scratch.rest[0].at;
      std::fill(rest, rest + kGroup * dim, 0.0f);
      std::memcpy(rest, items + (start + whole) * dim,
                  (held - whole) * dim * sizeof(float));
      alignas(64) float unused[kPanel];
      Scores(rest, kGroup, dim, panel, scores + whole * kPanel, unused);
    }
    for (int64_t n = 0; n < rows; ++n) {
      excluded.In(first + n, start, held, [&](int64_t item) {
        scores[item * kPanel + n] = kNever;
      });
    }
    const int64_t groups = whole / kGroup;
    if (start == 0 && groups >= k) {
      for (int64_t n = 0; n < rows; ++n) {
        excluded.In(first + n, 0, whole, [&](int64_t item) {
          const int64_t group = item / kGroup;
          float greatest = kNever;
          for (int64_t i = group * kGroup; i < (group + 1) * kGroup; ++i) {
            greatest = std::max(greatest, scores[i * kPanel + n]);
          }
          most[group * kPanel + n] = greatest;
        });
      }
      Bounds(most, groups, k, bounds);
      std::fill(bounds + rows, bounds + kPanel, -kNever);
    }
    Above(scores, held, bounds, [&](int64_t item, int64_t n) {
      // Sums that are too small for a float may be -0, and are equal to 0.
      scratch.best[n * room + sizes[n]++] =
          Pack(Key(scores[item * kPanel + n] + 0.0f), start + item);
    });
    // Those of queries that are not there too: what is not a number exceeds
    // every bound.
    for (int64_t n = 0; n < kPanel; ++n) {
      if (sizes[n] <= 2 * k) continue;
      uint64_t* best = scratch.best.data() + n * room;
      std::nth_element(best, best + k - 1, best + sizes[n],
                       std::greater<uint64_t>());
      sizes[n] = k;
      // Later items have to be better: of equals the earlier stays.
      bounds[n] = Value(best[k - 1]);
    }
  }
  for (int64_t n = 0; n < rows; ++n) {
    uint64_t* best = scratch.best.data() + n * room;
    const int64_t found = std::min(k, sizes[n]);
    std::partial_sort(best, best + found, best + sizes[n],
                      std::greater<uint64_t>());
    for (int64_t i = 0; i < k; ++i) {
      values[n * k + i] = i < found ? Value(best[i]) : kNever;
      columns[n * k + i] =
          i < found ? static_cast<int32_t>(Column(best[i])) : -1;
    }
  }
}

#endif  // NEGGEN_AVX512

inline ffi::Error Rank(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> queries,
                       ffi::Buffer<ffi::F32> items,
                       ffi::Buffer<ffi::S32> excluded_queries,
                       ffi::Buffer<ffi::S32> excluded_items,
                       ffi::Buffer<ffi::S32> num_items,
                       ffi::ResultBuffer<ffi::F32> values,
                       ffi::ResultBuffer<ffi::S32> columns) {
#if NEGGEN_AVX512
  const auto shape = queries.dimensions();
  const int64_t rows = shape[0], dim = shape[1];
  const int64_t k = values->dimensions()[1];
  const int64_t pairs = excluded_queries.element_count();
  if (rows == 0 || k == 0) return ffi::Error::Success();
  if (dim < 1 || items.dimensions()[1] != dim || num_items.element_count() != 1 ||
      excluded_items.element_count() != static_cast<size_t>(pairs)) {
    return ffi::Error::InvalidArgument("queries, items or pairs do not agree");
  }
  const int64_t count = std::clamp<int64_t>(num_items.typed_data()[0], 0,
                                            items.dimensions()[0]);
  const Excluded excluded(excluded_queries.typed_data(),
                          excluded_items.typed_data(), pairs, rows, count);
  const int64_t panels = (rows + kPanel - 1) / kPanel;
  InParallel(pool, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanel;
      RankPanel(queries.typed_data() + first * dim,
                std::min(kPanel, rows - first), first, items.typed_data(),
                count, dim, k, excluded, values->typed_data() + first * k,
                columns->typed_data() + first * k);
    }
  });
  return ffi::Error::Success();
#else
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "for processors with AVX-512");
#endif
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_RANK_H_
