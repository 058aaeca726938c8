// Kernels that XLA has no good form of on CPU; see native.py.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// One library serves all processors of a kind: which form of a loop runs is
// decided where it runs.
#if defined(__linux__) && defined(__x86_64__) && defined(__GNUC__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

namespace {

// Splits `size` rows over XLA's threads, `grain` at a time. The caller works
// too, and waits for nobody but those who have begun: handlers of several
// devices may hold every thread of the pool.
void InParallel(ffi::ThreadPool& pool, int64_t size, int64_t grain,
                std::function<void(int64_t, int64_t)> work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t left;
    std::mutex mutex;
    std::condition_variable done;
  };
  const int64_t parts = (size + grain - 1) / grain;
  if (parts == 0) return;
  auto shared = std::make_shared<Shared>();
  shared->left = parts;
  auto run = [=] {
    for (;;) {
      const int64_t part = shared->next.fetch_add(1);
      if (part >= parts) return;
      work(part * grain, std::min(size, (part + 1) * grain));
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (--shared->left == 0) shared->done.notify_all();
    }
  };
  const int64_t helpers = std::min(parts, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(run));
  run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->left == 0; });
}

// Values whose greatest is looked for at once.
constexpr int64_t kBlock = 32;

// Orders floats as XLA's TopK does: -NaN < -inf < -0 < +0 < inf < NaN.
inline int32_t Key(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The greater is the better, and of equal values the earlier.
inline uint64_t Pack(int32_t key, int64_t column) {
  const uint32_t above = static_cast<uint32_t>(key) ^ 0x80000000u;
  return (static_cast<uint64_t>(above) << 32) | (0xffffffffu - column);
}

inline int64_t Column(uint64_t packed) {
  return 0xffffffffu - static_cast<uint32_t>(packed);
}

// Of `k` blocks the greatest values are at least `bound`, the k-th greatest of
// all blocks' greatest: no less is among the k best. So one pass at the speed
// of memory leaves a few blocks to be looked at, one value after the other.
FOR_EACH_CPU void TopRows(const float* x, int64_t width, int64_t k,
                          int64_t begin, int64_t end, float* values,
                          int32_t* columns) {
  const int64_t blocks = width / kBlock;
  std::vector<int32_t> most(blocks), ordered(blocks);
  // One more: what is no candidate is written, and then written over.
  std::vector<uint64_t> best(width + 1);
  for (int64_t row = begin; row < end; ++row) {
    const float* from = x + row * width;
    int64_t count = 0;
    int32_t bound = std::numeric_limits<int32_t>::min();
    for (int64_t block = 0; block < blocks; ++block) {
      int32_t greatest = bound;
      for (int64_t i = 0; i < kBlock; ++i) {
        greatest = std::max(greatest, Key(from[block * kBlock + i]));
      }
      most[block] = greatest;
    }
    if (blocks >= k) {
      ordered = most;
      std::nth_element(ordered.begin(), ordered.begin() + (k - 1),
                       ordered.end(), std::greater<int32_t>());
      bound = ordered[k - 1];
    }
    auto look = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int32_t key = Key(from[i]);
        best[count] = Pack(key, i);
        count += key >= bound;
      }
    };
    for (int64_t block = 0; block < blocks; ++block) {
      if (most[block] >= bound) look(block * kBlock, (block + 1) * kBlock);
    }
    look(blocks * kBlock, width);
    std::partial_sort(best.begin(), best.begin() + k, best.begin() + count,
                      std::greater<uint64_t>());
    for (int64_t i = 0; i < k; ++i) {
      const int64_t column = Column(best[i]);
      values[row * k + i] = from[column];
      columns[row * k + i] = static_cast<int32_t>(column);
    }
  }
}

ffi::Error TopK(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                ffi::ResultBuffer<ffi::F32> values,
                ffi::ResultBuffer<ffi::S32> columns) {
  const auto shape = x.dimensions();
  const int64_t rows = shape[0], width = shape[1];
  const int64_t k = values->dimensions()[1];
  if (k > width) return ffi::Error::InvalidArgument("k exceeds the width");
  if (rows == 0 || k == 0) return ffi::Error::Success();
  InParallel(pool, rows, 16, [&](int64_t begin, int64_t end) {
    TopRows(x.typed_data(), width, k, begin, end, values->typed_data(),
            columns->typed_data());
  });
  return ffi::Error::Success();
}

// Sixteen neighbouring numbers, which may begin anywhere: `auto` would forget
// that they do.
typedef float Some __attribute__((vector_size(64), aligned(4)));
constexpr int64_t kSome = sizeof(Some) / sizeof(float);
// What of a row is summed at once: as much as registers have room for.
constexpr int64_t kStrip = 4 * kSome;

// Rows of a sparse matrix times `x` `[columns, d]`. Entries of a row are added
// up in their order, so that threads and processors make no difference.
FOR_EACH_CPU void MultiplyRows(const int32_t* starts, const int32_t* columns,
                               const float* weights, const float* x, int64_t d,
                               int64_t begin, int64_t end, float* out) {
  for (int64_t row = begin; row < end; ++row) {
    const int32_t first = starts[row], last = starts[row + 1];
    float* to = out + row * d;
    int64_t at = 0;
    for (; at + kStrip <= d; at += kStrip) {
      Some a{}, b{}, c{}, e{};
      for (int32_t n = first; n < last; ++n) {
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

// Numbers of one step; in the order of `Rates` in adam.py.
struct Rates {
  float clip, beta1, beta2, rest1, rest2, unbias1, unbias2, epsilon, rate, decay;
};

// Sums are of so many numbers side by side.
constexpr int64_t kLanes = 16;

// A macro, as no function that is called could be compiled for each processor.
#define ADAM_STEP(i, lane)                                                     \
  const float raw = g[i], clipped = raw * by.clip;                             \
  const float mean = by.beta1 * m[i] + by.rest1 * clipped;                        \
  const float square = by.beta2 * v[i] + by.rest2 * clipped * clipped;            \
  const float root = __builtin_sqrtf(square * by.unbias2) + by.epsilon;        \
  const float update =                                                         \
      -by.rate * (mean * by.unbias1 / root + by.decay * p[i]);                 \
  m[i] = mean;                                                                 \
  v[i] = square;                                                               \
  p[i] += update;                                                              \
  of_g[lane] += raw * raw;                                                     \
  of_u[lane] += update * update;

// One step of Adam on some numbers, in place, and sums of the squares of
// gradients and updates.
FOR_EACH_CPU void AdamStep(const Rates& by, int64_t size,
                           const float* __restrict g, float* __restrict m,
                           float* __restrict v, float* __restrict p,
                           float* sums) {
  float of_g[kLanes] = {}, of_u[kLanes] = {};
  for (int64_t first = 0; first < size; first += kLanes) {
    const int64_t count = std::min(kLanes, size - first);
    // By itself, so that it is known to be whole.
    if (count == kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        ADAM_STEP(first + lane, lane)
      }
    } else {
      for (int64_t lane = 0; lane < count; ++lane) {
        ADAM_STEP(first + lane, lane)
      }
    }
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sums[0] += of_g[lane];
    sums[1] += of_u[lane];
  }
}

FOR_EACH_CPU bool AllZero(int64_t size, const float* x) {
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

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(neggen_adam, Adam,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("lazy"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(neggen_multiply, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(neggen_top_k, TopK,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());
