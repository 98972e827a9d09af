// The hash that decides which elements dropout keeps: a function of (seed, element index), so that nothing is stored and a resumed run repeats it.
#pragma once

#include "vector.h"

namespace ascend_ops {

// 31 well mixed bits of (index ^ seed). The seed enters twice, or the masks of two seeds were permutations of each other.
// Source: Wellons, "Prospecting for Hash Functions" (lowbias32), on 32-bit integers; the second entry is ours.
ASCEND_OPS_INLINE UintVec mix(UintVec h, uint32_t seed) {
  h = (h ^ (h >> 16)) * 0x7feb352du + seed;
  h = (h ^ (h >> 15)) * 0x2c1b3c6du;
  return (h ^ (h >> 16)) & 0x7fffffffu;
}

class DropoutMask {
 public:
  bool drops() const { return threshold_ > 0; }
  explicit DropoutMask(int32_t seed = 0, float rate = 0.0f)
      : seed_(static_cast<uint32_t>(seed)), threshold_(static_cast<uint32_t>(double{rate} * 2147483648.0)), scale_(1.0f / (1.0f - rate)) {}
  // What elements [index, index + 16) are multiplied with: 0 or 1 / (1 - rate).
  ASCEND_OPS_INLINE Vec at(int64_t index) const {
    const UintVec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return of(lanes + static_cast<uint32_t>(index));
  }
  // The same for sixteen elements that stand anywhere.
  ASCEND_OPS_INLINE Vec of(UintVec indices) const {
    const UintVec hash = mix(indices ^ seed_, seed_);
    return select(bit_cast<IntVec>(hash >= threshold_), splat(scale_), Vec{});
  }

 private:
  uint32_t seed_, threshold_;
  float scale_;
};

}  // namespace ascend_ops
