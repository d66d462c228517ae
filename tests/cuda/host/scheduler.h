// Runs one launch: whose turn it is, and who waits for whom.
//
// Every CUDA thread is a fiber, and the fibers of all resident blocks take turns on the thread of the operating system
// that runs the launch. A thread keeps its turn until it waits or yields; then any other that can go on may be next.
// With a seed that choice, and the order of the blocks, are random and repeatable; without one they are in order. So a
// launch with the same seed does the same again, in a debugger too, and a deadlock is seen at once: nobody can go on.
#pragma once

#include "block.h"
#include "sanitizers.h"
#include "weak_memory.h"

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace frd::cuda::host {

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t limit) { return ((next() >> 32) * limit) >> 32; }  // for limits far below 2^32

 private:
  uint64_t state_;
};

class Scheduler {
 public:
  // seed 0: in order
  Scheduler(const Launch& launch, uint64_t seed, size_t dynamic_limit)
      : launch_(launch), in_order_(seed == 0), random_(seed), dynamic_limit_(dynamic_limit) {}

  // Runs every block to its end, or throws what stopped one of them.
  void run();

  static Scheduler& running() { return *running_; }
  static Thread& current() { return *current_; }
  static bool any() { return running_ != nullptr; }
  const Launch& launch() const { return launch_; }

  // ---- What the running thread does to itself

  // Comes to the block's barrier `id` and, unless it only arrives, waits until `expected` have (all that have not
  // returned, for number 0).
  void arrive(int id, unsigned expected, bool waits, const char* what, const Where& where);

  void arrive_at_grid_barrier(const Where& where);

  // Waits until all lanes of `mask` that have not returned have come, each with a record, and `answer` has been given
  // all of them. A collective that `orders` memory may be called from different lines, as __syncwarp may.
  void meet(unsigned mask, const char* what, const Where& where, bool orders, void* record, Meeting::Answer answer);

  // A load that may be one of a loop which waits for another thread. Costs more than a yield, so fewer are let pass.
  void poll(const Where& where) {
    Unchecked own;
    idle_turns_ += SPIN_LIMIT / POLL_LIMIT - 1;
    yield(where);
  }

  // One of first .. last, of which a relaxed load has the choice. In order: the last.
  uint32_t choose(uint32_t first, uint32_t last) {
    Unchecked own;
    if (in_order_ || first == last) return last;
    return random_.below(lateness_) ? first : first + static_cast<uint32_t>(random_.below(last - first + 1));
  }
  WeakMemory weak;

  // Gives others a turn.
  void yield(const Where& where);
  // The same now and then: atomics are where threads that do not wait for each other meet.
  void maybe_yield(const Where& where) {
    Unchecked own;
    if (random_.below(8) == 0) yield(where);
  }

 private:
  struct Cancelled {};  // thrown in the threads of a launch that has failed, so that they leave

  static constexpr uint64_t SPIN_LIMIT = 10'000'000;  // turns in a row in which threads did nothing but yield
  static constexpr uint64_t POLL_LIMIT = 1'000'000;   // the same of turns in which they polled
  static constexpr uint64_t THREADS_POLL = 4096;      // but so many of each thread: a late word may take some hundred
  static constexpr size_t RESIDENT = 3;               // blocks of an ordinary launch, if not in order

  unsigned blocks() const { return launch_.grid.x * launch_.grid.y * launch_.grid.z; }
  std::string in_kernel() const { return "kernel " + launch_.name; }

  void admit(unsigned number);
  void retire();
  static void enter();
  void live();
  void finish(Thread& self);

  Thread& next();
  Fiber& successor(const Thread& self);
  void leave(Thread& self);
  void wait(Thread& self, const char* what, const Where& where);
  void wake(Thread& thread);
  void open_if_full(Barrier& barrier, unsigned expected);
  void open_grid_barrier_if_full(const Block& block);
  void answer_if_full(Warp& warp, size_t meeting);

  void fail(std::exception_ptr why);
  std::exception_ptr with_thread(std::exception_ptr why, const Thread& thread) const;
  std::string deadlock() const;

  inline static Scheduler* running_ = nullptr;
  inline static Thread* current_ = nullptr;
  inline static std::vector<std::unique_ptr<Resources>> pool_;

  const Launch& launch_;
  const bool in_order_;
  Random random_;
  const uint64_t spell_ = uint64_t{8} * launch_.block.x * launch_.block.y * launch_.block.z;  // turns, on average
  bool newest_first_ = random_.below(2) == 0;
  const uint64_t lateness_ = uint64_t{1} << 2 * random_.below(4);  // one load of so many looks beyond what it must
  const size_t dynamic_limit_;
  Fiber main_;
  std::vector<std::unique_ptr<Block>> resident_;
  std::deque<Thread*> ready_;
  Barrier grid_barrier_;  // arrived: blocks
  uint64_t idle_turns_ = 0;
  const uint64_t spin_limit_ = std::max(
      SPIN_LIMIT, SPIN_LIMIT / POLL_LIMIT * THREADS_POLL * launch_.block.x * launch_.block.y * launch_.block.z *
                      std::min<uint64_t>(blocks(), launch_.cooperative ? blocks() : RESIDENT));
  std::exception_ptr failure_;
  char started_ = 0, finished_ = 0;  // ThreadSanitizer's addresses
};

// ---- Blocks

inline void Scheduler::run() {
  Unchecked own;
  running_ = this;
  std::vector<unsigned> order(blocks());
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  for (size_t i = order.size(); !in_order_ && i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
  const size_t resident = launch_.cooperative ? blocks() : in_order_ ? 1 : RESIDENT;
  for (size_t admitted = 0;;) {
    while (!failure_ && resident_.size() < resident && admitted < order.size()) admit(order[admitted++]);
    if (resident_.empty()) break;
    if (ready_.empty()) fail(std::make_exception_ptr(Fault(deadlock())));
    current_ = &next();
    main_.switch_to(*current_->fiber);
    retire();
  }
  current_ = nullptr;
  running_ = nullptr;
  acquire(&finished_);
  if (failure_) std::rethrow_exception(failure_);
}

inline void Scheduler::admit(unsigned number) {
  const dim3 grid = launch_.grid, size = launch_.block;
  const unsigned threads = size.x * size.y * size.z;
  auto block = std::make_unique<Block>();
  block->index = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
  block->live = threads;
  block->threads = std::vector<Thread>(threads);
  block->warps = std::vector<Warp>((threads + WARP - 1) / WARP);
  for (auto& kept : pool_) {
    if (kept && kept->stacks.count() >= threads && kept->shared.dynamic_limit() >= dynamic_limit_) {
      block->resources = std::move(kept);
      break;
    }
  }
  std::erase(pool_, nullptr);
  if (!block->resources) block->resources = std::make_unique<Resources>(threads, dynamic_limit_);
  block->resources->shared.begin(launch_.dynamic_shared);
  for (unsigned i = 0; i < threads; ++i) {
    Thread& thread = block->threads[i];
    Warp& warp = block->warps[i / WARP];
    thread.block = block.get();
    thread.warp = &warp;
    thread.lane = i % WARP;
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    if (thread.lane == 0) warp.threads = &thread;
    warp.live |= 1u << thread.lane;
    // Here and not at the first turn: ThreadSanitizer orders a fiber after all that its maker did, and the scheduler
    // has done nothing that concerns the kernel.
    thread.fiber.emplace(&Scheduler::enter, block->resources->stacks.bottom(i), Stacks::bytes());
    ready_.push_back(&thread);
  }
  release(&started_);
  resident_.push_back(std::move(block));
}

// Clears away blocks whose threads have all returned.
inline void Scheduler::retire() {
  for (auto& block : resident_) {
    if (block->live != 0) continue;
    try {
      block->resources->shared.check_guards();
    } catch (const Fault& fault) {
      fail(std::make_exception_ptr(Fault(in_kernel() + ", block " + text(block->index) + ": " + fault.what())));
    }
    block->threads.clear();
    // ThreadSanitizer must not take memory that is used again for memory that is shared: its blocks get new memory.
    if (!THREAD_SANITIZER) pool_.push_back(std::move(block->resources));
    block.reset();
  }
  std::erase(resident_, nullptr);
}

// ---- Threads

inline void Scheduler::enter() {
  Fiber::began();
  running_->live();
}

inline void Scheduler::live() {
  Thread& self = current();
  acquire(&started_);
  try {
    if (!failure_) launch_.kernel();
    Unchecked own;
    finish(self);
  } catch (Cancelled) {
    Unchecked own;
    finish(self);
  } catch (...) {
    Unchecked own;
    self.state = Thread::READY;  // it may have been about to wait: fail() must not wake it
    fail(with_thread(std::current_exception(), self));
    finish(self);
  }
  Fiber* other;
  {
    Unchecked own;  // which must have ended when the fiber does
    self.copies.end();
    release(&finished_);
    other = &successor(self);
  }
  self.fiber->switch_to(*other, true);
}

inline void Scheduler::finish(Thread& self) {
  if (self.state == Thread::FINISHED) return;
  self.state = Thread::FINISHED;
  Block& block = *self.block;
  --block.live;
  self.warp->live &= ~(1u << self.lane);
  idle_turns_ = 0;
  if (failure_) return;
  // Those who wait for all that are left may have been waiting for this one.
  open_if_full(block.barriers[0], block.live);
  open_grid_barrier_if_full(block);
  for (size_t i = self.warp->meetings.size(); i-- > 0;) answer_if_full(*self.warp, i);
}

// Uniform choices keep everybody more or less in step, which hides a barrier that is missing. So there are also spells
// in which those who became ready last mostly go first: they run ahead of the others as far as they can.
inline Thread& Scheduler::next() {
  if (!in_order_) {
    if (random_.below(spell_) == 0) newest_first_ = !newest_first_;
    const bool newest = newest_first_ && random_.below(8) != 0;
    std::swap(ready_.front(), newest ? ready_.back() : ready_[random_.below(ready_.size())]);
  }
  Thread& thread = *ready_.front();
  ready_.pop_front();
  return thread;
}

// Who goes on when the turn of `self` ends.
inline Fiber& Scheduler::successor(const Thread& self) {
  // A block whose threads have all returned is cleared away on the scheduler's own stack.
  if (ready_.empty() || self.block->live == 0) return main_;
  current_ = &next();
  return *current_->fiber;
}

// Ends the turn of `self`, and returns at its next one.
inline void Scheduler::leave(Thread& self) {
  if (Fiber& other = successor(self); &other != &*self.fiber) self.fiber->switch_to(other);
  current_ = &self;
  if (failure_) throw Cancelled{};
}

inline void Scheduler::wake(Thread& thread) {
  idle_turns_ = 0;
  thread.state = Thread::READY;
  ready_.push_back(&thread);
}

inline void Scheduler::yield(const Where& where) {
  Unchecked own;
  if (++idle_turns_ > spin_limit_) throw Fault("threads spin and nothing else happens, last at " + text(where));
  ready_.push_back(&current());
  leave(current());
}

}  // namespace frd::cuda::host

#include "waiting.h"
