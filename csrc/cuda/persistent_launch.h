// What a source of persistent kernels launches them with.
#pragma once

#include <type_traits>

#include "cuda/exchange.h"
#include "cuda/persistent_kernels.h"

namespace frd::cuda {

using PersistentForm = Ring<PersistentSteps::SLOTS, true>;

// Calls f with a value of the type of word that a plan of D and a cell has. Words of 32 bits are compiled for the cells
// that at_most_one() may say yes of.
template <class D, Cell CELL, class F>
cudaError_t with_word(WordKind words, F&& f) {
  if (words == WordKind::TAGGED) return f(Tagged{});
  if constexpr (CELL == LSTM || CELL == RNN_TANH) {
    return f(std::conditional_t<sizeof(D) == 2, PhasedPair, PhasedFloat>{});
  } else {
    return cudaErrorInvalidValue;
  }
}

// A cooperative launch, with as much dynamic shared memory as the plan says.
template <class Parameters>
cudaError_t launch_persistent(void (*persistent_kernel)(Parameters), const PersistentPlan& plan, const Parameters& p,
                              cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(persistent_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(plan.shared));
  if (error != cudaSuccess) return error;
  return FRD_LAUNCH_COOPERATIVE(persistent_kernel, dim3(static_cast<unsigned>(plan.blocks)), dim3(PERSISTENT_THREADS),
                                static_cast<size_t>(plan.shared), stream, p);
}

}  // namespace frd::cuda
