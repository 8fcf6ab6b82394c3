// Stream capture: the graph that a stream's work becomes.
#include "runtime/graph.h"

namespace l4k::emu {

cudaError_t capture_work(Stream& s, Work work) {
  Capture& c = *s.capture;
  if (c.invalid)
    return refuse(cudaErrorStreamCaptureInvalidated,
                  "the capture was invalidated by an earlier error: " + c.why);
  s.tails = {c.graph->add(std::move(work), s.tails)};
  return cudaSuccess;
}

cudaError_t capture_record(Stream& s, Event& e, unsigned flags) {
  if (flags == cudaEventRecordExternal)
    return capture_work(s, RecordWork{reinterpret_cast<cudaEvent_t>(&e)});
  if (s.capture->invalid) return capture_work(s, EmptyWork{});
  e.recorded = false;
  e.capture = s.capture;
  e.nodes = s.tails;
  return cudaSuccess;
}

cudaError_t capture_wait(Stream& s, Event& e, unsigned flags) {
  Streams& all = Streams::get();
  if (s.capture && flags == cudaEventWaitExternal)
    return capture_work(s, WaitWork{reinterpret_cast<cudaEvent_t>(&e)});
  if (s.capture && s.capture->invalid) return capture_work(s, EmptyWork{});
  if (s.capture && !e.capture)
    return all.invalidate(
        *s.capture, cudaErrorStreamCaptureIsolation,
        s.name() + " is capturing, and the event was recorded outside the capture");
  if (e.capture->ended)
    return refuse(cudaErrorCapturedEvent,
                  "the event was last recorded in a capture that has ended");
  if (s.id == 0)
    return all.invalidate(*e.capture, cudaErrorStreamCaptureImplicit,
                          "the legacy default stream cannot wait for a capturing stream");
  if (s.capture && s.capture != e.capture) {
    all.invalidate(*e.capture, cudaErrorStreamCaptureMerge, "two captures would be merged");
    return all.invalidate(*s.capture, cudaErrorStreamCaptureMerge,
                          "the event belongs to another capture: they cannot be merged");
  }
  if (!s.capture) {
    s.capture = e.capture;
    s.tails.clear();
    s.capture->streams.push_back(&s);
  }
  for (GraphNode* n : e.nodes)
    if (std::find(s.tails.begin(), s.tails.end(), n) == s.tails.end()) s.tails.push_back(n);
  return cudaSuccess;
}

namespace {

cudaError_t begin(cudaStream_t handle, Graph* graph, std::vector<GraphNode*> tails,
                  cudaStreamCaptureMode mode) {
  Streams& all = Streams::get();
  Stream* s = all.find(handle);
  if (!s) return Registry::get().last;
  if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed)
    return refuse(cudaErrorInvalidValue, "capture mode " + std::to_string(int(mode)));
  if (s->id == 0)
    return refuse(cudaErrorStreamCaptureUnsupported,
                  "the legacy default stream cannot be captured");
  if (s->capture) return refuse(cudaErrorIllegalState, s->name() + " is already capturing");
  static uint64_t ids = 0;
  auto c = std::make_shared<Capture>();
  c->id = ++ids;
  c->origin = s;
  c->mode = mode;
  c->thread = std::this_thread::get_id();
  c->streams = {s};
  c->owned = graph ? nullptr : std::make_shared<Graph>();
  c->graph = graph ? graph : c->owned.get();
  s->capture = c;
  s->tails = std::move(tails);
  all.captures.push_back(c);
  return cudaSuccess;
}

// Whether `node` is among what these come after.
bool joined(const GraphNode* node, const std::vector<GraphNode*>& tails) {
  std::vector<const GraphNode*> open(tails.begin(), tails.end());
  std::set<const GraphNode*> seen;
  while (!open.empty()) {
    const GraphNode* n = open.back();
    open.pop_back();
    if (n == node) return true;
    if (!seen.insert(n).second) continue;
    open.insert(open.end(), n->dependencies.begin(), n->dependencies.end());
  }
  return false;
}

cudaError_t end(Stream& s, cudaGraph_t* graph) {
  std::shared_ptr<Capture> c = s.capture;
  if (c->origin != &s)
    return Streams::get().invalidate(
        *c, cudaErrorStreamCaptureUnmatched,
        "the capture was begun on " + c->origin->name() + ", not on " + s.name());
  if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
    return refuse(cudaErrorStreamCaptureWrongThread, "the capture was begun by another thread");
  std::string unjoined;
  for (const GraphNode* n : c->orphans)
    if (!joined(n, s.tails)) unjoined = "a stream that has been destroyed";
  for (Stream* other : c->streams) {
    for (const GraphNode* n : other->tails)
      if (!joined(n, s.tails)) unjoined = other->name();
    if (other == &s) continue;
    other->capture = nullptr;
    other->tails.clear();
  }
  s.capture = nullptr;
  s.tails.clear();
  c->ended = true;
  std::erase(Streams::get().captures, c);
  *graph = nullptr;
  if (c->invalid)
    return refuse(cudaErrorStreamCaptureInvalidated,
                  "the capture was invalidated by an earlier error: " + c->why);
  if (!unjoined.empty())
    return refuse(cudaErrorStreamCaptureUnjoined,
                  unjoined + " was forked into the capture and has not been joined to " + s.name() +
                      ": record an event there and wait for it");
  *graph = c->owned ? Graphs::get().add(c->owned) : reinterpret_cast<cudaGraph_t>(c->graph);
  return cudaSuccess;
}

}  // namespace
}  // namespace l4k::emu

using namespace l4k::emu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Lock lock(runtime_mutex());
  return begin(stream, nullptr, {}, mode);
}
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph,
                                          const cudaGraphNode_t* dependencies,
                                          const cudaGraphEdgeData*, size_t count,
                                          cudaStreamCaptureMode mode) {
  Lock lock(runtime_mutex());
  Graph* g = Graphs::get().find(graph);
  if (!g) return Registry::get().last;
  std::vector<GraphNode*> tails;
  for (size_t i = 0; i < count; ++i) {
    GraphNode* n = Graphs::get().find(dependencies[i]);
    if (!n) return Registry::get().last;
    tails.push_back(n);
  }
  return begin(stream, g, std::move(tails), mode);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(stream);
  if (!s) return Registry::get().last;
  if (!graph) return refuse(cudaErrorInvalidValue, "cudaStreamEndCapture into a null pointer");
  if (!s->capture) return refuse(cudaErrorIllegalState, s->name() + " is not capturing");
  return end(*s, graph);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* state) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(stream);
  if (!s) return Registry::get().last;
  if (s->id == 0 && !Streams::get().captures.empty())
    for (const auto& c : Streams::get().captures)
      for (const Stream* other : c->streams)
        if (other->blocking())
          return refuse(cudaErrorStreamCaptureImplicit,
                        "the legacy default stream, while " + other->name() + " is capturing");
  *state = !s->capture           ? cudaStreamCaptureStatusNone
           : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* state,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = cudaStreamIsCapturing(stream, state)) return e;
  Stream* s = Streams::get().find(stream);
  if (!s->capture) return cudaSuccess;
  if (id) *id = s->capture->id;
  if (graph) *graph = reinterpret_cast<cudaGraph_t>(s->capture->graph);
  if (dependencies) *dependencies = reinterpret_cast<const cudaGraphNode_t*>(s->tails.data());
  if (edges) *edges = nullptr;
  if (count) *count = s->tails.size();
  return cudaSuccess;
}
cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t stream, cudaGraphNode_t* nodes,
                                                const cudaGraphEdgeData*, size_t count,
                                                unsigned flags) {
  Lock lock(runtime_mutex());
  Stream* s = Streams::get().find(stream);
  if (!s) return Registry::get().last;
  if (!s->capture) return refuse(cudaErrorIllegalState, s->name() + " is not capturing");
  if (flags == cudaStreamSetCaptureDependencies) s->tails.clear();
  for (size_t i = 0; i < count; ++i) s->tails.push_back(reinterpret_cast<GraphNode*>(nodes[i]));
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

}  // extern "C"
