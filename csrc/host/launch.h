// One way to launch: grid, cluster, shared memory, dependent launch. Never throws, allocates or
// synchronises; returns what the runtime returned.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>

#include "host/device.h"

namespace l4k {

// Whether launches may be dependent at all. L4K_CHECK=serial turns that off for a process,
// l4kernels.testing.serial_launches() for a block: a wrong result that goes away is a race between
// neighbours of the stream.
inline std::atomic<bool>& dependent_launches() {
  static std::atomic<bool> allowed{!check_asks_for("serial")};
  return allowed;
}

struct LaunchConfig {
  dim3 grid, block;
  size_t smem_bytes = 0;
  int cluster = 1;  // CTAs along x
  // Programmatic dependent launch: the kernel may start while its predecessor in the stream still
  // runs, so it must execute griddepcontrol.wait before it touches anything the predecessor writes.
  bool dependent = true;
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchConfig& config, cudaStream_t stream,
                   Arguments&&... arguments) {
  // A grid of zero CTAs is an error to the runtime, but an empty problem is not one to us.
  if (config.grid.x == 0) return cudaSuccess;
  if (config.smem_bytes > 48 * 1024) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(config.smem_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2];
  int count = 0;
  if (config.dependent && dependent_launches().load(std::memory_order_relaxed)) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = config.cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.smem_bytes;
  launch_config.stream = stream;
  launch_config.attrs = attributes;
  launch_config.numAttrs = count;
  return cudaLaunchKernelEx(&launch_config, kernel, Parameters(arguments)...);
}

}  // namespace l4k
