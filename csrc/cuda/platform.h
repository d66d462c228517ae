// What kernels and launchers include instead of CUDA's headers: a GPU, or the host shim that runs the same sources.
//
// With FRD_CUDA_ON_HOST defined, CUDA's words (__global__, threadIdx, __shfl_sync, cudaStream_t, __half ...) come from
// host/shim.h, which needs no CUDA toolkit. Sources that must run in both ways
//   - launch with FRD_LAUNCH or FRD_LAUNCH_COOPERATIVE instead of <<<>>>,
//   - declare shared memory with FRD_SHARED or FRD_DYNAMIC_SHARED,
//   - reach instructions that CUDA C++ has no word for through ptx.h.
#pragma once

#if defined(FRD_CUDA_ON_HOST)

#include "host/shim.h"

#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace frd::cuda {

using LaunchFunction = cudaError_t (*)(const void*, dim3, dim3, void**, size_t, cudaStream_t);

// `arguments` are by value and have the parameters' very types: the runtime is told only their addresses.
template <class... P>
inline cudaError_t launch_with(LaunchFunction function, void (*kernel)(P...), dim3 grid, dim3 block,
                               size_t dynamic_shared, cudaStream_t stream, std::type_identity_t<P>... arguments) {
  void* addresses[sizeof...(P) + 1] = {const_cast<void*>(static_cast<const void*>(&arguments))..., nullptr};
  const cudaError_t error =
      function(reinterpret_cast<const void*>(kernel), grid, block, addresses, dynamic_shared, stream);
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());  // returned here, so not to be met again later
  return error;
}

inline cudaError_t launch_kernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t dynamic_shared,
                                 cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, dynamic_shared, stream);
}

inline cudaError_t launch_cooperative_kernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                                             size_t dynamic_shared, cudaStream_t stream) {
  return cudaLaunchCooperativeKernel(kernel, grid, block, arguments, dynamic_shared, stream);
}

}  // namespace frd::cuda

// Expressions of type cudaError_t. The kernel may be a template-id with commas: FRD_LAUNCH(f<A, B>, grid, block, ...).
#define FRD_LAUNCH(...) ::frd::cuda::launch_with(::frd::cuda::launch_kernel, __VA_ARGS__)
#define FRD_LAUNCH_COOPERATIVE(...) ::frd::cuda::launch_with(::frd::cuda::launch_cooperative_kernel, __VA_ARGS__)

// FRD_SHARED(float, sums, 32) is `float sums[32]` in the block's shared memory, uninitialised, aligned to 16 bytes.
// Shared memory runs no constructors.
#define FRD_SHARED(type, name, count)                                                                                  \
  __shared__ __align__(16) unsigned char name##_bytes[sizeof(type) * (count)];                                         \
  type(&name)[count] = *reinterpret_cast<type(*)[count]>(name##_bytes)

// The launch's dynamic shared memory: `type* name`. Every use in a kernel names the same bytes.
#define FRD_DYNAMIC_SHARED(type, name)                                                                                 \
  extern __shared__ __align__(16) unsigned char frd_dynamic_shared[];                                                  \
  type* const name = reinterpret_cast<type*>(frd_dynamic_shared)

#endif
