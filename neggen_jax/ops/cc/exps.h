// Exponentials of all inner products of two sets of vectors, and their sums.

#ifndef NEGGEN_JAX_OPS_CC_EXPS_H_
#define NEGGEN_JAX_OPS_CC_EXPS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "accumulate.h"
#include "parallel.h"
#include "simd.h"

namespace neggen {

#if NEGGEN_SIMD

// e^x by Taylor's series around the nearest power of 2; what is too large or
// too small for a float is infinite, or 0, and what is no number stays so.
inline Floats Exponential(Floats x) {
  x = Min(Max(x, All(-104.0f)), All(89.0f));
  const Floats power = Nearest(x * 1.44269504f);
  Floats rest = MultiplyAdd(-power, All(0.693359375f), x);
  rest = MultiplyAdd(-power, All(-2.12194440e-4f), rest);
  Floats sum = All(1.0f / 720);
  for (float over : {120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) {
    sum = MultiplyAdd(sum, rest, All(1.0f / over));
  }
  return TimesPower(sum, power);
}

// Of anchors `begin` to `end` of `count`: e^(<anchor, other> - bound) of all
// others, in `panels` `[size / kBroad, dim, kBroad]`, and the sums of each.
inline void ExpsOf(const float* anchors, const float* panels,
                              int64_t dim, int64_t size, float bound,
                              int64_t begin, int64_t end, float* exps,
                              float* sums) {
  for (int64_t first = begin; first < end; first += kHigh) {
    const float* from[kHigh];
    Floats total[kHigh];
    for (int64_t i = 0; i < kHigh; ++i) {
      from[i] = anchors + std::min(first + i, end - 1) * dim;
      total[i] = Floats{};
    }
    for (int64_t at = 0; at < size; at += kBroad) {
      float room[kHigh][kBroad];
      float* to[kHigh];
      for (int64_t i = 0; i < kHigh; ++i) {
        std::fill_n(room[i], kBroad, -bound);
        to[i] = room[i];
      }
      Accumulate<1>(from, dim, panels + at * dim, kBroad, to, kHigh,
                    [](int64_t) {});
      const int64_t left = std::min(kBroad, size - at);
      for (int64_t i = 0; i < kHigh; ++i) {
        for (int64_t n = 0; n < kBroad; n += kLanes) {
          const Floats exp = Exponential(Load(room[i] + n));
          const Ints there = Range<Ints>() < static_cast<int32_t>(left - n);
          Store(room[i] + n, exp);
          total[i] += there ? exp : Floats{};
        }
        if (first + i >= end) break;
        float* into = exps + (first + i) * size + at;
        if (left == kBroad) {
          std::memcpy(into, room[i], sizeof room[i]);
        } else {
          std::memcpy(into, room[i], left * sizeof(float));
        }
      }
    }
    for (int64_t i = 0; i < kHigh && first + i < end; ++i) {
      float sum = 0;
      for (int64_t k = 0; k < kLanes; ++k) sum += total[i][k];
      sums[first + i] = sum;
    }
  }
}

#endif  // NEGGEN_SIMD

inline ffi::Error Exps(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> anchors,
                       ffi::Buffer<ffi::F32> others,
                       ffi::ResultBuffer<ffi::F32> exps,
                       ffi::ResultBuffer<ffi::F32> sums, float bound) {
#if NEGGEN_SIMD
  const int64_t count = anchors.dimensions()[0], dim = anchors.dimensions()[1];
  const int64_t size = others.dimensions()[0];
  if (others.dimensions()[1] != dim || exps->dimensions()[0] != count ||
      exps->dimensions()[1] != size ||
      sums->element_count() != static_cast<size_t>(count)) {
    return ffi::Error::InvalidArgument("vectors and results do not agree");
  }
  const int64_t some = (size + kBroad - 1) / kBroad;
  std::vector<float> panels(some * kBroad * dim);
  InParallel(pool, some, 4, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin * kBroad; n < std::min(end * kBroad, size); ++n) {
      float* panel = panels.data() + n / kBroad * kBroad * dim + n % kBroad;
      for (int64_t t = 0; t < dim; ++t) {
        panel[t * kBroad] = others.typed_data()[n * dim + t];
      }
    }
  });
  InParallel(pool, count, 8 * kHigh, [&](int64_t begin, int64_t end) {
    ExpsOf(anchors.typed_data(), panels.data(), dim, size, bound, begin, end,
           exps->typed_data(), sums->typed_data());
  });
  return ffi::Error::Success();
#else
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "for processors with AVX2 or AVX-512");
#endif
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_EXPS_H_
