// CUTLASS: bf16 stream-K GEMM: blocks share tiles and reduce through a workspace.
#include <cutlass/gemm/kernel/tile_scheduler.hpp>

#include "cutlass_gemm.h"

using namespace cute;
using T = cutlass::bfloat16_t;
using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;
using TileShape = Shape<_128, _64, _64>;
using ClusterShape = Shape<_1, _1, _1>;
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, Row, 8, T, Row, 8,
    cutlass::epilogue::TmaWarpSpecializedCooperative>::CollectiveOp;
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, Row, 8, T, Column, 8, float, TileShape,
    ClusterShape, cutlass::gemm::collective::StageCount<3>,
    cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<cutlass::gemm::kernel::GemmUniversal<
    Shape<int, int, int, int>, Mainloop, Epilogue, cutlass::gemm::StreamKScheduler>>;

int main() {
  int m = 200, n = 136, k = 1160;  // 6 tiles on 8 SMs: every tile is shared
  auto a = small_floats(m * k), b = small_floats(n * k, 17);
  Buffer<T> da(convert<T>(a)), db(convert<T>(b)), dd(m * n);
  typename Gemm::Arguments arguments{
      cutlass::gemm::GemmUniversalMode::kGemm,
      {m, n, k, 1},
      {da.data, packed<typename Gemm::GemmKernel::StrideA>(m, k), db.data,
       packed<typename Gemm::GemmKernel::StrideB>(n, k)},
      {{1.0f, 0.0f}, nullptr, {}, dd.data, packed<typename Gemm::GemmKernel::StrideD>(m, n)},
      hardware()};
  run<Gemm>(arguments);
  return verdict(to_float(dd.download()), to_float(convert<T>(matmul(a, b, m, n, k))));
}
