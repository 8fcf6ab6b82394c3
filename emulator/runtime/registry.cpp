#include "runtime/registry.h"

#include <cstdio>
#include <cstring>
#include <set>

#include "machine/image.h"
#include "ptx/ast.h"

namespace l4k::emu {

Registry& Registry::get() {
  static auto* r = new Registry;
  return *r;
}

void note_refusal(const std::string& why) {
  static std::set<std::string> printed;
  Registry::get().refusal = why;
  if (Machine::get().settings.print && printed.insert(why).second)
    std::fprintf(stderr, "l4k emulator refuses: %s\n", why.c_str());
}

cudaError_t refuse(cudaError_t error, const std::string& why) {
  note_refusal(why);
  Registry& r = Registry::get();
  return r.last = r.refused = error;
}

cudaError_t failure() {
  bool asserted = Machine::get().report.kind == &*KindName("assertion");
  return asserted ? cudaErrorAssert : cudaErrorLaunchFailure;
}

cudaError_t status() {
  if (!Machine::get().failed()) return cudaSuccess;
  return Registry::get().last = failure();
}

void FatBinary::load() {
  if (loaded) return;
  loaded = true;
  try {
    for (const auto& image : read_fat_binary(data)) images.push_back(load_image(image.ptx));
    if (images.empty())
      error =
          "the fat binary holds no PTX: compile with -gencode=arch=compute_90a,code=compute_90a";
  } catch (const PtxError& e) {
    error = e.what();
  }
}

const Program* Kernel::load() {
  if (program) return program;
  binary->load();
  for (auto& i : binary->images) {
    const Program* p = i->find(name);
    if (p && p->ptx->entry) {
      program = p;
      return p;
    }
  }
  if (!binary->error.empty()) refuse(cudaErrorInvalidPtx, "kernel " + name + ": " + binary->error);
  else refuse(cudaErrorNoKernelImageForDevice, "no PTX defines kernel " + name);
  return nullptr;
}

Kernel* add_ptx_kernel(const std::string& text, const std::string& entry) {
  Registry& r = Registry::get();
  auto image = load_image(text);
  const Program* program = image->find(entry);
  if (!program || !program->ptx->entry) throw PtxError(0, "no kernel '" + entry + "' in this PTX");
  auto kernel = std::make_unique<Kernel>();
  kernel->name = entry;
  kernel->program = program;
  kernel->max_dynamic_shared = 227 * 1024;
  kernel->dynamic_set = true;
  auto binary = std::make_unique<FatBinary>();
  binary->loaded = true;
  binary->images.push_back(std::move(image));
  kernel->binary = binary.get();
  r.binaries.push_back(std::move(binary));
  Kernel* added = kernel.get();
  r.kernels[added] = std::move(kernel);  // its own address stands for the host function
  return added;
}

Kernel* Registry::find(const void* function) {
  if (auto it = kernels.find(function); it != kernels.end()) return it->second.get();
  for (auto& [f, k] : kernels)
    if (k.get() == function) return k.get();
  refuse(cudaErrorInvalidDeviceFunction, "not a kernel of any registered fat binary");
  return nullptr;
}

const Variable* Registry::variable(const void* symbol) {
  auto it = variables.find(symbol);
  if (it == variables.end()) {
    refuse(cudaErrorInvalidSymbol, "not a registered device variable");
    return nullptr;
  }
  it->second.binary->load();
  for (auto& i : it->second.binary->images)
    if (const Variable* v = i->module->find_variable(it->second.name)) return v;
  refuse(cudaErrorInvalidSymbol,
         "no PTX defines variable " + it->second.name + " " + it->second.binary->error);
  return nullptr;
}

}  // namespace l4k::emu

using namespace l4k::emu;

extern "C" {

void** __cudaRegisterFatBinary(void* data) {
  auto binary = std::make_unique<FatBinary>();
  binary->data = data;
  auto* raw = binary.get();
  Registry::get().binaries.push_back(std::move(binary));
  return reinterpret_cast<void**>(raw);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void** handle) {
  // Kernels may still be pending when the program exits.
  Machine::get().synchronize();
  auto* binary = reinterpret_cast<FatBinary*>(handle);
  Registry& r = Registry::get();
  std::erase_if(r.kernels, [&](auto& k) { return k.second->binary == binary; });
  std::erase_if(r.variables, [&](auto& v) { return v.second.binary == binary; });
}
void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  auto k = std::make_unique<Kernel>();
  k->binary = reinterpret_cast<FatBinary*>(handle);
  k->name = name;
  Registry::get().kernels[host] = std::move(k);
}
void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, size_t, int, int) {
  Registry::get().variables[host] = {reinterpret_cast<FatBinary*>(handle), name};
}
char __cudaInitModule(void**) { return 0; }

struct CallConfiguration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
static std::vector<CallConfiguration>& configurations() {
  static thread_local std::vector<CallConfiguration> stack;
  return stack;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  configurations().push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  auto& stack = configurations();
  if (stack.empty())
    return refuse(cudaErrorMissingConfiguration, "a launch without a configuration");
  *grid = stack.back().grid;
  *block = stack.back().block;
  *shared = stack.back().shared;
  std::memcpy(stream, &stack.back().stream, sizeof(void*));
  stack.pop_back();
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(Registry::get().find(function));
  return *kernel ? cudaSuccess : Registry::get().last;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args,
                               size_t shared, cudaStream_t stream) {
  return run(kernel, grid, block, args, shared, nullptr, 0, stream);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** args,
                             size_t shared, cudaStream_t stream) {
  return run(function, grid, block, args, shared, nullptr, 0, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** args) {
  if (!c) return refuse(cudaErrorInvalidValue, "cudaLaunchKernelExC without a configuration");
  return run(function, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, c->attrs, c->numAttrs,
             c->stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** args,
                                        size_t shared, cudaStream_t stream) {
  cudaLaunchAttribute a;
  std::memset(&a, 0, sizeof a);
  a.id = cudaLaunchAttributeCooperative;
  a.val.cooperative = 1;
  return run(function, grid, block, args, shared, &a, 1, stream);
}

}  // extern "C"
