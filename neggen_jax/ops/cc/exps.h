// Exponentials of all inner products of two sets of vectors, and their sums.

#ifndef NEGGEN_JAX_OPS_CC_EXPS_H_
#define NEGGEN_JAX_OPS_CC_EXPS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "avx512.h"
#include "parallel.h"

namespace neggen {

#if NEGGEN_AVX512

// Products of so many anchors with so many others are summed at once: registers
// have no room for more.
constexpr int64_t kAnchors = 6;
constexpr int64_t kParts = 4;
constexpr int64_t kPart = 16;
constexpr int64_t kOthers = kParts * kPart;

// e^x by Taylor's series around the nearest power of 2; what is too large or
// too small for a float is infinite, or 0.
FOR_AVX512 inline __m512 Exponential(__m512 x) {
  // Of two, the latter is taken if one is not a number.
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
  const __m512 power = _mm512_roundscale_ps(
      _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (float over : {120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) {
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / over));
  }
  return _mm512_scalef_ps(sum, power);
}

// Of anchors `begin` to `end` of `count`: e^(<anchor, other> - bound) of all
// others, in `panels` `[size / kOthers, dim, kOthers]`, and the sums of each.
FOR_AVX512 inline void ExpsOf(const float* anchors, const float* panels,
                              int64_t dim, int64_t size, float bound,
                              int64_t begin, int64_t end, float* exps,
                              float* sums) {
  const __m512 top = _mm512_set1_ps(-bound);
  for (int64_t first = begin; first < end; first += kAnchors) {
    const float* from[kAnchors];
    __m512 total[kAnchors];
    for (int64_t i = 0; i < kAnchors; ++i) {
      from[i] = anchors + std::min(first + i, end - 1) * dim;
      total[i] = _mm512_setzero_ps();
    }
    for (int64_t at = 0; at < size; at += kOthers) {
      const float* panel = panels + at * dim;
      __m512 products[kAnchors][kParts];
      for (auto& row : products) {
        for (auto& product : row) product = top;
      }
      for (int64_t t = 0; t < dim; ++t) {
        __m512 others[kParts];
        for (int64_t n = 0; n < kParts; ++n) {
          others[n] = _mm512_loadu_ps(panel + t * kOthers + n * kPart);
        }
        for (int64_t i = 0; i < kAnchors; ++i) {
          const __m512 entry = _mm512_set1_ps(from[i][t]);
          for (int64_t n = 0; n < kParts; ++n) {
            products[i][n] =
                _mm512_fmadd_ps(entry, others[n], products[i][n]);
          }
        }
      }
#pragma GCC unroll 6
      for (int64_t i = 0; i < kAnchors; ++i) {
        const bool real = first + i < end;
#pragma GCC unroll 4
        for (int64_t n = 0; n < kParts; ++n) {
          const int64_t place = at + n * kPart;
          const int64_t left = std::clamp<int64_t>(size - place, 0, kPart);
          const __mmask16 there = static_cast<__mmask16>((1u << left) - 1);
          const __m512 exp =
              _mm512_maskz_mov_ps(there, Exponential(products[i][n]));
          total[i] = _mm512_add_ps(total[i], exp);
          if (real) {
            _mm512_mask_storeu_ps(exps + (first + i) * size + place, there, exp);
          }
        }
      }
    }
    for (int64_t i = 0; i < kAnchors && first + i < end; ++i) {
      sums[first + i] = _mm512_reduce_add_ps(total[i]);
    }
  }
}

#endif  // NEGGEN_AVX512

inline ffi::Error Exps(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> anchors,
                       ffi::Buffer<ffi::F32> others,
                       ffi::ResultBuffer<ffi::F32> exps,
                       ffi::ResultBuffer<ffi::F32> sums, float bound) {
#if NEGGEN_AVX512
  const int64_t count = anchors.dimensions()[0], dim = anchors.dimensions()[1];
  const int64_t size = others.dimensions()[0];
  if (others.dimensions()[1] != dim || exps->dimensions()[0] != count ||
      exps->dimensions()[1] != size ||
      sums->element_count() != static_cast<size_t>(count)) {
    return ffi::Error::InvalidArgument("vectors and results do not agree");
  }
  const int64_t some = (size + kOthers - 1) / kOthers;
  std::vector<float> panels(some * kOthers * dim);
  InParallel(pool, some, 4, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin * kOthers; n < std::min(end * kOthers, size); ++n) {
      float* panel = panels.data() + n / kOthers * kOthers * dim + n % kOthers;
      for (int64_t t = 0; t < dim; ++t) {
        panel[t * kOthers] = others.typed_data()[n * dim + t];
      }
    }
  });
  InParallel(pool, count, 8 * kAnchors, [&](int64_t begin, int64_t end) {
    ExpsOf(anchors.typed_data(), panels.data(), dim, size, bound, begin, end,
           exps->typed_data(), sums->typed_data());
  });
  return ffi::Error::Success();
#else
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "for processors with AVX-512");
#endif
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_EXPS_H_
