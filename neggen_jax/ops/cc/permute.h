// Keyed permutations of ranges, as data/order.py has them, to the last bit.

#ifndef NEGGEN_JAX_OPS_CC_PERMUTE_H_
#define NEGGEN_JAX_OPS_CC_PERMUTE_H_

#include <algorithm>
#include <cstdint>

#include "parallel.h"

namespace neggen {

// Numbers that are enciphered together, and stay in the nearest cache.
constexpr int64_t kEnciphered = 1024;

// A Feistel network over halves of numbers, each with a key of its own.
inline void Encipher(uint32_t* left, uint32_t* right, const uint32_t* key,
                     int64_t count, uint32_t mask) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t l = left[i], r = right[i], k = key[i];
    for (int round = 0; round < 6; ++round) {
      k += 0x9E3779B1u;
      uint32_t x = (r ^ k) * 0x9E3779B1u;
      x = (x ^ (x >> 15)) * 0x85EBCA6Bu;
      x = (x ^ (x >> 13)) * 0xC2B2AE35u;
      const uint32_t next = l ^ ((x ^ (x >> 16)) & mask);
      l = r;
      r = next;
    }
    left[i] = l;
    right[i] = r;
  }
}

// Maps each of `index` through the permutation of `[0, size)` that its key
// names. Of `[0, 4^half)` what leaves that range is enciphered again, and the
// few that do so many times are not waited for by others.
inline void Permute(const int64_t* index, const uint32_t* keys,
                    const int64_t* sizes, int64_t count, int64_t half,
                    int64_t* out) {
  const uint32_t mask = static_cast<uint32_t>((int64_t{1} << half) - 1);
  uint32_t left[kEnciphered], right[kEnciphered], key[kEnciphered];
  int64_t place[kEnciphered];
  for (int64_t begin = 0; begin < count; begin += kEnciphered) {
    int64_t outside = std::min(kEnciphered, count - begin);
    for (int64_t i = 0; i < outside; ++i) {
      place[i] = begin + i;
      left[i] = static_cast<uint32_t>(index[begin + i] >> half);
      right[i] = static_cast<uint32_t>(index[begin + i]) & mask;
      key[i] = keys[begin + i];
    }
    while (outside > 0) {
      Encipher(left, right, key, outside, mask);
      int64_t kept = 0;
      for (int64_t i = 0; i < outside; ++i) {
        const int64_t x = (static_cast<int64_t>(left[i]) << half) | right[i];
        out[place[i]] = x;
        if (x < sizes[place[i]]) continue;
        place[kept] = place[i];
        left[kept] = left[i];
        right[kept] = right[i];
        key[kept++] = key[i];
      }
      outside = kept;
    }
  }
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_PERMUTE_H_
