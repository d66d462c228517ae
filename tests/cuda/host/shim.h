// CUDA C++ on the CPU, for tests: what csrc/cuda/platform.h includes instead of CUDA's headers.
//
// Kernels and launchers are compiled as C++20 with FRD_CUDA_ON_HOST defined and run as they are, on any machine with a
// C++ compiler. Slow, and exact where CUDA promises something; where it does not, the shim is unkind, so that a kernel
// that relies on it fails: memory is poisoned, turns are random, asynchronous work comes as late as it may. What would
// hang or is undefined ends in a host::Fault that names kernel, block, thread and line.
//
// - scheduler.h: a launch, and whose turn it is; waiting.h: barriers, lanes that meet, deadlock; block.h: their parts
// - fibers.h, shared_memory.h, copies.h: what a block and its threads run on; faults.h: what wrong kernels end in
// - collectives.h, atomics.h, maths.h, numbers.h: what kernels call; ptx.h, order.h: and through csrc/cuda's of the
//   same name; weak_memory.h: what a word of order.h may still look like to others
// - runtime.h, api.h: launches, streams, events; memory.h: global memory
// - sanitizers.h: what ThreadSanitizer and AddressSanitizer are told
//
// Not emulated: warps whose lanes run in step (nothing in CUDA promises it), caches, constant memory, textures, graphs,
// weak order but through order.h. A loop that waits for another thread must call an atomic, __nanosleep or order.h.
#pragma once

#include "api.h"
#include "atomics.h"
#include "collectives.h"
#include "maths.h"
#include "memory.h"
#include "numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

#define threadIdx (::frd::cuda::host::Scheduler::current().index)
#define blockIdx (::frd::cuda::host::Scheduler::current().block->index)
#define blockDim (::frd::cuda::host::Scheduler::running().launch().block)
#define gridDim (::frd::cuda::host::Scheduler::running().launch().grid)
inline constexpr int warpSize = 32;

template <class T>
T __ldg(const T* at) {
  return *at;
}

[[noreturn]] inline void __trap(FRD_WHERE) { throw frd::cuda::host::Fault(frd::cuda::host::text("__trap", where)); }

// See csrc/cuda/platform.h.
#define FRD_LAUNCH(...) ::frd::cuda::host::launch(#__VA_ARGS__, false, __VA_ARGS__)
#define FRD_LAUNCH_COOPERATIVE(...) ::frd::cuda::host::launch(#__VA_ARGS__, true, __VA_ARGS__)

// The variable's address names the declaration.
#define FRD_SHARED(type, name, count)                                                                                  \
  static char name##_key;                                                                                              \
  type(&name)[count] =                                                                                                 \
      *reinterpret_cast<type(*)[count]>(::frd::cuda::host::shared_array(&name##_key, #name, sizeof(type) * (count)))

#define FRD_DYNAMIC_SHARED(type, name)                                                                                 \
  type* const name = static_cast<type*>(::frd::cuda::host::Scheduler::current().block->resources->shared.dynamic())

namespace frd::cuda::host {

inline void* shared_array(const void* key, const char* name, size_t bytes) {
  Unchecked own;
  return Scheduler::current().block->resources->shared.array(key, name, bytes);
}

}  // namespace frd::cuda::host
