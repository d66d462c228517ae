// Working memory of the kernels that gives itself back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

template <class T>
using Buffer = std::unique_ptr<T[], void (*)(T*)>;

// n numbers at the start of a cache line, not initialised.
template <class T>
Buffer<T> scratch(int64_t n) {
  void* memory = take_scratch(static_cast<size_t>(n > 0 ? n : 1) * sizeof(T));
  return Buffer<T>(static_cast<T*>(memory), [](T* p) { give_scratch(p); });
}

}  // namespace frd::cpu::FRD_ISA
