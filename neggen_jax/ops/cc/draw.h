// The way back of a diffusion process, by a denoiser of two layers.

#ifndef NEGGEN_JAX_OPS_CC_DRAW_H_
#define NEGGEN_JAX_OPS_CC_DRAW_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "accumulate.h"
#include "exps.h"
#include "noise.h"
#include "parallel.h"
#include "simd.h"

namespace neggen {

#if NEGGEN_SIMD

// So many rows go all the way back together: few enough that what they are on
// the way stays near, and more than are multiplied at once, so that each layer
// is read for several products.
constexpr int64_t kTogether = 4 * kHigh;

// GELU by its approximation with tanh, as x times a logistic function.
inline Floats Gelu(Floats x) {
  // -2 sqrt(2 / pi) (x + .044715 x^3)
  const Floats inner = MultiplyAdd(x * x, All(0.044715f), All(1.0f));
  return x / (1.0f + Exponential(x * inner * -1.59576912f));
}

struct Layers {
  const float* first;   // [dim, width]
  const float* shifts;  // [steps, width], one for each step
  const float* last;    // [width, dim]
  const float* bias;    // [dim]
  int64_t dim, width;
};

// One step back: as `Reverse.step` has it, in this order.
struct Step {
  float from_x, from_output, keep_clean, keep_x, deviation;
};

struct Back {
  const uint32_t* keys;  // [steps + 1, 2], of the noise, first that of the start
  const Step* steps;
  int64_t count;
  float clip;  // 0 does not
};

// Rows of `a` `[rows, length]` times `b` `[length, width]`, added to `c`.
inline void AddProduct(const float* a, int64_t rows, int64_t length,
                                  const float* b, int64_t width, float* c) {
  auto nothing = [](int64_t) {};
  for (int64_t at = 0; at < width; at += kBroad) {
    for (int64_t row = 0; row < rows; row += kHigh) {
      const float* from[kHigh];
      float* to[kHigh];
      for (int64_t i = 0; i < kHigh; ++i) {
        const int64_t n = std::min(row + i, rows - 1);
        from[i] = a + n * length;
        to[i] = c + n * width + at;
      }
      Accumulate<1>(from, length, b + at, width, to,
                    std::min(kHigh, rows - row), nothing);
    }
  }
}

// Rows `begin` to `end` of what is drawn, which come after `offset` others in the
// noise. Every `batch` rows are told the same, `drives` `[batch, width]`, of some
// weight each.
inline void DrawRows(const Back& back, const Layers& by,
                                const std::vector<const float*>& drives,
                                const float* weights, int64_t batch,
                                int64_t offset, int64_t begin, int64_t end,
                                float* out) {
  std::vector<float> units(kTogether * by.width), made(kTogether * by.dim);
  for (int64_t row = begin; row < end; row += kTogether) {
    const int64_t rows = std::min(kTogether, end - row);
    const int64_t size = rows * by.dim;
    const uint64_t counter = (offset + row) * by.dim;
    float* x = out + row * by.dim;
    for (int64_t at = 0; at < size; at += kLanes) {
      Store(x + at, Normal(back.keys, counter + at));
    }
    for (int64_t n = 0; n < back.count; ++n) {
      for (int64_t i = 0; i < rows; ++i) {
        const float* shift = by.shifts + n * by.width;
        std::copy(shift, shift + by.width, units.data() + i * by.width);
        std::copy(by.bias, by.bias + by.dim, made.data() + i * by.dim);
      }
      AddProduct(x, rows, by.dim, by.first, by.width, units.data());
      for (int64_t i = 0; i < rows; ++i) {
        float* unit = units.data() + i * by.width;
        const int64_t place = (row + i) % batch * by.width;
        for (int64_t at = 0; at < by.width; at += kLanes) {
          const Floats base = Load(unit + at);
          Floats total{};
          for (size_t k = 0; k < drives.size(); ++k) {
            const Floats drive = Load(drives[k] + place + at);
            total = MultiplyAdd(All(weights[k]), Gelu(base + drive), total);
          }
          Store(unit + at, total);
        }
      }
      AddProduct(units.data(), rows, by.width, by.last, by.dim, made.data());
      const Step& step = back.steps[n];
      for (int64_t at = 0; at < size; at += kLanes) {
        const Floats before = Load(x + at);
        Floats clean = MultiplyAdd(All(step.from_output),
                                   Load(made.data() + at),
                                   step.from_x * before);
        if (back.clip > 0) {
          clean = Min(Max(clean, All(-back.clip)), All(back.clip));
        }
        Floats after = MultiplyAdd(All(step.keep_clean), clean,
                                   step.keep_x * before);
        if (step.deviation != 0) {
          const uint32_t* key = back.keys + 2 * (n + 1);
          after = MultiplyAdd(All(step.deviation), Normal(key, counter + at),
                              after);
        }
        Store(x + at, after);
      }
    }
  }
}

#endif  // NEGGEN_SIMD

// All of it: samples of each row, `offset` of which come before in the noise.
inline ffi::Error Draw(ffi::ThreadPool pool, ffi::Buffer<ffi::U32> keys,
                       ffi::Buffer<ffi::F32> steps, ffi::Buffer<ffi::F32> first,
                       ffi::Buffer<ffi::F32> shifts, ffi::Buffer<ffi::F32> last,
                       ffi::Buffer<ffi::F32> bias,
                       ffi::Buffer<ffi::F32> weights,
                       ffi::RemainingArgs drives,
                       ffi::ResultBuffer<ffi::F32> out, float clip,
                       int64_t offset) {
#if NEGGEN_SIMD
  const auto shape = out->dimensions();
  const int64_t samples = shape[0], batch = shape[1], dim = shape[2];
  const int64_t count = shifts.dimensions()[0], width = shifts.dimensions()[1];
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
  static_assert(sizeof(Step) == 5 * sizeof(float));
  if (first.element_count() != size || last.element_count() != size ||
      bias.element_count() != static_cast<size_t>(dim) ||
      steps.element_count() != static_cast<size_t>(5 * count) ||
      keys.element_count() != static_cast<size_t>(2 * (count + 1)) ||
      weights.element_count() != from.size() || dim % kBroad ||
      width % kBroad || offset < 0) {
    return ffi::Error::InvalidArgument("steps, layers and rows do not agree");
  }
  const Layers by{first.typed_data(), shifts.typed_data(), last.typed_data(),
                  bias.typed_data(), dim, width};
  const Back back{keys.typed_data(),
                  reinterpret_cast<const Step*>(steps.typed_data()), count,
                  clip};
  InParallel(pool, samples * batch, 2 * kTogether,
             [&](int64_t begin, int64_t end) {
    DrawRows(back, by, from, weights.typed_data(), batch, offset * batch, begin,
             end, out->typed_data());
  });
  return ffi::Error::Success();
#else
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "for processors with AVX2 or AVX-512");
#endif
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_DRAW_H_
