// Global memory as a mailbox inside a block: ordinary stores read by the block's own bulk copy, and
// by other warps.
//
// mutant | report | what
// 1 | proxy-fence-missing stale-global-read | no fence.proxy.async between the stores and the bulk copy that reads them
// 2 | proxy-fence-missing stale-global-read | the proxy fence covers shared memory only
// 3 | global-race | no barrier between the other threads' stores and the bulk copy
// 4 | global-race | no barrier between a warp's store and another warp's load
// 5 | proxy-fence-missing | before the bulk store the proxy fence covers global memory only
// 6 | shared-in-flight uninitialised-shared-read | a single try_wait where a loop is needed
// 7 | shared-race | no __syncwarp between a lane's store to shared memory and another lane's load
// 8 | shared-race | no __syncwarp before the next store over what another lane has loaded
#include "device.cuh"
#include "host.h"

constexpr int kThreads = 64, kBytes = kThreads * 4;

DEVICE void bulk_load(void* dst, const void* src, uint64_t* bar, int bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(smem_u32(dst)),
      "l"(src), "r"(bytes), "r"(smem_u32(bar))
      : "memory");
}
DEVICE void bulk_store(void* dst, const void* src, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst),
               "r"(smem_u32(src)), "r"(bytes)
               : "memory");
}
DEVICE void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
DEVICE void mbar_try_once(uint64_t* bar) {
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n}" ::"r"(
                   smem_u32(bar))
               : "memory");
}

template <int MUTANT>
__global__ void post(const float* x, float* box, float* y) {
  __shared__ __align__(16) float tile[kThreads];
  __shared__ __align__(16) float out[kThreads];
  __shared__ float turn[kThreads];
  __shared__ uint64_t loaded;
  int i = static_cast<int>(threadIdx.x), first = i / 32 * 32;
  if (i == 0) {
    mbar_init(&loaded, 1);
    fence_mbar_init();
  }
  box[i] = x[i] + 1.0f;  // @1 @2 @3 @4
  if (MUTANT == 2) fence_proxy_async();
  else UNLESS(1) fence_proxy_async_global();
  UNLESS(4)
    UNLESS(3) __syncthreads();
  float other = PICK(3, box[kThreads - 1 - i], x[kThreads - 1 - i] + 1.0f);  // @4
  ONLY(4) __syncthreads();
  if (i == 0) {
    mbar_expect_tx(&loaded, kBytes);
    bulk_load(tile, box, &loaded, kBytes);  // @1 @2 @3 @6
  }
  ONLY(3) __syncthreads();
  if (MUTANT == 6) mbar_try_once(&loaded);
  else mbar_wait(&loaded, 0);
  float sum = other + tile[i];  // @6
  for (int step = 1; step < 3; ++step) {
    turn[i] = sum;  // @7 @8
    UNLESS(7) __syncwarp();
    sum += turn[first + (i + step) % 32];  // @7 @8
    UNLESS(8) __syncwarp();
  }
  out[i] = sum;
  if (MUTANT == 5) fence_proxy_async_global();
  else fence_proxy_async();
  __syncthreads();
  if (i == 0) {
    bulk_store(y, out, kBytes);  // @5
    bulk_commit();
    bulk_wait_read<0>();
  }
}

template <int MUTANT>
int run() {
  auto x = small_floats(kThreads);
  Buffer<float> dx(x), dbox(kThreads), dy(kThreads);
  std::vector<float> want(kThreads);
  for (int i = 0; i < kThreads; ++i) want[i] = x[i] + x[kThreads - 1 - i] + 2;
  for (int step = 1; step < 3; ++step) {
    auto before = want;
    for (int i = 0; i < kThreads; ++i) want[i] += before[i / 32 * 32 + (i + step) % 32];
  }
  launch(post<MUTANT>, {.grid = 1, .block = kThreads}, dx.data, dbox.data, dy.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dy.download(), want);
}
MAIN(8)
