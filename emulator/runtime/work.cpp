#include "runtime/work.h"

#include <cstring>

#include "runtime/graph.h"

namespace l4k::emu {
namespace {

GlobalMemory& memory() { return Machine::get().memory; }

const Range* range_of(const void* p, size_t bytes) {
  return memory().find(reinterpret_cast<uint64_t>(p), bytes);
}

char* start(const cudaPitchedPtr& p, const cudaPos& at) {
  return static_cast<char*>(p.ptr) + at.z * p.pitch * p.ysize + at.y * p.pitch + at.x;
}

// Calls f(address, bytes) for each contiguous piece of a pitched box.
template <typename F>
void for_each_row(char* first, size_t pitch, size_t rows_per_slice, const cudaExtent& e, F&& f) {
  if (!e.width || !e.height || !e.depth) return;
  if (e.height == 1 && e.depth == 1) return f(first, e.width);
  if (pitch == e.width && (e.depth == 1 || rows_per_slice == e.height))
    return f(first, e.width * e.height * e.depth);
  for (size_t z = 0; z < e.depth; ++z)
    for (size_t y = 0; y < e.height; ++y) f(first + (z * rows_per_slice + y) * pitch, e.width);
}

// Why a kernel or copy on the device's side may not touch these bytes; empty: it may.
std::string forbidden(const void* p, size_t bytes) {
  const Range* r = range_of(p, bytes);
  if (!r) return memory().describe(reinterpret_cast<uint64_t>(p));
  if (r->ended)
    return hex(reinterpret_cast<uint64_t>(p)) + " is in " + r->name + " of " +
           std::to_string(r->bytes()) + " bytes that has been freed";
  return "";
}

// A host pointer may be any address that the program has, but not device memory past its end.
std::string forbidden_host(const void* p, size_t bytes) {
  const Range* r = range_of(p, 1);
  return r && r->owner != Owner::registered ? forbidden(p, bytes) : "";
}

void note(const StreamOperationPtr& op, const void* p, size_t bytes, Touching how) {
  Machine& m = Machine::get();
  if (m.order.following() && range_of(p, bytes))
    m.order.note(op, reinterpret_cast<uint64_t>(p), bytes, how, -1);
}

// Runs what may find an error of the program, as a kernel may.
template <typename F>
cudaError_t guarded(F&& f) {
  Machine::get().perform(f);
  return status();
}

cudaError_t refuse_copy(const char* what, size_t bytes, const std::string& why) {
  return refuse(cudaErrorInvalidValue,
                std::string(what) + " of " + std::to_string(bytes) + " bytes: " + why);
}

cudaError_t perform_copy(const CopyWork& w, const StreamOperationPtr& op) {
  char* to = start(w.dst, w.dst_pos);
  char* from = start(w.src, w.src_pos);
  return guarded([&] {
    for_each_row(from, w.src.pitch, w.src.ysize, w.extent,
                 [&](char* p, size_t n) { note(op, p, n, Touching::read); });
    for_each_row(to, w.dst.pitch, w.dst.ysize, w.extent,
                 [&](char* p, size_t n) { note(op, p, n, Touching::write); });
    for (size_t z = 0; z < w.extent.depth; ++z)
      for (size_t y = 0; y < w.extent.height; ++y)
        std::memmove(to + (z * w.dst.ysize + y) * w.dst.pitch,
                     from + (z * w.src.ysize + y) * w.src.pitch, w.extent.width);
  });
}

cudaExtent extent_of(const FillWork& w) {
  return {w.params.width * w.params.elementSize, w.params.height, w.depth};
}

cudaError_t perform_fill(const FillWork& w, const StreamOperationPtr& op) {
  const cudaMemsetParams& p = w.params;
  return guarded([&] {
    for_each_row(static_cast<char*>(p.dst), p.pitch, w.rows, extent_of(w), [&](char* at, size_t n) {
      note(op, at, n, Touching::write);
      if (p.elementSize == 1) std::memset(at, static_cast<int>(p.value), n);
      else
        for (size_t i = 0; i < n; i += p.elementSize) std::memcpy(at + i, &p.value, p.elementSize);
    });
  });
}

}  // namespace

CopyWork linear_copy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
  CopyWork w;
  w.dst = {dst, bytes, bytes, 1};
  w.src = {const_cast<void*>(src), bytes, bytes, 1};
  w.extent = {bytes, 1, 1};
  w.kind = kind;
  return w;
}

FillWork linear_fill(void* dst, unsigned value, size_t bytes) {
  return {{.dst = dst,
           .pitch = bytes,
           .value = value & 0xff,
           .elementSize = 1,
           .width = bytes,
           .height = 1},
          1,
          1};
}

cudaError_t check(const CopyWork& w) {
  const cudaExtent& e = w.extent;
  if (w.kind < cudaMemcpyHostToHost || w.kind > cudaMemcpyDefault)
    return refuse(cudaErrorInvalidMemcpyDirection, "a copy of kind " + std::to_string(int(w.kind)));
  if (!e.width || !e.height || !e.depth) return cudaSuccess;
  bool many = e.height > 1 || e.depth > 1;
  if (many && (w.dst.pitch < e.width || w.src.pitch < e.width))
    return refuse(cudaErrorInvalidPitchValue, "a copy of rows wider than the pitch");
  const bool device[2] = {w.kind == cudaMemcpyHostToDevice || w.kind == cudaMemcpyDeviceToDevice,
                          w.kind == cudaMemcpyDeviceToHost || w.kind == cudaMemcpyDeviceToDevice};
  const cudaPitchedPtr* sides[2] = {&w.dst, &w.src};
  const cudaPos* at[2] = {&w.dst_pos, &w.src_pos};
  std::string why;
  for (int i = 0; i < 2; ++i)
    for_each_row(start(*sides[i], *at[i]), sides[i]->pitch, sides[i]->ysize, e,
                 [&](char* p, size_t n) {
                   if (why.empty()) why = device[i] ? forbidden(p, n) : forbidden_host(p, n);
                 });
  return why.empty() ? cudaSuccess : refuse_copy("copy", e.width * e.height * e.depth, why);
}

cudaError_t check(const FillWork& w) {
  const cudaMemsetParams& p = w.params;
  if (p.elementSize != 1 && p.elementSize != 2 && p.elementSize != 4)
    return refuse(cudaErrorInvalidValue,
                  "memset of elements of " + std::to_string(p.elementSize) + " bytes");
  cudaExtent e = extent_of(w);
  if (e.height > 1 && p.pitch < e.width)
    return refuse(cudaErrorInvalidPitchValue, "memset of rows wider than the pitch");
  std::string why;
  for_each_row(static_cast<char*>(p.dst), p.pitch, w.rows, e, [&](char* at, size_t n) {
    if (why.empty()) why = forbidden(at, n);
  });
  return why.empty() ? cudaSuccess : refuse_copy("memset", e.width * e.height * e.depth, why);
}

std::string name_of(const Work& work) {
  struct Names {
    std::string operator()(const EmptyWork&) { return "an empty node"; }
    std::string operator()(const KernelWork& w) { return "kernel " + readable(w.kernel->name); }
    std::string operator()(const CopyWork&) { return "a copy"; }
    std::string operator()(const FillWork&) { return "a memset"; }
    std::string operator()(const HostWork&) { return "a host function"; }
    std::string operator()(const RecordWork&) { return "an event's record"; }
    std::string operator()(const WaitWork&) { return "a wait for an event"; }
    std::string operator()(const AllocationWork&) { return "an allocation"; }
    std::string operator()(const FreeWork&) { return "cudaFreeAsync"; }
    std::string operator()(const ChildWork&) { return "a graph"; }
  };
  return std::visit(Names{}, work);
}

StreamOperation::Kind kind_of(const Work& work) {
  using Kind = StreamOperation::Kind;
  return std::holds_alternative<AllocationWork>(work) ? Kind::allocation
         : std::holds_alternative<FreeWork>(work)     ? Kind::free
                                                      : Kind::use;
}

cudaError_t perform(const Work& work, const StreamOperationPtr& op) {
  if (const auto* kernel = std::get_if<KernelWork>(&work)) return launch(*kernel, op);
  if (cudaError_t e = settle()) return e;
  struct Perform {
    const StreamOperationPtr& op;
    cudaError_t operator()(const EmptyWork&) { return cudaSuccess; }
    cudaError_t operator()(const KernelWork&) { return cudaSuccess; }
    cudaError_t operator()(const CopyWork& w) {
      return check(w) ? Registry::get().last : perform_copy(w, op);
    }
    cudaError_t operator()(const FillWork& w) {
      return check(w) ? Registry::get().last : perform_fill(w, op);
    }
    cudaError_t operator()(const HostWork& w) {
      InHostFunction scope;
      w.function(w.data);
      return status();
    }
    cudaError_t operator()(const RecordWork& w) {
      Event* e = Streams::get().find_event(w.event);
      if (!e) return Registry::get().last;
      e->recorded = true, e->clock = op->after, e->time = std::chrono::steady_clock::now();
      return cudaSuccess;
    }
    cudaError_t operator()(const WaitWork&) { return cudaSuccess; }  // in the operation's clock
    cudaError_t operator()(const AllocationWork& w) {
      memory().revive(w.memory);
      return guarded([&] { note(op, w.memory, w.bytes, Touching::write); });
    }
    cudaError_t operator()(const FreeWork& w) {
      const Range* r = memory().begins(w.memory);
      if (!r || r->ended)
        return refuse(cudaErrorInvalidValue,
                      "cudaFreeAsync of " + hex(reinterpret_cast<uint64_t>(w.memory)) +
                          (r ? ", which has been freed" : ", which is no allocation"));
      cudaError_t e = guarded([&] { note(op, w.memory, r->bytes(), Touching::write); });
      memory().release(w.memory, Machine::get().next_launch(), "memory from cudaMallocAsync");
      return e;
    }
    cudaError_t operator()(const ChildWork&) { return cudaSuccess; }  // its nodes are performed
  };
  return std::visit(Perform{op}, work);
}

cudaError_t submit(cudaStream_t handle, Work work, StreamOperationPtr* operation) {
  Streams& all = Streams::get();
  Stream* s = all.find(handle);
  if (!s) return Registry::get().last;
  if (s->capture) return capture_work(*s, std::move(work));
  if (s->id == 0)
    if (cudaError_t e = all.forbidden_while_capturing("work on the legacy default stream",
                                                      cudaErrorStreamCaptureImplicit, true))
      return e;
  std::string name = Machine::get().order.following() ? name_of(work) : "";
  StreamOperationPtr op = all.begin(*s, std::move(name), kind_of(work));
  if (operation) *operation = op;
  return perform(work, op);
}

cudaError_t submit_and_wait(const char* name, Work work) {
  if (cudaError_t e = Streams::get().unsafe_call(name)) return e;
  StreamOperationPtr op;
  cudaError_t e = submit(nullptr, std::move(work), &op);
  if (e == cudaSuccess && op) Streams::get().host_waits(op->after);
  return e;
}

}  // namespace l4k::emu
