// Streams, events and the order between what is submitted to them. Work is done when it is submitted,
// in the order of the host's calls; which of it may overlap on a GPU is told by clocks.
#pragma once

#include <chrono>
#include <mutex>
#include <thread>

#include "runtime/registry.h"

namespace l4k::emu {

struct Graph;
struct GraphNode;
struct Stream;

// A graph in the making: what is submitted to its streams becomes a node.
struct Capture {
  uint64_t id = 0;
  Graph* graph = nullptr;
  Stream* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  std::shared_ptr<Graph> owned;  // null: the graph was there before
  bool invalid = false, ended = false;
  std::string why;  // invalid
  std::vector<Stream*> streams;
  std::vector<GraphNode*> orphans;  // the last nodes of forked streams that have been destroyed
};

// What a cudaStream_t points to.
struct Stream {
  uint64_t id = 0;
  unsigned flags = cudaStreamDefault;
  int priority = 0;
  uint32_t lane = 0;
  LaneClock clock;  // what its next operation comes after
  std::shared_ptr<Capture> capture;
  std::vector<GraphNode*> tails;  // of the capture: what its next node depends on
  uint32_t polls = 0;
  bool blocking() const { return !(flags & cudaStreamNonBlocking); }
  std::string name() const;
};

// What a cudaEvent_t points to.
struct Event {
  unsigned flags = cudaEventDefault;
  bool recorded = false;
  LaneClock clock;
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<Capture> capture;  // it was last recorded in
  std::vector<GraphNode*> nodes;
  uint32_t polls = 0;
};

// The runtime is entered by one host thread at a time, callbacks into the program included.
using Lock = std::lock_guard<std::recursive_mutex>;
std::recursive_mutex& runtime_mutex();

class Streams {
 public:
  static Streams& get();
  Stream* create(unsigned flags, int priority);
  void destroy(Stream* s);
  // The stream of a handle, the default streams included; null, with `refuse` called.
  Stream* find(cudaStream_t handle);
  Event* create_event(unsigned flags);
  void destroy_event(Event* e);
  Event* find_event(cudaEvent_t handle);

  // The next operation of a stream, after all that comes before it.
  StreamOperationPtr begin(Stream& s, std::string what,
                           StreamOperation::Kind kind = StreamOperation::Kind::use);
  // What the stream's next operation will come after.
  const LaneClock& before(Stream& s);
  // The host waits for these operations.
  void host_waits(const LaneClock& clock);
  void host_waits_for_all();
  // Whether the host may see that they have ended; it takes a few polls, as on a GPU.
  bool host_polls(const LaneClock& clock, uint32_t* polls);

  std::vector<std::shared_ptr<Capture>> captures;
  // cudaSuccess, or a call that a capture in progress forbids, which ends the capture.
  cudaError_t unsafe_call(const char* name);
  void abandon(Capture& c);  // nobody can end it
  cudaError_t invalidate(Capture& c, cudaError_t error, const std::string& why);
  // For a call that waits for all streams, or implies an order with the legacy default stream.
  cudaError_t forbidden_while_capturing(const char* name, cudaError_t error, bool blocking_only);

 private:
  Streams();
  std::vector<std::unique_ptr<Stream>> streams_;  // the first is the legacy default stream
  std::vector<std::unique_ptr<Event>> events_;
  std::map<std::thread::id, Stream*> per_thread_;
  LaneClock host_;                    // what the host knows to have ended
  LaneClock ended_, ended_blocking_;  // of streams that have been destroyed
  uint64_t next_id_ = 1;
};

inline constexpr int kLeastPriority = 0, kGreatestPriority = -5;
// The last error, without a reason to print.
cudaError_t not_ready();

// Default streams of calls compiled with --default-stream per-thread.
extern thread_local bool default_is_per_thread;
extern thread_local cudaStreamCaptureMode capture_mode;
// While one exists, the thread is in a host function of a stream, which may not call the runtime.
struct InHostFunction {
  InHostFunction() { ++depth; }
  ~InHostFunction() { --depth; }
  static thread_local int depth;
};

// Everything that looks at memory or at a result first lets pending kernels finish; the sticky error.
cudaError_t settle();

}  // namespace l4k::emu
