// Accesses to words of global memory that other blocks of the same launch write: PTX on a GPU, on the host a memory
// that is as unkind as PTX allows.
//
// In assembler, which a compiler may neither drop, merge nor repeat: it treats weak loads in a loop as one load.
// N neighbouring words move in one instruction, each of them whole, in no order that anybody may rely on. An address is
// a multiple of what is moved. What is relaxed, release or acquire is so for the device.
#pragma once

#include "cuda/platform.h"

#if defined(FRD_CUDA_ON_HOST)
#include "host/order.h"
#else

namespace frd::cuda {

#define FRD_LOADS(name, ptx)                                                                                           \
  __device__ __forceinline__ void name(const uint32_t* at, uint32_t (&r)[1]) {                                         \
    asm volatile(ptx ".b32 %0, [%1];" : "=r"(r[0]) : "l"(__cvta_generic_to_global(at)) : "memory");                    \
  }                                                                                                                    \
  __device__ __forceinline__ void name(const uint32_t* at, uint32_t (&r)[2]) {                                         \
    asm volatile(ptx ".v2.b32 {%0, %1}, [%2];"                                                                         \
                 : "=r"(r[0]), "=r"(r[1])                                                                              \
                 : "l"(__cvta_generic_to_global(at))                                                                   \
                 : "memory");                                                                                          \
  }                                                                                                                    \
  __device__ __forceinline__ void name(const uint32_t* at, uint32_t (&r)[4]) {                                         \
    asm volatile(ptx ".v4.b32 {%0, %1, %2, %3}, [%4];"                                                                 \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                                      \
                 : "l"(__cvta_generic_to_global(at))                                                                   \
                 : "memory");                                                                                          \
  }                                                                                                                    \
  __device__ __forceinline__ void name(const uint64_t* at, uint64_t (&r)[1]) {                                         \
    asm volatile(ptx ".b64 %0, [%1];" : "=l"(r[0]) : "l"(__cvta_generic_to_global(at)) : "memory");                    \
  }                                                                                                                    \
  __device__ __forceinline__ void name(const uint64_t* at, uint64_t (&r)[2]) {                                         \
    asm volatile(ptx ".v2.b64 {%0, %1}, [%2];"                                                                         \
                 : "=l"(r[0]), "=l"(r[1])                                                                              \
                 : "l"(__cvta_generic_to_global(at))                                                                   \
                 : "memory");                                                                                          \
  }

#define FRD_STORES(name, ptx)                                                                                          \
  __device__ __forceinline__ void name(uint32_t* at, uint32_t value) {                                                 \
    asm volatile(ptx ".b32 [%0], %1;" : : "l"(__cvta_generic_to_global(at)), "r"(value) : "memory");                   \
  }                                                                                                                    \
  __device__ __forceinline__ void name(uint64_t* at, uint64_t value) {                                                 \
    asm volatile(ptx ".b64 [%0], %1;" : : "l"(__cvta_generic_to_global(at)), "l"(value) : "memory");                   \
  }

FRD_LOADS(load_relaxed, "ld.relaxed.gpu.global")
FRD_LOADS(load_weak, "ld.weak.global")
FRD_STORES(store_relaxed, "st.relaxed.gpu.global")
FRD_STORES(store_weak, "st.weak.global")

#undef FRD_LOADS
#undef FRD_STORES

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* at) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(at)) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(uint32_t* at, uint32_t value) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" : : "l"(__cvta_generic_to_global(at)), "r"(value) : "memory");
}

// *at += value. Those that follow one another on a word pass on what was released before.
__device__ __forceinline__ void add_release(uint32_t* at, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" : : "l"(__cvta_generic_to_global(at)), "r"(value) : "memory");
}

}  // namespace frd::cuda

#endif
