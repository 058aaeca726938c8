// Which rows of a table are asked for.

#ifndef NEGGEN_JAX_OPS_CC_DISTINCT_H_
#define NEGGEN_JAX_OPS_CC_DISTINCT_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace neggen {

// Which row of a table each place has, once each.
struct Distinct {
  int64_t height;
  std::vector<int64_t> rows;    // as they lie
  std::vector<int32_t> places;  // of each, one
  std::vector<int32_t> slots;   // of each place, where its row is in `rows`

  Distinct(const int32_t* ids, int64_t count, int64_t tall)
      : height(tall), slots(count) {
    auto row = [=](int64_t n) {
      return std::clamp<int64_t>(ids[n], 0, height - 1);
    };
    // A bit for each row of the table, and how many are before each word: what
    // grows with the catalogue is to be little.
    std::vector<uint64_t> bits((height + 63) / 64);
    for (int64_t n = 0; n < count; ++n) {
      bits[row(n) / 64] |= uint64_t{1} << (row(n) % 64);
    }
    std::vector<int32_t> before(bits.size());
    for (size_t word = 0; word < bits.size(); ++word) {
      before[word] = static_cast<int32_t>(rows.size());
      for (uint64_t left = bits[word]; left; left &= left - 1) {
        rows.push_back(word * 64 + __builtin_ctzll(left));
      }
    }
    places.resize(rows.size());
    for (int64_t n = 0; n < count; ++n) {
      const uint64_t below =
          bits[row(n) / 64] & ((uint64_t{1} << (row(n) % 64)) - 1);
      slots[n] = before[row(n) / 64] + __builtin_popcountll(below);
      places[slots[n]] = static_cast<int32_t>(n);
    }
  }

  // What `g` `[places, d]` adds up to for each of `rows`, in the order of the
  // places: each thread has some columns.
  std::vector<float> Summed(ffi::ThreadPool& pool, const float* g,
                            int64_t d) const {
    std::vector<float> sums(rows.size() * d);
    InParallel(pool, d, 32, [&](int64_t begin, int64_t end) {
      for (size_t n = 0; n < slots.size(); ++n) {
        const float* from = g + n * d;
        float* sum = sums.data() + slots[n] * d;
        for (int64_t i = begin; i < end; ++i) sum[i] += from[i];
      }
    });
    return sums;
  }
};

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_DISTINCT_H_
