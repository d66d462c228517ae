// The kernels for any processor: vectors of four floats, whatever the compiler makes of them.
#include "cpu/any_isa.h"

#define FRD_ISA baseline
#define FRD_LANES 4
#include "cpu/kernels.h"

const frd::cpu::Kernels* frd::cpu::baseline_kernels() {
  static const Kernels table{"baseline", baseline::KERNELS<float>, baseline::KERNELS<double>, baseline::read_words};
  return &table;
}

// Products of BFloat16 that any processor can do, for tests of what those of a processor do.
const frd::cpu::TypedKernels<frd::cpu::BFloat16>* frd::cpu::emulated_bf16_kernels() {
  return &baseline::KERNELS<BFloat16>;
}
