// What all kernels share: threads.

#ifndef NEGGEN_JAX_OPS_CC_PARALLEL_H_
#define NEGGEN_JAX_OPS_CC_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace neggen {

// Splits `size` rows over XLA's threads, `grain` at a time. The caller works
// too, and waits for nobody but those who have begun: handlers of several
// devices may hold every thread of the pool.
inline void InParallel(ffi::ThreadPool& pool, int64_t size, int64_t grain,
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

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_PARALLEL_H_
