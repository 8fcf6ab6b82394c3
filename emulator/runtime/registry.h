// Fat binaries, kernels and device variables by host address; errors of the runtime.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "machine/core/machine.h"

namespace l4k::emu {

struct FatBinary {
  const void* data = nullptr;
  std::vector<std::unique_ptr<Image>> images;
  bool loaded = false;
  std::string error;
  void load();
};

struct Kernel {
  FatBinary* binary = nullptr;
  std::string name;
  uint32_t max_dynamic_shared = 48 * 1024;
  bool dynamic_set = false, non_portable_cluster = false;
  const Program* program = nullptr;
  // Null, with `refuse` called, when the module is malformed or lacks the entry.
  const Program* load();
};

struct DeviceVariable {
  FatBinary* binary;
  std::string name;
};

struct Registry {
  std::vector<std::unique_ptr<FatBinary>> binaries;
  std::map<const void*, std::unique_ptr<Kernel>> kernels;  // by host function
  std::map<const void*, DeviceVariable> variables;
  cudaError_t last = cudaSuccess;     // cudaGetLastError
  cudaError_t refused = cudaSuccess;  // the last call that was refused, and why
  std::string refusal;
  static Registry& get();
  // A host function, or a kernel handle that __cudaGetKernel returned.
  Kernel* find(const void* function);
  const Variable* variable(const void* symbol);
};

inline constexpr size_t kTotalMemory = size_t{141} << 30;  // an H200's

// Says why a call is refused, on stderr too, once: programs often print no more than a number.
void note_refusal(const std::string& why);
// Remembers the error (cudaGetLastError) and why; returns it.
cudaError_t refuse(cudaError_t error, const std::string& why);
// cudaSuccess, or the sticky error.
cudaError_t failure();  // the error of a launch that a report has ended
cudaError_t status();
// An entry of PTX text as a kernel to `run`; throws PtxError.
Kernel* add_ptx_kernel(const std::string& text, const std::string& entry);
cudaError_t run(const void* function, dim3 grid, dim3 block, void** args, size_t shared,
                const cudaLaunchAttribute* attributes, unsigned count,
                cudaStream_t stream = nullptr);

}  // namespace l4k::emu
