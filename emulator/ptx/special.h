// Special registers that keep their value for the life of a warp: every function's register file
// starts with them (register 0 is unused). The rest (%clock, %globaltimer, ...) are symbols.
#pragma once

#include <cstdint>

namespace l4k::emu {

enum Special : uint32_t {
  kNoRegister, kTidX, kTidY, kTidZ, kNtidX, kNtidY, kNtidZ, kCtaidX, kCtaidY, kCtaidZ, kNctaidX,
  kNctaidY, kNctaidZ, kLaneid, kWarpid, kNwarpid, kSmid, kNsmid, kGridid, kClusteridX, kClusteridY,
  kClusteridZ, kNclusteridX, kNclusteridY, kNclusteridZ, kClusterCtaidX, kClusterCtaidY,
  kClusterCtaidZ, kClusterNctaidX, kClusterNctaidY, kClusterNctaidZ, kClusterCtarank,
  kClusterNctarank, kLanemaskEq, kLanemaskLe, kLanemaskLt, kLanemaskGe, kLanemaskGt,
  kDynamicSmemSize, kTotalSmemSize, kIsExplicitCluster, kSpecialCount
};

inline constexpr const char* kSpecialNames[kSpecialCount] = {
    "", "%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y",
    "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid", "%nwarpid", "%smid",
    "%nsmid", "%gridid", "%clusterid.x", "%clusterid.y", "%clusterid.z", "%nclusterid.x",
    "%nclusterid.y", "%nclusterid.z", "%cluster_ctaid.x", "%cluster_ctaid.y", "%cluster_ctaid.z",
    "%cluster_nctaid.x", "%cluster_nctaid.y", "%cluster_nctaid.z", "%cluster_ctarank",
    "%cluster_nctarank", "%lanemask_eq", "%lanemask_le", "%lanemask_lt", "%lanemask_ge",
    "%lanemask_gt", "%dynamic_smem_size", "%total_smem_size", "%is_explicit_cluster"};

}  // namespace l4k::emu
