// The functions of csrc/cuda/order.h on the host: see there for what they do, and weak_memory.h for how late.
#pragma once

#include "memory.h"
#include "scheduler.h"
#include "weak_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

namespace frd::cuda::host {

// Throws where kernels touch one word in two ways: only order.h may, in one width.
template <class T>
WeakMemory::Word& word_at(const T* at, const char* what, const Where& where) {
  Memory::check(at, sizeof(T), what, where);
  WeakMemory::Word& word = Scheduler::running().weak.word(at, sizeof(T), what, where);
  uint64_t bits = 0;
  std::memcpy(&bits, at, sizeof(T));
  if (bits != word.history.back().bits) throw Fault(text(what, where) + ": a word that was written otherwise too");
  return word;
}

inline uint32_t oldest(const WeakMemory::Word& word) {
  const Thread& self = Scheduler::current();
  return self.view.oldest(self.block->view, word.number);
}

// One of the values that a load may return; the thread has then seen it.
template <class T>
T load_word(const T* at, bool acquires, const char* what, const Where& where) {
  Unchecked own;
  WeakMemory::Word& word = word_at(at, what, where);
  const uint32_t entry = Scheduler::running().choose(oldest(word), static_cast<uint32_t>(word.history.size() - 1));
  OwnView& view = Scheduler::current().view;
  view.touched[word.number] = entry;
  if (acquires) {
    acquire(const_cast<T*>(at));
    const auto& released = word.history[entry].released;
    if (released && !std::ranges::count(view.acquired, released)) view.acquired.push_back(released);
  }
  return static_cast<T>(word.history[entry].bits);
}

// `adds`: to what is there, which is then the newest entry. What was released on it goes on with an addition.
template <class T>
void store_word(T* at, T value, bool releases, bool adds, const char* what, const Where& where) {
  Unchecked own;
  WeakMemory::Word& word = word_at(at, what, where);
  Thread& self = Scheduler::current();
  const WeakMemory::Entry before = word.history.back();
  const T bits = adds ? static_cast<T>(before.bits) + value : value;
  self.view.touched[word.number] = static_cast<uint32_t>(word.history.size());
  std::shared_ptr<const View> released;
  if (releases) {
    auto view = std::make_shared<View>(self.block->view);
    self.view.join_into(*view);
    if (adds && before.released) join(*view, *before.released);
    released = std::move(view);
    release(at);
  }
  word.history.push_back({bits, std::move(released)});
  std::memcpy(at, &bits, sizeof(T));
}

template <class T, size_t N>
void load_words(const T* at, T (&r)[N], bool weak, const char* what, const Where& where) {
  static_assert(sizeof(r) <= 16);
  if (reinterpret_cast<uintptr_t>(at) % sizeof(r) != 0) throw Fault(text(what, where) + ": an address not aligned");
  if (!weak) Scheduler::running().poll(where);
  const size_t first = Scheduler::running().choose(0, N - 1);  // in any order
  for (size_t i = 0; i < N; ++i) {
    const T* const one = at + (first + i) % N;
    if (weak) static_cast<void>(*const_cast<const volatile T*>(one));  // for ThreadSanitizer to see
    r[(first + i) % N] = load_word(one, false, what, where);
  }
}

}  // namespace frd::cuda::host

namespace frd::cuda {

template <class T, size_t N>
void load_relaxed(const T* at, T (&r)[N], FRD_WHERE) {
  host::load_words(at, r, false, "load_relaxed", where);
}
template <class T, size_t N>
void load_weak(const T* at, T (&r)[N], FRD_WHERE) {
  host::load_words(at, r, true, "load_weak", where);
}
template <class T>
void store_relaxed(T* at, std::type_identity_t<T> value, FRD_WHERE) {
  host::store_word(at, value, false, false, "store_relaxed", where);
}
template <class T>
void store_weak(T* at, std::type_identity_t<T> value, FRD_WHERE) {
  host::store_word(at, value, false, false, "store_weak", where);
  *const_cast<volatile T*>(at) = value;  // for ThreadSanitizer to see
}
inline uint32_t load_acquire(const uint32_t* at, FRD_WHERE) {
  host::Scheduler::running().poll(where);
  return host::load_word(at, true, "load_acquire", where);
}
inline void store_release(uint32_t* at, uint32_t value, FRD_WHERE) {
  host::store_word(at, value, true, false, "store_release", where);
}
inline void add_release(uint32_t* at, uint32_t value, FRD_WHERE) {
  host::store_word(at, value, true, true, "add_release", where);
}

}  // namespace frd::cuda
