// A denoiser's two layers, one after another, for some conditions at once.

#ifndef NEGGEN_JAX_OPS_CC_DENOISE_H_
#define NEGGEN_JAX_OPS_CC_DENOISE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "avx512.h"
#include "exps.h"
#include "parallel.h"
#include "project.h"

namespace neggen {

#if NEGGEN_AVX512

// GELU by its approximation with tanh, as x times a logistic function.
FOR_AVX512 inline __m512 Gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  // -2 sqrt(2 / pi) (x + .044715 x^3)
  const __m512 inner = _mm512_fmadd_ps(
      _mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), one);
  const __m512 power =
      _mm512_mul_ps(_mm512_mul_ps(x, inner), _mm512_set1_ps(-1.59576912f));
  return _mm512_div_ps(x, _mm512_add_ps(one, Exponential(power)));
}

struct Layers {
  const float* first;  // [dim, width]
  const float* shift;  // [width]
  const float* last;   // [width, dim]
  const float* bias;   // [dim]
  int64_t dim, width;
};

// Rows `begin` to `end` of what the layers make of `noisy` `[rows, dim]`. Every
// `batch` rows have the same `drives` `[batch, width]`, of some weight each.
FOR_AVX512 inline void DenoiseRows(const float* noisy, const Layers& by,
                                   const std::vector<const float*>& drives,
                                   const float* weights, int64_t batch,
                                   int64_t begin, int64_t end, float* out) {
  auto nothing = [](int64_t) {};
  std::vector<float> room(kHigh * by.width);
  for (int64_t row = begin; row < end; row += kHigh) {
    const int64_t high = std::min(kHigh, end - row);
    const float* from[kHigh];
    const float* units[kHigh];
    float* to[kHigh];
    for (int64_t i = 0; i < kHigh; ++i) {
      from[i] = noisy + std::min(row + i, end - 1) * by.dim;
      units[i] = room.data() + i * by.width;
    }
    for (int64_t at = 0; at < by.width; at += kBroad) {
      for (int64_t i = 0; i < kHigh; ++i) {
        to[i] = room.data() + i * by.width + at;
        std::copy(by.shift + at, by.shift + at + kBroad, to[i]);
      }
      Accumulate<1>(from, by.dim, by.first + at, by.width, to, kHigh, nothing);
    }
    for (int64_t i = 0; i < high; ++i) {
      float* unit = room.data() + i * by.width;
      const int64_t first = (row + i) % batch * by.width;
      for (int64_t at = 0; at < by.width; at += kVector) {
        const __m512 base = _mm512_loadu_ps(unit + at);
        __m512 total = _mm512_setzero_ps();
        for (size_t k = 0; k < drives.size(); ++k) {
          const __m512 drive = _mm512_loadu_ps(drives[k] + first + at);
          total = _mm512_fmadd_ps(_mm512_set1_ps(weights[k]),
                                  Gelu(_mm512_add_ps(base, drive)), total);
        }
        _mm512_storeu_ps(unit + at, total);
      }
    }
    for (int64_t at = 0; at < by.dim; at += kBroad) {
      for (int64_t i = 0; i < kHigh; ++i) {
        to[i] = out + std::min(row + i, end - 1) * by.dim + at;
        if (i < high) std::copy(by.bias + at, by.bias + at + kBroad, to[i]);
      }
      Accumulate<1>(units, by.width, by.last + at, by.dim, to, high, nothing);
    }
  }
}

#endif  // NEGGEN_AVX512

inline ffi::Error Denoise(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> noisy,
                          ffi::Buffer<ffi::F32> first,
                          ffi::Buffer<ffi::F32> shift,
                          ffi::Buffer<ffi::F32> last,
                          ffi::Buffer<ffi::F32> bias,
                          ffi::Buffer<ffi::F32> weights,
                          ffi::RemainingArgs drives,
                          ffi::ResultBuffer<ffi::F32> out, int64_t batch) {
#if NEGGEN_AVX512
  const int64_t rows = noisy.dimensions()[0], dim = noisy.dimensions()[1];
  const int64_t width = shift.element_count();
  const Layers by{first.typed_data(), shift.typed_data(), last.typed_data(),
                  bias.typed_data(), dim, width};
  std::vector<const float*> from;
  for (size_t n = 0; n < drives.size(); ++n) {
    auto drive = drives.get<ffi::Buffer<ffi::F32>>(n);
    if (!drive) return drive.error();
    if (drive->element_count() != static_cast<size_t>(batch * width)) {
      return ffi::Error::InvalidArgument("conditions do not agree");
    }
    from.push_back(drive->typed_data());
  }
  const size_t size = dim * width;
  if (first.element_count() != size || last.element_count() != size ||
      bias.element_count() != static_cast<size_t>(dim) ||
      weights.element_count() != from.size() || dim % kBroad ||
      width % kBroad || batch < 1 || rows % batch) {
    return ffi::Error::InvalidArgument("layers and rows do not agree");
  }
  InParallel(pool, rows, 32 * kHigh, [&](int64_t begin, int64_t end) {
    DenoiseRows(noisy.typed_data(), by, from, weights.typed_data(), batch,
                begin, end, out->typed_data());
  });
  return ffi::Error::Success();
#else
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "for processors with AVX-512");
#endif
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_DENOISE_H_
