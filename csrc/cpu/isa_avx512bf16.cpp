// The kernels of BFloat16 for AVX-512 with its dot products. Chosen at run time, so everything they call is compiled in
// this file's own namespace.
#include "cpu/any_isa.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))),        \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define FRD_ISA avx512bf16
#define FRD_LANES 16
#define FRD_BF16_DOT
#include "cpu/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const frd::cpu::TypedKernels<frd::cpu::BFloat16>* frd::cpu::avx512_bf16_kernels() {
  return &avx512bf16::KERNELS<BFloat16>;
}
#else
const frd::cpu::TypedKernels<frd::cpu::BFloat16>* frd::cpu::avx512_bf16_kernels() { return nullptr; }
#endif
