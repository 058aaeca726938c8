// Which scores of a panel may be among the best, by products of bytes.
//
// Vectors are rounded to whole numbers of -127 to 127 times a scale of their
// own, of which processors with VNNI multiply four times as many at once; and
// how far that can be from a score in float32 is known. Most scores are so far
// below their query's bound that no more need be known of them.
//
// Let a query be u = s (q + e), and an item, less some vector m that is the
// same for all, v - m = w = t (p + f), where q and p are whole. Then
//
//   u . v = u . m + s t (q . p) + s e . w + s q . t f,
//
// and by Cauchy and Schwarz the last two are at most s (|e| |w| + |q| t |f|).
// With m the mean of the items, what they share takes no room in bytes. All is
// divided by s: then a sum of bytes, times t and with its slack, is compared
// with what is the query's alone. In the slack is also what float32 makes of
// u . v, which is wrong by d 2^-24 |u| |v| at most; `Share` has twice that, and
// room for the few operations here.

#ifndef NEGGEN_JAX_OPS_CC_FILTER_H_
#define NEGGEN_JAX_OPS_CC_FILTER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "panel.h"
#include "parallel.h"
#include "simd.h"

namespace neggen {

#if NEGGEN_VNNI

// Entries of which sums of bytes have room in 32 bits.
constexpr int64_t kWidest = 1 << 15;
// Vectors with entries past these, less the centre's, have no bytes, and their
// scores are always computed: squares and products of all others are finite.
constexpr float kLargest = 0x1p32f;
// Scales are at least a 127th of this. Then `kFloor` of slack is more than what
// is lost where processors take the smallest numbers for 0.
constexpr float kLeast = 0x1p-32f;
constexpr float kFloor = 0x1p-40f;

// Of |u| |v|, what float32 may be wrong by.
inline float Share(int64_t dim) { return (dim + 32) * 0x1p-23f; }

// What is known of a vector beside its bytes.
struct Rounded {
  // Of one byte; not a number if the vector has no bytes.
  float scale;
  // Lengths in this unit, or a little more: of the vector, of what bytes leave
  // of it, and of the bytes.
  float whole, rest, length;
  // Of the bytes.
  int32_t sum;
};

// Rounds `vector - centre` to bytes.
inline Rounded Round(const float* vector, const float* centre,
                                int64_t dim, int8_t* bytes) {
  const auto some = [dim](int64_t at) {
    const int64_t left = std::min(kLanes, dim - at);
    return static_cast<__mmask16>((1u << left) - 1);
  };
  __m512 most = _mm512_set1_ps(kLeast);
  __mmask16 beyond = 0;
  for (int64_t at = 0; at < dim; at += kLanes) {
    const __m512 x = _mm512_abs_ps(
        _mm512_sub_ps(_mm512_maskz_loadu_ps(some(at), vector + at),
                      _mm512_maskz_loadu_ps(some(at), centre + at)));
    beyond |= _mm512_cmp_ps_mask(x, _mm512_set1_ps(kLargest), _CMP_NLE_UQ);
    most = _mm512_max_ps(most, x);
  }
  if (beyond) {
    std::memset(bytes, 0, dim);
    return {std::numeric_limits<float>::quiet_NaN(), 0, 0, 0, 0};
  }
  const float scale = _mm512_reduce_max_ps(most) / 127;
  const __m512 inverse = _mm512_set1_ps(1 / scale);
  __m512 whole = _mm512_setzero_ps(), rest = whole, length = whole;
  __m512i sum = _mm512_setzero_si512();
  for (int64_t at = 0; at < dim; at += kLanes) {
    const __m512 x = _mm512_mul_ps(
        _mm512_sub_ps(_mm512_maskz_loadu_ps(some(at), vector + at),
                      _mm512_maskz_loadu_ps(some(at), centre + at)),
        inverse);
    const __m512i n = _mm512_cvtps_epi32(x);
    const __m512 near = _mm512_cvtepi32_ps(n), left = _mm512_sub_ps(x, near);
    whole = _mm512_fmadd_ps(x, x, whole);
    rest = _mm512_fmadd_ps(left, left, rest);
    length = _mm512_fmadd_ps(near, near, length);
    sum = _mm512_add_epi32(sum, n);
    _mm512_mask_cvtsepi32_storeu_epi8(bytes + at, some(at), n);
  }
  // Entries in units of the scale are wrong by 2^-15 at most, and so many
  // squares, added up in 16 parts, by a share of 2^-11.
  const auto no_less = [dim](float squares) {
    return std::sqrt(squares) * (1 + 0x1p-10f) +
           std::sqrt(static_cast<float>(dim)) * 0x1p-14f;
  };
  return {scale, no_less(_mm512_reduce_add_ps(whole)),
          no_less(_mm512_reduce_add_ps(rest)),
          no_less(_mm512_reduce_add_ps(length)), _mm512_reduce_add_epi32(sum)};
}

// Items as bytes, which all panels share.
struct Bytes {
  // Of an item: what sums of its products start from, as queries' bytes are
  // counted from -128; the scale t; and |w| and t |f|, with what float32 may
  // be wrong by.
  struct Item {
    int32_t start;
    float scale, norm, error;
  };

  const float* items;
  int64_t count, dim, words;
  std::vector<float> centre;
  double reach = 0;
  std::unique_ptr<int8_t[]> bytes;
  std::unique_ptr<Item[]> about;

  Bytes(ffi::ThreadPool& pool, const float* items, int64_t count, int64_t dim)
      : items(items),
        count(count),
        dim(dim),
        words((dim + 3) / 4),
        centre(dim) {
    // As many as are summed at once; the last may not be there.
    const int64_t held = (count + kHigh - 1) / kHigh * kHigh;
    bytes.reset(new int8_t[held * words * 4]);
    about.reset(new Item[held]);
    Centre();
    InParallel(pool, held, 60 * kHigh, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) Add(n);
    });
  }

 private:
  // The mean of some: every vector is as right.
  void Centre() {
    constexpr int64_t kSome = 1024;
    const int64_t step = (count + kSome - 1) / kSome;
    const float share = 1 / static_cast<float>((count + step - 1) / step);
    for (int64_t n = 0; n < count; n += step) {
      const float* item = items + n * dim;
      for (int64_t at = 0; at < dim; ++at) {
        if (std::fabs(item[at]) <= kLargest) centre[at] += item[at] * share;
      }
    }
    for (float x : centre) reach += static_cast<double>(x) * x;
    reach = std::sqrt(reach);
  }

  void Add(int64_t n) {
    int8_t* to = bytes.get() + n * words * 4;
    std::memset(to + words * 4 - 4, 0, 4);
    if (n >= count) {
      std::memset(to, 0, words * 4);
      about[n] = {};
      return;
    }
    const Rounded x = Round(items + n * dim, centre.data(), dim, to);
    const float norm = x.scale * x.whole;
    // Of |v|, which is at most |w| + |m|.
    const float wrong =
        Share(dim) * (norm + static_cast<float>(reach)) + kFloor;
    about[n] = {-128 * x.sum, x.scale, norm + wrong, x.scale * x.rest + wrong};
  }
};

// The queries of a panel as bytes, `[words][kPanel]` of four of them.
struct Sieve {
  struct alignas(64) Four {
    uint32_t at[kLanes];
  };
  std::vector<Four> words;
  std::vector<float> zeros;
  std::vector<int8_t> row;
  // |e| and |q|, and the least that what is not filtered comes to.
  alignas(64) float rest[kPanel];
  alignas(64) float length[kPanel];
  alignas(64) float edge[kPanel];
  // s and u . m. If s is not a number, no edge is one, and nothing filtered.
  double scale[kPanel], shift[kPanel];

  void Fill(const float* queries, int64_t rows, const Bytes& items) {
    words.resize(items.words * kVectors);
    zeros.resize(items.dim);
    row.resize(items.words * 4);
    uint32_t* to = words[0].at;
    for (int64_t n = 0; n < kPanel; ++n) {
      std::fill(row.begin(), row.end(), 0);
      const float* query = queries + n * items.dim;
      Rounded x = {};
      shift[n] = 0;
      if (n < rows) {
        x = Round(query, zeros.data(), items.dim, row.data());
        for (int64_t at = 0; at < items.dim; ++at) {
          shift[n] += static_cast<double>(query[at]) * items.centre[at];
        }
      }
      scale[n] = x.scale;
      rest[n] = x.rest;
      length[n] = x.length;
      for (int64_t at = 0; at < items.words; ++at) {
        uint32_t four;
        std::memcpy(&four, row.data() + 4 * at, 4);
        to[at * kPanel + n] = four ^ 0x80808080u;
      }
    }
  }

  const uint32_t* Panel() const { return words[0].at; }

  // From bounds of the sums here, bounds of scores that they imply.
  void ToScores(int64_t rows, float* bounds) const {
    for (int64_t n = 0; n < rows; ++n) {
      double x = scale[n] * bounds[n];
      x -= std::fabs(x) * 0x1p-20;
      x += shift[n];
      // Nothing that processors may take for 0.
      bounds[n] = x - std::fabs(x) * 0x1p-20 - 0x1p-100;
    }
  }

  // From bounds of scores the edges: a score that exceeds its bound, or is
  // none, is not filtered.
  void SetEdges(int64_t rows, const float* bounds) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    for (int64_t n = 0; n < kPanel; ++n) {
      const double x = n < rows ? (bounds[n] - shift[n]) / scale[n] : -kNever;
      edge[n] = x * (x > 0 ? 1 - 0x1p-20 : 1 + 0x1p-20);
    }
  }
};

// Of a panel and of some items, sums of products of bytes, each of which `take`
// is given with its item and its vector of queries. Registers hold them all,
// if nothing is a loop any more.
template <typename Take>
inline __attribute__((always_inline)) void Sums(
    const Bytes& items, int64_t first, const uint32_t* panel, Take take) {
  const int64_t words = items.words;
  const int8_t* bytes = items.bytes.get() + 4 * first * words;
  // As `__m512i` GCC would store them in every round.
  using Vector = int32_t __attribute__((vector_size(64)));
  Vector sums[kHigh][kVectors];
#pragma GCC unroll 8
  for (int64_t i = 0; i < kHigh; ++i) {
#pragma GCC unroll 8
    for (int64_t n = 0; n < kVectors; ++n) {
      sums[i][n] = Vector(_mm512_set1_epi32(items.about[first + i].start));
    }
  }
  for (int64_t at = 0; at < words; ++at) {
    __m512i queries[kVectors];
#pragma GCC unroll 8
    for (int64_t n = 0; n < kVectors; ++n) {
      queries[n] = _mm512_load_si512(panel + at * kPanel + n * kLanes);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kHigh; ++i) {
      int32_t four;
      std::memcpy(&four, bytes + 4 * (i * words + at), 4);
      const __m512i entries = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int64_t n = 0; n < kVectors; ++n) {
        sums[i][n] = Vector(
            _mm512_dpbusd_epi32(__m512i(sums[i][n]), queries[n], entries));
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < kHigh; ++i) {
#pragma GCC unroll 8
    for (int64_t n = 0; n < kVectors; ++n) {
      take(i, n, _mm512_cvtepi32_ps(__m512i(sums[i][n])));
    }
  }
}

// How far a sum may be from a score, of some queries.
inline __m512 Slack(const Bytes::Item& item, const Sieve& sieve,
                               int64_t n) {
  return _mm512_fmadd_ps(
      _mm512_load_ps(sieve.rest + n * kLanes), _mm512_set1_ps(item.norm),
      _mm512_mul_ps(_mm512_load_ps(sieve.length + n * kLanes),
                    _mm512_set1_ps(item.error)));
}

// Of the scores of the first items, whole groups of them, the most that they
// can be, `[count][kPanel]`; and of each group the most that its greatest is
// sure to be.
inline void Limits(const Bytes& items, int64_t count,
                            const Sieve& sieve, float* upper, float* most) {
  for (int64_t group = 0; group < count; group += kGroup) {
    __m512 greatest[kVectors];
    for (auto& x : greatest) {
      x = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    }
    for (int64_t at = group; at < group + kGroup; at += kHigh) {
      Sums(items, at, sieve.Panel(),
           [&](int64_t i, int64_t n, __m512 x) {
             const Bytes::Item& item = items.about[at + i];
             const __m512 scale = _mm512_set1_ps(item.scale);
             const __m512 slack = Slack(item, sieve, n);
             _mm512_store_ps(upper + (at + i) * kPanel + n * kLanes,
                             _mm512_fmadd_ps(x, scale, slack));
             greatest[n] =
                 _mm512_max_ps(_mm512_fmsub_ps(x, scale, slack), greatest[n]);
           });
    }
    for (int64_t n = 0; n < kVectors; ++n) {
      _mm512_store_ps(most + group / kGroup * kPanel + n * kLanes, greatest[n]);
    }
  }
}

// By item, which of the queries' scores are not filtered, a bit each.
inline void Compare(const float* upper, int64_t count,
                               const Sieve& sieve, uint64_t* left) {
  for (int64_t item = 0; item < count; ++item) {
    left[item] = 0;
    for (int64_t n = 0; n < kVectors; ++n) {
      const __mmask16 some = _mm512_cmp_ps_mask(
          _mm512_load_ps(upper + item * kPanel + n * kLanes),
          _mm512_load_ps(sieve.edge + n * kLanes), _CMP_NLT_UQ);
      left[item] |= static_cast<uint64_t>(some) << (n * kLanes);
    }
  }
}

// The same of items whose limits nobody keeps; of the last few, as many as are
// summed at once.
inline void Filter(const Bytes& items, int64_t first, int64_t count,
                            const Sieve& sieve, uint64_t* left) {
  for (int64_t at = 0; at < count; at += kHigh) {
    uint64_t some[kHigh] = {};
    Sums(items, first + at, sieve.Panel(),
         [&](int64_t i, int64_t n, __m512 x) {
           const Bytes::Item& item = items.about[first + at + i];
           const __mmask16 those = _mm512_cmp_ps_mask(
               _mm512_fmadd_ps(x, _mm512_set1_ps(item.scale),
                               Slack(item, sieve, n)),
               _mm512_load_ps(sieve.edge + n * kLanes), _CMP_NLT_UQ);
           some[i] |= static_cast<uint64_t>(those) << (n * kLanes);
         });
    std::memcpy(left + at, some, sizeof some);
  }
}

// Four entries each of items `n`, `n + 4`, `n + 8` and `n + 12`.
inline __m512 Entries(const float* const* items, int64_t n, int64_t at) {
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(items[n] + at));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(items[n + 4] + at), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(items[n + 8] + at), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(items[n + 12] + at), 3);
}

// One query's scores of items that lie anywhere, each to the bit that of
// `Scores`: entries of all items come into one register, one after the other.
inline __m512 ScoresOf(const float* const* items, int64_t dim,
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
    for (int64_t n = 0; n < kLanes; ++n) entries.at[n] = items[n][at];
    sum = _mm512_fmadd_ps(_mm512_load_ps(entries.at),
                          _mm512_set1_ps(query[at]), sum);
  }
  return sum;
}

#endif  // NEGGEN_VNNI

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_FILTER_H_
