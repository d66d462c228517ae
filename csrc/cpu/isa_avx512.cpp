// The kernels for AVX-512. Chosen at run time, so everything they call is compiled in this file's own namespace.
#include "cpu/any_isa.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))),                   \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define FRD_ISA avx512
#define FRD_LANES 16
#include "cpu/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const frd::cpu::Kernels* frd::cpu::avx512_kernels() {
  static const Kernels table{"avx512", avx512::KERNELS<float>, avx512::KERNELS<double>, avx512::read_words};
  return &table;
}
#else
const frd::cpu::Kernels* frd::cpu::avx512_kernels() { return nullptr; }
#endif
