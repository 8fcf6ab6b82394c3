#include "runtime/streams.h"

#include "runtime/graph.h"

namespace l4k::emu {

thread_local bool default_is_per_thread = false;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
thread_local int InHostFunction::depth = 0;

std::recursive_mutex& runtime_mutex() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}

cudaError_t settle() {
  Machine::get().synchronize();
  return status();
}

cudaError_t not_ready() {
  Registry::get().last = cudaErrorNotReady;
  return cudaErrorNotReady;
}

std::string Stream::name() const {
  return id == 0 ? "the default stream" : "stream " + std::to_string(id);
}

Streams& Streams::get() {
  static auto* streams = new Streams;  // never destroyed: kernels may be pending at exit
  return *streams;
}

Streams::Streams() {
  streams_.push_back(std::make_unique<Stream>());
  streams_[0]->lane = Machine::get().order.new_lane();
}

Stream* Streams::create(unsigned flags, int priority) {
  auto s = std::make_unique<Stream>();
  s->id = next_id_++;
  s->flags = flags;
  s->priority = priority;
  s->lane = Machine::get().order.new_lane();
  Machine::get().order.follow();
  streams_.push_back(std::move(s));
  return streams_.back().get();
}

// What was submitted still runs: whoever waits for the device waits for it.
void Streams::destroy(Stream* s) {
  join(ended_, s->clock);
  if (s->blocking()) join(ended_blocking_, s->clock);
  std::erase_if(streams_, [&](const auto& other) { return other.get() == s; });
}

Stream* Streams::find(cudaStream_t handle) {
  if (InHostFunction::depth) {
    refuse(cudaErrorNotPermitted, "a host function of a stream may not call the CUDA runtime");
    return nullptr;
  }
  bool per_thread = handle == cudaStreamPerThread || (!handle && default_is_per_thread);
  if (per_thread) {
    Stream*& mine = per_thread_[std::this_thread::get_id()];
    if (!mine) mine = create(cudaStreamDefault, 0);
    return mine;
  }
  if (!handle || handle == cudaStreamLegacy) return streams_[0].get();
  for (const auto& s : streams_)
    if (s.get() == reinterpret_cast<Stream*>(handle)) return s.get();
  refuse(cudaErrorInvalidResourceHandle, "not a stream, or one that has been destroyed");
  return nullptr;
}

Event* Streams::create_event(unsigned flags) {
  events_.push_back(std::make_unique<Event>());
  events_.back()->flags = flags;
  return events_.back().get();
}

void Streams::destroy_event(Event* e) {
  std::erase_if(events_, [&](const auto& other) { return other.get() == e; });
}

Event* Streams::find_event(cudaEvent_t handle) {
  for (const auto& e : events_)
    if (e.get() == reinterpret_cast<Event*>(handle)) return e.get();
  refuse(cudaErrorInvalidResourceHandle, "not an event, or one that has been destroyed");
  return nullptr;
}

const LaneClock& Streams::before(Stream& s) {
  join(s.clock, host_);
  Stream& legacy = *streams_[0];
  if (&s != &legacy && s.blocking()) join(s.clock, legacy.clock);
  if (&s == &legacy) {
    join(s.clock, ended_blocking_);
    for (const auto& other : streams_)
      if (other->blocking()) join(s.clock, other->clock);
  }
  return s.clock;
}

StreamOperationPtr Streams::begin(Stream& s, std::string what, StreamOperation::Kind kind) {
  before(s);
  if (s.clock.size() <= s.lane) s.clock.resize(s.lane + 1);
  auto op = std::make_shared<StreamOperation>();
  op->lane = s.lane;
  op->tick = ++s.clock[s.lane];
  op->after = s.clock;
  if (Machine::get().order.following()) op->name = std::move(what) + " on " + s.name();
  op->kind = kind;
  return op;
}

void Streams::host_waits(const LaneClock& clock) {
  join(host_, clock);
  for (const auto& s : streams_)
    if (!covers(host_, s->clock)) return;
  if (covers(host_, ended_)) Machine::get().order.forget();
}

void Streams::host_waits_for_all() {
  LaneClock all = ended_;
  for (const auto& s : streams_) join(all, s->clock);
  host_waits(all);
}

bool Streams::host_polls(const LaneClock& clock, uint32_t* polls) {
  constexpr uint32_t kPolls = 2;
  Machine& m = Machine::get();
  bool pending = !covers(host_, clock);
  if (pending && m.settings.mode == Mode::late && ++*polls <= kPolls) return false;
  if (pending && m.settings.mode == Mode::random && m.chance(2)) return false;
  *polls = 0;
  host_waits(clock);
  return true;
}

cudaError_t Streams::invalidate(Capture& c, cudaError_t error, const std::string& why) {
  if (!c.invalid) c.why = why;
  c.invalid = true;
  return refuse(error, why);
}

void Streams::abandon(Capture& c) {
  c.ended = true;
  for (Stream* s : c.streams) s->tails.clear(), s->capture = nullptr;
  std::erase_if(captures, [&](const auto& other) { return other.get() == &c; });
}

cudaError_t Streams::unsafe_call(const char* name) {
  if (InHostFunction::depth)
    return refuse(cudaErrorNotPermitted, std::string(name) + " in a host function of a stream");
  if (capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (const auto& c : captures) {
    bool mine = c->thread == std::this_thread::get_id() && c->mode != cudaStreamCaptureModeRelaxed;
    bool global =
        c->mode == cudaStreamCaptureModeGlobal && capture_mode == cudaStreamCaptureModeGlobal;
    if (mine || global)
      return invalidate(*c, cudaErrorStreamCaptureUnsupported,
                        std::string(name) + " is not permitted while a stream is capturing");
  }
  return cudaSuccess;
}

cudaError_t Streams::forbidden_while_capturing(const char* name, cudaError_t error,
                                               bool blocking_only) {
  for (const auto& c : captures)
    for (const Stream* s : c->streams)
      if (!blocking_only || s->blocking())
        return invalidate(
            *c, error, std::string(name) + " would wait for " + s->name() + ", which is capturing");
  return cudaSuccess;
}

}  // namespace l4k::emu

using namespace l4k::emu;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  Lock lock(runtime_mutex());
  if (!s || flags > cudaStreamNonBlocking)
    return refuse(cudaErrorInvalidValue,
                  "stream flags " + std::to_string(flags) +
                      ": expected cudaStreamDefault or cudaStreamNonBlocking");
  priority = std::clamp(priority, kGreatestPriority, kLeastPriority);
  *s = reinterpret_cast<cudaStream_t>(Streams::get().create(flags, priority));
  return status();
}
cudaError_t cudaStreamCreate(cudaStream_t* s) {
  return cudaStreamCreateWithPriority(s, cudaStreamDefault, 0);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Lock lock(runtime_mutex());
  if (!handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
    return refuse(cudaErrorInvalidResourceHandle, "a default stream cannot be destroyed");
  Stream* s = Streams::get().find(handle);
  if (!s) return Registry::get().last;
  if (s->capture) {
    std::shared_ptr<Capture> held = s->capture;
    Capture& c = *held;
    std::erase(c.streams, s);
    c.orphans.insert(c.orphans.end(), s->tails.begin(), s->tails.end());
    if (c.origin == s) Streams::get().abandon(c);
  }
  cudaError_t e = settle();
  Streams::get().destroy(s);
  return e;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Lock lock(runtime_mutex());
  Streams& all = Streams::get();
  Stream* s = all.find(handle);
  if (!s) return Registry::get().last;
  if (s->capture)
    return all.invalidate(*s->capture, cudaErrorStreamCaptureUnsupported,
                          "cudaStreamSynchronize of a stream that is capturing");
  if (s->id == 0)
    if (cudaError_t e = all.forbidden_while_capturing("cudaStreamSynchronize",
                                                      cudaErrorStreamCaptureImplicit, true))
      return e;
  all.host_waits(all.before(*s));
  return settle();
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Lock lock(runtime_mutex());
  Streams& all = Streams::get();
  Stream* s = all.find(handle);
  if (!s) return Registry::get().last;
  if (s->capture)
    return all.invalidate(*s->capture, cudaErrorStreamCaptureUnsupported,
                          "cudaStreamQuery of a stream that is capturing");
  if (cudaError_t e = settle()) return e;
  return all.host_polls(all.before(*s), &s->polls) ? cudaSuccess : not_ready();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(handle);
  Event* e = s ? Streams::get().find_event(event) : nullptr;
  if (!e) return Registry::get().last;
  if (flags > cudaEventWaitExternal)
    return refuse(cudaErrorInvalidValue,
                  "cudaStreamWaitEvent: unknown flags " + std::to_string(flags));
  if (e->capture || s->capture) return capture_wait(*s, *e, flags);
  if (e->recorded) join(s->clock, e->clock);
  return status();
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(handle);
  return s ? (*priority = s->priority, cudaSuccess) : Registry::get().last;
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(handle);
  return s ? (*flags = s->flags, cudaSuccess) : Registry::get().last;
}
cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(handle);
  return s ? (*id = s->id, cudaSuccess) : Registry::get().last;
}
cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  Lock lock(runtime_mutex());
  return Streams::get().find(handle) ? (*device = 0, cudaSuccess) : Registry::get().last;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = kLeastPriority;
  if (greatest) *greatest = kGreatestPriority;
  return cudaSuccess;
}
// Hints about the L2 cache and synchronisation domains: speed only.
cudaError_t cudaStreamSetAttribute(cudaStream_t handle, cudaStreamAttrID,
                                   const cudaStreamAttrValue*) {
  Lock lock(runtime_mutex());
  return Streams::get().find(handle) ? cudaSuccess : Registry::get().last;
}
cudaError_t cudaStreamCopyAttributes(cudaStream_t to, cudaStream_t from) {
  Lock lock(runtime_mutex());
  return Streams::get().find(to) && Streams::get().find(from) ? cudaSuccess : Registry::get().last;
}
cudaError_t cudaStreamAttachMemAsync(cudaStream_t handle, void*, size_t, unsigned) {
  Lock lock(runtime_mutex());
  return Streams::get().find(handle) ? cudaSuccess : Registry::get().last;
}
cudaError_t cudaCtxResetPersistingL2Cache() { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() {
  Lock lock(runtime_mutex());
  if (cudaError_t e = Streams::get().forbidden_while_capturing(
          "cudaDeviceSynchronize", cudaErrorStreamCaptureUnsupported, false))
    return e;
  Streams::get().host_waits_for_all();
  return settle();
}

}  // extern "C"
