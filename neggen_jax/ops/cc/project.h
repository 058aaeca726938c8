// Some rows of wide tables times a matrix, and the gradient of the matrix.

#ifndef NEGGEN_JAX_OPS_CC_PROJECT_H_
#define NEGGEN_JAX_OPS_CC_PROJECT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "accumulate.h"
#include "distinct.h"
#include "parallel.h"
#include "simd.h"

namespace neggen {

// Rows are read where they lie, in pieces that fit into a core's own cache; the
// next piece is asked for while one is multiplied. A row that occurs
// many times is read and multiplied once.
#if NEGGEN_SIMD

constexpr int64_t kLine = 64;  // bytes that come from memory at once
// A piece, forward: so many columns of `kHigh` rows.
constexpr int64_t kColumns = 512;
// And backward: so many columns of so many rows.
constexpr int64_t kTall = 128, kSlice = 192;
static_assert(kSlice % kHigh == 0);

// A row's numbers as float32: where they lie, or in `room`.
inline const float* Wide(const float* from, int64_t, float*) { return from; }

// bfloat16 is the upper half of a float32.
inline const float* Wide(const uint16_t* from, int64_t count,
                                    float* room) {
  for (int64_t n = 0; n < count; ++n) {
    const uint32_t bits = static_cast<uint32_t>(from[n]) << 16;
    std::memcpy(room + n, &bits, sizeof bits);
  }
  return room;
}

// Adds rows `begin` to `end` of those that differ, times `kernel` `[wide, d]`,
// each to one of its places in `out`.
template <typename T>
void ProjectRows(const T* table, int64_t wide,
                            const Distinct& distinct, const float* kernel,
                            int64_t d, int64_t begin, int64_t end, float* out) {
  constexpr int64_t kStep = kLine / sizeof(T);
  alignas(64) float room[kHigh * kColumns];
  const float* from[kHigh];
  const T* next[kHigh];
  float* to[kHigh];
  for (int64_t start = 0; start < wide; start += kColumns) {
    const int64_t columns = std::min(kColumns, wide - start);
    for (int64_t row = begin; row < end; row += kHigh) {
      const int64_t high = std::min(kHigh, end - row);
      auto of = [&](int64_t n) {
        return table + distinct.rows[std::min(n, end - 1)] * wide + start;
      };
      for (int64_t i = 0; i < kHigh; ++i) {
        from[i] = Wide(of(row + i), columns, room + i * kColumns);
        next[i] = of(row + kHigh + i);
      }
      auto ahead = [&](int64_t t) {
        if (t % kStep) return;
        for (const T* row : next) __builtin_prefetch(row + t, 0, 2);
      };
      for (int64_t at = 0; at < d; at += kBroad) {
        for (int64_t i = 0; i < kHigh; ++i) {
          const int64_t n = std::min(row + i, end - 1);
          to[i] = out + distinct.places[n] * d + at;
        }
        Accumulate<1>(from, columns, kernel + start * d + at, d, to, high,
                      ahead);
      }
    }
  }
}

// Rows `begin` to `end` of `out` `[wide, d]`, which is 0: what the columns of
// the table's rows give, times `g` `[rows that differ, d]`.
template <typename T>
void ProjectGradient(const T* table, int64_t wide,
                                const std::vector<int64_t>& rows,
                                const float* g, int64_t d, int64_t begin,
                                int64_t end, float* out) {
  constexpr int64_t kStep = kLine / sizeof(T);
  const int64_t count = rows.size();
  std::vector<float> piece(kTall * kSlice);
  std::vector<const T*> next(kTall);
  const float* from[kHigh];
  float* to[kHigh];
  for (int64_t row = 0; row < count; row += kTall) {
    const int64_t tall = std::min(kTall, count - row);
    for (int64_t start = begin; start < end; start += kSlice) {
      const int64_t columns = std::min(kSlice, end - start);
      const bool last = start + kSlice >= end;
      for (int64_t t = 0; t < tall; ++t) {
        float* room = piece.data() + t * kSlice;
        const float* found =
            Wide(table + rows[row + t] * wide + start, columns, room);
        if (found != room) std::memcpy(room, found, columns * sizeof(float));
        const int64_t after = std::min(row + t + (last ? kTall : 0), count - 1);
        next[t] = table + rows[after] * wide + (last ? begin : start + kSlice);
      }
      for (int64_t at = 0; at < d; at += kBroad) {
        for (int64_t i = 0; i < columns; i += kHigh) {
          const int64_t high = std::min(kHigh, columns - i);
          for (int64_t n = 0; n < kHigh; ++n) {
            from[n] = piece.data() + i + n;
            to[n] = out + std::min(start + i + n, end - 1) * d + at;
          }
          // A line of each row, until there is no more.
          const int64_t line = std::min(i / kHigh * kStep, kSlice);
          auto ahead = [&](int64_t t) {
            if (line < kSlice) __builtin_prefetch(next[t] + line, 0, 2);
          };
          Accumulate<kSlice>(from, tall, g + row * d + at, d, to, high, ahead);
        }
      }
    }
  }
}

// Calls `work` with each table's numbers as they are held, their width, and
// where that of the table begins if all lie side by side.
template <typename Work>
ffi::Error WithTables(ffi::RemainingArgs& tables, int64_t height, int64_t wide,
                      Work work) {
  int64_t first = 0;
  for (size_t n = 0; n < tables.size(); ++n) {
    auto table = tables.get<ffi::AnyBuffer>(n);
    if (!table) return table.error();
    const auto shape = table->dimensions();
    if (shape.size() != 2 || shape[0] != height || first + shape[1] > wide) {
      return ffi::Error::InvalidArgument("tables do not agree");
    }
    const void* data = table->untyped_data();
    if (table->element_type() == ffi::F32) {
      work(static_cast<const float*>(data), shape[1], first);
    } else if (table->element_type() == ffi::BF16) {
      work(static_cast<const uint16_t*>(data), shape[1], first);
    } else {
      return ffi::Error::InvalidArgument("a table of another type");
    }
    first += shape[1];
  }
  if (first == wide) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("tables and matrix do not agree");
}

#endif  // NEGGEN_SIMD

inline ffi::Error Project(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> ids,
                          ffi::Buffer<ffi::F32> kernel,
                          ffi::RemainingArgs tables,
                          ffi::ResultBuffer<ffi::F32> out, int64_t height) {
#if NEGGEN_SIMD
  const int64_t count = ids.element_count(), d = out->dimensions()[1];
  if (out->dimensions()[0] != count || kernel.dimensions()[1] != d ||
      d % kBroad || height < 1) {
    return ffi::Error::InvalidArgument("rows, matrix and result do not agree");
  }
  float* to = out->typed_data();
  std::fill(to, to + count * d, 0.0f);
  const Distinct distinct(ids.typed_data(), count, height);
  auto work = [&](const auto* table, int64_t wide, int64_t first) {
    InParallel(pool, distinct.rows.size(), 16 * kHigh,
               [&](int64_t begin, int64_t end) {
      ProjectRows(table, wide, distinct, kernel.typed_data() + first * d, d,
                  begin, end, to);
    });
  };
  auto done = WithTables(tables, height, kernel.dimensions()[0], work);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t place = distinct.places[distinct.slots[n]];
    if (place != n) std::memcpy(to + n * d, to + place * d, d * sizeof(float));
  }
  return done;
#else
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "for processors with AVX2 or AVX-512");
#endif
}

inline ffi::Error ProjectBackward(ffi::ThreadPool pool,
                                  ffi::Buffer<ffi::S32> ids,
                                  ffi::Buffer<ffi::F32> g,
                                  ffi::RemainingArgs tables,
                                  ffi::ResultBuffer<ffi::F32> out,
                                  int64_t height) {
#if NEGGEN_SIMD
  const int64_t count = ids.element_count(), d = out->dimensions()[1];
  if (g.dimensions()[0] != count || g.dimensions()[1] != d || d % kBroad ||
      height < 1) {
    return ffi::Error::InvalidArgument(
        "rows, gradient and result do not agree");
  }
  float* to = out->typed_data();
  std::fill(to, to + out->element_count(), 0.0f);
  const Distinct distinct(ids.typed_data(), count, height);
  const std::vector<float> sums = distinct.Summed(pool, g.typed_data(), d);
  auto work = [&](const auto* table, int64_t wide, int64_t first) {
    // As few parts as there are threads, of whole lines and products.
    constexpr int64_t kEven = 16 * kHigh;
    const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
    const int64_t each = (wide + threads - 1) / threads;
    const int64_t grain = std::max<int64_t>(1, (each + kEven - 1) / kEven) * kEven;
    InParallel(pool, wide, grain, [&](int64_t begin, int64_t end) {
      ProjectGradient(table, wide, distinct.rows, sums.data(), d, begin, end,
                      to + first * d);
    });
  };
  return WithTables(tables, height, out->dimensions()[0], work);
#else
  return ffi::Error(ffi::ErrorCode::kUnimplemented,
                    "for processors with AVX2 or AVX-512");
#endif
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_PROJECT_H_
