// A sparse matrix times a dense one.

#ifndef NEGGEN_JAX_OPS_CC_MULTIPLY_H_
#define NEGGEN_JAX_OPS_CC_MULTIPLY_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "distinct.h"
#include "parallel.h"
#include "simd.h"

namespace neggen {

// What of a row is summed at once: as much as registers have room for.
constexpr int64_t kStrip = 64, kPieces = kStrip / kLanes;
// Entries between the one that is added up and the one whose row is asked for:
// rows lie anywhere, and come from memory in the time that these take.
constexpr int32_t kAhead = 16;

// Rows of a sparse matrix times `x` `[columns, d]`, each to its own row of
// `out`, or to that of `places`. Entries of a row are added up in their order,
// so that threads and processors make no difference.
inline void MultiplyRows(const int32_t* starts, const int32_t* columns,
                               const float* weights, const float* x, int64_t d,
                               int64_t begin, int64_t end, float* out,
                               const int32_t* places = nullptr) {
  const int32_t stop = starts[end];
  for (int64_t row = begin; row < end; ++row) {
    const int32_t first = starts[row], last = starts[row + 1];
    float* to = out + (places ? places[row] : row) * d;
    int64_t at = 0;
    for (; at + kStrip <= d; at += kStrip) {
      Floats sums[kPieces] = {};
      for (int32_t n = first; n < last; ++n) {
        const float* later =
            x + static_cast<int64_t>(columns[std::min(n + kAhead, stop - 1)]) * d;
        for (int64_t i = 0; i < kStrip; i += 16) {  // of 64 bytes
          __builtin_prefetch(later + at + i);
        }
        const float* from = x + static_cast<int64_t>(columns[n]) * d + at;
        const float weight = weights[n];
        for (int64_t i = 0; i < kPieces; ++i) {
          sums[i] += weight * Load(from + i * kLanes);
        }
      }
      for (int64_t i = 0; i < kPieces; ++i) {
        Store(to + at + i * kLanes, sums[i]);
      }
    }
    std::fill(to + at, to + d, 0.0f);
    for (int32_t n = first; n < last && at < d; ++n) {
      const float* from = x + static_cast<int64_t>(columns[n]) * d;
      const float weight = weights[n];
      for (int64_t i = at; i < d; ++i) to[i] += weight * from[i];
    }
  }
}

ffi::Error Multiply(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> starts,
                    ffi::Buffer<ffi::S32> columns,
                    ffi::Buffer<ffi::F32> weights, ffi::Buffer<ffi::F32> x,
                    ffi::ResultBuffer<ffi::F32> out) {
  const auto shape = out->dimensions();
  if (columns.element_count() != weights.element_count() ||
      starts.element_count() != static_cast<size_t>(shape[0]) + 1) {
    return ffi::Error::InvalidArgument("entries or rows do not agree");
  }
  InParallel(pool, shape[0], 256, [&](int64_t begin, int64_t end) {
    MultiplyRows(starts.typed_data(), columns.typed_data(),
                 weights.typed_data(), x.typed_data(), shape[1], begin, end,
                 out->typed_data());
  });
  return ffi::Error::Success();
}

// Rows `ids` of what `Multiply` gives. Each is computed once, and the others
// are not.
inline ffi::Error MultiplySome(ffi::ThreadPool pool,
                               ffi::Buffer<ffi::S32> starts,
                               ffi::Buffer<ffi::S32> columns,
                               ffi::Buffer<ffi::F32> weights,
                               ffi::Buffer<ffi::F32> x,
                               ffi::Buffer<ffi::S32> ids,
                               ffi::ResultBuffer<ffi::F32> out) {
  const int64_t count = ids.element_count(), d = out->dimensions()[1];
  const int64_t height = static_cast<int64_t>(starts.element_count()) - 1;
  if (columns.element_count() != weights.element_count() || height < 1 ||
      out->dimensions()[0] != count || x.dimensions()[1] != d) {
    return ffi::Error::InvalidArgument("entries or rows do not agree");
  }
  const int32_t* from = starts.typed_data();
  const Distinct distinct(ids.typed_data(), count, height);
  InParallel(pool, distinct.rows.size(), 256, [&](int64_t begin, int64_t end) {
    // One after another, so that rows are asked for ahead of their turn.
    const int64_t rows = end - begin;
    std::vector<int32_t> cuts(rows + 1);
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t row = distinct.rows[begin + n];
      cuts[n + 1] = cuts[n] + from[row + 1] - from[row];
    }
    std::vector<int32_t> some(cuts[rows]);
    std::vector<float> shares(cuts[rows]);
    for (int64_t n = 0; n < rows; ++n) {
      const int32_t first = from[distinct.rows[begin + n]];
      const int32_t length = cuts[n + 1] - cuts[n];
      for (int32_t i = 0; i < length; ++i) {
        some[cuts[n] + i] = columns.typed_data()[first + i];
        shares[cuts[n] + i] = weights.typed_data()[first + i];
      }
    }
    MultiplyRows(cuts.data(), some.data(), shares.data(), x.typed_data(), d, 0,
                 rows, out->typed_data(), distinct.places.data() + begin);
  });
  float* to = out->typed_data();
  for (int64_t n = 0; n < count; ++n) {
    const int64_t place = distinct.places[distinct.slots[n]];
    if (place != n) std::memcpy(to + n * d, to + place * d, d * sizeof(float));
  }
  return ffi::Error::Success();
}

// The gradient of its `x`: `g` `[m, d]` of the rows `ids`, times the transpose,
// whose rows `starts`, `columns` and `weights` are. Entries of rows that are
// not among `ids` are left out.
inline ffi::Error MultiplySomeBackward(ffi::ThreadPool pool,
                                       ffi::Buffer<ffi::S32> starts,
                                       ffi::Buffer<ffi::S32> columns,
                                       ffi::Buffer<ffi::F32> weights,
                                       ffi::Buffer<ffi::F32> g,
                                       ffi::Buffer<ffi::S32> ids,
                                       ffi::ResultBuffer<ffi::F32> out,
                                       int64_t height) {
  const int64_t count = ids.element_count(), d = out->dimensions()[1];
  const int64_t rows = out->dimensions()[0];
  if (columns.element_count() != weights.element_count() || height < 1 ||
      starts.element_count() != static_cast<size_t>(rows) + 1 ||
      g.dimensions()[0] != count || g.dimensions()[1] != d) {
    return ffi::Error::InvalidArgument("entries or rows do not agree");
  }
  const int32_t* from = starts.typed_data();
  const Distinct distinct(ids.typed_data(), count, height);
  const std::vector<float> sums = distinct.Summed(pool, g.typed_data(), d);
  // Where the sum of each row is, or -1.
  std::vector<int32_t> slots(height, -1);
  for (size_t n = 0; n < distinct.rows.size(); ++n) {
    slots[distinct.rows[n]] = static_cast<int32_t>(n);
  }
  InParallel(pool, rows, 256, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> cuts(end - begin + 1);
    std::vector<int32_t> some(from[end] - from[begin]);
    std::vector<float> shares(some.size());
    int32_t kept = 0;
    for (int64_t row = begin; row < end; ++row) {
      for (int32_t n = from[row]; n < from[row + 1]; ++n) {
        // No branch, as none could be foretold.
        const int32_t slot = slots[columns.typed_data()[n]];
        some[kept] = slot;
        shares[kept] = weights.typed_data()[n];
        kept += slot >= 0;
      }
      cuts[row - begin + 1] = kept;
    }
    MultiplyRows(cuts.data(), some.data(), shares.data(), sums.data(), d, 0,
                 end - begin, out->typed_data() + begin * d);
  });
  return ffi::Error::Success();
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_MULTIPLY_H_
