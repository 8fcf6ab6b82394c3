// What a kernel reports when it meets an index that no caller should have passed. The row's output
// is zero; the host raises an exception that names op and argument at its next synchronisation.
#pragma once
#include "tile/base.h"

namespace l4k {

enum class DeviceError : uint32_t {
  kNone,
  kRopeCachePositions,
  kRopeCacheSlotMapping,
  kMoeRouteLogits,
  kMoePermutePermutation,
  kMoeCombineInverse,
  kEmbedInputIds,
  kEmbedImageRows,
  kGemmExpertOffsets,
  kFlashDecodeBlockTable,
  kFlashDecodeSeqlens,
  kFlashPrefillOffsets,
  kFlashPrefillPages,
  kFlashPrefillSeqlens,
  kW4GemmExpertOffsets,
  kGemmPermutation,
  kW4GemmPermutation,
  kFlashDecodePositions,
  kFlashDecodeSlotMapping,
  kFlashPrefillPlan,
};

constexpr const char* kDeviceErrorNames[] = {
    "",
    "rope_cache: positions",
    "rope_cache: slot_mapping",
    "moe_route: logits (NaN)",
    "moe_permute: permutation",
    "moe_combine: inverse",
    "embed: input_ids",
    "embed: image_rows",
    "gemm: expert_offsets",
    "flash_decode: block_table",
    "flash_decode: seqlens_k",
    "flash_prefill: cu_seqlens_q or max_seqlen_q",
    "flash_prefill: block_table",
    "flash_prefill: seqlens_k",
    "w4_gemm: expert_offsets",
    "gemm: permutation",
    "w4_gemm: permutation",
    "flash_decode: positions",
    "flash_decode: slot_mapping",
    "flash_prefill: plan",
};

L4K_HD constexpr const char* device_error_name(uint32_t code) {
  return code < sizeof(kDeviceErrorNames) / sizeof(kDeviceErrorNames[0]) ? kDeviceErrorNames[code]
                                                                         : "unknown";
}

}  // namespace l4k
