// The steps of an exchange between blocks, in numbers alone: which slot a step's words lie in, how a word shows its
// step, and which blocks must have read before a slot is written again. docs/persistent.md says why.
//
// exchange.h does what is counted here, and tests/cuda/exchange_model.cpp walks through all executions of it. Steps
// begin at 1, the first that is published. Memory is all zeros before step 1.
#pragma once

#include <cstdint>

#include "core/philox.h"

namespace frd::cuda {

// S slots, which the words of steps take in turn.
template <int S>
struct RingSteps {
  static_assert(S >= 2 && S % 2 == 0, "half the slots are written while the other half may still be read");
  static constexpr int SLOTS = S, HALF = S / 2;

  FRD_INLINE constexpr int slot(int64_t step) { return static_cast<int>((step - 1) % S); }

  // A bit that changes each time a slot is written. The first time it is 1, since memory holds 0.
  FRD_INLINE constexpr uint32_t phase(int64_t step) { return static_cast<uint32_t>(((step - 1) / S + 1) & 1); }

  // The handshake of a strict ring. There is one counter for every half round, k = 1, 2, ...: all blocks add 1 to
  // counter k when they have read step k HALF, and who publishes a step in a slot that was read by then looks at it.
  // One running counter for all would not do: a fast block could fill it in the place of a slow one.
  // The counter that reading `step` completes; 0 for none.
  FRD_INLINE constexpr int64_t counter_after(int64_t step) { return step % HALF == 0 ? step / HALF : 0; }
  // The counter that must be full before `step` is published, if no step before has asked for it; 0 for none.
  FRD_INLINE constexpr int64_t counter_before(int64_t step) {
    return step > S && (step - S - 1) % HALF == 0 ? (step - S - 1) / HALF + 1 : 0;
  }
  FRD_INLINE constexpr int64_t counters(int64_t steps) { return steps / HALF + 1; }  // number 0 is not used
};

// Tag: the low 16 bits of the step. 0, which memory holds first, is met again after 65,536 steps, when no block can
// read what a slot held first.
FRD_INLINE constexpr uint32_t tag(int64_t step) { return static_cast<uint32_t>(step & 0xFFFF); }

}  // namespace frd::cuda
