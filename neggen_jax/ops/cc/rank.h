// The k best items of each query, by inner product.

#ifndef NEGGEN_JAX_OPS_CC_RANK_H_
#define NEGGEN_JAX_OPS_CC_RANK_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "filter.h"
#include "order.h"
#include "panel.h"
#include "parallel.h"
#include "simd.h"

namespace neggen {

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

#if NEGGEN_SIMD

// What `Key` makes of the bits of floats, and of keys: its own inverse.
inline Ints Ordered(Ints bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// For each query what k groups' greatest scores exceed: so do its k best.
// Found bit by bit; the last ones make no difference worth their time.
inline void Bounds(const float* most, int64_t groups, int64_t k,
                   float* bounds) {
  constexpr int kLast = 12;
  const Ints flip = Ints{} + std::numeric_limits<int32_t>::min();
  for (int64_t n = 0; n < kPanel; n += kLanes) {
    Ints found{};
    for (int bit = 31; bit >= kLast; --bit) {
      const Ints tried = found | Ints(Words{} + (1u << bit));
      // Keys are compared as if their sign bits were flipped, as `tried` is.
      const Ints least = tried ^ flip;
      Ints count{};
      for (int64_t group = 0; group < groups; ++group) {
        // -1 where it is.
        count -= Ordered(Ints(Load(most + group * kPanel + n))) >= least;
      }
      found = count >= static_cast<int32_t>(k) ? tried : found;
    }
    // The next lower value, which is exceeded by those that are equal; but
    // between the smallest and 0 processors may see no difference.
    const Floats below = Floats(Ordered((found - 1) ^ flip));
    const Floats least = All(-std::numeric_limits<float>::min());
    const Ints tiny = (below > least) & (below < -least);
    Store(bounds + n, tiny ? least : below);
  }
}

// Calls `found` with each item and query whose score exceeds the query's
// bound, or is not a number.
template <typename Found>
inline void Above(const float* scores, int64_t count, const float* bounds,
                  Found found) {
  Floats bound[kVectors];
  for (int64_t n = 0; n < kVectors; ++n) bound[n] = Load(bounds + n * kLanes);
  for (int64_t item = 0; item < count; ++item) {
    uint64_t those = 0;
    for (int64_t n = 0; n < kVectors; ++n) {
      const Floats x = Load(scores + item * kPanel + n * kLanes);
      those |= static_cast<uint64_t>(Exceeds(x, bound[n])) << (n * kLanes);
    }
    for (; those; those &= those - 1) found(item, __builtin_ctzll(those));
  }
}

// The search for the best items of a panel of queries, and what a thread holds
// for it. That is kept: new pages would take longer than what is done in them.
struct Search {
  // Of one call; there may be no bytes.
  const float* items;
  int64_t count, dim, k;
  const Excluded* excluded;
#if NEGGEN_VNNI
  const Bytes* bytes;
#endif
  // Of one panel: in whose place the first row stands, and how many do.
  const float* queries;
  int64_t first, rows;

  void Run(float* values, int32_t* columns) {
    Start();
    for (int64_t start = 0; start < count; start += kChunk) {
      const int64_t held = std::min(kChunk, count - start);
      if (!FindFew(start, held)) FindAll(start, held);
      Prune();
    }
    Write(values, columns);
  }

 private:
  static constexpr float kNever = -std::numeric_limits<float>::infinity();
  // Of all scores of a chunk, the share that takes as long by themselves.
  static constexpr int64_t kShare = 8;
  // Items whose vectors a core's own cache holds.
  static constexpr int64_t kPart = kChunk / 2;

  std::vector<Line> panel_, scores_, most_, rest_;
  std::vector<uint64_t> best_;
  int64_t room_;
  int64_t sizes_[kPanel];
  alignas(64) float bounds_[kPanel];
#if NEGGEN_VNNI
  std::vector<uint64_t> left_;
  std::vector<uint16_t> picked_;
  Sieve sieve_;
  int64_t picks_[kPanel];
#endif

  void Start() {
    panel_.resize(dim * kLines);
    scores_.resize(kChunk * kLines);
    most_.resize(kChunk / kGroup * kLines);
    rest_.resize((kGroup * dim + kPlaces - 1) / kPlaces);
    // Two k from before, and those of a chunk.
    room_ = kChunk + 2 * k;
    best_.resize(kPanel * room_);
    float* panel = panel_[0].at;
    for (int64_t n = 0; n < kPanel; ++n) {
      sizes_[n] = 0;
      bounds_[n] = kNever;
      for (int64_t at = 0; at < dim; ++at) {
        panel[at * kPanel + n] = n < rows ? queries[n * dim + at] : 0.0f;
      }
    }
    CloseEmptyPlaces();
#if NEGGEN_VNNI
    if (bytes == nullptr) return;
    left_.resize(kChunk);
    picked_.resize(kPanel * kPart);
    sieve_.Fill(queries, rows, *bytes);
#endif
  }

  // Nothing exceeds the bound of a query that is not there.
  void CloseEmptyPlaces() {
    std::fill(bounds_ + rows, bounds_ + kPanel, -kNever);
  }

#if NEGGEN_VNNI

  // Computes what is left of a chunk when it has been filtered. If that is
  // much, it does not, and returns false.
  bool FindFew(int64_t start, int64_t held) {
    const int64_t groups = held / kGroup;
    if (bytes == nullptr || (start == 0 && groups < k)) return false;
    int64_t whole = 0;
    uint64_t* left = left_.data();
    if (start == 0) {
      float *upper = scores_[0].at, *most = most_[0].at;
      whole = groups * kGroup;
      Limits(*bytes, whole, sieve_, upper, most);
      // Whether it is the greatest of its group nobody knows.
      for (int64_t n = 0; n < rows; ++n) {
        excluded->In(first + n, 0, whole, [&](int64_t item) {
          most[item / kGroup * kPanel + n] = kNever;
        });
      }
      Bounds(most, groups, k, bounds_);
      sieve_.ToScores(rows, bounds_);
      CloseEmptyPlaces();
      sieve_.SetEdges(rows, bounds_);
      Compare(upper, whole, sieve_, left);
    } else {
      sieve_.SetEdges(rows, bounds_);
    }
    Filter(*bytes, start + whole, held - whole, sieve_, left + whole);
    for (int64_t n = 0; n < rows; ++n) {
      excluded->In(first + n, start, held, [&](int64_t item) {
        left[item] &= ~(uint64_t{1} << n);
      });
    }
    if (!AreFew(held)) return false;
    for (int64_t at = 0; at < held; at += kPart) {
      Pick(start, at, std::min(at + kPart, held));
      for (int64_t n = 0; n < rows; ++n) Score(n, start);
    }
    return true;
  }

  // Whether those that are left take less time by themselves.
  bool AreFew(int64_t held) {
    const uint64_t all = ~uint64_t{0} >> (kPanel - rows);
    int64_t count = 0;
    for (int64_t item = 0; item < held; ++item) {
      left_[item] &= all;
      count += __builtin_popcountll(left_[item]);
    }
    return count * kShare <= rows * held;
  }

  // Makes a list of what each query has left of some items of a chunk.
  void Pick(int64_t start, int64_t begin, int64_t end) {
    std::fill(picks_, picks_ + kPanel, 0);
    for (int64_t item = begin; item < end; ++item) {
      if (left_[item] == 0) continue;
      const float* row = items + (start + item) * dim;
      for (int64_t at = 0; at < dim; at += kPlaces) {
        __builtin_prefetch(row + at, 0, 2);
      }
      for (uint64_t left = left_[item]; left; left &= left - 1) {
        const int64_t n = __builtin_ctzll(left);
        picked_[n * kPart + picks_[n]++] = item;
      }
    }
  }

  // Adds those of some items of a chunk whose scores exceed a query's bound.
  void Score(int64_t n, int64_t start) {
    const int64_t count = picks_[n];
    const uint16_t* picked = picked_.data() + n * kPart;
    uint64_t* best = best_.data() + n * room_;
    for (int64_t at = 0; at < count; at += kLanes) {
      const float* some[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        // The last of them again, where there are no more.
        some[i] = items + (start + picked[std::min(at + i, count - 1)]) * dim;
        const float* next =
            items + (start + picked[std::min(at + kLanes + i, count - 1)]) * dim;
        for (int64_t n = 0; n < dim; n += kPlaces) __builtin_prefetch(next + n);
      }
      Line scores;
      const __m512 x = ScoresOf(some, dim, queries + n * dim);
      _mm512_store_ps(scores.at, x);
      uint32_t above = _mm512_cmp_ps_mask(x, _mm512_set1_ps(bounds_[n]),
                                          _CMP_NLE_UQ);
      if (count - at < kLanes) above &= (1u << (count - at)) - 1;
      for (; above; above &= above - 1) {
        const int64_t i = __builtin_ctz(above);
        best[sizes_[n]++] =
            Pack(Key(scores.at[i] + 0.0f), start + picked[at + i]);
      }
    }
  }

#else

  bool FindFew(int64_t, int64_t) { return false; }

#endif  // NEGGEN_VNNI

  // Computes all scores of a chunk.
  void FindAll(int64_t start, int64_t held) {
    float *scores = scores_[0].at, *most = most_[0].at;
    const float* panel = panel_[0].at;
    const int64_t whole = held / kGroup * kGroup;
    Scores(items + start * dim, whole, dim, panel, scores, most);
    if (whole < held) {
      float* rest = rest_[0].at;
      std::fill(rest, rest + kGroup * dim, 0.0f);
      std::memcpy(rest, items + (start + whole) * dim,
                  (held - whole) * dim * sizeof(float));
      alignas(64) float unused[kPanel];
      Scores(rest, kGroup, dim, panel, scores + whole * kPanel, unused);
    }
    for (int64_t n = 0; n < rows; ++n) {
      excluded->In(first + n, start, held, [&](int64_t item) {
        scores[item * kPanel + n] = kNever;
      });
    }
    if (start == 0 && whole / kGroup >= k) FirstBounds(whole);
    Above(scores, held, bounds_, [&](int64_t item, int64_t n) {
      // Sums that are too small for a float may be -0, and are equal to 0.
      best_[n * room_ + sizes_[n]++] =
          Pack(Key(scores[item * kPanel + n] + 0.0f), start + item);
    });
  }

  // From the greatest scores of the groups of the first chunk.
  void FirstBounds(int64_t whole) {
    float *scores = scores_[0].at, *most = most_[0].at;
    for (int64_t n = 0; n < rows; ++n) {
      excluded->In(first + n, 0, whole, [&](int64_t item) {
        const int64_t group = item / kGroup;
        float greatest = kNever;
        for (int64_t i = group * kGroup; i < (group + 1) * kGroup; ++i) {
          greatest = std::max(greatest, scores[i * kPanel + n]);
        }
        most[group * kPanel + n] = greatest;
      });
    }
    Bounds(most, whole / kGroup, k, bounds_);
    CloseEmptyPlaces();
  }

  void Prune() {
    // Tighter bounds save more, if less has to be done to find them.
#if NEGGEN_VNNI
    const int64_t most = bytes == nullptr ? 2 * k : k + k / 2;
#else
    const int64_t most = 2 * k;
#endif
    // Those of queries that are not there too: what is not a number exceeds
    // every bound.
    for (int64_t n = 0; n < kPanel; ++n) {
      if (sizes_[n] <= most) continue;
      uint64_t* best = best_.data() + n * room_;
      std::nth_element(best, best + k - 1, best + sizes_[n],
                       std::greater<uint64_t>());
      sizes_[n] = k;
      // Later items have to be better: of equals the earlier stays.
      bounds_[n] = Value(best[k - 1]);
    }
  }

  void Write(float* values, int32_t* columns) {
    for (int64_t n = 0; n < rows; ++n) {
      uint64_t* best = best_.data() + n * room_;
      const int64_t found = std::min(k, sizes_[n]);
      std::partial_sort(best, best + found, best + sizes_[n],
                        std::greater<uint64_t>());
      for (int64_t i = 0; i < k; ++i) {
        values[n * k + i] = i < found ? Value(best[i]) : kNever;
        columns[n * k + i] =
            i < found ? static_cast<int32_t>(Column(best[i])) : -1;
      }
    }
  }
};

#endif  // NEGGEN_SIMD

inline ffi::Error Rank(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> queries,
                       ffi::Buffer<ffi::F32> items,
                       ffi::Buffer<ffi::S32> excluded_queries,
                       ffi::Buffer<ffi::S32> excluded_items,
                       ffi::Buffer<ffi::S32> num_items,
                       ffi::ResultBuffer<ffi::F32> values,
                       ffi::ResultBuffer<ffi::S32> columns, bool filtered) {
#if NEGGEN_SIMD
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
  const float* table = items.typed_data();
#if NEGGEN_VNNI
  std::unique_ptr<const Bytes> bytes;
  // Of fewer items there would be no bound.
  if (filtered && dim <= kWidest && count / kGroup >= k) {
    bytes.reset(new Bytes(pool, table, count, dim));
  }
#endif
  const int64_t panels = (rows + kPanel - 1) / kPanel;
  InParallel(pool, panels, 1, [&](int64_t begin, int64_t end) {
    static thread_local Search search;
    search.items = table;
    search.count = count;
    search.dim = dim;
    search.k = k;
    search.excluded = &excluded;
#if NEGGEN_VNNI
    search.bytes = bytes.get();
#endif
    for (int64_t panel = begin; panel < end; ++panel) {
      search.first = panel * kPanel;
      search.rows = std::min(kPanel, rows - search.first);
      search.queries = queries.typed_data() + search.first * dim;
      search.Run(values->typed_data() + search.first * k,
                 columns->typed_data() + search.first * k);
    }
  });
  return ffi::Error::Success();
#else
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "for processors with AVX2 or AVX-512");
#endif
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_RANK_H_
