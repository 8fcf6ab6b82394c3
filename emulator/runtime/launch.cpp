// A launch: what the driver would refuse is refused, then the machine runs it.
#include <cstring>

#include "runtime/registry.h"

namespace l4k::emu {
namespace {

constexpr uint32_t kMaxShared = 227 * 1024;

std::string triple(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

uint64_t volume(dim3 d) { return uint64_t{d.x} * d.y * d.z; }

// What the launch attributes ask for.
struct Attributes {
  dim3 cluster{1, 1, 1};
  bool programmatic = false, cooperative = false;
};

// cudaSuccess, or refused as the driver would; so do the checks below.
cudaError_t read_attributes(const Kernel& k, const PtxFunction& f,
                            const cudaLaunchAttribute* attributes, unsigned count,
                            Attributes* out) {
  if (f.cluster[0]) out->cluster = dim3(f.cluster[0], f.cluster[1], f.cluster[2]);
  for (unsigned i = 0; i < count; ++i) {
    const cudaLaunchAttribute& a = attributes[i];
    switch (a.id) {
      case cudaLaunchAttributeClusterDimension: {
        dim3 c(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
        if (f.cluster[0] && (c.x != f.cluster[0] || c.y != f.cluster[1] || c.z != f.cluster[2]))
          return refuse(cudaErrorInvalidValue, k.name + ": cluster " + triple(c) +
                                                   " differs from the kernel's __cluster_dims__");
        out->cluster = c;
        break;
      }
      case cudaLaunchAttributeProgrammaticStreamSerialization:
        out->programmatic = a.val.programmaticStreamSerializationAllowed != 0;
        break;
      case cudaLaunchAttributeCooperative:
        out->cooperative = a.val.cooperative != 0;
        break;
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributePriority:
      case cudaLaunchAttributeAccessPolicyWindow:
      case cudaLaunchAttributeMemSyncDomain:
      case cudaLaunchAttributePreferredSharedMemoryCarveout:
      case cudaLaunchAttributeClusterSchedulingPolicyPreference:
        break;
      default:
        return refuse(cudaErrorNotSupported, k.name + ": launch attribute " +
                                                 std::to_string(int(a.id)) +
                                                 " is not implemented by the emulator");
    }
  }
  return cudaSuccess;
}

cudaError_t check_shape(const Kernel& k, const PtxFunction& f, dim3 grid, dim3 block) {
  uint64_t threads = volume(block);
  if (!threads || threads > 1024 || block.z > 64 || !grid.x || !grid.y || !grid.z ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return refuse(cudaErrorInvalidConfiguration,
                  k.name + ": grid " + triple(grid) + " block " + triple(block));
  uint64_t bound = uint64_t{f.max_threads[0]} * f.max_threads[1] * f.max_threads[2];
  if (bound && threads > bound)
    return refuse(cudaErrorLaunchOutOfResources, k.name + ": " + std::to_string(threads) +
                                                     " threads, but __launch_bounds__ says " +
                                                     std::to_string(bound));
  if (f.required_threads[0] &&
      (block.x != f.required_threads[0] || block.y != f.required_threads[1] ||
       block.z != f.required_threads[2]))
    return refuse(cudaErrorInvalidConfiguration,
                  k.name + ": block " + triple(block) + " is not the required one");
  return cudaSuccess;
}

cudaError_t check_shared(const Kernel& k, uint64_t fixed, uint64_t dynamic) {
  if (fixed > 48 * 1024)
    return refuse(cudaErrorInvalidPtx,
                  k.name + ": " + std::to_string(fixed) +
                      " bytes of static shared memory; ptxas allows 49152 (use "
                      "dynamic shared memory for more)");
  uint64_t limit = k.dynamic_set ? k.max_dynamic_shared : 48 * 1024 - fixed;
  if (dynamic > limit)
    return refuse(cudaErrorInvalidValue, k.name + ": " + std::to_string(dynamic) +
                                             " bytes of dynamic shared memory; allowed are " +
                                             std::to_string(limit) +
                                             " (set cudaFuncAttributeMaxDynamicSharedMemorySize)");
  if (fixed + dynamic > kMaxShared)
    return refuse(cudaErrorInvalidValue,
                  k.name + ": " + std::to_string(fixed + dynamic) + " bytes of shared memory");
  return cudaSuccess;
}

cudaError_t check_cluster(const Kernel& k, dim3 grid, dim3 cluster) {
  uint64_t size = volume(cluster);
  if (!size || size > (k.non_portable_cluster ? 16u : 8u))
    return refuse(cudaErrorInvalidClusterSize,
                  k.name + ": cluster " + triple(cluster) +
                      " (up to 8 CTAs, or 16 with the non-portable attribute)");
  if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z)
    return refuse(cudaErrorInvalidClusterSize, k.name + ": cluster " + triple(cluster) +
                                                   " does not divide grid " + triple(grid));
  return cudaSuccess;
}

cudaError_t check_occupancy(const Kernel& k, uint64_t ctas, uint64_t threads, uint64_t shared,
                            bool cooperative) {
  uint32_t per_sm =
      occupancy(*k.program, static_cast<uint32_t>(threads), static_cast<uint32_t>(shared));
  if (!per_sm)
    return refuse(cudaErrorLaunchOutOfResources, k.name + ": not even one CTA fits an SM");
  uint64_t resident = uint64_t{per_sm} * Machine::get().settings.sms;
  if (cooperative && ctas > resident)
    return refuse(cudaErrorCooperativeLaunchTooLarge,
                  k.name + ": " + std::to_string(ctas) + " CTAs, but only " +
                      std::to_string(resident) + " are resident together");
  return cudaSuccess;
}

void copy_arguments(const PtxFunction& f, void** args, Launch* l) {
  // Tensor maps in the block must keep their 64-byte alignment.
  l->params.assign(f.param_bytes + 256, 0);
  auto base = reinterpret_cast<uint64_t>(l->params.data());
  l->param_base = (base + 127) / 128 * 128;
  for (size_t i = 0; i < f.params.size(); ++i)
    std::memcpy(reinterpret_cast<void*>(l->param_base + f.params[i]->address), args[i],
                f.params[i]->bytes);
}

}  // namespace

cudaError_t run(const void* function, dim3 grid, dim3 block, void** args, size_t shared,
                const cudaLaunchAttribute* attributes, unsigned count) {
  if (Machine::get().failed()) return status();
  Kernel* k = Registry::get().find(function);
  if (!k) return Registry::get().last;
  const Program* p = k->load();
  if (!p) return Registry::get().last;
  const PtxFunction& f = *p->ptx;
  uint64_t fixed = p->static_shared_end - 1024;
  Attributes asked;
  cudaError_t e = read_attributes(*k, f, attributes, count, &asked);
  if (e == cudaSuccess) e = check_shape(*k, f, grid, block);
  if (e == cudaSuccess) e = check_shared(*k, fixed, shared);
  if (e == cudaSuccess) e = check_cluster(*k, grid, asked.cluster);
  if (e == cudaSuccess)
    e = check_occupancy(*k, volume(grid), volume(block), fixed + shared, asked.cooperative);
  if (e != cudaSuccess) return e;
  auto l = std::make_unique<Launch>();
  l->program = p;
  l->programmatic = asked.programmatic;
  if (asked.cooperative) l->grid_workspace = {8, 0};
  const dim3* shapes[] = {&grid, &block, &asked.cluster};
  uint32_t* into[] = {l->grid, l->block, l->cluster};
  for (int i = 0; i < 3; ++i)
    into[i][0] = shapes[i]->x, into[i][1] = shapes[i]->y, into[i][2] = shapes[i]->z;
  l->dynamic_shared = static_cast<uint32_t>(shared);
  copy_arguments(f, args, l.get());
  Machine::get().launch(std::move(l));
  return status();
}

}  // namespace l4k::emu
