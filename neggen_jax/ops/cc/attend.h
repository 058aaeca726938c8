// A few tokens that attend to one another, and the mean of what they find.

#ifndef NEGGEN_JAX_OPS_CC_ATTEND_H_
#define NEGGEN_JAX_OPS_CC_ATTEND_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "parallel.h"
#include "simd.h"

namespace neggen {

// A head is some neighbouring lanes of these. What it has one of, such as a
// logit, all its lanes have, so that nothing is ever taken apart.
constexpr int64_t kOfHeads = 16, kParts = kOfHeads / kLanes;
// Of what is held at once.
constexpr int64_t kTokens = 8;

struct Heads {
  Floats part[kParts] = {};

  static Heads Of(const float* from) {
    Heads x;
    for (int64_t i = 0; i < kParts; ++i) x.part[i] = Load(from + i * kLanes);
    return x;
  }

  void To(float* to) const {
    for (int64_t i = 0; i < kParts; ++i) Store(to + i * kLanes, part[i]);
  }
};

inline Heads& operator+=(Heads& x, const Heads& y) {
  for (int64_t i = 0; i < kParts; ++i) x.part[i] += y.part[i];
  return x;
}

inline Heads operator-(Heads x, const Heads& y) {
  for (int64_t i = 0; i < kParts; ++i) x.part[i] -= y.part[i];
  return x;
}

inline Heads operator*(Heads x, const Heads& y) {
  for (int64_t i = 0; i < kParts; ++i) x.part[i] *= y.part[i];
  return x;
}

inline Heads operator*(float by, Heads x) {
  for (int64_t i = 0; i < kParts; ++i) x.part[i] *= by;
  return x;
}

// Each lane's the one whose number differs in one bit.
template <int64_t kBit>
inline Floats Exchanged(Floats x) {
#if defined(__clang__)
  Floats made;
  for (int64_t i = 0; i < kLanes; ++i) made[i] = x[i ^ kBit];
  return made;
#else
  return __builtin_shuffle(x, Range<Ints>() ^ static_cast<int32_t>(kBit));
#endif
}

template <int64_t kBit>
inline void AddExchanged(Heads& x) {
  if constexpr (kBit < kLanes) {
    for (auto& part : x.part) part += Exchanged<kBit>(part);
  } else {
    constexpr int64_t kApart = kBit / kLanes;
    for (int64_t i = 0; i < kParts; ++i) {
      if (i & kApart) continue;
      x.part[i] += x.part[i + kApart];
      x.part[i + kApart] = x.part[i];
    }
  }
}

// Adds up the lanes of each head: halves, halves of these, and so on.
inline void AddUp(Heads& x, int64_t width) {
  if (width > 8) AddExchanged<8>(x);
  if (width > 4) AddExchanged<4>(x);
  if (width > 2) AddExchanged<2>(x);
  if (width > 1) AddExchanged<1>(x);
}

// e^v of what is at most 0, by Taylor's series around the nearest power of 2.
inline void RaiseE(Heads& x) {
  for (auto& v : x.part) {
    // Below it there is nothing that counts beside e^0.
    v = Max(v, All(-87.0f));
    // Adding this rounds to whole numbers, which the last bits then hold.
    const Floats shift = All(12582912.0f);
    const Floats power = v * 1.44269504f + shift;
    const Floats whole = power - shift;
    const Floats rest = (v - whole * 0.693359375f) + whole * 2.12194440e-4f;
    const Floats sum =
        1.0f + rest * (1.0f + rest * (0.5f + rest * (1.0f / 6 + rest *
        (1.0f / 24 + rest * (1.0f / 120 + rest * (1.0f / 720))))));
    const Floats found =
        Floats(Words(sum) + ((Words(power) - Words(shift)) << 23));
    // Bits of what is not a number might come out as one.
    v = v == v ? found : v;
  }
}

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
struct Attended {
  Heads q[kTokens], k[kTokens], v[kTokens], p[kTokens][kTokens];

  // Of `from` `[tokens, stride]`, the first token's query, which its key and
  // its value follow.
  inline void Read(const Counted& of, const float* from, int64_t stride,
                   int64_t d, int64_t width) {
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
    for (int64_t t = 0; t < of.many; ++t) {
      const float* token = from + of.token[t] * stride;
      q[t] = Heads::Of(token);
      k[t] = Heads::Of(token + d);
      v[t] = Heads::Of(token + 2 * d);
    }
    for (int64_t t = 0; t < of.many; ++t) {
      for (int64_t s = 0; s < of.many; ++s) {
        p[t][s] = q[t] * k[s];
        AddUp(p[t][s], width);
        p[t][s] = scale * p[t][s];
      }
      Heads most = p[t][0], sum;
      for (int64_t s = 1; s < of.many; ++s) {
        for (int64_t i = 0; i < kParts; ++i) {
          most.part[i] = Max(most.part[i], p[t][s].part[i]);
        }
      }
      for (int64_t s = 0; s < of.many; ++s) {
        p[t][s] = p[t][s] - most;
        RaiseE(p[t][s]);
        sum += p[t][s];
      }
      for (auto& part : sum.part) part = 1.0f / part;
      for (int64_t s = 0; s < of.many; ++s) p[t][s] = p[t][s] * sum;
    }
  }
};

// Of rows `begin` to `end` of `mapped` `[tokens, rows, 3 d]`, the mean of what
// tokens attend to. `each` rows have their `shares` `[tokens, rows / each]` in
// common.
inline void AttendRows(const float* mapped, const float* shares,
                       int64_t tokens, int64_t rows, int64_t each, int64_t d,
                       int64_t width, int64_t begin, int64_t end, float* out) {
  Attended by;
  for (int64_t row = begin; row < end; ++row) {
    const Counted of(shares + row / each, tokens, rows / each);
    for (int64_t at = 0; at < d; at += kOfHeads) {
      by.Read(of, mapped + row * 3 * d + at, rows * 3 * d, d, width);
      Heads mean;
      for (int64_t t = 0; t < of.many; ++t) {
        Heads found;
        for (int64_t s = 0; s < of.many; ++s) found += by.p[t][s] * by.v[s];
        mean += of.share[t] * found;
      }
      mean.To(out + row * d + at);
    }
  }
}

// The gradient of `mapped`, of that of the mean `g` `[rows, d]`. What tokens
// attend by is computed anew: that is less than to read it would take.
inline void AttendRowsBackward(const float* mapped, const float* shares,
                               const float* g, int64_t tokens, int64_t rows,
                               int64_t each, int64_t d, int64_t width,
                               int64_t begin, int64_t end, float* out) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
  Attended by;
  for (int64_t row = begin; row < end; ++row) {
    const Counted of(shares + row / each, tokens, rows / each);
    if (of.many < tokens) {
      for (int64_t t = 0; t < tokens; ++t) {
        std::memset(out + (t * rows + row) * 3 * d, 0, 3 * d * sizeof(float));
      }
    }
    for (int64_t at = 0; at < d; at += kOfHeads) {
      by.Read(of, mapped + row * 3 * d + at, rows * 3 * d, d, width);
      const Heads grown = Heads::Of(g + row * d + at);
      Heads of_p[kTokens], of_k[kTokens], of_v[kTokens];
      for (int64_t s = 0; s < of.many; ++s) {
        of_p[s] = grown * by.v[s];
        AddUp(of_p[s], width);
      }
      for (int64_t t = 0; t < of.many; ++t) {
        Heads mean, of_q;
        for (int64_t s = 0; s < of.many; ++s) mean += by.p[t][s] * of_p[s];
        for (int64_t s = 0; s < of.many; ++s) {
          const Heads weight = of.share[t] * by.p[t][s];
          const Heads of_logit = scale * (weight * (of_p[s] - mean));
          of_q += of_logit * by.k[s];
          of_k[s] += of_logit * by.q[t];
          of_v[s] += weight * grown;
        }
        of_q.To(out + (of.token[t] * rows + row) * 3 * d + at);
      }
      for (int64_t s = 0; s < of.many; ++s) {
        float* to = out + (of.token[s] * rows + row) * 3 * d + at;
        of_k[s].To(to + d);
        of_v[s].To(to + 2 * d);
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
