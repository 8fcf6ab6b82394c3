// Events: points in streams that streams and the host wait for.
#include "runtime/graph.h"
#include "runtime/streams.h"

using namespace l4k::emu;

namespace {

// An event that the host may ask about; null, with `refuse` called.
Event* outside_capture(cudaEvent_t handle, const char* name) {
  Event* e = Streams::get().find_event(handle);
  if (!e || !e->capture) return e;
  Streams::get().invalidate(*e->capture, cudaErrorCapturedEvent,
                            std::string(name) + " of an event that was last recorded in a capture");
  return nullptr;
}

}  // namespace

extern "C" {

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  Lock lock(runtime_mutex());
  constexpr unsigned kKnown =
      cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
  if (!e || (flags & ~kKnown))
    return refuse(cudaErrorInvalidValue,
                  "cudaEventCreateWithFlags: unknown flags " + std::to_string(flags));
  if (flags & cudaEventInterprocess)
    return refuse(cudaErrorNotSupported, "interprocess events are not implemented by the emulator");
  *e = reinterpret_cast<cudaEvent_t>(Streams::get().create_event(flags));
  return status();
}
cudaError_t cudaEventCreate(cudaEvent_t* e) {
  return cudaEventCreateWithFlags(e, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  Lock lock(runtime_mutex());
  Event* e = Streams::get().find_event(handle);
  if (!e) return Registry::get().last;
  Streams::get().destroy_event(e);
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned flags) {
  Lock lock(runtime_mutex());
  Streams& all = Streams::get();
  Stream* s = all.find(stream);
  Event* e = s ? all.find_event(handle) : nullptr;
  if (!e) return Registry::get().last;
  if (flags > cudaEventRecordExternal)
    return refuse(cudaErrorInvalidValue,
                  "cudaEventRecordWithFlags: unknown flags " + std::to_string(flags));
  if (s->capture) return capture_record(*s, *e, flags);
  if (s->id == 0)
    if (cudaError_t error =
            all.forbidden_while_capturing("cudaEventRecord", cudaErrorStreamCaptureImplicit, true))
      return error;
  cudaError_t error = settle();
  *e = Event{.flags = e->flags, .recorded = true, .clock = all.before(*s)};
  e->time = std::chrono::steady_clock::now();
  return error;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  return cudaEventRecordWithFlags(e, s, cudaEventRecordDefault);
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  Lock lock(runtime_mutex());
  Event* e = outside_capture(handle, "cudaEventSynchronize");
  if (!e) return Registry::get().last;
  if (cudaError_t error = Streams::get().unsafe_call("cudaEventSynchronize")) return error;
  Streams::get().host_waits(e->clock);
  return settle();
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  Lock lock(runtime_mutex());
  Event* e = outside_capture(handle, "cudaEventQuery");
  if (!e) return Registry::get().last;
  if (cudaError_t error = Streams::get().unsafe_call("cudaEventQuery")) return error;
  if (cudaError_t error = settle()) return error;
  return Streams::get().host_polls(e->clock, &e->polls) ? cudaSuccess : not_ready();
}
// In the emulator's own time.
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  Lock lock(runtime_mutex());
  Event* a = outside_capture(from, "cudaEventElapsedTime");
  Event* b = a ? outside_capture(to, "cudaEventElapsedTime") : nullptr;
  if (!b) return Registry::get().last;
  for (const Event* e : {a, b})
    if (!e->recorded || (e->flags & cudaEventDisableTiming))
      return refuse(cudaErrorInvalidResourceHandle,
                    e->recorded
                        ? "cudaEventElapsedTime of an event made with cudaEventDisableTiming"
                        : "cudaEventElapsedTime of an event that was never recorded");
  if (!Streams::get().host_polls(a->clock, &a->polls) ||
      !Streams::get().host_polls(b->clock, &b->polls))
    return not_ready();
  *ms = std::chrono::duration<float, std::milli>(b->time - a->time).count();
  return cudaSuccess;
}

}  // extern "C"
