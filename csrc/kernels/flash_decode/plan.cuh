// Shared memory of a CTA, and how it takes its place from the plan.
#pragma once
#include "kernels/flash_decode/flash_decode.h"
#include "kernels/flash_decode/plan.h"
#include "ptx/sync.cuh"
#include "tile/pipeline.cuh"
#include "tile/reduce.cuh"
#include "tile/report.cuh"

namespace l4k {

constexpr int kDecodeHeadDim = 128;
constexpr int kDecodeConsumers = 4, kDecodeProducers = 4;  // warps
constexpr int kDecodeWarps = kDecodeConsumers + kDecodeProducers;
constexpr int kDecodeThreads = kDecodeWarps * 32;
// Half of an SM's registers, so that a product's CTA fits beside this one.
constexpr int kDecodeConsumerRegisters = 200, kDecodeProducerRegisters = 56;
constexpr int kDecodeKeyBlocks = kDecodeTile / kDecodeKeyBlock;  // of a tile
static_assert(kDecodeKeyBlocks == kDecodeProducers,
              "a producer warp copies a key block of each tile");

template <bool kFp8>
struct DecodeSmem {
  static constexpr int kRowBytes = kFp8 ? 128 : 256, kStages = kFp8 ? 10 : 5;

  // A stage is the keys or the values of a tile; the 16-byte chunks of row r are permuted by r % 8.
  alignas(1024) char ring[kStages][kDecodeTile * kRowBytes];
  alignas(16) float wide[kDecodeConsumers][32 * 32];    // half of each warp's sums
  alignas(16) float narrow[kDecodeConsumers][16 * 32];  // a quarter
  float2 state[kDecodeConsumers][16];                   // maximum and sum of each row
  Pipeline<kStages> pipeline;
  // Here and not in registers, which are for other things.
  alignas(16) DecodePlace place[kDecodeWarps];  // of each warp
  bool is_last;
};

__device__ __forceinline__ void decode_consumers_sync() {
  ptx::named_barrier_sync(1, kDecodeConsumers * 32);
}

// What a launch knows of its plan.
struct DecodeLaunch {
  DecodeShape shape;
  DecodePlanBounds bounds;
};

// By whole warps: copies the CTA's place; false if the plan was made for another call.
template <bool kFp8>
__device__ __forceinline__ bool take_place(const FlashDecodeParams& p, const DecodeLaunch& launch,
                                           DecodeSmem<kFp8>& smem) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, word = lane - kDecodePlaces;
  const uint32_t* plan = reinterpret_cast<const uint32_t*>(p.plan) + lane;
  const uint32_t value = word < 0 ? *plan : plan[blockIdx.x * kDecodePlaceWords];
  auto* place = reinterpret_cast<uint32_t*>(&smem.place[warp]);
  if (word >= 0) place[word] = value;
  return __all_sync(0xffffffff, launch.bounds.of[lane].hold(value));
}

// By whole warps, each at its own place.
__device__ __forceinline__ void next_split(const FlashDecodeParams& p, const DecodeShape& shape,
                                           DecodePlace& place) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) place.work.advance(shape, place.splitting, p.plan + kDecodeLengths);
  __syncwarp();
}

// By the consumer warps, where the plan is not this call's: no result.
__device__ __forceinline__ void refuse_plan(const FlashDecodeParams& p) {
  constexpr int kThreads = kDecodeConsumers * 32;
  if (threadIdx.x == 0) report_error(p.error, DeviceError::kFlashDecodePlan);
  const int64_t rows = int64_t{p.batch} * p.tokens * p.kv_heads * p.group;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x, step = gridDim.x * kThreads;
  for (int64_t i = first; i < rows * (kDecodeHeadDim / 8); i += step)
    static_cast<uint4*>(p.out)[i] = uint4{};
  for (int64_t i = first; i < rows; i += step) p.lse[i] = -INFINITY;
}

}  // namespace l4k
