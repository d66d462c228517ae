// One arena a thread: no locks, so that a forked child finds nothing held by a thread that it does not have.
#include "cpu/scratch.h"

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

// Pieces are cut from blocks one after the other, and all come back before the next pass begins. What a pass needed in
// all is then one block for the next, so that forward and backward share their memory whatever sizes they ask for.
class Arena {
 public:
  ~Arena() { release(); }

  void* take(size_t bytes) {
    bytes = (bytes + LINE - 1) / LINE * LINE;
    if (blocks_.empty()) {
      grow(bytes < needed_ ? needed_ : bytes);
    } else if (blocks_.back().bytes - blocks_.back().cut < bytes) {
      grow(bytes);
    }
    Block& block = blocks_.back();
    void* piece = block.memory + block.cut;
    block.cut += bytes;
    taken_ += bytes;
    ++pieces_;
    return piece;
  }

  void give() {
    if (--pieces_ > 0) return;
    const bool keep = taken_ <= KEPT;
    if (keep && taken_ > needed_) needed_ = taken_;
    taken_ = 0;
    if (keep && blocks_.size() == 1 && blocks_.back().bytes >= needed_) {
      blocks_.back().cut = 0;
    } else {
      release();
    }
  }

 private:
  struct Block {
    char* memory;
    size_t bytes, cut;
  };

  static size_t alignment(size_t bytes) { return bytes < LARGE_PAGE ? LINE : LARGE_PAGE; }

  void grow(size_t bytes) {
    blocks_.reserve(blocks_.size() + 1);  // before there is a block that could be lost
    void* memory = ::operator new(bytes, std::align_val_t{alignment(bytes)});
    prefer_large_pages(memory, bytes);
    blocks_.push_back({static_cast<char*>(memory), bytes, 0});
  }

  void release() {
    for (const Block& block : blocks_) ::operator delete(block.memory, std::align_val_t{alignment(block.bytes)});
    blocks_.clear();
  }

  std::vector<Block> blocks_;
  size_t pieces_ = 0, taken_ = 0;  // that are out now
  size_t needed_ = 0;              // by the largest pass so far of those that may keep their memory
};

Arena& arena() {
  static thread_local Arena of_thread;
  return of_thread;
}

}  // namespace

void* take_scratch(size_t bytes) { return arena().take(bytes); }
void give_scratch(void*) { arena().give(); }

}  // namespace frd::cpu
