// Mutants of a kernel in one program: the launches they share, and one line for each run of one.
#pragma once
#include <string>

#include "host.h"
#include "l4k_emulator.h"

inline uint32_t hash(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

template <typename T>
bool poison(const Buffer<T>& buffer) {
  return cudaMemset(buffer.data, 0xff, buffer.size * sizeof(T)) == cudaSuccess;
}

template <typename T>
bool upload(const std::vector<T>& host, const Buffer<T>& to) {
  return cudaMemcpy(to.data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice) ==
         cudaSuccess;
}

struct Mutant {
  const char* name;
  void (*run)(std::vector<float>& results, bool original);
};

// Prints a mutant's name, mode and seed; the kind of its report; the hash of its results; its bank
// conflicts.
inline uint32_t run_in(const Mutant& mutant, const char* mode, int seed, bool original) {
  l4k_emu_reset();
  const std::string settings = std::string("mode=") + mode + ",seed=" + std::to_string(seed) +
                               ",sms=3,threads=1,perturb=0,stop=benign,print=0";
  if (l4k_emu_configure_text(settings.c_str()) != 0) std::exit(2);
  std::vector<float> results;
  mutant.run(results, original);
  uint32_t sum = 0;
  for (float value : results) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    sum = hash(sum ^ bits);
  }
  const std::string counters = l4k_emu_counters(), name = "conflicts";
  long conflicts = 0;
  for (size_t at = 0; (at = counters.find(name, at)) != std::string::npos; at += name.size())
    conflicts += std::atol(counters.c_str() + counters.find_first_of("0123456789", at));
  std::printf("%s|%s %d|%s|%08x|%ld\n", mutant.name, mode, seed, l4k_emu_report_kind(), sum,
              conflicts);
  std::fflush(stdout);
  return *l4k_emu_report_kind() != '\0' || conflicts > 0 ? 0 : sum;
}

// The first is the original, in all modes; a mutant until it differs from it.
inline int run_all(const std::vector<Mutant>& mutants, int seeds) {
  uint32_t right = 0;
  for (const Mutant& mutant : mutants) {
    const bool original = &mutant == mutants.data();
    bool found = false;
    for (int seed = 0; seed < seeds; ++seed)
      for (const char* mode : {"late", "early", "random"}) {
        if (found) continue;
        const uint32_t sum = run_in(mutant, mode, seed, original);
        if (right == 0) right = sum;
        found = !original && sum != right;
      }
  }
  return 0;
}
