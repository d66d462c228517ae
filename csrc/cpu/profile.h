// Where the time of the kernels goes, on the thread that calls them. Off unless somebody asks: then it costs one load.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace frd::cpu {

// Wall time of the calling thread. MASKS are those of each step, PRODUCT, CELL and WAIT the steps of the
// recurrence.
enum Phase : int { PACK, INPUT_PRODUCT, MASKS, PRODUCT, CELL, WAIT, GRADIENTS, DROP_ROWS, NUM_PHASES };

inline std::atomic<bool> profiling{false};
inline std::atomic<int64_t> phase_ns[NUM_PHASES];
inline thread_local int64_t product_ns = 0;  // of this thread's products within steps

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
inline bool is_profiling() { return profiling.load(std::memory_order_relaxed); }

// Adds the time since it was made, or since its last lap, to phases.
class Stopwatch {
 public:
  Stopwatch() : on_(is_profiling()), since_(on_ ? now_ns() : 0) {}

  void lap(Phase phase) {
    if (!on_) return;
    const int64_t now = now_ns();
    phase_ns[phase] += now - since_;
    since_ = now;
  }
  void restart() {
    if (on_) since_ = now_ns();
  }

 private:
  const bool on_;
  int64_t since_;
};

}  // namespace frd::cpu
