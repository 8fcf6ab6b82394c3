// Shared memory of the other CTAs of a cluster.
#pragma once
#include <cstdint>

#include "ptx/mbarrier.cuh"

namespace l4k::ptx {

// PTX ISA: mapa, st.shared::cluster. Writes to the same offset in CTA `rank` of the cluster;
// visible there after a cluster barrier.
__device__ __forceinline__ void store_cluster(void* smem, uint32_t rank, uint4 v) {
  asm volatile(
      "{\n\t.reg .b32 remote;\n\t"
      "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
      "st.shared::cluster.v4.u32 [remote], {%2, %3, %4, %5};\n\t}" ::"r"(smem_address(smem)),
      "r"(rank), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
      : "memory");
}

// PTX ISA: mapa, st.async. Writes to the same offset in CTA `rank` of the cluster and adds the bytes to
// its barrier at the same offset: who waits for that sees them, without a fence.
__device__ __forceinline__ void store_async(uint32_t* smem, uint32_t rank, uint32_t value,
                                            uint64_t* barrier) {
  asm volatile(
      "{\n\t.reg .b32 remote, counter;\n\t"
      "mapa.shared::cluster.u32 remote, %0, %3;\n\t"
      "mapa.shared::cluster.u32 counter, %2, %3;\n\t"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [remote], %1, "
      "[counter];\n\t}" ::"r"(smem_address(smem)),
      "r"(value), "r"(smem_address(barrier)), "r"(rank)
      : "memory");
}

// PTX ISA: mapa, ld.shared::cluster. Reads the same offset in CTA `rank` of the cluster, which must
// have released what it wrote there.
__device__ __forceinline__ float4 load_cluster(const float4* smem, uint32_t rank) {
  float4 v;
  asm volatile(
      "{\n\t.reg .b32 remote;\n\t"
      "mapa.shared::cluster.u32 remote, %4, %5;\n\t"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n\t}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(smem_address(smem)), "r"(rank)
      : "memory");
  return v;
}

__device__ __forceinline__ uint32_t load_cluster(const uint32_t* smem, uint32_t rank) {
  uint32_t v;
  asm volatile(
      "{\n\t.reg .b32 remote;\n\t"
      "mapa.shared::cluster.u32 remote, %1, %2;\n\t"
      "ld.shared::cluster.u32 %0, [remote];\n\t}"
      : "=r"(v)
      : "r"(smem_address(smem)), "r"(rank)
      : "memory");
  return v;
}

}  // namespace l4k::ptx
