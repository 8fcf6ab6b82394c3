// What a layer does to the heads of q and k; what it leaves out is off.
#pragma once
#include <cstdint>

namespace l4k {

constexpr int kHeadDim = 128;

struct HeadRule {
  const float* cos_sin;  // [table_rows, 128]: 64 cosines, 64 sines; null: no rotation
  int64_t table_rows;
  float qk_norm_eps;  // negative: no norm
  float attn_scale;   // 0: no temperature
  int floor_scale;    // positions per step of the temperature
};

}  // namespace l4k
