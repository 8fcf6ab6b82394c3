// What handlers do with the lanes of a warp: map a function over them, read and write one of them.
#pragma once

#include "machine/core/state.h"

namespace l4k::emu {

// Applies f to the active lanes. Full warps go through a loop the compiler vectorises.
template <typename D, typename F>
inline void each_lane(Warp& w, D* d, F&& f) {
  if (w.active == kAllLanes) {
    D out[32];
    for (int i = 0; i < 32; ++i) out[i] = f(i);
    for (int i = 0; i < 32; ++i) d[i] = out[i];
  } else {
    for (uint32_t l = w.active; l; l &= l - 1) {
      int i = __builtin_ctz(l);
      d[i] = f(i);
    }
  }
}
template <typename D, typename A, typename F>
inline void map1(Warp& w, const Inst& in, F f) {
  const A* a = w.reg<A>(in.s[0]);
  each_lane<D>(w, w.reg<D>(in.d[0]), [&](int i) { return static_cast<D>(f(a[i])); });
}
template <typename D, typename A, typename B, typename F>
inline void map2(Warp& w, const Inst& in, F f) {
  const A* a = w.reg<A>(in.s[0]);
  const B* b = w.reg<B>(in.s[1]);
  each_lane<D>(w, w.reg<D>(in.d[0]), [&](int i) { return static_cast<D>(f(a[i], b[i])); });
}
template <typename D, typename A, typename B, typename C, typename F>
inline void map3(Warp& w, const Inst& in, F f) {
  const A* a = w.reg<A>(in.s[0]);
  const B* b = w.reg<B>(in.s[1]);
  const C* c = w.reg<C>(in.s[2]);
  each_lane<D>(w, w.reg<D>(in.d[0]), [&](int i) { return static_cast<D>(f(a[i], b[i], c[i])); });
}

inline uint64_t get_lane(Warp& w, const Reg& s, uint32_t bytes, int lane) {
  switch (bytes) {
    case 2:
      return w.reg<uint16_t>(s)[lane];
    case 4:
      return w.reg<uint32_t>(s)[lane];
    default:
      return w.reg<uint64_t>(s)[lane];
  }
}
inline void put_lane(Warp& w, const Reg& s, uint32_t bytes, int lane, uint64_t v) {
  switch (bytes) {
    case 2:
      w.reg<uint16_t>(s)[lane] = static_cast<uint16_t>(v);
      return;
    case 4:
      w.reg<uint32_t>(s)[lane] = static_cast<uint32_t>(v);
      return;
    default:
      w.reg<uint64_t>(s)[lane] = v;
      return;
  }
}
inline uint64_t address_of(Warp& w, const Address& a, int lane) {
  w.use(a.base, 1u << lane);
  uint64_t base = a.bytes == 4 ? w.reg<uint32_t>(a.base)[lane] : w.reg<uint64_t>(a.base)[lane];
  uint64_t v = base + static_cast<uint64_t>(a.offset);
  return (a.bytes == 4 ? static_cast<uint32_t>(v) : v) + w.bias[static_cast<int>(a.bias)];
}
// Addresses of the operand that add_address decoded.
inline void addresses(Warp& w, const Inst& in, uint64_t (&out)[32]) {
  uint64_t offset = static_cast<uint64_t>(in.imm), bias = w.bias[static_cast<int>(in.bias)];
  if (in.base_bytes == 4) {  // the address wraps within its space, whose place is the bias
    const auto* p = w.reg<uint32_t>(in.s[0]);
    for (int i = 0; i < 32; ++i)
      out[i] = bias + static_cast<uint32_t>(p[i] + static_cast<uint32_t>(offset));
  } else {
    const auto* p = w.reg<uint64_t>(in.s[0]);
    for (int i = 0; i < 32; ++i) out[i] = p[i] + (offset + bias);
  }
}

}  // namespace l4k::emu
