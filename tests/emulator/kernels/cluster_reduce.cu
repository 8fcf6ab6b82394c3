// Each block of a cluster of two loads half a tile and multicasts it to both, sums half of the
// whole tile's rows, and hands its sums to block 0 through distributed shared memory.
//
// mutant | report | what
// 1 | deadlock | the multicast mask leaves out the other block
// 2 | shared-out-of-bounds bad-operand | the multicast mask names a block that the cluster lacks
// 3 | mbarrier shared-race | no cluster barrier between the barrier's initialisation and the other block's copy
// 4 | mbarrier shared-race proxy-fence-missing | no fence.mbarrier_init before the relaxed cluster barrier
// 5 | uninitialised-shared-read shared-race | no cluster barrier between remote stores and reader
// 6 | cluster-exited | block 0 may end before the other block's last read of its shared memory
// 7 | shared-out-of-bounds | mapa to a rank that the cluster lacks
// 8 | deadlock shared-race uninitialised-shared-read | block 1 skips the second cluster barrier
// 9 | shared-out-of-bounds | a remote store past the other block's array
// 10 | shared-race uninitialised-shared-read | the second cluster barrier is arrived at relaxed
// 11 | deadlock shared-in-flight mbarrier | expect_tx counts this block's half only
#include "device.cuh"
#include "host.h"

constexpr int kRows = 32, kColumns = 64, kHalfBytes = kRows / 2 * kColumns * 4, kThreads = 64;

template <int MUTANT>
__global__ __cluster_dims__(2, 1, 1) void column_sums(const __grid_constant__ CUtensorMap map,
                                                      float* sums, float* echo) {
  __shared__ __align__(128) float tile[kRows][kColumns];
  __shared__ uint64_t loaded;
  __shared__ float received[2][kColumns];
  __shared__ float total[kColumns];
  int rank = static_cast<int>(cluster_rank()), column = static_cast<int>(threadIdx.x);
  if (threadIdx.x == 0) {
    mbar_init(&loaded, 1);
    UNLESS(4) fence_mbar_init();
    mbar_expect_tx(&loaded, kHalfBytes * PICK(11, 2, 1));  // @3 @4 @11
  }
  if (MUTANT == 3) {
    __syncthreads();
  } else {
    cluster_arrive_relaxed();
    cluster_wait();
  }
  if (threadIdx.x == 0)
    tma_load_multicast(tile[rank * kRows / 2], &map, &loaded, 0, rank * kRows / 2,  // @2 @3 @4 @11
                       PICK(1, PICK(2, 3, 7), 1 << rank));
  mbar_wait(&loaded, 0);  // @1 @11
  float sum = 0;
  for (int row = rank; row < kRows; row += 2) sum += tile[row][column];          // @11
  uint32_t remote = map_to_rank(&received[rank][column], PICK(7, 0, rank * 2));  // @7
  store_cluster(remote + PICK(9, 0, 1024), sum);                                 // @5 @7 @9 @10
  if (MUTANT == 10) cluster_arrive_relaxed();
  else if (MUTANT != 5 && (MUTANT != 8 || rank == 0)) cluster_arrive();
  if (MUTANT != 5 && (MUTANT != 8 || rank == 0)) cluster_wait();  // @8
  if (rank == 0) {
    total[column] = received[0][column] + received[1][column];  // @5 @8 @10
    sums[column] = total[column];
  }
  cluster_arrive();
  cluster_wait();                                                              // @8
  if (rank == 1) echo[column] = load_cluster(map_to_rank(&total[column], 0));  // @6 @8
  UNLESS(6) cluster_arrive();
  UNLESS(6) cluster_wait();
}

template <int MUTANT>
int run() {
  auto x = small_floats(kRows * kColumns);
  Buffer<float> dx(x), dsums(kColumns), decho(kColumns);
  std::vector<float> want(kColumns);
  for (int i = 0; i < kRows * kColumns; ++i) want[i % kColumns] += x[i];
  auto map = tensor_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, dx.data, kColumns, kRows, kColumns * 4,
                        kColumns, kRows / 2, CU_TENSOR_MAP_SWIZZLE_NONE);
  launch(column_sums<MUTANT>, {.grid = 2, .block = kThreads}, map, dsums.data, decho.data);
  CHECK(cudaDeviceSynchronize());
  if (int failed = verdict(decho.download(), want)) return failed;
  return verdict(dsums.download(), want);
}
MAIN(11)
