// Shared memory of the other CTAs of a cluster.
#pragma once
#include <cstdint>

#include "ptx/mbarrier.cuh"

namespace l4k::ptx {

// PTX ISA: mapa, st.shared::cluster. Writes to the same offset in CTA `rank` of the cluster;
// visible there after a cluster barrier.
__device__ __forceinline__ void store_cluster(void* smem, uint32_t rank, uint2 v) {
  asm volatile(
      "{\n\t.reg .b32 remote;\n\t"
      "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
      "st.shared::cluster.v2.u32 [remote], {%2, %3};\n\t}" ::"r"(smem_address(smem)),
      "r"(rank), "r"(v.x), "r"(v.y)
      : "memory");
}

}  // namespace l4k::ptx
