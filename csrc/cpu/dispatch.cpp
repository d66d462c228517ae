// Which kernels run: the best that this processor has, or what FRD_CPU_ISA, FRD_CPU_BF16 or a test asks for.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu/layer.h"

namespace frd::cpu {
namespace {

constexpr int AVX512 = 2;  // of the instruction sets

bool processor_has(int isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == AVX512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == 0;
}

int first_choice() {
  const char* wanted = std::getenv("FRD_CPU_ISA");
  for (int isa = NUM_ISAS - 1; isa >= 0; --isa) {
    const Kernels* found = kernels_of(isa);
    if (found && (!wanted || std::strcmp(found->isa, wanted) == 0)) return isa;
  }
  return -1;
}

std::atomic<int>& in_use() {
  static std::atomic<int> isa{first_choice()};
  return isa;
}

}  // namespace

const Kernels* kernels_of(int isa) {
  if (isa < 0 || isa >= NUM_ISAS || !processor_has(isa)) return nullptr;
  return isa == 0 ? baseline_kernels() : isa == 1 ? avx2_kernels() : avx512_kernels();
}

const Kernels& kernels() { return *kernels_of(isa_in_use()); }

int isa_in_use() { return in_use().load(std::memory_order_relaxed); }

bool has_native_bf16() {
#if defined(__x86_64__)
  return isa_in_use() == AVX512 && avx512_bf16_kernels() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Bf16 bf16_in_use() {
  const char* wanted = std::getenv("FRD_CPU_BF16");
  if (!wanted || !*wanted) return has_native_bf16() ? Bf16::NATIVE : Bf16::EXACT;
  if (std::strcmp(wanted, "exact") == 0) return Bf16::EXACT;
  if (std::strcmp(wanted, "emulated") == 0) return Bf16::EMULATED;
  return std::strcmp(wanted, "native") == 0 && has_native_bf16() ? Bf16::NATIVE : Bf16::UNKNOWN;
}

bool use_isa(int isa) {
  if (!kernels_of(isa)) return false;
  in_use().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace frd::cpu
