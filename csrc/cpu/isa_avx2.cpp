// The kernels for AVX2. Chosen at run time, so everything they call is compiled in this file's own namespace.
#include "cpu/any_isa.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define FRD_ISA avx2
#define FRD_LANES 8
#include "cpu/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const frd::cpu::Kernels* frd::cpu::avx2_kernels() {
  static const Kernels table{"avx2", avx2::KERNELS<float>, avx2::KERNELS<double>, avx2::read_words};
  return &table;
}
#else
const frd::cpu::Kernels* frd::cpu::avx2_kernels() { return nullptr; }
#endif
