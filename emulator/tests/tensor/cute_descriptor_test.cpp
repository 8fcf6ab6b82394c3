// The key trust test of gather_operand: shared memory filled through CuTe's own GMMA layouts, the
// descriptors made by CuTe's own make_gmma_desc and advanced by its DescriptorIterator, every
// operand read back and compared with the logical tile. Fragment maps are held against CuTe's too.
#include <cstddef>
#include <cstdint>

// CuTe asks this intrinsic for a shared address; here "shared memory" is the array below.
alignas(1024) static uint8_t g_smem[256 * 1024];
static inline size_t __cvta_generic_to_shared(const void* p) {
  return static_cast<size_t>(static_cast<const uint8_t*>(p) - g_smem);
}
#define CUTE_CVTA_GENERIC_TO_SHARED_ACTIVATED 1

#include <cutlass/numeric_types.h>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/copy_traits_sm90.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

#include "check.h"
#include "tensor/descriptor.h"

using namespace cute;
using l4k::emu::MmaType;
using l4k::emu::test::check;
namespace emu = l4k::emu;

template <class T>
T value_at(int row, int col) {
  uint32_t h = (row * 2654435761u) ^ (col * 40503u + 77u);
  T out;
  if constexpr (sizeof(T) == 1) out = T::bitcast(static_cast<uint8_t>(h >> 7));
  else if constexpr (sizeof(T) == 2) out = T::bitcast(static_cast<uint16_t>(h >> 5));
  else out = T::bitcast(h);
  return out;
}
template <>
int8_t value_at<int8_t>(int row, int col) {
  return static_cast<int8_t>((row * 2654435761u) >> 9 ^ (col * 40503u + 77u));
}

// `rows_per` is 64 for A, n for B; fragments(_, i, k) are the descriptors.
template <class Tensor, class Fragments>
void compare(const char* name, MmaType type, bool mn_major, int rows_per, Tensor const& tile,
             Fragments const& fragments) {
  using T = typename Tensor::value_type;
  constexpr int per_k = 32 / sizeof(T);
  for (int i = 0; i < size<1>(fragments); ++i)
    for (int k = 0; k < size<2>(fragments); ++k) {
      uint64_t desc = *(fragments(_, i, k).data());
      std::vector<uint8_t> packed(rows_per * 32);
      std::vector<uint32_t> chunks;
      std::string error = emu::gather_operand(g_smem, sizeof g_smem, desc, rows_per, type, mn_major,
                                              packed.data(), &chunks);
      if (!check(error.empty(), "%s: %s", name, error.c_str())) continue;
      check(chunks.size() == packed.size() / 16, "%s: %zu chunks", name, chunks.size());
      for (int r = 0; r < rows_per; ++r)
        for (int c = 0; c < per_k; ++c) {
          T want = tile(i * rows_per + r, k * per_k + c), got;
          std::memcpy(&got, &packed[r * 32 + c * sizeof(T)], sizeof(T));
          check(std::memcmp(&want, &got, sizeof(T)) == 0,
                "%s: block %d k step %d row %d col %d (%s)", name, i, k, r, c,
                emu::to_string(emu::decode_descriptor(desc)).c_str());
        }
    }
}

template <class Op, class Atom, int MN, int K, bool is_a, class Order>
void operand(const char* name, MmaType type, bool mn_major, int rows_per, uint32_t base) {
  using Traits = MMA_Traits<Op>;
  using T = std::remove_cv_t<typename Traits::ValTypeA>;
  std::memset(g_smem, 0xee, sizeof g_smem);
  auto layout = tile_to_shape(Atom{}, Shape<Int<MN>, Int<K>>{}, Order{});
  Tensor tile = make_tensor(make_smem_ptr(reinterpret_cast<T*>(g_smem + base)), layout);
  for (int r = 0; r < MN; ++r)
    for (int c = 0; c < K; ++c) tile(r, c) = value_at<T>(r, c);
  auto slice = make_tiled_mma(Op{}).get_slice(0);
  if constexpr (is_a) {
    compare(name, type, mn_major, rows_per, tile, slice.make_fragment_A(slice.partition_A(tile)));
  } else {
    compare(name, type, mn_major, rows_per, tile, slice.make_fragment_B(slice.partition_B(tile)));
  }
}

using Left = Step<_1, _2>;
using Right = Step<_2, _1>;

// Every swizzle for one operation; K is four instructions or more, M|N at least two.
template <class Op, class T, GMMA::Major major, int MN, int K, bool is_a>
void all_swizzles(const char* name, MmaType type, int rows_per) {
  constexpr bool mn = major == GMMA::Major::MN;
  auto both = [&]<class Atom>(Atom, const char* swizzle) {
    char text[96];
    std::snprintf(text, sizeof text, "%s %s %s-major %s", name, is_a ? "A" : "B", mn ? "MN" : "K",
                  swizzle);
    operand<Op, Atom, MN, K, is_a, Left>(text, type, mn, rows_per, 0);
    operand<Op, Atom, MN, K, is_a, Right>(text, type, mn, rows_per, 5 * 1024);
  };
  both(GMMA::Layout_INTER_Atom<T, major>{}, "none");
  both(GMMA::Layout_SW32_Atom<T, major>{}, "32B");
  both(GMMA::Layout_SW64_Atom<T, major>{}, "64B");
  both(GMMA::Layout_SW128_Atom<T, major>{}, "128B");
}

// ---- fragment maps ----------------------------------------------------------------------------
// CuTe's layouts map (thread, value) to row + col * rows.
template <class Layout, class Map>
void fragment(const char* name, Layout const& layout, int rows, int threads, Map map) {
  check(size<0>(layout) == threads, "%s: %d threads", name, int(size<0>(layout)));
  for (int t = 0; t < threads; ++t)
    for (int v = 0; v < size<1>(layout); ++v) {
      int index = layout(t, v);
      emu::Element e = map(t, v);
      check(e.row == index % rows && e.col == index / rows,
            "%s: thread %d value %d: expected (%d, %d), got (%d, %d)", name, t, v, index % rows,
            index / rows, e.row, e.col);
    }
}

void fragments() {
  auto acc = [](int t, int v) { return emu::wgmma_acc_element(t, v); };
  auto acc_f16 = [](int t, int v) { return emu::wgmma_acc_f16_element(t, v / 2, v % 2); };
  fragment("wgmma acc n=8", SM90::GMMA::CLayout_64xN<8>{}, 64, 128, acc);
  fragment("wgmma acc n=136", SM90::GMMA::CLayout_64xN<136>{}, 64, 128, acc);
  fragment("wgmma acc n=256", SM90::GMMA::CLayout_64xN<256>{}, 64, 128, acc);
  fragment("wgmma f16 acc n=256", SM90::GMMA::CLayout_64xN<256>{}, 64, 128, acc_f16);
  auto a = [](MmaType type) {
    return [type](int t, int v) {
      int per = 4 / emu::mma_bytes(type);
      return emu::a_fragment_element(type, t, v / per, v % per);
    };
  };
  auto b = [](MmaType type) {
    return [type](int t, int v) {
      int per = 4 / emu::mma_bytes(type);
      emu::Element e = emu::b_fragment_element(type, t, v / per, v % per);
      return emu::Element{e.col, e.row};  // CuTe's B is n x k
    };
  };
  fragment("wgmma A 16-bit", SM90::GMMA::ALayout_64x16{}, 64, 128, a(MmaType::bf16));
  fragment("wgmma A 8-bit", SM90::GMMA::ALayout_64x32{}, 64, 128, a(MmaType::e4m3));
  fragment("wgmma A tf32", SM90::GMMA::ALayout_64x8{}, 64, 128, a(MmaType::tf32));
  auto whole = [&]<class Op>(const char* name, Op, MmaType type) {
    using Traits = MMA_Traits<Op>;
    fragment(name, typename Traits::ALayout{}, 16, 32, a(type));
    fragment(name, typename Traits::BLayout{}, 8, 32, b(type));
    fragment(name, typename Traits::CLayout{}, 16, 32,
             [](int t, int v) { return emu::c_fragment_element(t, v); });
  };
  whole("mma m16n8k16 bf16", SM80_16x8x16_F32BF16BF16F32_TN{}, MmaType::bf16);
  whole("mma m16n8k8 bf16", SM80_16x8x8_F32BF16BF16F32_TN{}, MmaType::bf16);
  whole("mma m16n8k16 f16", SM80_16x8x16_F32F16F16F32_TN{}, MmaType::f16);
  whole("mma m16n8k8 tf32", SM80_16x8x8_F32TF32TF32F32_TN{}, MmaType::tf32);
  whole("mma m16n8k4 tf32", SM80_16x8x4_F32TF32TF32F32_TN{}, MmaType::tf32);
  whole("mma m16n8k32 s8", SM80_16x8x32_S32S8S8S32_TN{}, MmaType::s8);
  whole("mma m16n8k16 s8", SM80_16x8x16_S32S8S8S32_TN{}, MmaType::s8);

  // ldmatrix: CuTe's layouts map (lane, bit) to a bit of the 8 x 8 x count b16 source rows.
  auto matrix = [](const char* name, auto layout, int count, bool trans) {
    for (int lane = 0; lane < 32; ++lane)
      for (int bit = 0; bit < 32 * count; bit += 16) {
        int reg = bit / 32, part = bit / 16 % 2;
        emu::Element e = emu::matrix_element(lane, part, trans);
        int source = emu::matrix_row_lane(reg, e.row) * 128 + e.col * 16;
        check(layout(lane, bit) == source, "%s lane %d bit %d: expected %d, got %d", name, lane,
              bit, int(layout(lane, bit)), source);
      }
  };
  // SrcLayout maps (lane, bit of its row) to the same bits; with its lanes in row order it is
  // lane * 128 + bit, which is how `source` counts.
  matrix("ldmatrix x1", Copy_Traits<SM75_U32x1_LDSM_N>::DstLayout{}, 1, false);
  matrix("ldmatrix x2", Copy_Traits<SM75_U32x2_LDSM_N>::DstLayout{}, 2, false);
  matrix("ldmatrix x4", Copy_Traits<SM75_U32x4_LDSM_N>::DstLayout{}, 4, false);
  matrix("ldmatrix x1 trans", Copy_Traits<SM75_U16x2_LDSM_T>::DstLayout{}, 1, true);
  matrix("ldmatrix x2 trans", Copy_Traits<SM75_U16x4_LDSM_T>::DstLayout{}, 2, true);
  matrix("ldmatrix x4 trans", Copy_Traits<SM75_U16x8_LDSM_T>::DstLayout{}, 4, true);
  matrix("stmatrix x4", Copy_Traits<SM90_U32x4_STSM_N>::SrcLayout{}, 4, false);
  matrix("stmatrix x4 trans", Copy_Traits<SM90_U16x8_STSM_T>::SrcLayout{}, 4, true);
}

int main() {
  using namespace SM90::GMMA;
  constexpr auto K = GMMA::Major::K, MN = GMMA::Major::MN;
  using bf16 = cutlass::bfloat16_t;
  using f16 = cutlass::half_t;
  using e4m3 = cutlass::float_e4m3_t;
  using tf32 = cutlass::tfloat32_t;
  using Bf16KK = MMA_64x128x16_F32BF16BF16_SS<K, K>;
  using Bf16MN = MMA_64x128x16_F32BF16BF16_SS<MN, MN>;
  all_swizzles<Bf16KK, bf16, K, 128, 128, true>("bf16 n=128", MmaType::bf16, 64);
  all_swizzles<Bf16KK, bf16, K, 256, 128, false>("bf16 n=128", MmaType::bf16, 128);
  all_swizzles<Bf16MN, bf16, MN, 128, 64, true>("bf16 n=128", MmaType::bf16, 64);
  all_swizzles<Bf16MN, bf16, MN, 256, 64, false>("bf16 n=128", MmaType::bf16, 128);
  using F16Wide = MMA_64x256x16_F32F16F16_SS<K, MN>;
  all_swizzles<F16Wide, f16, MN, 256, 64, false>("f16 n=256", MmaType::f16, 256);
  using F16Narrow = MMA_64x64x16_F32F16F16_SS<K, MN>;
  all_swizzles<F16Narrow, f16, MN, 128, 64, false>("f16 n=64", MmaType::f16, 64);
  using Fp8 = MMA_64x128x32_F32E4M3E4M3_SS_TN<>;
  all_swizzles<Fp8, e4m3, K, 128, 256, true>("e4m3 n=128", MmaType::e4m3, 64);
  all_swizzles<Fp8, e4m3, K, 256, 256, false>("e4m3 n=128", MmaType::e4m3, 128);
  using Fp8Odd = MMA_64x96x32_F32E4M3E4M3_SS_TN<>;
  all_swizzles<Fp8Odd, e4m3, K, 192, 256, false>("e4m3 n=96", MmaType::e4m3, 96);
  using Tf32 = MMA_64x128x8_F32TF32TF32_SS_TN<>;
  all_swizzles<Tf32, tf32, K, 128, 64, true>("tf32 n=128", MmaType::tf32, 64);
  using S8 = MMA_64x128x32_S32S8S8_SS_TN;
  all_swizzles<S8, int8_t, K, 256, 256, false>("s8 n=128", MmaType::s8, 128);
  fragments();
  return emu::test::finish("cute_descriptor_test");
}
