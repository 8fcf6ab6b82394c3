// What can be submitted to a stream, or be a node of a graph.
#pragma once

#include <variant>

#include "runtime/streams.h"

namespace l4k::emu {

// What the launch attributes ask for.
struct LaunchAttributes {
  dim3 cluster{1, 1, 1};
  bool programmatic = false, cooperative = false;
};

struct KernelWork {
  Kernel* kernel = nullptr;
  dim3 grid, block;
  size_t shared = 0;
  LaunchAttributes asked;
  std::vector<uint8_t> params;   // as the kernel's parameter block has them
  std::vector<void*> arguments;  // for whoever asks a node for its parameters
};
// `depth` slices of `height` rows of `width` bytes.
struct CopyWork {
  cudaPitchedPtr dst = {}, src = {};
  cudaPos dst_pos = {}, src_pos = {};
  cudaExtent extent = {};
  cudaMemcpyKind kind = cudaMemcpyDefault;
};
struct FillWork {
  cudaMemsetParams params = {};
  size_t depth = 1, rows = 0;  // slices, and the rows of each in memory
};
struct HostWork {
  cudaHostFn_t function = nullptr;
  void* data = nullptr;
};
struct EmptyWork {};
struct RecordWork {
  cudaEvent_t event;
};
struct WaitWork {
  cudaEvent_t event;
};
struct AllocationWork {
  void* memory;
  size_t bytes;
};
struct FreeWork {
  void* memory;
};
struct ChildWork {
  std::shared_ptr<Graph> graph;
};
using Work = std::variant<EmptyWork, KernelWork, CopyWork, FillWork, HostWork, RecordWork, WaitWork,
                          AllocationWork, FreeWork, ChildWork>;

// A launch that the driver would accept, or refused as it would.
cudaError_t prepare(KernelWork* work, const void* function, dim3 grid, dim3 block, void** args,
                    size_t shared, const cudaLaunchAttribute* attributes, unsigned count);
// The same, with the parameters as one block of bytes.
cudaError_t prepare_packed(KernelWork* work, const void* function, dim3 grid, dim3 block,
                           const void* params, size_t bytes, size_t shared);
// While launches are listed, one that the driver would accept is added to the list and not run.
struct ListedLaunch {
  std::string kernel;
  dim3 grid, block, cluster;
  uint64_t shared = 0;  // bytes of a CTA, static and dynamic
  bool dependent = false;
};
void list_launches(bool listed);  // true begins an empty list
const std::vector<ListedLaunch>& listed_launches();
CopyWork linear_copy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind);
FillWork linear_fill(void* dst, unsigned value, size_t bytes);
// Whether the copy's and fill's memory is what it says; refused otherwise.
cudaError_t check(const CopyWork& work);
cudaError_t check(const FillWork& work);

// Does the work, as this operation of a stream.
cudaError_t perform(const Work& work, const StreamOperationPtr& operation);
std::string name_of(const Work& work);
StreamOperation::Kind kind_of(const Work& work);

// Work of a stream: done, or added to the graph that the stream is capturing.
cudaError_t submit(cudaStream_t stream, Work work, StreamOperationPtr* operation = nullptr);
// ... and the host waits for it. `name` is the call's.
cudaError_t submit_and_wait(const char* name, Work work);

}  // namespace l4k::emu
