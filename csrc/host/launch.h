// One way to launch: grid, cluster, shared memory, dependent launch. Never throws, allocates or
// synchronises; returns what the runtime returned.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>

#include "host/device.h"

namespace l4k {

// Whether launches may be dependent at all. L4K_CHECK=serial turns that off for a process,
// l4kernels.testing.emulator.serial_launches() for a block: a wrong result that goes away is a race between
// neighbours of the stream.
std::atomic<bool>& dependent_launches();

struct LaunchConfig {
  dim3 grid, block;
  size_t smem_bytes = 0;
  int cluster = 1;  // CTAs along x
  // Programmatic dependent launch: the kernel may start while its predecessor in the stream still
  // runs, so it must execute griddepcontrol.wait before it touches anything the predecessor writes.
  bool dependent = true;
};

// What a launch asks of the runtime, filled in from a LaunchConfig.
struct LaunchRequest {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};

  LaunchRequest(const LaunchConfig& wanted, cudaStream_t stream) {
    int count = 0;
    if (wanted.dependent && dependent_launches().load(std::memory_order_relaxed)) {
      attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (wanted.cluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count].val.clusterDim.x = wanted.cluster;
      attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
      ++count;
    }
    config.gridDim = wanted.grid;
    config.blockDim = wanted.block;
    config.dynamicSmemBytes = wanted.smem_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
  }
  LaunchRequest(const LaunchRequest&) = delete;  // `config` points into it
};

// Lets a kernel be launched with so much dynamic shared memory; asks the runtime once a device.
cudaError_t allow_shared_memory(const void* kernel, size_t bytes);

template <typename... Parameters>
cudaError_t allow_shared_memory(void (*kernel)(Parameters...), size_t bytes) {
  return allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
}

// How many clusters of a kernel the device runs at once; 0 if it can run none, or the launch has no
// clusters.
template <typename... Parameters>
int resident_clusters(void (*kernel)(Parameters...), LaunchConfig config) {
  config.grid = dim3(config.cluster);
  const LaunchRequest request(config, nullptr);
  int clusters = 0;
  if (allow_shared_memory(kernel, config.smem_bytes) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &request.config) != cudaSuccess)
    return cudaGetLastError(), 0;
  return clusters;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchConfig& config, cudaStream_t stream,
                   Arguments&&... arguments) {
  // A grid of zero CTAs is an error to the runtime; here it is an empty problem.
  if (config.grid.x == 0) return cudaSuccess;
  if (cudaError_t error = allow_shared_memory(kernel, config.smem_bytes)) return error;
  const LaunchRequest request(config, stream);
  return cudaLaunchKernelEx(&request.config, kernel, Parameters(arguments)...);
}

}  // namespace l4k
