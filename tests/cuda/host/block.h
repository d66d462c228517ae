// The parts of a launch that is running: blocks, warps, threads, and where they wait for each other.
#pragma once

#include "copies.h"
#include "faults.h"
#include "fibers.h"
#include "shared_memory.h"
#include "weak_memory.h"

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace frd::cuda::host {

inline constexpr unsigned WARP = 32;
inline constexpr unsigned FULL_MASK = 0xFFFFFFFFu;
inline constexpr int BARRIERS = 16;  // of a block; __syncthreads is number 0

struct Block;
struct Warp;

struct Thread {
  enum State { READY, WAITING, FINISHED };

  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned lane = 0;
  uint3 index{};
  State state = READY;
  const char* waits_at = nullptr;  // while it waits: in which call, and where that is
  Where where;
  std::optional<Fiber> fiber;
  Copies copies;
  OwnView view;
};

// Addresses by which ThreadSanitizer orders what threads do before and after a barrier: two that take turns, because
// with one a thread that is late to leave would seem ordered after what others have done since.
class Phases {
 public:
  void* now() { return &addresses_[current_]; }
  void advance() { current_ ^= 1; }

 private:
  char addresses_[2] = {};
  int current_ = 0;
};

struct Barrier {
  unsigned arrived = 0;
  unsigned expected = 0;
  std::vector<Thread*> waiting;  // may be fewer than have arrived
  Phases phases;
  View view;  // what those who have arrived must have seen
};

// Lanes of a warp that came to one collective with one mask. Each brings the address of a record; when the last has
// come, all the records are answered at once.
struct Meeting {
  using Answer = void (*)(const std::array<void*, WARP>& records, unsigned lanes);

  unsigned mask;
  const char* what;
  Where where;
  Answer answer;
  void* order;  // for ThreadSanitizer, where the collective orders memory; otherwise null
  unsigned arrived = 0;
  std::array<void*, WARP> records{};
};

struct Warp {
  Thread* threads = nullptr;  // by lane
  unsigned live = 0;          // lanes that have not returned
  std::vector<Meeting> meetings;
  Phases phases;
};

// What a block runs on; kept for later blocks.
struct Resources {
  Resources(size_t threads, size_t dynamic_limit) : stacks(threads), shared(dynamic_limit) {}
  Stacks stacks;
  SharedMemory shared;
};

struct Block {
  uint3 index{};
  unsigned live = 0;  // threads that have not returned
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::array<Barrier, BARRIERS> barriers;
  unsigned at_grid_barrier = 0;
  View view;  // what all threads of the block must have seen
  std::unique_ptr<Resources> resources;
};

struct Launch {
  std::string name;  // of the kernel
  dim3 grid, block;
  size_t dynamic_shared;
  bool cooperative;
  std::function<void()> kernel;  // with its arguments
};

}  // namespace frd::cuda::host
