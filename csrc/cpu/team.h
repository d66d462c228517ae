// Threads that go through the steps of a recurrence together.
//
// The work of a step is cut into groups. A thread claims a group before it computes it, its own first and then any
// that nobody has claimed, and goes on to the next step when all groups of this one are done. So a thread only ever
// waits for a group that a running thread has claimed: nothing hangs when the chunks of a parallel loop run one after
// the other, nested, or on a single thread, and a thread that starts late finds its share done.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "cpu/layer.h"
#include "cpu/profile.h"

namespace frd::cpu {

// Into how many groups a step's tiles are cut: one per thread, fewer where a step is too small to share.
inline int groups_for(const Parallel& parallel, int64_t tiles, double step_flops) {
  constexpr double worth_sharing = 2e4;  // below about a microsecond, meeting costs more than it saves
  const int64_t threads = step_flops < worth_sharing ? 1 : parallel.threads;
  return static_cast<int>(threads < tiles ? threads : (tiles > 0 ? tiles : 1));
}

// The share of [0, n) that belongs to `group`.
inline int64_t share(int64_t n, int group, int groups) { return n * group / groups; }

class Team {
 public:
  Team(const Parallel& parallel, int64_t steps, int groups)
      : parallel_(parallel), steps_(steps), groups_(groups), claims_(new Claim[groups]) {}

  // Calls body(step, group) once for each pair. What a step wrote is seen by every later step.
  template <class Body>
  void run(Body&& body) {
    const int64_t start = is_profiling() ? now_ns() : 0, products = product_ns;
    if (groups_ == 1) {
      for (int64_t step = 0; step < steps_; ++step) body(step, 0);
    } else {
      parallel_.each(groups_, [&](int64_t begin, int64_t) { work(static_cast<int>(begin), body); });
    }
    if (is_profiling()) note(now_ns() - start, product_ns - products);
  }

 private:
  struct alignas(64) Claim {       // a cache line each, so that claims do not disturb one another
    std::atomic<int64_t> step{0};  // the first step that nobody has claimed
  };

  template <class Body>
  void work(int own, Body&& body) {
    for (;;) {
      const int64_t step = done_.load(std::memory_order_acquire) / groups_;
      if (step >= steps_) return;
      for (int i = 0; i < groups_; ++i) {
        const int group = (own + i) % groups_;
        int64_t unclaimed = step;
        if (claims_[group].step.compare_exchange_strong(unclaimed, step + 1, std::memory_order_acq_rel)) {
          body(step, group);
          done_.fetch_add(1, std::memory_order_acq_rel);
        }
      }
      if (is_profiling() && std::this_thread::get_id() == caller_) {
        const int64_t start = now_ns();
        wait_for((step + 1) * groups_);
        waited_ns_ += now_ns() - start;
      } else {
        wait_for((step + 1) * groups_);
      }
    }
  }

  // What the calling thread did in all: products, waiting, and the cells, which are the rest.
  void note(int64_t total, int64_t products) const {
    phase_ns[PRODUCT] += products;
    phase_ns[WAIT] += waited_ns_;
    phase_ns[CELL] += total - products - waited_ns_;
  }

  void wait_for(int64_t done) const {
    for (int spins = 0; done_.load(std::memory_order_acquire) < done; ++spins) {
      if (spins < 256) {
        relax();
      } else {
        std::this_thread::yield();  // whoever holds the claim may need this processor
      }
    }
  }

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const Parallel& parallel_;
  const int64_t steps_;
  const int groups_;
  std::unique_ptr<Claim[]> claims_;
  const std::thread::id caller_ = std::this_thread::get_id();
  int64_t waited_ns_ = 0;                     // by the caller
  alignas(64) std::atomic<int64_t> done_{0};  // groups done, over all steps
};

}  // namespace frd::cpu
