// Tile products against plain loops in double, and registers against the fragment maps.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "tensor/mma.h"
#include "tensor/numeric.h"

using namespace l4k::emu;
using test::check;

namespace {

const MmaType kFloats[] = {MmaType::bf16, MmaType::f16, MmaType::tf32, MmaType::e4m3,
                           MmaType::e5m2};

double element(MmaType t, const uint8_t* packed, int row, int col, int k_bytes) {
  const uint8_t* p = packed + row * k_bytes + col * mma_bytes(t);
  uint32_t u = 0;
  std::memcpy(&u, p, static_cast<size_t>(mma_bytes(t)));
  switch (t) {
    case MmaType::bf16:
      return bf16_to_float(static_cast<uint16_t>(u));
    case MmaType::f16:
      return f16_to_float(static_cast<uint16_t>(u));
    case MmaType::tf32:
      return from_bits(u & 0xffffe000u);
    case MmaType::e4m3:
      return e4m3_to_float(static_cast<uint8_t>(u));
    case MmaType::e5m2:
      return e5m2_to_float(static_cast<uint8_t>(u));
    case MmaType::s8:
      return static_cast<int8_t>(u);
    case MmaType::u8:
      return static_cast<uint8_t>(u);
  }
  __builtin_unreachable();
}

void put(MmaType t, uint8_t* at, double v) {
  uint32_t u = 0;
  auto f = static_cast<float>(v);
  switch (t) {
    case MmaType::bf16:
      u = float_to_bf16(f);
      break;
    case MmaType::f16:
      u = float_to_f16(f);
      break;
    case MmaType::tf32:
      u = bits(f);
      break;
    case MmaType::e4m3:
      u = float_to_e4m3(f);
      break;
    case MmaType::e5m2:
      u = float_to_e5m2(f);
      break;
    default:
      u = static_cast<uint32_t>(static_cast<int32_t>(v));
  }
  std::memcpy(at, &u, static_cast<size_t>(mma_bytes(t)));
}

std::vector<uint8_t> tile(MmaType t, int rows, int k_bytes, test::Rng& rng, bool integers) {
  std::vector<uint8_t> out(static_cast<size_t>(rows * k_bytes));
  for (size_t i = 0; i < out.size(); i += static_cast<size_t>(mma_bytes(t))) {
    double v = integers ? double(rng.below(17)) - 8 : rng.between(-2, 2);
    if (t == MmaType::u8) v = rng.below(256);
    if (t == MmaType::s8) v = double(rng.below(256)) - 128;
    put(t, &out[i], v);
  }
  return out;
}

// Integer operands: every sum is exact, so the product must be equal bit for bit.
void exact_products() {
  test::Rng rng(1);
  for (MmaType t : kFloats)
    for (Fp8Accumulation mode : {Fp8Accumulation::exact, Fp8Accumulation::hopper})
      for (int n = 8; n <= 256; n += 8) {
        int k = 32 / mma_bytes(t);
        auto a = tile(t, 64, 32, rng, true), b = tile(t, n, 32, rng, true);
        // 14 bits hold |sum| < 2^13, and the hopper model is exact on them.
        std::vector<float> acc(64 * n), start(64 * n);
        for (float& x : start) x = float(int(rng.below(200)) - 100);
        bool scale_d = n % 16 == 0;
        int sa = n % 24 == 0 ? -1 : 1, sb = n % 40 == 0 ? -1 : 1;
        acc = start;
        wgmma_tile(t, t, n, a.data(), b.data(), acc.data(), scale_d, sa, sb, mode);
        for (int i = 0; i < 64; ++i)
          for (int j = 0; j < n; ++j) {
            double want = scale_d ? start[i * n + j] : 0;
            for (int p = 0; p < k; ++p)
              want += sa * element(t, a.data(), i, p, 32) * sb * element(t, b.data(), j, p, 32);
            check(acc[i * n + j] == want, "type %d n %d (%d, %d): expected %g, got %g", int(t), n,
                  i, j, want, acc[i * n + j]);
          }
      }
}

void rounding_of_products() {
  test::Rng rng(2);
  for (MmaType t : kFloats) {
    int n = 40, k = 32 / mma_bytes(t);
    auto a = tile(t, 64, 32, rng, false), b = tile(t, n, 32, rng, false);
    std::vector<float> acc(64 * n, 0.25f);
    wgmma_tile(t, t, n, a.data(), b.data(), acc.data(), true, 1, 1, Fp8Accumulation::exact);
    for (int i = 0; i < 64; ++i)
      for (int j = 0; j < n; ++j) {
        double want = 0.25, size = 0.25;
        for (int p = 0; p < k; ++p) {
          double x = element(t, a.data(), i, p, 32) * element(t, b.data(), j, p, 32);
          want += x, size += std::abs(x);
        }
        check(std::abs(acc[i * n + j] - want) <= size * k * 0x1p-24, "type %d (%d, %d): %g, got %g",
              int(t), i, j, want, acc[i * n + j]);
      }
  }
}

// The reduced-precision model, written again with ldexp and trunc.
float aligned_sum(float start, const std::vector<double>& products) {
  double most = std::abs(start);
  for (double p : products) most = std::max(most, std::abs(p));
  if (most == 0) return start;
  int unit = std::ilogb(most) - (kHopperFp8Bits - 1);
  double sum = std::trunc(std::ldexp(start, -unit));
  for (double p : products) sum += std::trunc(std::ldexp(p, -unit));
  return static_cast<float>(std::ldexp(sum, unit));
}

void reduced_precision() {
  test::Rng rng(3);
  for (MmaType ta : {MmaType::e4m3, MmaType::e5m2})
    for (MmaType tb : {MmaType::e4m3, MmaType::e5m2}) {
      int n = 24;
      std::vector<uint8_t> a(64 * 32), b(static_cast<size_t>(n) * 32);
      auto finite = [&](MmaType t, uint8_t x) {
        return t == MmaType::e4m3 ? (x & 0x7f) != 0x7f : (x & 0x7c) != 0x7c;
      };
      for (auto& x : a) do
          x = static_cast<uint8_t>(rng.next());
        while (!finite(ta, x));
      for (auto& x : b) do
          x = static_cast<uint8_t>(rng.next());
        while (!finite(tb, x));
      std::vector<float> acc(64 * n), start(64 * n);
      for (float& x : start)
        x = static_cast<float>(std::ldexp(rng.between(-1, 1), int(rng.below(60)) - 30));
      acc = start;
      long differ = 0;
      wgmma_tile(ta, tb, n, a.data(), b.data(), acc.data(), true, 1, 1, Fp8Accumulation::hopper);
      for (int i = 0; i < 64; ++i)
        for (int j = 0; j < n; ++j) {
          std::vector<double> products;
          double plain = start[i * n + j];
          for (int p = 0; p < 32; ++p) {
            products.push_back(element(ta, a.data(), i, p, 32) * element(tb, b.data(), j, p, 32));
            plain += products.back();
          }
          float want = aligned_sum(start[i * n + j], products);
          check(acc[i * n + j] == want, "hopper (%d, %d): expected %a, got %a", i, j, want,
                acc[i * n + j]);
          differ += acc[i * n + j] != static_cast<float>(plain);
        }
      check(differ > 1000, "the reduced precision shows: %ld of %d differ", differ, 64 * n);
    }
  // All products zero and a tiny accumulator; a huge one; both must survive.
  std::vector<uint8_t> zero(64 * 32), one(8 * 32, 0x38);
  for (float x : {1e-40f, 1e-30f, 3e38f, -0x1p-90f, 0.f}) {
    std::vector<float> acc(64 * 8, x);
    wgmma_tile(MmaType::e4m3, MmaType::e4m3, 8, zero.data(), one.data(), acc.data(), true, 1, 1,
               Fp8Accumulation::hopper);
    float cut = std::abs(x) < 0x1p-80f ? x : aligned_sum(x, {});
    check(acc[0] == cut && acc[511] == cut, "accumulator %a alone: expected %a, got %a", x, cut,
          acc[0]);
  }
}

void not_numbers() {
  for (MmaType t : kFloats)
    for (Fp8Accumulation mode : {Fp8Accumulation::exact, Fp8Accumulation::hopper}) {
      std::vector<uint8_t> a(64 * 32), b(8 * 32);
      for (size_t i = 0; i < a.size(); i += static_cast<size_t>(mma_bytes(t))) put(t, &a[i], 1);
      for (size_t i = 0; i < b.size(); i += static_cast<size_t>(mma_bytes(t))) put(t, &b[i], 1);
      put(t, &a[3 * 32], std::numeric_limits<double>::quiet_NaN());
      float k = 32.f / static_cast<float>(mma_bytes(t));
      std::vector<float> acc(64 * 8, 1.f);
      acc[5 * 8 + 2] = std::numeric_limits<float>::infinity();
      acc[6 * 8 + 2] = from_bits(0xffc12345u);
      wgmma_tile(t, t, 8, a.data(), b.data(), acc.data(), true, 1, 1, mode);
      for (int j = 0; j < 8; ++j) check(bits(acc[3 * 8 + j]) == kNanF32, "NaN row is canonical");
      check(acc[5 * 8 + 2] == std::numeric_limits<float>::infinity(), "infinity stays");
      check(bits(acc[6 * 8 + 2]) == kNanF32, "NaN accumulator is canonical");
      check(acc[4 * 8] == k + 1, "other rows are not touched: %g", acc[4 * 8]);
      acc.assign(64 * 8, NAN);
      wgmma_tile(t, t, 8, a.data(), b.data(), acc.data(), false, 1, 1, mode);
      check(acc[0] == k, "scale_d = 0 ignores what the accumulator held");
    }
}

void half_accumulators() {
  test::Rng rng(4);
  for (MmaType t : {MmaType::f16, MmaType::e4m3, MmaType::e5m2}) {
    int n = 16, k = 32 / mma_bytes(t);
    auto a = tile(t, 64, 32, rng, true), b = tile(t, n, 32, rng, true);
    std::vector<uint16_t> acc(64 * n);
    for (auto& x : acc) x = float_to_f16(float(rng.below(64)) * 0.5f);
    auto start = acc;
    wgmma_tile_f16(t, t, n, a.data(), b.data(), acc.data(), true, -1, 1, Fp8Accumulation::exact);
    for (int i = 0; i < 64; ++i)
      for (int j = 0; j < n; ++j) {
        double want = f16_to_float(start[i * n + j]);
        for (int p = 0; p < k; ++p)
          want -= element(t, a.data(), i, p, 32) * element(t, b.data(), j, p, 32);
        uint16_t rounded = float_to_f16(static_cast<float>(want));
        // -0 and +0 are one value here: the sum's sign depends on its order.
        check(f16_to_float(acc[i * n + j]) == f16_to_float(rounded), "f16 acc type %d (%d, %d)",
              int(t), i, j);
      }
  }
}

void integers() {
  test::Rng rng(5);
  for (MmaType ta : {MmaType::s8, MmaType::u8})
    for (MmaType tb : {MmaType::s8, MmaType::u8})
      for (bool satfinite : {false, true}) {
        int n = 24;
        auto a = tile(ta, 64, 32, rng, true), b = tile(tb, n, 32, rng, true);
        std::vector<int32_t> acc(64 * n), start;
        for (auto& x : acc) {
          x = static_cast<int32_t>(rng.next());
          if (rng.below(2)) x = rng.below(2) ? 0x7fffffff - int(rng.below(2000)) : -0x7fffffff;
        }
        start = acc;
        wgmma_tile_s32(ta, tb, n, a.data(), b.data(), acc.data(), true, satfinite);
        for (int i = 0; i < 64; ++i)
          for (int j = 0; j < n; ++j) {
            int64_t want = start[i * n + j];
            for (int p = 0; p < 32; ++p)
              want += int64_t(element(ta, a.data(), i, p, 32) * element(tb, b.data(), j, p, 32));
            if (satfinite) want = std::min<int64_t>(std::max<int64_t>(want, INT32_MIN), INT32_MAX);
            check(acc[i * n + j] == static_cast<int32_t>(want),
                  "s32 (%d, %d): expected %lld, got %d", i, j, (long long)want, acc[i * n + j]);
          }
        wgmma_tile_s32(ta, tb, n, a.data(), b.data(), acc.data(), false, satfinite);
        int64_t first = 0;
        for (int p = 0; p < 32; ++p)
          first += int64_t(element(ta, a.data(), 0, p, 32) * element(tb, b.data(), 0, p, 32));
        check(acc[0] == first, "scale_d = 0");
      }
}

struct Registers {
  std::vector<uint32_t> words;
  std::vector<uint32_t*> pointers;
  explicit Registers(int count, uint32_t fill = 0xdeadbeef)
      : words(static_cast<size_t>(count) * 32, fill) {
    for (int i = 0; i < count; ++i) pointers.push_back(&words[static_cast<size_t>(i) * 32]);
  }
  uint32_t* const* data() const { return pointers.data(); }
};

// Every map: both directions are inverse, cover the tile, and the copies follow them.
void maps() {
  for (int n : {8, 24, 128, 256}) {
    Registers regs(4 * n / 2);
    for (int t = 0; t < 128; ++t)
      for (int r = 0; r < n / 2; ++r) {
        Element e = wgmma_acc_element(t, r);
        Place p = wgmma_acc_place(e.row, e.col);
        check(p.thread == t && p.reg == r && e.row < 64 && e.col < n, "acc map thread %d reg %d", t,
              r);
        regs.pointers[static_cast<size_t>(t / 32 * n / 2 + r)][t % 32] =
            static_cast<uint32_t>(e.row * 1000 + e.col);
      }
    std::vector<uint32_t> tile_(64 * n);
    wgmma_load_acc(n, regs.data(), tile_.data());
    for (int i = 0; i < 64 * n; ++i)
      check(tile_[i] == static_cast<uint32_t>(i / n * 1000 + i % n), "load_acc n %d at %d", n, i);
    Registers back(4 * n / 2);
    wgmma_store_acc(n, tile_.data(), back.data());
    check(back.words == regs.words, "store_acc n %d", n);

    Registers half(4 * n / 4, 0);
    for (int t = 0; t < 128; ++t)
      for (int r = 0; r < n / 4; ++r)
        for (int part = 0; part < 2; ++part) {
          Element e = wgmma_acc_f16_element(t, r, part);
          Place p = wgmma_acc_f16_place(e.row, e.col);
          check(p.thread == t && p.reg == r && p.part == part, "f16 acc map");
          half.pointers[static_cast<size_t>(t / 32 * n / 4 + r)][t % 32] |=
              static_cast<uint32_t>(e.row * 256 + e.col) << 16 * part;
        }
    std::vector<uint16_t> halves(64 * n);
    wgmma_load_acc_f16(n, half.data(), halves.data());
    for (int i = 0; i < 64 * n; ++i)
      check(halves[i] == i / n * 256 + i % n, "load_acc_f16 n %d at %d", n, i);
    Registers half_back(4 * n / 4);
    wgmma_store_acc_f16(n, halves.data(), half_back.data());
    check(half_back.words == half.words, "store_acc_f16 n %d", n);
  }
  for (MmaType t : {MmaType::bf16, MmaType::tf32, MmaType::e4m3}) {
    int bytes = mma_bytes(t), per = 4 / bytes;
    Registers a(16);
    std::vector<uint8_t> want(64 * 32), got(64 * 32);
    for (size_t i = 0; i < want.size(); ++i) want[i] = static_cast<uint8_t>(i * 37 + i / 251);
    for (int row = 0; row < 64; ++row)
      for (int col = 0; col < 32 / bytes; ++col) {
        Place p = a_fragment_place(t, row, col);
        Element e = a_fragment_element(t, p.thread, p.reg, p.part);
        check(e.row == row && e.col == col && p.part < per && p.reg < 4, "A map");
        auto* word = reinterpret_cast<uint8_t*>(
            a.pointers[static_cast<size_t>(p.thread / 32 * 4 + p.reg)] + p.thread % 32);
        std::memcpy(word + p.part * bytes, &want[static_cast<size_t>(row * 32 + col * bytes)],
                    static_cast<size_t>(bytes));
      }
    wgmma_load_a(a.data(), got.data());
    check(got == want, "wgmma_load_a type %d", int(t));
    for (int k = 0; k < 32 / bytes; ++k)
      for (int n = 0; n < 8; ++n) {
        Place p = b_fragment_place(t, k, n);
        Element e = b_fragment_element(t, p.thread, p.reg, p.part);
        check(e.row == k && e.col == n && p.thread < 32 && p.reg < 2 && p.part < per, "B map");
      }
  }
  for (bool trans : {false, true})
    for (int m = 0; m < 4; ++m)
      for (int i = 0; i < 64; ++i) {
        Place p = matrix_place(m, i / 8, i % 8, trans);
        Element e = matrix_element(p.thread, p.part, trans);
        check(p.reg == m && e.row == i / 8 && e.col == i % 8, "8 x 8 map");
      }
}

void mma_sync_all() {
  test::Rng rng(6);
  auto run = [&](MmaType ta, MmaType tb, MmaAcc acc, int k) {
    int k_bytes = k * mma_bytes(ta);
    auto a = tile(ta, 16, k_bytes, rng, true), b = tile(tb, 8, k_bytes, rng, true);
    Registers ra(4), rb(2), rc(4, 0), rd(4);
    for (int row = 0; row < 16; ++row)
      for (int col = 0; col < k; ++col) {
        Place p = a_fragment_place(ta, row, col);
        std::memcpy(
            reinterpret_cast<uint8_t*>(ra.pointers[p.reg] + p.thread) + p.part * mma_bytes(ta),
            &a[row * k_bytes + col * mma_bytes(ta)], mma_bytes(ta));
      }
    for (int n = 0; n < 8; ++n)
      for (int col = 0; col < k; ++col) {
        Place p = b_fragment_place(tb, col, n);
        std::memcpy(
            reinterpret_cast<uint8_t*>(rb.pointers[p.reg] + p.thread) + p.part * mma_bytes(tb),
            &b[n * k_bytes + col * mma_bytes(tb)], mma_bytes(tb));
      }
    double c[16][8];
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        c[i][j] = double(rng.below(99)) - 50;
        Place p = acc == MmaAcc::f16 ? wgmma_acc_f16_place(i, j) : c_fragment_place(i, j);
        uint32_t& word = rc.pointers[p.reg][p.thread];
        if (acc == MmaAcc::f16) word |= uint32_t{float_to_f16(float(c[i][j]))} << 16 * p.part;
        else if (acc == MmaAcc::s32) word = static_cast<uint32_t>(int32_t(c[i][j]));
        else word = bits(float(c[i][j]));
      }
    for (bool in_place : {false, true}) {
      const Registers& out = in_place ? rc : rd;
      const char* error = mma_sync(ta, tb, acc, k, ra.data(), rb.data(), rc.data(), out.data());
      if (!check(!error, "%s", error ? error : "")) return;
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 8; ++j) {
          double want = c[i][j];
          for (int p = 0; p < k; ++p)
            want += element(ta, a.data(), i, p, k_bytes) * element(tb, b.data(), j, p, k_bytes);
          Place p = acc == MmaAcc::f16 ? wgmma_acc_f16_place(i, j) : c_fragment_place(i, j);
          uint32_t word = out.pointers[p.reg][p.thread];
          double got = acc == MmaAcc::f16 ? f16_to_float(static_cast<uint16_t>(word >> 16 * p.part))
                       : acc == MmaAcc::s32 ? static_cast<int32_t>(word)
                                            : from_bits(word);
          check(got == want, "mma types %d %d acc %d k %d (%d, %d): expected %g, got %g", int(ta),
                int(tb), int(acc), k, i, j, want, got);
        }
    }
  };
  for (MmaType t : {MmaType::bf16, MmaType::f16})
    for (int k : {8, 16}) run(t, t, MmaAcc::f32, k);
  for (int k : {8, 16}) run(MmaType::f16, MmaType::f16, MmaAcc::f16, k);
  for (int k : {4, 8}) run(MmaType::tf32, MmaType::tf32, MmaAcc::f32, k);
  for (MmaType ta : {MmaType::e4m3, MmaType::e5m2})
    for (MmaType tb : {MmaType::e4m3, MmaType::e5m2})
      for (int k : {16, 32}) run(ta, tb, MmaAcc::f32, k), run(ta, tb, MmaAcc::f16, k);
  for (MmaType ta : {MmaType::s8, MmaType::u8})
    for (MmaType tb : {MmaType::s8, MmaType::u8})
      for (int k : {16, 32}) run(ta, tb, MmaAcc::s32, k);
  Registers r(4);
  auto refused = [&](MmaType a, MmaType b, MmaAcc acc, int k) {
    check(mma_sync(a, b, acc, k, r.data(), r.data(), r.data(), r.data()) != nullptr,
          "types %d %d acc %d k %d must be refused", int(a), int(b), int(acc), k);
  };
  refused(MmaType::bf16, MmaType::f16, MmaAcc::f32, 16);
  refused(MmaType::bf16, MmaType::bf16, MmaAcc::f16, 16);
  refused(MmaType::s8, MmaType::s8, MmaAcc::f32, 32);
  refused(MmaType::bf16, MmaType::bf16, MmaAcc::s32, 16);
  refused(MmaType::bf16, MmaType::bf16, MmaAcc::f32, 32);
}

void matrices() {
  for (int count : {1, 2, 4})
    for (bool trans : {false, true}) {
      alignas(16) uint16_t memory[32][8], back[32][8] = {};
      const uint8_t* rows[32] = {};
      uint8_t* out_rows[32] = {};
      for (int lane = 0; lane < 8 * count; ++lane) {
        int at = (lane * 5) % 32;  // rows may lie anywhere
        for (int c = 0; c < 8; ++c) memory[at][c] = static_cast<uint16_t>(lane * 8 + c);
        rows[lane] = reinterpret_cast<uint8_t*>(memory[at]);
        out_rows[lane] = reinterpret_cast<uint8_t*>(back[at]);
      }
      Registers regs(4), moved(4);
      ldmatrix(count, trans, rows, regs.data());
      for (int m = 0; m < count; ++m)
        for (int lane = 0; lane < 32; ++lane) {
          // From the manual: lane l holds elements 2(l % 4), 2(l % 4) + 1 of row l / 4.
          int row = lane / 4, col = lane % 4 * 2;
          uint32_t low = trans ? m * 64 + col * 8 + row : m * 64 + row * 8 + col;
          uint32_t high = trans ? m * 64 + (col + 1) * 8 + row : m * 64 + row * 8 + col + 1;
          check(regs.pointers[m][lane] == (low | high << 16), "ldmatrix x%d trans %d lane %d",
                count, trans, lane);
        }
      stmatrix(count, trans, regs.data(), out_rows);
      for (int lane = 0; lane < 8 * count; ++lane)
        check(std::memcmp(rows[lane], out_rows[lane], 16) == 0, "stmatrix x%d trans %d", count,
              trans);
      if (!trans) {
        Registers turned(4);
        ldmatrix(count, true, rows, turned.data());
        movmatrix(regs.pointers[0], moved.pointers[0]);
        check(std::memcmp(moved.pointers[0], turned.pointers[0], 128) == 0, "movmatrix");
      }
    }
}

}  // namespace

int main() {
  exact_products();
  rounding_of_products();
  reduced_precision();
  not_numbers();
  half_accumulators();
  integers();
  maps();
  mma_sync_all();
  matrices();
  return test::finish("mma_test");
}
