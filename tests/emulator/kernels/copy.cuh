// A launch that writes what the next one reads, and lets it start at once. Included once for each mutant,
// in a namespace of its own, after its ptx/sync.cuh and host/launch.h.

namespace l4k {

__global__ void copy_words(const uint32_t* from, uint32_t* to, int count) {
  ptx::grid_launch_dependents();
  for (int i = threadIdx.x + blockIdx.x * blockDim.x; i < count; i += blockDim.x * gridDim.x)
    to[i] = from[i];
  ptx::grid_dependency_wait();
}

template <typename T>
bool copy(const Buffer<T>& from, const Buffer<T>& to) {
  const LaunchConfig config{.grid = dim3(2), .block = dim3(128)};
  return launch(copy_words, config, nullptr, reinterpret_cast<const uint32_t*>(from.data),
                reinterpret_cast<uint32_t*>(to.data),
                static_cast<int>(from.size * sizeof(T) / 4)) == cudaSuccess;
}

}  // namespace l4k
