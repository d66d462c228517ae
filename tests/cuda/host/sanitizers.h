// What ThreadSanitizer and AddressSanitizer must be told about fibers. Nothing without them.
//
// A fiber is to ThreadSanitizer what a thread is: switching to it orders nothing, so that two CUDA threads are ordered
// by the barriers between them and not by the turns that the scheduler happens to give them.
#pragma once

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FRD_THREAD_SANITIZER 1
#endif
#if __has_feature(address_sanitizer)
#define FRD_ADDRESS_SANITIZER 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define FRD_THREAD_SANITIZER 1
#endif
#if defined(__SANITIZE_ADDRESS__)
#define FRD_ADDRESS_SANITIZER 1
#endif

#if defined(FRD_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif

#if defined(FRD_ADDRESS_SANITIZER)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** previous_bottom, size_t* previous_bytes);
void __asan_poison_memory_region(const volatile void* address, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
}
#endif

namespace frd::cuda::host {

#if defined(FRD_THREAD_SANITIZER)
inline constexpr bool THREAD_SANITIZER = true;

// While one lives, this fiber's reads and writes are the scheduler's own and go unchecked.
struct Unchecked {
  Unchecked() { __tsan_ignore_thread_begin(); }
  ~Unchecked() { __tsan_ignore_thread_end(); }
  Unchecked(const Unchecked&) = delete;
  Unchecked& operator=(const Unchecked&) = delete;
};

// What came before a release of `at` happened before what comes after an acquire of it that follows.
inline void release(void* at) { __tsan_release(at); }
inline void acquire(void* at) { __tsan_acquire(at); }
#else
inline constexpr bool THREAD_SANITIZER = false;
struct Unchecked {
  Unchecked() {}  // by hand, or every use would be an unused variable
};
inline void release(void*) {}
inline void acquire(void*) {}
#endif

#if defined(FRD_ADDRESS_SANITIZER)
inline void forbid(const void* at, size_t bytes) { __asan_poison_memory_region(at, bytes); }
inline void allow(const void* at, size_t bytes) { __asan_unpoison_memory_region(at, bytes); }
#else
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
#endif

}  // namespace frd::cuda::host
