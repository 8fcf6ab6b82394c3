// Bytes and halves of one word of shared memory that belong to different lanes and warps.
//
// mutant | report | what
// 1 | shared-race | a lane reads its neighbour's byte with no __syncwarp
// 2 | shared-race | a lane overwrites a byte that its neighbour has read
// 3 | shared-race | a half overlaps the byte of the next lane
// 4 | shared-race | the lanes of one store put different values into one byte
// 5 | same-value-race | the lanes of one store put the same value into one byte
// 6 | shared-race | a warp reads another warp's byte with no barrier
// 7 | shared-race | a warp overwrites a byte that another warp has read
// 8 | shared-race | two warps store different values into one byte
// 9 | same-value-race | two warps store the same value into one byte
// 10 | shared-race | no barrier before whole words are read
// 11 | shared-race | whole words are overwritten while another warp reads bytes of them
// 12 | shared-race | a warp takes one byte of another warp's half
// 13 | shared-in-flight | a word next to the thread's own is read while its copy is in flight
#include "device.cuh"
#include "host.h"

constexpr int kThreads = 128;

template <int MUTANT>
__global__ void owners(const int* x, int* y) {
  __shared__ volatile int whole[kThreads];
  __shared__ alignas(16) unsigned char lanes[kThreads], warps[kThreads], mixed[2 * kThreads];
  __shared__ alignas(16) unsigned short halves[kThreads];
  __shared__ alignas(16) int copies[kThreads];
  int tid = threadIdx.x, warp = tid / 32, lane = lane_id(), sum = 0;
  // Neighbouring lanes. The compiler must not keep a value in a register.
  auto fence = [] { asm volatile("" ::: "memory"); };
  lanes[tid] = static_cast<unsigned char>(tid);  // @1
  fence();
  sum += lanes[PICK(1, tid, tid ^ 1)];  // @1 @2
  fence();
  lanes[PICK(2, tid, tid ^ 1)] = static_cast<unsigned char>(sum + 1);  // @1 @2
  // A byte, a byte and a half for each pair of lanes.
  unsigned char* own = mixed + tid / 2 * 4;
  if (tid % 2) own[0] = 3, own[1] = 4;                                   // @3
  else *reinterpret_cast<unsigned short*>(own + PICK(3, 2, 0)) = 0x605;  // @3
  fence();
  ONLY(4) own[2] = static_cast<unsigned char>(tid);  // @4
  ONLY(5) own[2] = 5;                                // @5
  // Warps: byte i of a word belongs to warp i.
  int mine = lane * 4 + warp;
  warps[mine] = static_cast<unsigned char>(tid);  // @6 @7 @8 @9
  fence();
  sum += warps[PICK(6, mine, mine ^ 1)];  // @6 @7
  fence();
  warps[PICK(7, mine, mine ^ 1)] = static_cast<unsigned char>(PICK(7, sum, 1));  // @6 @7
  ONLY(8)
    if (lane == 0) warps[2] = static_cast<unsigned char>(warp);  // @8
  ONLY(9)
    if (lane == 0) warps[2] = 7;  // @9
  // Halves, and a byte of one.
  int half = lane * 4 + (warp ^ 1);
  halves[half] = static_cast<unsigned short>(x[tid]);  // @12
  fence();
  ONLY(12)
    if (warp == 0) sum += reinterpret_cast<unsigned char*>(halves)[lane * 8 + 1];  // @12
  sum += halves[half];
  // Copies of a word each into chunks of four: each thread waits for its own.
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem_u32(copies + tid)),
               "l"(x + tid)
               : "memory");
  ONLY(13) sum += *static_cast<volatile int*>(copies + tid);  // @13
  cp_async_commit();
  cp_async_wait<0>();
  fence();
  sum += copies[tid];
  fence();
  UNLESS(10) __syncthreads();
  sum += reinterpret_cast<unsigned*>(warps)[lane] == 0 ? 1000 : 0;  // @10 @11
  sum += reinterpret_cast<unsigned*>(lanes)[lane] == 0 ? 1000 : 0;  // @10
  sum += mixed[2 * tid] == 0 ? 1000 : 0;
  UNLESS(11) __syncthreads();
  if (warp == 2) reinterpret_cast<unsigned*>(warps)[lane] = 0;  // @11
  whole[tid] = sum;
  y[tid] = whole[tid];
}

template <int MUTANT>
int run() {
  std::vector<int> x(kThreads), want(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    x[i] = i * 3;
    want[i] = i + i + x[i] + x[i];
  }
  Buffer<int> dx(x), dy(kThreads);
  launch(owners<MUTANT>, {.grid = 1, .block = kThreads}, dx.data, dy.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dy.download(), want);
}
MAIN(13)
