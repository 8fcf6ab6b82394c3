// CUTLASS: bf16 GEMM whose epilogue adds a residual loaded by TMA and a bias, then applies ReLU.
#include <cutlass/epilogue/thread/activation.h>

#include <cutlass/epilogue/fusion/operations.hpp>

#include "cutlass_gemm.h"

using namespace cute;
using T = cutlass::bfloat16_t;
using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;
using TileShape = Shape<_64, _64, _64>;
using ClusterShape = Shape<_1, _2, _1>;
using Fusion = cutlass::epilogue::fusion::LinCombPerColBiasEltAct<cutlass::epilogue::thread::ReLu,
                                                                  T, float, float, T, float>;
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, T, Row, 8, T, Row, 8,
    cutlass::epilogue::TmaWarpSpecialized, Fusion>::CollectiveOp;
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, Row, 8, T, Column, 8, float, TileShape,
    ClusterShape, cutlass::gemm::collective::StageCount<3>,
    cutlass::gemm::KernelTmaWarpSpecializedPingpong>::CollectiveOp;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
    cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>>;

int main() {
  int m = 136, n = 264, k = 200;
  auto a = small_floats(m * k), b = small_floats(n * k, 17), c = small_floats(m * n, 5);
  auto bias = small_floats(n, 9);
  Buffer<T> da(convert<T>(a)), db(convert<T>(b)), dc(convert<T>(c)), dd(m * n);
  Buffer<float> dbias(bias);
  typename Gemm::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm,
                                     {m, n, k, 1},
                                     {da.data, packed<typename Gemm::GemmKernel::StrideA>(m, k),
                                      db.data, packed<typename Gemm::GemmKernel::StrideB>(n, k)},
                                     {{},
                                      dc.data,
                                      packed<typename Gemm::GemmKernel::StrideC>(m, n),
                                      dd.data,
                                      packed<typename Gemm::GemmKernel::StrideD>(m, n)},
                                     hardware()};
  arguments.epilogue.thread.alpha = 1.0f;
  arguments.epilogue.thread.beta = 2.0f;
  arguments.epilogue.thread.bias_ptr = dbias.data;
  run<Gemm>(arguments);
  auto want = matmul(a, b, m, n, k);
  for (int i = 0; i < m * n; ++i) want[i] = std::max(0.0f, want[i] + 2.0f * c[i] + bias[i % n]);
  return verdict(to_float(dd.download()), to_float(convert<T>(want)));
}
