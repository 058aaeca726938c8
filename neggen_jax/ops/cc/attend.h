// A few tokens that attend to one another, and the mean of what they find.

#ifndef NEGGEN_JAX_OPS_CC_ATTEND_H_
#define NEGGEN_JAX_OPS_CC_ATTEND_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "parallel.h"

namespace neggen {

// A head is some neighbouring lanes of a vector. What it has one of, such as a
// logit, all its lanes have, so that nothing is ever taken apart.
typedef float Heads __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t kOfHeads = sizeof(Heads) / sizeof(float);
// Of what is held at once.
constexpr int64_t kTokens = 8;

// Macros, as no function that is called could be compiled for each processor.
#if defined(__clang__)
#define LANES(v, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p) \
  __builtin_shufflevector(v, v, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
#else
#define LANES(v, ...) __builtin_shuffle(v, Bits{__VA_ARGS__})
#endif

// Adds up the lanes of each head: halves, halves of these, and so on.
#define ADD_UP(v)                                                            \
  do {                                                                       \
    if (width > 8)                                                           \
      v += LANES(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);   \
    if (width > 4)                                                           \
      v += LANES(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);   \
    if (width > 2)                                                           \
      v += LANES(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);   \
    if (width > 1)                                                           \
      v += LANES(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);   \
  } while (0)

// e^v of what is at most 0, by Taylor's series around the nearest power of 2.
#define EXPONENTIAL(v)                                                       \
  do {                                                                       \
    /* Below it there is nothing that counts beside e^0. */                  \
    const Heads least = Heads{} - 87.0f;                                     \
    v = v < least ? least : v;                                               \
    /* Adding this rounds to whole numbers, which the last bits then hold. */\
    const Heads shift = Heads{} + 12582912.0f;                               \
    const Heads power = v * 1.44269504f + shift;                             \
    const Heads whole = power - shift;                                       \
    const Heads rest = (v - whole * 0.693359375f) + whole * 2.12194440e-4f;  \
    const Heads sum =                                                        \
        1.0f + rest * (1.0f + rest * (0.5f + rest * (1.0f / 6 + rest *       \
        (1.0f / 24 + rest * (1.0f / 120 + rest * (1.0f / 720))))));          \
    const Heads found =                                                      \
        (Heads)((Bits)sum + (((Bits)power - (Bits)shift) << 23));            \
    /* Bits of what is not a number might come out as one. */                \
    v = v == v ? found : v;                                                  \
  } while (0)

// Which tokens of a row count, and how much each of them.
struct Counted {
  int64_t many = 0;
  int64_t token[kTokens];
  float share[kTokens];

  Counted(const float* shares, int64_t tokens, int64_t stride) {
    for (int64_t t = 0; t < tokens; ++t) {
      if (!(shares[t * stride] > 0)) continue;
      token[many] = t;
      share[many++] = shares[t * stride];
    }
  }
};

// Queries, keys and values of some heads of the tokens that count, and what
// the t-th of these attends to the s-th by: p[t][s].
#define READ_AND_ATTEND                                                      \
  Heads q[kTokens], k[kTokens], v[kTokens], p[kTokens][kTokens];             \
  for (int64_t t = 0; t < of.many; ++t) {                                    \
    const float* from = mapped + (of.token[t] * rows + row) * 3 * d + at;    \
    q[t] = *reinterpret_cast<const Heads*>(from);                            \
    k[t] = *reinterpret_cast<const Heads*>(from + d);                        \
    v[t] = *reinterpret_cast<const Heads*>(from + 2 * d);                    \
  }                                                                          \
  for (int64_t t = 0; t < of.many; ++t) {                                    \
    for (int64_t s = 0; s < of.many; ++s) {                                  \
      p[t][s] = q[t] * k[s];                                                 \
      ADD_UP(p[t][s]);                                                       \
      p[t][s] *= scale;                                                      \
    }                                                                        \
    Heads most = p[t][0], sum{};                                             \
    for (int64_t s = 1; s < of.many; ++s) {                                  \
      most = p[t][s] > most ? p[t][s] : most;                                \
    }                                                                        \
    for (int64_t s = 0; s < of.many; ++s) {                                  \
      p[t][s] -= most;                                                       \
      EXPONENTIAL(p[t][s]);                                                  \
      sum += p[t][s];                                                        \
    }                                                                        \
    const Heads by = 1.0f / sum;                                             \
    for (int64_t s = 0; s < of.many; ++s) p[t][s] *= by;                     \
  }

// Of rows `begin` to `end` of `mapped` `[tokens, rows, 3 d]`, the mean of what
// tokens attend to. `each` rows have their `shares` `[tokens, rows / each]` in
// common.
FOR_EACH_CPU void AttendRows(const float* mapped, const float* shares,
                             int64_t tokens, int64_t rows, int64_t each,
                             int64_t d, int64_t width, int64_t begin,
                             int64_t end, float* out) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
  for (int64_t row = begin; row < end; ++row) {
    const Counted of(shares + row / each, tokens, rows / each);
    for (int64_t at = 0; at < d; at += kOfHeads) {
      READ_AND_ATTEND
      Heads mean{};
      for (int64_t t = 0; t < of.many; ++t) {
        Heads found{};
        for (int64_t s = 0; s < of.many; ++s) found += p[t][s] * v[s];
        mean += of.share[t] * found;
      }
      *reinterpret_cast<Heads*>(out + row * d + at) = mean;
    }
  }
}

// The gradient of `mapped`, of that of the mean `g` `[rows, d]`. What tokens
// attend by is computed anew: that is less than to read it would take.
FOR_EACH_CPU void AttendRowsBackward(const float* mapped, const float* shares,
                                     const float* g, int64_t tokens,
                                     int64_t rows, int64_t each, int64_t d,
                                     int64_t width, int64_t begin, int64_t end,
                                     float* out) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
  for (int64_t row = begin; row < end; ++row) {
    const Counted of(shares + row / each, tokens, rows / each);
    if (of.many < tokens) {
      for (int64_t t = 0; t < tokens; ++t) {
        std::memset(out + (t * rows + row) * 3 * d, 0, 3 * d * sizeof(float));
      }
    }
    for (int64_t at = 0; at < d; at += kOfHeads) {
      READ_AND_ATTEND
      const Heads grown = *reinterpret_cast<const Heads*>(g + row * d + at);
      Heads of_p[kTokens], of_k[kTokens], of_v[kTokens];
      for (int64_t s = 0; s < of.many; ++s) {
        of_p[s] = grown * v[s];
        ADD_UP(of_p[s]);
        of_k[s] = Heads{}, of_v[s] = Heads{};
      }
      for (int64_t t = 0; t < of.many; ++t) {
        Heads mean{}, of_q{};
        for (int64_t s = 0; s < of.many; ++s) mean += p[t][s] * of_p[s];
        for (int64_t s = 0; s < of.many; ++s) {
          const Heads weight = of.share[t] * p[t][s];
          const Heads of_logit = weight * (of_p[s] - mean) * scale;
          of_q += of_logit * k[s];
          of_k[s] += of_logit * q[t];
          of_v[s] += weight * grown;
        }
        float* to = out + (of.token[t] * rows + row) * 3 * d + at;
        *reinterpret_cast<Heads*>(to) = of_q;
      }
      for (int64_t s = 0; s < of.many; ++s) {
        float* to = out + (of.token[s] * rows + row) * 3 * d + at;
        *reinterpret_cast<Heads*>(to + d) = of_k[s];
        *reinterpret_cast<Heads*>(to + 2 * d) = of_v[s];
      }
    }
  }
}

// Whether shapes are as they are to be; then how many rows have their shares in
// common, or 0.
inline int64_t SharedBy(const ffi::Buffer<ffi::F32>& mapped,
                        const ffi::Buffer<ffi::F32>& shares, int64_t rows,
                        int64_t d, int64_t width) {
  const auto shape = mapped.dimensions(), some = shares.dimensions();
  const bool agree =
      shape.size() == 3 && some.size() == 2 && shape[0] == some[0] &&
      shape[0] <= kTokens && shape[1] == rows && shape[2] == 3 * d &&
      d % kOfHeads == 0 && width > 0 && kOfHeads % width == 0 && some[1] > 0 &&
      rows > 0 && rows % some[1] == 0;
  return agree ? rows / some[1] : 0;
}

constexpr int64_t kRowsAtOnce = 128;

inline ffi::Error Attend(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> mapped,
                         ffi::Buffer<ffi::F32> shares,
                         ffi::ResultBuffer<ffi::F32> out, int64_t width) {
  const int64_t rows = out->dimensions()[0], d = out->dimensions()[1];
  const int64_t each = SharedBy(mapped, shares, rows, d, width);
  if (!each) return ffi::Error::InvalidArgument("tokens do not agree");
  InParallel(pool, rows, kRowsAtOnce, [&](int64_t begin, int64_t end) {
    AttendRows(mapped.typed_data(), shares.typed_data(),
               mapped.dimensions()[0], rows, each, d, width, begin, end,
               out->typed_data());
  });
  return ffi::Error::Success();
}

inline ffi::Error AttendBackward(ffi::ThreadPool pool,
                                 ffi::Buffer<ffi::F32> mapped,
                                 ffi::Buffer<ffi::F32> shares,
                                 ffi::Buffer<ffi::F32> g,
                                 ffi::ResultBuffer<ffi::F32> out,
                                 int64_t width) {
  const int64_t rows = g.dimensions()[0], d = g.dimensions()[1];
  const int64_t each = SharedBy(mapped, shares, rows, d, width);
  if (!each || out->element_count() != mapped.element_count()) {
    return ffi::Error::InvalidArgument("tokens do not agree");
  }
  InParallel(pool, rows, kRowsAtOnce, [&](int64_t begin, int64_t end) {
    AttendRowsBackward(mapped.typed_data(), shares.typed_data(),
                       g.typed_data(), mapped.dimensions()[0], rows, each, d,
                       width, begin, end, out->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_ATTEND_H_
