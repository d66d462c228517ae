// A thread's asynchronous copies: cp.async.
#pragma once

#include "sanitizers.h"

#include <array>
#include <cstddef>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

namespace frd::cuda::host {

// Nothing is copied before the wait, so that one left out is seen: the bytes are poison until then. On a GPU it may
// happen at any time before: to ThreadSanitizer the copies are the doing of somebody else, who begins when asked and is
// ordered before nothing but the wait.
class Copies {
 public:
  // 16 bytes, of which all but the first `bytes` become 0.
  void start(void* to, const void* from, size_t bytes) {
    Unchecked own;
    open_.push_back({to, from, bytes});
    engine_.copy(to, from, bytes, done(committed_));
  }

  void commit() {
    Unchecked own;
    groups_.push_back(std::exchange(open_, {}));
    ++committed_;
  }

  // Delivers all groups but the youngest `pending`.
  void wait(size_t pending) {
    Unchecked own;
    while (groups_.size() > pending) {
      acquire(done(committed_ - groups_.size()));
      for (const Copy& copy : groups_.front()) {
        std::memcpy(copy.to, copy.from, copy.bytes);
        std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, BYTES - copy.bytes);
      }
      groups_.pop_front();
    }
  }

  // The end of the kernel, where what is still under way ends too.
  void end() {
    for (char& group : done_) acquire(&group);
  }

 private:
  static constexpr size_t BYTES = 16;

  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };

  // Who copies, to ThreadSanitizer. Never runs.
  class Engine {
   public:
    void copy([[maybe_unused]] void* to, [[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes,
              [[maybe_unused]] void* done) {
#if defined(FRD_THREAD_SANITIZER)
      if (!fiber_) fiber_ = __tsan_create_fiber(0);
      void* const self = __tsan_get_current_fiber();
      release(this);
      __tsan_switch_to_fiber(fiber_, 1);
      acquire(this);
      __tsan_read_range(const_cast<void*>(from), bytes);
      __tsan_write_range(to, BYTES);
      release(done);
      __tsan_switch_to_fiber(self, 1);
#endif
    }

#if defined(FRD_THREAD_SANITIZER)
    ~Engine() {
      if (fiber_) __tsan_destroy_fiber(fiber_);
    }

   private:
    void* fiber_ = nullptr;
#endif
  };

  // ThreadSanitizer's address for the end of a group. More groups at once than addresses would only order too much.
  void* done(size_t group) { return &done_[group % done_.size()]; }

  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;  // committed and not delivered, the oldest first
  size_t committed_ = 0;
  std::array<char, 8> done_{};
  Engine engine_;
};

}  // namespace frd::cuda::host
