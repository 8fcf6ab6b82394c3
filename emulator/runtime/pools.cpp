// Stream-ordered allocation and memory pools.
#include <cstring>

#include "runtime/work.h"

using namespace l4k::emu;

namespace {

struct Pool {
  uint64_t release_threshold = 0, used_high = 0, reserved_high = 0;
  int reuse[3] = {1, 1, 1};  // follow events, opportunistic, internal dependencies
};

struct Pools {
  std::vector<std::unique_ptr<Pool>> pools;
  Pool* current;
  Pools() { pools.push_back(std::make_unique<Pool>()), current = pools[0].get(); }
};

Pools& all() {
  static auto* pools = new Pools;
  return *pools;
}

Pool* find(cudaMemPool_t handle) {
  for (const auto& p : all().pools)
    if (p.get() == reinterpret_cast<Pool*>(handle)) return p.get();
  refuse(cudaErrorInvalidValue, "not a memory pool, or one that has been destroyed");
  return nullptr;
}

cudaMemPool_t handle(Pool* p) { return reinterpret_cast<cudaMemPool_t>(p); }

cudaError_t allocate(void** p, size_t n, Pool* pool, cudaStream_t stream) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(stream);
  if (!s || !pool) return Registry::get().last;
  if (cudaError_t e = status()) return e;
  if (!p) return refuse(cudaErrorInvalidValue, "cudaMallocAsync into a null pointer");
  *p = nullptr;
  if (!n) return cudaSuccess;
  GlobalMemory& memory = Machine::get().memory;
  *p = memory.allocate(n, s->capture ? Owner::graph : Owner::pool);
  if (!*p)
    return refuse(cudaErrorMemoryAllocation, "out of memory: " + std::to_string(n) + " bytes");
  pool->used_high = pool->reserved_high = std::max(pool->used_high, memory.bytes_in_use());
  return submit(stream, AllocationWork{*p, n});
}

uint64_t in_use() {
  uint64_t bytes = 0;
  Machine::get().memory.for_each_live([&](const Range& r) {
    if (r.owner == Owner::pool) bytes += r.bytes();
  });
  return bytes;
}

cudaError_t unknown(cudaMemPoolAttr a) {
  return refuse(cudaErrorInvalidValue, "memory pool attribute " + std::to_string(int(a)) +
                                           " does not exist, or cannot be set");
}

}  // namespace

extern "C" {

cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t s) {
  return allocate(p, n, all().current, s);
}
cudaError_t cudaMallocFromPoolAsync(void** p, size_t n, cudaMemPool_t pool, cudaStream_t s) {
  return allocate(p, n, find(pool), s);
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(stream);
  if (!s) return Registry::get().last;
  if (cudaError_t e = status()) return e;
  if (!p) return cudaSuccess;
  const Range* r = Machine::get().memory.begins(p);
  if (!r || (r->owner != Owner::pool && r->owner != Owner::graph))
    return refuse(cudaErrorInvalidValue, "cudaFreeAsync of " + hex(reinterpret_cast<uint64_t>(p)) +
                                             ", which cudaMallocAsync did not return");
  return submit(stream, FreeWork{p});
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  return *pool = handle(all().pools[0].get()), cudaSuccess;
}
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int) {
  return *pool = handle(all().current), cudaSuccess;
}
cudaError_t cudaDeviceSetMemPool(int, cudaMemPool_t pool) {
  Lock lock(runtime_mutex());
  Pool* p = find(pool);
  return p ? (all().current = p, cudaSuccess) : Registry::get().last;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* props) {
  Lock lock(runtime_mutex());
  if (props->allocType != cudaMemAllocationTypePinned ||
      props->handleTypes != cudaMemHandleTypeNone)
    return refuse(cudaErrorNotSupported,
                  "the emulator's memory pools are pinned device memory without handles to export");
  all().pools.push_back(std::make_unique<Pool>());
  return *pool = handle(all().pools.back().get()), cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  Lock lock(runtime_mutex());
  Pool* p = find(pool);
  if (!p) return Registry::get().last;
  if (p == all().pools[0].get())
    return refuse(cudaErrorInvalidValue, "the default memory pool cannot be destroyed");
  if (all().current == p) all().current = all().pools[0].get();
  std::erase_if(all().pools, [&](const auto& other) { return other.get() == p; });
  return cudaSuccess;
}
// Freed memory is kept for a while in any case, to name late uses.
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t) {
  Lock lock(runtime_mutex());
  return find(pool) ? settle() : Registry::get().last;
}
cudaError_t cudaMemPoolSetAccess(cudaMemPool_t pool, const cudaMemAccessDesc*, size_t) {
  Lock lock(runtime_mutex());
  return find(pool) ? cudaSuccess : Registry::get().last;
}
cudaError_t cudaMemPoolGetAccess(cudaMemAccessFlags* flags, cudaMemPool_t pool, cudaMemLocation*) {
  Lock lock(runtime_mutex());
  return find(pool) ? (*flags = cudaMemAccessFlagsProtReadWrite, cudaSuccess)
                    : Registry::get().last;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr a, void* value) {
  Lock lock(runtime_mutex());
  Pool* p = find(pool);
  if (!p) return Registry::get().last;
  switch (a) {
    case cudaMemPoolReuseFollowEventDependencies:
    case cudaMemPoolReuseAllowOpportunistic:
    case cudaMemPoolReuseAllowInternalDependencies:
      p->reuse[a - cudaMemPoolReuseFollowEventDependencies] = *static_cast<int*>(value);
      return cudaSuccess;
    case cudaMemPoolAttrReleaseThreshold:
      return p->release_threshold = *static_cast<uint64_t*>(value), cudaSuccess;
    case cudaMemPoolAttrReservedMemHigh:
      return p->reserved_high = in_use(), cudaSuccess;
    case cudaMemPoolAttrUsedMemHigh:
      return p->used_high = in_use(), cudaSuccess;
    default:
      return unknown(a);
  }
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr a, void* value) {
  Lock lock(runtime_mutex());
  Pool* p = find(pool);
  if (!p) return Registry::get().last;
  auto* number = static_cast<uint64_t*>(value);
  switch (a) {
    case cudaMemPoolReuseFollowEventDependencies:
    case cudaMemPoolReuseAllowOpportunistic:
    case cudaMemPoolReuseAllowInternalDependencies:
      return *static_cast<int*>(value) = p->reuse[a - cudaMemPoolReuseFollowEventDependencies],
             cudaSuccess;
    case cudaMemPoolAttrReleaseThreshold:
      return *number = p->release_threshold, cudaSuccess;
    case cudaMemPoolAttrReservedMemCurrent:
    case cudaMemPoolAttrUsedMemCurrent:
      return *number = in_use(), cudaSuccess;
    case cudaMemPoolAttrReservedMemHigh:
      return *number = p->reserved_high, cudaSuccess;
    case cudaMemPoolAttrUsedMemHigh:
      return *number = p->used_high, cudaSuccess;
    default:
      return unknown(a);
  }
}
// Memory of graphs is never given back before the program ends.
cudaError_t cudaDeviceGraphMemTrim(int) { return settle(); }

}  // extern "C"
