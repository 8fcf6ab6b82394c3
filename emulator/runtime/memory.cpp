// Allocations: device, pitched, managed, page-locked and registered memory. Device memory is host
// memory with guard zones.
#include <cstdlib>
#include <cstring>

#include "runtime/work.h"

using namespace l4k::emu;

namespace {

GlobalMemory& memory() { return Machine::get().memory; }
std::string address(const void* p) { return hex(reinterpret_cast<uint64_t>(p)); }

cudaError_t allocate(void** p, size_t n, Owner owner, const char* name, unsigned flags = 0) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = status()) return e;
  if (!p) return refuse(cudaErrorInvalidValue, std::string(name) + " into a null pointer");
  if (cudaError_t e = Streams::get().unsafe_call(name)) return e;
  *p = n ? memory().allocate(n, owner, flags) : nullptr;
  return n && !*p
             ? refuse(cudaErrorMemoryAllocation, "out of memory: " + std::to_string(n) + " bytes")
             : cudaSuccess;
}

// What is wrong with freeing this pointer; empty: nothing.
std::string not_freeable(const void* p, std::initializer_list<Owner> owners) {
  const Range* r = memory().begins(p);
  if (r && std::find(owners.begin(), owners.end(), r->owner) != owners.end())
    return r->ended ? "which has been freed already" : "";
  if (r && !r->ended) return "which another call has allocated, and another one frees";
  r = memory().find(reinterpret_cast<uint64_t>(p), 1);
  return !r         ? "which is no allocation"
         : r->ended ? "which is inside memory that has been freed"
                    : "which is inside an allocation that begins at " + hex(r->begin);
}

// Waits for all that was submitted, as the driver does, then frees.
cudaError_t release(void* p, const char* name, const char* memory_name,
                    std::initializer_list<Owner> owners) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = Streams::get().unsafe_call(name)) return e;
  if (cudaError_t e = settle()) return e;
  if (!p) return cudaSuccess;
  std::string why = not_freeable(p, owners);
  if (!why.empty())
    return refuse(cudaErrorInvalidValue, std::string(name) + " of " + address(p) + ", " + why);
  Streams::get().host_waits_for_all();
  memory().release(p, Machine::get().next_launch(), memory_name);
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** p, size_t n) { return allocate(p, n, Owner::device, "cudaMalloc"); }
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned flags) {
  if (flags != cudaMemAttachGlobal && flags != cudaMemAttachHost)
    return refuse(cudaErrorInvalidValue, "cudaMallocManaged: flags " + std::to_string(flags));
  return allocate(p, n, Owner::managed, "cudaMallocManaged", flags);
}
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned flags) {
  constexpr unsigned kKnown =
      cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
  if (flags & ~kKnown)
    return refuse(cudaErrorInvalidValue, "cudaHostAlloc: flags " + std::to_string(flags));
  return allocate(p, n, Owner::host, "cudaHostAlloc", flags | cudaHostAllocMapped);
}
cudaError_t cudaMallocHost(void** p, size_t n) { return cudaHostAlloc(p, n, cudaHostAllocDefault); }
cudaError_t cudaMallocPitch(void** p, size_t* pitch, size_t width, size_t height) {
  constexpr size_t kPitch = 512;
  *pitch = (width + kPitch - 1) / kPitch * kPitch;
  return allocate(p, *pitch * height, Owner::device, "cudaMallocPitch");
}
cudaError_t cudaMalloc3D(cudaPitchedPtr* p, cudaExtent e) {
  *p = {nullptr, 0, e.width, e.height};
  return cudaMallocPitch(&p->ptr, &p->pitch, e.width, e.height * e.depth);
}
cudaError_t cudaFree(void* p) {
  return release(p, "cudaFree", "memory from cudaMalloc",
                 {Owner::device, Owner::managed, Owner::pool, Owner::graph});
}
cudaError_t cudaFreeHost(void* p) {
  return release(p, "cudaFreeHost", "memory from cudaMallocHost", {Owner::host});
}

cudaError_t cudaHostRegister(void* p, size_t n, unsigned flags) {
  Lock lock(runtime_mutex());
  constexpr unsigned kKnown = cudaHostRegisterPortable | cudaHostRegisterMapped |
                              cudaHostRegisterIoMemory | cudaHostRegisterReadOnly;
  if (!p || !n || (flags & ~kKnown))
    return refuse(cudaErrorInvalidValue, "cudaHostRegister of " + std::to_string(n) + " bytes at " +
                                             address(p) + ", flags " + std::to_string(flags));
  if (flags & cudaHostRegisterIoMemory)
    return refuse(cudaErrorNotSupported,
                  "cudaHostRegisterIoMemory is not implemented by the emulator");
  for (size_t at : {size_t{0}, n - 1})
    if (const Range* r = memory().find_live(reinterpret_cast<uint64_t>(p) + at, 1);
        r && r->owner != Owner::registered)
      return refuse(
          cudaErrorHostMemoryAlreadyRegistered,
          "cudaHostRegister of " + address(p) + ", which is registered or allocated already");
  memory().add_range(p, n, Owner::host_registered, flags | cudaHostRegisterMapped);
  return status();
}
cudaError_t cudaHostUnregister(void* p) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = settle()) return e;
  const Range* r = memory().begins(p);
  if (!r || r->owner != Owner::host_registered)
    return refuse(
        cudaErrorHostMemoryNotRegistered,
        "cudaHostUnregister of " + address(p) + ", which cudaHostRegister did not register");
  Streams::get().host_waits_for_all();
  memory().remove_range(p, r->bytes());
  return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void** d, void* h, unsigned flags) {
  Lock lock(runtime_mutex());
  const Range* r = memory().find_live(reinterpret_cast<uint64_t>(h), 1);
  if (flags || !r || (r->owner != Owner::host && r->owner != Owner::host_registered))
    return refuse(cudaErrorInvalidValue, "cudaHostGetDevicePointer of " + address(h) +
                                             ", which is not page-locked memory");
  *d = h;
  return cudaSuccess;
}
cudaError_t cudaHostGetFlags(unsigned* flags, void* h) {
  Lock lock(runtime_mutex());
  const Range* r = memory().find_live(reinterpret_cast<uint64_t>(h), 1);
  if (!r || r->owner != Owner::host)
    return refuse(cudaErrorInvalidValue,
                  "cudaHostGetFlags of " + address(h) + ", which cudaHostAlloc did not allocate");
  *flags = r->flags;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  Lock lock(runtime_mutex());
  *total = kTotalMemory;
  *free_bytes = kTotalMemory - std::min<uint64_t>(kTotalMemory, memory().bytes_in_use());
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Lock lock(runtime_mutex());
  std::memset(a, 0, sizeof *a);
  const Range* r = memory().find_live(reinterpret_cast<uint64_t>(p), 1);
  bool host = r && (r->owner == Owner::host || r->owner == Owner::host_registered);
  a->type = !r                           ? cudaMemoryTypeUnregistered
            : host                       ? cudaMemoryTypeHost
            : r->owner == Owner::managed ? cudaMemoryTypeManaged
                                         : cudaMemoryTypeDevice;
  if (r) a->devicePointer = const_cast<void*>(p);
  if (!r || host || r->owner == Owner::managed) a->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}
// Managed memory is where it is: advice and prefetches change nothing.
cudaError_t cudaMemAdvise(const void*, size_t, cudaMemoryAdvise, cudaMemLocation) {
  return status();
}
cudaError_t cudaMemPrefetchAsync(const void* p, size_t n, cudaMemLocation, unsigned,
                                 cudaStream_t s) {
  Lock lock(runtime_mutex());
  if (!Streams::get().find(s)) return Registry::get().last;
  const Range* r = memory().find_live(reinterpret_cast<uint64_t>(p), n);
  return r && r->owner == Owner::managed
             ? status()
             : refuse(cudaErrorInvalidValue, "cudaMemPrefetchAsync of memory that is not managed");
}

cudaError_t cudaGetSymbolAddress(void** p, const void* s) {
  Lock lock(runtime_mutex());
  const Variable* v = Registry::get().variable(s);
  if (!v) return Registry::get().last;
  *p = reinterpret_cast<void*>(v->address);
  return cudaSuccess;
}
cudaError_t cudaGetSymbolSize(size_t* n, const void* s) {
  Lock lock(runtime_mutex());
  const Variable* v = Registry::get().variable(s);
  if (!v) return Registry::get().last;
  *n = v->bytes;
  return cudaSuccess;
}

}  // extern "C"
