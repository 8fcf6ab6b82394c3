// A work item as the consumer warps see it: its rows, its splits and their places in memory.
#pragma once
#include <cuda_bf16.h>

#include "kernels/flash_decode/plan.cuh"

namespace l4k {

// Partial results: sums of values, then maximum and sum of weights, by slot and row.
struct DecodeWorkspace {
  float* values;
  float2* states;
  int rows, slots;

  __device__ __forceinline__ DecodeWorkspace(const FlashDecodeParams& p, int grid)
      : values(p.partials),
        rows(min(p.tokens * p.group, kDecodeRows)),
        slots(kDecodeSlotsPerCta * grid) {
    states = reinterpret_cast<float2*>(values + int64_t{slots} * rows * kDecodeHeadDim);
  }
  static int64_t words(int rows, int grid) {
    return int64_t{kDecodeSlotsPerCta} * grid * min(rows, kDecodeRows) * (kDecodeHeadDim + 2);
  }
};

// Where a row of an item lives in the results, and whether its query sees a key at all. Keys of
// weight 0 alone are another thing, and give NaN.
struct DecodeRow {
  __nv_bfloat16* out;
  float* lse;
  bool sees;
};

// The work item that a consumer warp is at, and where its results go.
struct DecodeItem {
  const FlashDecodeParams& p;
  const DecodeWorkspace& workspace;
  const DecodeSplitting& splitting;
  const DecodeWork& work;
  int kv_head;
  int block_row;  // the item's first row among those of the KV head: queries x heads

  __device__ __forceinline__ int end_row() const { return p.tokens * p.group; }
  __device__ __forceinline__ int splits() const { return work.splits.count; }
  // Within the workspace, whatever the plan holds.
  __device__ __forceinline__ int slot(int split) const {
    const auto last = static_cast<uint32_t>(workspace.slots - 1);
    return static_cast<int>(min(work.slot(splitting, split), last));
  }
  __device__ __forceinline__ float v_scale() const {
    return p.v_scale == nullptr ? 1.f : p.v_scale[kv_head];
  }
  // The item's row r.
  __device__ __forceinline__ DecodeRow row(int r) const {
    const int64_t heads = int64_t{p.kv_heads} * p.group, b = work.b;
    const int token = (block_row + r) / p.group;
    const int head = kv_head * p.group + (block_row + r) % p.group;
    return {.out = static_cast<__nv_bfloat16*>(p.out) +
                   ((b * p.tokens + token) * heads + head) * kDecodeHeadDim,
            .lse = p.lse + (b * heads + head) * p.tokens + token,
            .sees = work.sequence.first_position + token >= 0};
  }
};

__device__ __forceinline__ float natural_lse(float maximum, float sum) {
  return (maximum + log2f(sum)) * 0.6931471805599453f;
}

}  // namespace l4k
