// CUDA's runtime as far as launchers and tests use it: launches, streams, events, memory.
//
// Work on a stream is queued, and runs when somebody waits for it: so what is read without waiting is old, as it may be
// on a GPU. Among streams that could go on, which one does is random (with a seed). The null stream first lets the
// streams that do not ignore it finish, as CUDA's does, and then runs its work at once.
// A Fault comes out of the launch on the null stream, and out of the wait on another.
#pragma once

#include "memory.h"
#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorCooperativeLaunchTooLarge = 720,
};

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};

enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};

inline constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDefault = 0, cudaEventDisableTiming = 2;

struct CUevent_st {
  uint64_t recorded = 0;                                              // how often it has been asked for
  std::shared_ptr<uint64_t> reached = std::make_shared<uint64_t>(0);  // and the last of those that has come
};

struct CUstream_st {
  struct Operation {
    std::function<bool()> ready;
    std::function<void()> run;
  };
  bool blocking = true;  // with the null stream
  std::deque<Operation> queue;
};

using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;

namespace frd::cuda::host {

// What the shim says of itself as a GPU. All blocks of a cooperative launch must fit on it at once.
struct Device {
  int multiprocessors = 16;
  int blocks_per_multiprocessor = 1;
  int capability_major = 8, capability_minor = 0;
  size_t dynamic_shared_limit = size_t{99} << 10;  // after cudaFuncSetAttribute: the least of sm_80 to sm_120
};

class Runtime {
 public:
  static Runtime& get() {
    static Runtime runtime;
    return runtime;
  }

  Device device;
  std::recursive_mutex mutex;  // one caller at a time
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::map<const void*, size_t> shared_limits;  // of kernels that asked for more than 48 KiB
  cudaError_t last_error = cudaSuccess;
  std::map<std::string, int64_t> launches;  // by the kernel's name, since somebody last took them

  // What follows is a function of the seed and of what is asked for. 0: everything in order.
  void set_seed(uint64_t seed) {
    seed_ = seed;
    random_ = Random(seed);
  }

  cudaError_t launch(Launch launch, const void* kernel, cudaStream_t stream) {
    const std::lock_guard lock(mutex);
    if (const cudaError_t error = refuse(launch, kernel); error != cudaSuccess) return error;
    ++launches[launch.name];
    enqueue(stream, [this, launch = std::move(launch)] {
      Unchecked own;
      const uint64_t seed = seed_ ? random_.next() | 1 : 0;
      Scheduler(launch, seed, std::max(device.dynamic_shared_limit, STATIC_SHARED_LIMIT)).run();
      try {
        Memory::check_guards();
      } catch (const Fault& fault) {
        throw Fault("kernel " + launch.name + ": " + fault.what());
      }
    });
    return cudaSuccess;
  }

  void enqueue(cudaStream_t stream, std::function<void()> run, std::function<bool()> ready = [] { return true; }) {
    if (stream) {
      stream->queue.push_back({std::move(ready), std::move(run)});
      return;
    }
    drain([this] { return std::ranges::all_of(streams, [](auto& s) { return !s->blocking || s->queue.empty(); }); });
    drain(ready);
    run();
  }

  // Runs what is queued, on any stream, until `done`.
  void drain(const std::function<bool()>& done) {
    const std::lock_guard lock(mutex);
    while (!done()) {
      std::vector<CUstream_st*> able;
      for (auto& stream : streams) {
        if (!stream->queue.empty() && stream->queue.front().ready()) able.push_back(stream.get());
      }
      if (able.empty()) throw Fault("a wait for work that an earlier fault has cancelled");
      CUstream_st& stream = *able[seed_ ? random_.below(able.size()) : 0];
      const auto run = std::move(stream.queue.front().run);
      stream.queue.pop_front();
      try {
        run();
      } catch (...) {
        for (auto& other : streams) other->queue.clear();  // as a GPU's context is lost with all its work
        throw;
      }
    }
  }

  void drain_all() {
    drain([this] { return std::ranges::all_of(streams, [](auto& s) { return s->queue.empty(); }); });
  }

 private:
  cudaError_t refuse(const Launch& launch, const void* kernel) const {
    const dim3 grid = launch.grid, block = launch.block;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535 || !block.x ||
        !block.y || !block.z || block.z > 64 || uint64_t{block.x} * block.y * block.z > 1024) {
      return cudaErrorInvalidConfiguration;
    }
    const auto limit = shared_limits.find(kernel);
    if (launch.dynamic_shared > (limit == shared_limits.end() ? STATIC_SHARED_LIMIT : limit->second)) {
      return cudaErrorInvalidValue;
    }
    const auto room = static_cast<uint64_t>(device.multiprocessors) * device.blocks_per_multiprocessor;
    if (launch.cooperative && uint64_t{grid.x} * grid.y * grid.z > room) return cudaErrorCooperativeLaunchTooLarge;
    return cudaSuccess;
  }

  uint64_t seed_ = 0;
  Random random_{0};
};

// "(reduce<float, 4>), grid, ..." -> "reduce<float, 4>"
inline std::string kernel_name(const std::string& arguments) {
  int depth = 0;
  size_t end = 0;
  for (; end < arguments.size() && (depth > 0 || arguments[end] != ','); ++end) {
    if (arguments[end] == '<' || arguments[end] == '(') ++depth;
    if (arguments[end] == '>' || arguments[end] == ')') --depth;
  }
  const bool parenthesised = end > 1 && arguments[0] == '(' && arguments[end - 1] == ')';
  return parenthesised ? arguments.substr(1, end - 2) : arguments.substr(0, end);
}

template <class... P>
cudaError_t launch(const char* text, bool cooperative, void (*kernel)(P...), dim3 grid, dim3 block,
                   size_t dynamic_shared, cudaStream_t stream, std::type_identity_t<P>... arguments) {
  auto call = [kernel, values = std::tuple<P...>(arguments...)] { std::apply(kernel, values); };
  return Runtime::get().launch({kernel_name(text), grid, block, dynamic_shared, cooperative, std::move(call)},
                               reinterpret_cast<const void*>(kernel), stream);
}

}  // namespace frd::cuda::host
