// Global memory that blocks of one launch share, as unkind as PTX's memory model allows: what csrc/cuda/order.h
// touches.
//
// Each word has a history. A load returns any entry that is not older than what its thread must have seen, so that a
// store comes into sight as late as it likes, to each thread at another time, in any order across words. A thread must
// have seen
//   - of a word, what it has read or written there itself;
//   - what the threads of its block had seen when they met at a barrier;
//   - what others had seen when they released what it acquired.
// How late stores are is a function of the launch's seed: from almost at once to hardly ever, in favour of some words.
// Without a seed they are seen at once.
//
// Everything else in global memory is seen at once, and so is what order.h stored by whoever reads it otherwise.
#pragma once

#include "faults.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

namespace frd::cuda::host {

// Of words, by number, the oldest entry that may still be read.
using View = std::vector<uint32_t>;

inline void join(View& view, const View& other) {
  if (view.size() < other.size()) view.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) view[i] = std::max(view[i], other[i]);
}

// Of a thread, since its block's last barrier.
struct OwnView {
  std::unordered_map<uint32_t, uint32_t> touched;
  std::vector<std::shared_ptr<const View>> acquired;

  void join_into(View& view) const {
    for (const auto& one : acquired) join(view, *one);
    for (const auto& [word, entry] : touched) {
      if (view.size() <= word) view.resize(word + 1);
      view[word] = std::max(view[word], entry);
    }
  }
  uint32_t oldest(const View& block, uint32_t word) const {
    uint32_t entry = word < block.size() ? block[word] : 0;
    for (const auto& one : acquired)
      if (word < one->size()) entry = std::max(entry, (*one)[word]);
    const auto found = touched.find(word);
    return found == touched.end() ? entry : std::max(entry, found->second);
  }
};

class WeakMemory {
 public:
  struct Entry {
    uint64_t bits;
    std::shared_ptr<const View> released;  // null where it was not
  };
  struct Word {
    uint32_t number;
    size_t bytes;
    std::vector<Entry> history;
  };

  // The word at an address, which is as it lies in memory when a launch first touches it.
  Word& word(const void* at, size_t bytes, const char* what, const Where& where) {
    const auto address = reinterpret_cast<uintptr_t>(at);
    auto found = words_.find(address);
    if (found == words_.end()) {
      check_widths(address, bytes, what, where);
      found = words_.emplace(address, Word{static_cast<uint32_t>(words_.size()), bytes, {}}).first;
      uint64_t bits = 0;
      std::memcpy(&bits, at, bytes);
      found->second.history.push_back({bits, nullptr});
    }
    if (found->second.bytes != bytes) mixed(what, where);
    return found->second;
  }

 private:
  void check_widths(uintptr_t address, size_t bytes, const char* what, const Where& where) const {
    const auto after = words_.lower_bound(address);
    if (after != words_.end() && after->first < address + bytes) mixed(what, where);
    if (after == words_.begin()) return;
    const auto before = std::prev(after);
    if (before->first + before->second.bytes > address) mixed(what, where);
  }
  [[noreturn]] static void mixed(const char* what, const Where& where) {
    throw Fault(text(what, where) + ": a word that has been touched in another width");
  }

  std::map<uintptr_t, Word> words_;
};

}  // namespace frd::cuda::host
