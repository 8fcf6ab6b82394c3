// A launch: what the driver would refuse is refused, then the machine runs it.
#include <cstring>

#include "runtime/graph.h"

namespace l4k::emu {
namespace {

constexpr uint32_t kMaxShared = 227 * 1024;

std::string triple(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

uint64_t volume(dim3 d) { return uint64_t{d.x} * d.y * d.z; }

// cudaSuccess, or refused as the driver would; so do the checks below.
cudaError_t read_attributes(const Kernel& k, const PtxFunction& f,
                            const cudaLaunchAttribute* attributes, unsigned count,
                            LaunchAttributes* out) {
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
      case cudaLaunchAttributeSynchronizationPolicy:
      case cudaLaunchAttributeMemSyncDomainMap:
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

cudaError_t refused() { return Registry::get().last; }

struct {
  bool open = false;
  std::vector<ListedLaunch> launches;
} list;

uint64_t static_shared(const Program& p) { return p.static_shared_end - 1024; }

}  // namespace

void list_launches(bool listed) {
  Lock lock(runtime_mutex());
  list.open = listed;
  if (listed) list.launches.clear();
}

const std::vector<ListedLaunch>& listed_launches() { return list.launches; }

cudaError_t prepare(KernelWork* work, const void* function, dim3 grid, dim3 block, void** args,
                    size_t shared, const cudaLaunchAttribute* attributes, unsigned count) {
  if (Machine::get().failed()) return status();
  Kernel* k = Registry::get().find(function);
  const Program* p = k ? k->load() : nullptr;
  if (!p) return refused();
  const PtxFunction& f = *p->ptx;
  if (!args && !f.params.empty())
    return refuse(cudaErrorInvalidValue, k->name + ": no arguments, but it has parameters");
  uint64_t fixed = static_shared(*p);
  LaunchAttributes asked;
  cudaError_t e = read_attributes(*k, f, attributes, count, &asked);
  if (e == cudaSuccess) e = check_shape(*k, f, grid, block);
  if (e == cudaSuccess) e = check_shared(*k, fixed, shared);
  if (e == cudaSuccess) e = check_cluster(*k, grid, asked.cluster);
  if (e == cudaSuccess)
    e = check_occupancy(*k, volume(grid), volume(block), fixed + shared, asked.cooperative);
  if (e != cudaSuccess) return e;
  *work = {k, grid, block, shared, asked, std::vector<uint8_t>(f.param_bytes), {}};
  for (size_t i = 0; i < f.params.size(); ++i) {
    work->arguments.push_back(work->params.data() + f.params[i]->address);
    std::memcpy(work->arguments.back(), args[i], f.params[i]->bytes);
  }
  return cudaSuccess;
}

cudaError_t prepare_packed(KernelWork* work, const void* function, dim3 grid, dim3 block,
                           const void* params, size_t bytes, size_t shared) {
  Kernel* k = Registry::get().find(function);
  const Program* p = k ? k->load() : nullptr;
  if (!p) return refused();
  std::vector<uint8_t> block_of_params(p->ptx->param_bytes);
  std::memcpy(block_of_params.data(), params, std::min(bytes, block_of_params.size()));
  std::vector<void*> args;
  for (const auto& param : p->ptx->params) args.push_back(block_of_params.data() + param->address);
  return prepare(work, function, grid, block, args.data(), shared, nullptr, 0);
}

cudaError_t launch(const KernelWork& work, const StreamOperationPtr& operation) {
  if (list.open) {
    list.launches.push_back({work.kernel->name, work.grid, work.block, work.asked.cluster,
                             static_shared(*work.kernel->program) + work.shared,
                             work.asked.programmatic});
    return cudaSuccess;
  }
  auto l = std::make_unique<Launch>();
  l->program = work.kernel->program;
  l->operation = operation;
  l->programmatic = work.asked.programmatic;
  if (work.asked.cooperative) l->grid_workspace = {8, 0};
  const dim3* shapes[] = {&work.grid, &work.block, &work.asked.cluster};
  uint32_t* into[] = {l->grid, l->block, l->cluster};
  for (int i = 0; i < 3; ++i)
    into[i][0] = shapes[i]->x, into[i][1] = shapes[i]->y, into[i][2] = shapes[i]->z;
  l->dynamic_shared = static_cast<uint32_t>(work.shared);
  // Tensor maps in the block must keep their 64-byte alignment.
  l->params.assign(work.params.size() + 256, 0);
  l->param_base = (reinterpret_cast<uint64_t>(l->params.data()) + 127) / 128 * 128;
  std::memcpy(reinterpret_cast<void*>(l->param_base), work.params.data(), work.params.size());
  Machine::get().launch(std::move(l));
  return status();
}

cudaError_t run(const void* function, dim3 grid, dim3 block, void** args, size_t shared,
                const cudaLaunchAttribute* attributes, unsigned count, cudaStream_t stream) {
  Lock lock(runtime_mutex());
  KernelWork work;
  if (cudaError_t e = prepare(&work, function, grid, block, args, shared, attributes, count))
    return e;
  return submit(stream, std::move(work));
}

}  // namespace l4k::emu
