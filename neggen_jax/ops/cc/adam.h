// A step of Adam in one pass.

#ifndef NEGGEN_JAX_OPS_CC_ADAM_H_
#define NEGGEN_JAX_OPS_CC_ADAM_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "parallel.h"

namespace neggen {

// Numbers of one step; in the order of `Rates` in adam.py.
struct Rates {
  float clip, beta1, beta2, rest1, rest2, unbias1, unbias2, epsilon, rate, decay;
};

// Sums are of so many numbers side by side.
constexpr int64_t kSums = 16;

// One step of Adam on some numbers, in place, and sums of the squares of
// gradients and updates.
inline void AdamStep(const Rates& by, int64_t size, const float* __restrict g,
                     float* __restrict m, float* __restrict v,
                     float* __restrict p, float* sums) {
  float of_g[kSums] = {}, of_u[kSums] = {};
  auto step = [&](int64_t i, int64_t lane) {
    const float raw = g[i], clipped = raw * by.clip;
    const float mean = by.beta1 * m[i] + by.rest1 * clipped;
    const float square = by.beta2 * v[i] + by.rest2 * clipped * clipped;
    const float root = __builtin_sqrtf(square * by.unbias2) + by.epsilon;
    const float update =
        -by.rate * (mean * by.unbias1 / root + by.decay * p[i]);
    m[i] = mean;
    v[i] = square;
    p[i] += update;
    of_g[lane] += raw * raw;
    of_u[lane] += update * update;
  };
  for (int64_t first = 0; first < size; first += kSums) {
    const int64_t count = std::min(kSums, size - first);
    // By itself, so that it is known to be whole.
    if (count == kSums) {
      for (int64_t lane = 0; lane < kSums; ++lane) step(first + lane, lane);
    } else {
      for (int64_t lane = 0; lane < count; ++lane) step(first + lane, lane);
    }
  }
  for (int64_t lane = 0; lane < kSums; ++lane) {
    sums[0] += of_g[lane];
    sums[1] += of_u[lane];
  }
}

inline bool AllZero(int64_t size, const float* x) {
  uint32_t any = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    any |= bits << 1;
  }
  return any == 0;
}

ffi::Error Adam(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> g,
                ffi::Buffer<ffi::F32> m, ffi::Buffer<ffi::F32> v,
                ffi::Buffer<ffi::F32> p, ffi::Buffer<ffi::F32> rates,
                ffi::ResultBuffer<ffi::F32> m_out,
                ffi::ResultBuffer<ffi::F32> v_out,
                ffi::ResultBuffer<ffi::F32> p_out,
                ffi::ResultBuffer<ffi::F32> sums, bool lazy) {
  const int64_t size = p.element_count();
  const int64_t height = size ? p.dimensions()[0] : 0;
  const int64_t parts = sums->dimensions()[0];
  if (rates.element_count() != sizeof(Rates) / sizeof(float) || parts < 1) {
    return ffi::Error::InvalidArgument("rates or sums are of another size");
  }
  Rates by;
  std::memcpy(&by, rates.typed_data(), sizeof by);
  // As many rows, or numbers if none is left out, for each of the sums.
  const int64_t width = !lazy || height == 0 ? 1 : size / height;
  const int64_t rows = size / width, grain = (rows + parts - 1) / parts;
  float* out[3] = {m_out->typed_data(), v_out->typed_data(),
                   p_out->typed_data()};
  const float* in[3] = {m.typed_data(), v.typed_data(), p.typed_data()};
  float* all = sums->typed_data();
  std::fill(all, all + 2 * parts, 0.0f);
  InParallel(pool, rows, std::max<int64_t>(grain, 1),
             [&](int64_t begin, int64_t end) {
    float* mine = all + 2 * (begin / grain);
    // Where XLA has not made them one, steps are made in place all the same.
    for (int k = 0; k < 3; ++k) {
      if (in[k] == out[k]) continue;
      std::memcpy(out[k] + begin * width, in[k] + begin * width,
                  (end - begin) * width * sizeof(float));
    }
    auto step = [&](int64_t first, int64_t count) {
      AdamStep(by, count, g.typed_data() + first, out[0] + first,
               out[1] + first, out[2] + first, mine);
    };
    if (!lazy) return step(begin, end - begin);
    // Neighbours that are to be stepped are stepped at once.
    for (int64_t row = begin; row < end;) {
      const int64_t first = row;
      while (row < end && !AllZero(width, g.typed_data() + row * width)) ++row;
      if (row > first) step(first * width, (row - first) * width);
      while (row < end && AllZero(width, g.typed_data() + row * width)) ++row;
    }
  });
  return ffi::Error::Success();
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_ADAM_H_
