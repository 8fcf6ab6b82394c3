#include "ptx_run.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "machine/core/machine.h"
#include "machine/image.h"

namespace l4k::emu {

int failures = 0;

void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

std::string run(const std::string& body, const std::vector<uint32_t>& in,
                std::vector<uint32_t>* out, uint32_t lanes, const std::string& module) {
  std::string text = kHead + module + R"(
.visible .entry k(.param .u64 in, .param .u64 out) {
.reg .b32 %a, %b, %c, %d, %t<8>; .reg .b64 %i, %o, %w<8>; .reg .pred %p<4>; .reg .b16 %h<4>; .reg .f64 %e<4>;
ld.param.u64 %i, [in]; ld.param.u64 %o, [out];
mov.u32 %t0, %tid.x; mul.wide.u32 %w0, %t0, 12; add.u64 %i, %i, %w0; mul.wide.u32 %w0, %t0, 4; add.u64 %o, %o, %w0;
ld.global.b32 %a, [%i]; ld.global.b32 %b, [%i+4]; ld.global.b32 %c, [%i+8];
)" + body + "\nst.global.b32 [%o], %d;\nret;\n}\n";
  Machine& m = Machine::get();
  m.reset();
  std::unique_ptr<Image> image;
  try {
    image = load_image(text);
  } catch (const PtxError& e) {
    return e.what();
  }
  auto* pi = static_cast<uint32_t*>(m.memory.allocate(32 * 12));
  auto* po = static_cast<uint32_t*>(m.memory.allocate(32 * 4));
  for (size_t i = 0; i < 96; ++i) pi[i] = in[i % in.size()];
  std::fill(po, po + 32, kUnset);
  auto l = std::make_unique<Launch>();
  l->program = image->find("k");
  l->block[0] = lanes;
  l->params.resize(256);
  l->param_base = reinterpret_cast<uint64_t>(l->params.data());
  std::memcpy(l->params.data(), &pi, 8);
  std::memcpy(l->params.data() + 8, &po, 8);
  m.launch(std::move(l));
  m.synchronize();
  if (out) out->assign(po, po + 32);
  m.memory.release(pi, m.next_launch(), "input");
  m.memory.release(po, m.next_launch(), "output");
  m.reset_counters();
  return m.failed() ? m.report.kind->name : "";
}

void value(const std::string& body, const std::vector<uint32_t>& in, uint32_t want) {
  std::vector<uint32_t> out;
  std::string kind = run(body, in, &out);
  char got[96];
  std::snprintf(got, sizeof got, ": got 0x%x, want 0x%x %s", out.empty() ? 0 : out[0], want,
                kind.c_str());
  expect(kind.empty() && !out.empty() && out[0] == want, body + got);
}

void report(const std::string& body, const std::string& kind, uint32_t lanes) {
  std::string got = run(body, {1, 2, 3}, nullptr, lanes);
  expect(got == kind, body + ": reported '" + got + "', want '" + kind + "'");
}

void in_all_modes(void (*tests)()) {
  Settings s;
  s.perturb = false;
  for (Mode mode : {Mode::late, Mode::early, Mode::random}) {
    s.mode = mode;
    Machine::get().configure(s);
    tests();
  }
}

}  // namespace l4k::emu
