// One arena a thread: no locks, so that a forked child finds nothing held by a thread that it does not have.
#include "cpu/scratch.h"

#include <cstdlib>
#include <new>
#include <vector>

#include "cpu/memory.h"

namespace frd::cpu {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t KEPT = 0;  // every piece a block of its own, so that the sanitizer sees its end
#else
constexpr size_t KEPT = size_t{64} << 20;  // bytes that a thread keeps at most while it runs nothing
#endif
constexpr size_t LINE = 64;

// Pieces are cut from blocks one after the other. The last one that is out gives its place back at once, any other when
// those after it have come back; all come back before the next pass begins. The most that a pass had out at a time is
// then one block for the next, so that forward and backward share their memory whatever sizes they ask for.
class Arena {
 public:
  ~Arena() { release(); }

  void* take(size_t bytes) {
    bytes = (bytes + LINE - 1) / LINE * LINE;
    pieces_.reserve(pieces_.size() + 1);  // before there is a piece that could be lost
    if (blocks_.empty()) {
      grow(bytes < needed_ ? needed_ : bytes);
    } else if (blocks_.back().bytes - blocks_.back().cut < bytes) {
      if (blocks_.back().cut == 0) drop_block();  // nothing of it is out
      grow(bytes);
    }
    Block& block = blocks_.back();
    pieces_.push_back({block.memory + block.cut, bytes, true});
    block.cut += bytes;
    taken_ += bytes;
    if (taken_ > most_) most_ = taken_;
    return pieces_.back().memory;
  }

  void give(void* memory) {
    size_t last = pieces_.size();
    while (last > 0 && (pieces_[last - 1].memory != memory || !pieces_[last - 1].out)) --last;
    if (last == 0) std::abort();  // another thread's, or given back before
    pieces_[last - 1].out = false;
    while (!pieces_.empty() && !pieces_.back().out) take_back();
    if (pieces_.empty()) end_pass();
  }

 private:
  struct Block {
    char* memory;
    size_t bytes, cut;
  };
  struct Piece {
    char* memory;
    size_t bytes;
    bool out;
  };

  void take_back() {
    while (blocks_.back().cut == 0) drop_block();  // the piece lies in an earlier one
    blocks_.back().cut -= pieces_.back().bytes;
    taken_ -= pieces_.back().bytes;
    pieces_.pop_back();
    if (KEPT == 0 && blocks_.back().cut == 0) drop_block();
  }

  void end_pass() {
    const bool keep = most_ <= KEPT;
    if (keep && most_ > needed_) needed_ = most_;
    most_ = 0;
    if (!keep || blocks_.size() > 1 || blocks_.back().bytes < needed_) release();
  }

  void drop_block() {
    const Block& block = blocks_.back();
    ::operator delete(block.memory, std::align_val_t{alignment(block.bytes)});
    blocks_.pop_back();
  }

  static size_t alignment(size_t bytes) { return bytes < LARGE_PAGE ? LINE : LARGE_PAGE; }

  void grow(size_t bytes) {
    blocks_.reserve(blocks_.size() + 1);  // before there is a block that could be lost
    void* memory = ::operator new(bytes, std::align_val_t{alignment(bytes)});
    prefer_large_pages(memory, bytes);
    blocks_.push_back({static_cast<char*>(memory), bytes, 0});
  }

  void release() {
    while (!blocks_.empty()) drop_block();
  }

  std::vector<Block> blocks_;
  std::vector<Piece> pieces_;  // in the order in which they were taken
  size_t taken_ = 0;           // bytes of the pieces
  size_t most_ = 0;            // that were taken at a time in this pass
  size_t needed_ = 0;          // by the largest pass so far of those that may keep their memory
};

Arena& arena() {
  static thread_local Arena of_thread;
  return of_thread;
}

}  // namespace

void* take_scratch(size_t bytes) { return arena().take(bytes); }
void give_scratch(void* memory) { arena().give(memory); }

}  // namespace frd::cpu
