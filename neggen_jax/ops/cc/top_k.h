// The k best of each row of a matrix.

#ifndef NEGGEN_JAX_OPS_CC_TOP_K_H_
#define NEGGEN_JAX_OPS_CC_TOP_K_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "order.h"
#include "parallel.h"

namespace neggen {

// Values whose greatest is looked for at once.
constexpr int64_t kBlock = 32;

// Of `k` blocks the greatest values are at least `bound`, the k-th greatest of
// all blocks' greatest: no less is among the k best. So one pass at the speed
// of memory leaves a few blocks to be looked at, one value after the other.
inline void TopRows(const float* x, int64_t width, int64_t k, int64_t begin,
                    int64_t end, float* values, int32_t* columns) {
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

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_TOP_K_H_
