// A sparse matrix times a dense one.

#ifndef NEGGEN_JAX_OPS_CC_MULTIPLY_H_
#define NEGGEN_JAX_OPS_CC_MULTIPLY_H_

#include <algorithm>
#include <cstdint>

#include "parallel.h"

namespace neggen {

// Sixteen neighbouring numbers, which may begin anywhere: `auto` would forget
// that they do.
typedef float Some __attribute__((vector_size(64), aligned(4)));
constexpr int64_t kSome = sizeof(Some) / sizeof(float);
// What of a row is summed at once: as much as registers have room for.
constexpr int64_t kStrip = 4 * kSome;
// Entries between the one that is added up and the one whose row is asked for:
// rows lie anywhere, and come from memory in the time that these take.
constexpr int32_t kAhead = 16;

// Rows of a sparse matrix times `x` `[columns, d]`. Entries of a row are added
// up in their order, so that threads and processors make no difference.
FOR_EACH_CPU void MultiplyRows(const int32_t* starts, const int32_t* columns,
                               const float* weights, const float* x, int64_t d,
                               int64_t begin, int64_t end, float* out) {
  const int32_t stop = starts[end];
  for (int64_t row = begin; row < end; ++row) {
    const int32_t first = starts[row], last = starts[row + 1];
    float* to = out + row * d;
    int64_t at = 0;
    for (; at + kStrip <= d; at += kStrip) {
      Some a{}, b{}, c{}, e{};
      for (int32_t n = first; n < last; ++n) {
        const float* later =
            x + static_cast<int64_t>(columns[std::min(n + kAhead, stop - 1)]) * d;
        for (int64_t i = 0; i < kStrip; i += kSome) {
          __builtin_prefetch(later + at + i);
        }
        const Some* from = reinterpret_cast<const Some*>(
            x + static_cast<int64_t>(columns[n]) * d + at);
        const float weight = weights[n];
        a += weight * from[0];
        b += weight * from[1];
        c += weight * from[2];
        e += weight * from[3];
      }
      Some* sums = reinterpret_cast<Some*>(to + at);
      sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = e;
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

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_MULTIPLY_H_
