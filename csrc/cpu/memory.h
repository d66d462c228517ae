// Large pages for large buffers: a hint, where the system takes it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace frd::cpu {

inline constexpr size_t LARGE_PAGE = size_t{2} << 20;

// To be called before memory is first touched. Without it every 4 KiB of a fresh buffer costs a page fault, which on
// long sequences takes longer than the arithmetic.
inline void prefer_large_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / LARGE_PAGE * LARGE_PAGE;
  // A kernel without large pages refuses, and nothing is lost.
  if (begin < end) static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
#else
  static_cast<void>(memory);
  static_cast<void>(bytes);
#endif
}

}  // namespace frd::cpu
