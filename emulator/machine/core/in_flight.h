// What a warp has started and not finished: copies and tensor-core operations. Each carries the
// function that performs it, so that the scheduler decides when and async/ decides what.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "check/undefined.h"
#include "machine/core/program.h"

namespace l4k::emu {

struct Cta;

// A copy made while the source's value is still being computed: repeated when it is known.
struct DeferredMove {
  Reg to, from;
  uint32_t bytes, lanes;
  bool done;  // the value was known already; only the flag is left
};

struct PendingWgmma {
  const Inst* inst = nullptr;
  uint64_t seq = 0;
  uint32_t group = ~0u;  // ~0u: not committed
  uint64_t descriptor_a = 0, descriptor_b = 0;
  bool scale_d = true, computed = false, released = false;  // released: its reads have ended
  size_t accumulators = 0;                                  // the first registers of inst->list
  std::vector<uint32_t> chunks;  // 16-byte chunks of shared memory that it reads
  std::vector<DeferredMove> moves;
  std::vector<uint32_t> undefined;  // by accumulator, lanes whose result is undefined; or empty
  Origin undefined_from;
  void (*compute)(Warp&, PendingWgmma&) = nullptr;
  bool accumulates_into(const Reg& r) const;  // itself, or a copy of its result
};

// What the four warps of a warpgroup must agree on.
struct WgmmaIssue {
  uint64_t seq = 0, descriptor_b = 0;
  const Inst* inst = nullptr;
  uint32_t warps = 0;
};

struct CpAsync {
  uint32_t mask = 0, bytes = 0, group = 0, sequence = 0;
  uint32_t destination[32] = {}, source_bytes[32] = {};
  uint64_t source[32] = {};
  const Inst* inst = nullptr;
  // Lands these lanes' copies up to a sequence number, then the arrivals that wait for them.
  void (*land)(Warp&, uint32_t up_to, uint32_t lanes) = nullptr;
};

// cp.async.mbarrier.arrive: arrives when the lane's earlier copies have landed.
struct DeferredArrive {
  Cta* cta;
  uint32_t address, after;  // after: cp.async sequence number
  int lane;
};

// An asynchronous bulk operation. Loads land and are gone; stores of a bulk group read their shared
// memory, land, and are released when their thread waits for the group.
struct BulkOp {
  Warp* warp = nullptr;
  const Inst* inst = nullptr;
  int lane = 0;
  uint32_t group = ~0u;  // bulk groups are per thread; ~0u: completes through an mbarrier
  bool has_read = false, landed = false, released = false;
  std::function<void()> read, land, release;
};

}  // namespace l4k::emu
