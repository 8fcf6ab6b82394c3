// CUTLASS: ptr-array grouped bf16 GEMM, tensor maps rewritten on the device, one group empty.
#include "cutlass_gemm.h"

using namespace cute;
using T = cutlass::bfloat16_t;
using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;
using TileShape = Shape<_64, _64, _64>;
using ClusterShape = Shape<_1, _1, _1>;
using Problem = cutlass::gemm::GroupProblemShape<Shape<int, int, int>>;
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, Row*, 8, T, Row*, 8,
    cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>::CollectiveOp;
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, Row*, 8, T, Column*, 8, float,
    TileShape, ClusterShape, cutlass::gemm::collective::StageCount<3>,
    cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Problem, Mainloop, Epilogue>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
using StrideA = typename Kernel::InternalStrideA;
using StrideB = typename Kernel::InternalStrideB;
using StrideD = typename Kernel::InternalStrideD;

int main() {
  const int groups = 4, n = 136, k = 200, m_of[groups] = {72, 0, 8, 136};
  std::vector<typename Problem::UnderlyingProblemShape> shapes;
  std::vector<const T*> a_of, b_of;
  std::vector<T*> d_of;
  std::vector<StrideA> a_stride;
  std::vector<StrideB> b_stride;
  std::vector<StrideD> d_stride;
  int rows = 72 + 8 + 136;
  auto a = small_floats(rows * k), b = small_floats(groups * n * k, 17);
  Buffer<T> da(convert<T>(a)), db(convert<T>(b)), dd(rows * n);
  std::vector<float> want;
  for (int g = 0, row = 0; g < groups; row += m_of[g++]) {
    int m = m_of[g];
    shapes.push_back({m, n, k});
    a_of.push_back(da.data + row * k);
    b_of.push_back(db.data + g * n * k);
    d_of.push_back(dd.data + row * n);
    a_stride.push_back(packed<StrideA>(m, k));
    b_stride.push_back(packed<StrideB>(n, k));
    d_stride.push_back(packed<StrideD>(m, n));
    std::vector<float> group_a(a.begin() + row * k, a.begin() + (row + m) * k);
    std::vector<float> group_b(b.begin() + g * n * k, b.begin() + (g + 1) * n * k);
    auto group = matmul(group_a, group_b, m, n, k);
    want.insert(want.end(), group.begin(), group.end());
  }
  Buffer dshapes(shapes);
  Buffer da_of(a_of), db_of(b_of);
  Buffer dd_of(d_of);
  Buffer da_stride(a_stride);
  Buffer db_stride(b_stride);
  Buffer dd_stride(d_stride);
  typename Gemm::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGrouped,
                                     {groups, dshapes.data, shapes.data()},
                                     {da_of.data, da_stride.data, db_of.data, db_stride.data},
                                     {{1.0f, 0.0f}, nullptr, nullptr, dd_of.data, dd_stride.data},
                                     hardware()};
  run<Gemm>(arguments);
  return verdict(to_float(dd.download()), to_float(convert<T>(want)));
}
