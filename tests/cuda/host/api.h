// The functions of CUDA's runtime that launchers and tests call. See runtime.h.
#pragma once

#include "runtime.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

// ---- Errors

inline cudaError_t cudaGetLastError() { return std::exchange(frd::cuda::host::Runtime::get().last_error, cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return frd::cuda::host::Runtime::get().last_error; }
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess:
    return "no error";
  case cudaErrorInvalidValue:
    return "invalid argument";
  case cudaErrorMemoryAllocation:
    return "out of memory";
  case cudaErrorInvalidConfiguration:
    return "invalid configuration argument";
  case cudaErrorInvalidDevice:
    return "invalid device ordinal";
  case cudaErrorInvalidResourceHandle:
    return "invalid resource handle";
  case cudaErrorNotReady:
    return "device not ready";
  case cudaErrorCooperativeLaunchTooLarge:
    return "too many blocks in cooperative launch";
  }
  return "unrecognized error code";
}

// ---- The device

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& device = frd::cuda::host::Runtime::get().device;
  switch (attribute) {
  case cudaDevAttrMaxSharedMemoryPerBlock:
    *value = static_cast<int>(frd::cuda::host::STATIC_SHARED_LIMIT);
    break;
  case cudaDevAttrMultiProcessorCount:
    *value = device.multiprocessors;
    break;
  case cudaDevAttrComputeCapabilityMajor:
    *value = device.capability_major;
    break;
  case cudaDevAttrComputeCapabilityMinor:
    *value = device.capability_minor;
    break;
  case cudaDevAttrCooperativeLaunch:
    *value = 1;
    break;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    *value = static_cast<int>(device.dynamic_shared_limit);
    break;
  default:
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  auto& runtime = frd::cuda::host::Runtime::get();
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // only speed depends on it
  if (value < 0 || static_cast<size_t>(value) > runtime.device.dynamic_shared_limit) return cudaErrorInvalidValue;
  runtime.shared_limits[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(value);
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(P...), int, size_t) {
  *blocks = frd::cuda::host::Runtime::get().device.blocks_per_multiprocessor;
  return cudaSuccess;
}

// ---- Memory

template <class T>
cudaError_t cudaMalloc(T** at, size_t bytes) {
  *at = bytes ? static_cast<T*>(frd::cuda::host::Memory::allocate(bytes)) : nullptr;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceSynchronize() {
  frd::cuda::host::Runtime::get().drain_all();
  return cudaSuccess;
}

inline cudaError_t cudaFree(void* at) {
  cudaDeviceSynchronize();
  return !at || frd::cuda::host::Memory::free(at) ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (bytes) frd::cuda::host::Runtime::get().enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  if (bytes) frd::cuda::host::Runtime::get().enqueue(stream, [=] { std::memset(at, value, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* at, int value, size_t bytes) { return cudaMemsetAsync(at, value, bytes, nullptr); }

// ---- Streams

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  auto& streams = frd::cuda::host::Runtime::get().streams;
  streams.push_back(std::make_unique<CUstream_st>());
  streams.back()->blocking = flags != cudaStreamNonBlocking;
  *stream = streams.back().get();
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  // The null stream's own work has been done; what it would have waited for has not.
  if (!stream) {
    frd::cuda::host::Runtime::get().enqueue(nullptr, [] {});
  } else {
    frd::cuda::host::Runtime::get().drain([stream] { return stream->queue.empty(); });
  }
  return cudaSuccess;
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return !stream || stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  std::erase_if(frd::cuda::host::Runtime::get().streams, [stream](auto& s) { return s.get() == stream; });
  return cudaSuccess;
}
inline cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* argument) {
  frd::cuda::host::Runtime::get().enqueue(stream, [=] { function(argument); });
  return cudaSuccess;
}

// ---- Events

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;  // what is queued shares what it needs
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
  const uint64_t number = ++event->recorded;
  frd::cuda::host::Runtime::get().enqueue(
      stream, [number, reached = event->reached] { *reached = std::max(*reached, number); });
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
  frd::cuda::host::Runtime::get().enqueue(
      stream, [] {}, [number = event->recorded, reached = event->reached] { return *reached >= number; });
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  frd::cuda::host::Runtime::get().drain([event] { return *event->reached >= event->recorded; });
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  return *event->reached >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}
