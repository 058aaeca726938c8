// How scores are ordered: as by XLA's TopK, and ties by column.

#ifndef NEGGEN_JAX_OPS_CC_ORDER_H_
#define NEGGEN_JAX_OPS_CC_ORDER_H_

#include <cstdint>
#include <cstring>

namespace neggen {

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

inline float Value(uint64_t packed) {
  const int32_t key = static_cast<int32_t>((packed >> 32) ^ 0x80000000u);
  const int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int64_t Column(uint64_t packed) {
  return 0xffffffffu - static_cast<uint32_t>(packed);
}

}  // namespace neggen

#endif  // NEGGEN_JAX_OPS_CC_ORDER_H_
