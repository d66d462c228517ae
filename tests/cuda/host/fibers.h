// Fibers: stacks of their own, run in turns on one thread of the operating system. One for every CUDA thread.
#pragma once

#include "sanitizers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__) && !defined(FRD_FIBERS_BY_UCONTEXT)
#define FRD_FIBERS_BY_UCONTEXT 1  // works everywhere, at the price of two system calls a switch
#endif

#if defined(FRD_FIBERS_BY_UCONTEXT)
#include <ucontext.h>
#else
// Saves the registers that a call must preserve on the running stack and its pointer in *save, and takes up `resume`.
extern "C" void frd_switch_stacks(void** save, void* resume);
asm(R"(
    .pushsection .text.frd_switch_stacks, "axG", @progbits, frd_switch_stacks, comdat
    .weak frd_switch_stacks
    .hidden frd_switch_stacks
    .type frd_switch_stacks, @function
frd_switch_stacks:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size frd_switch_stacks, . - frd_switch_stacks
    .popsection
)");
#endif

namespace frd::cuda::host {

// Equal stacks with a page below each that nobody may touch, so that running over ends the process at once.
class Stacks {
 public:
  explicit Stacks(size_t count) : count_(count), page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    void* memory =
        mmap(nullptr, count * stride(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    for (size_t i = 0; i < count; ++i) {
      if (mprotect(memory_ + i * stride(), page_, PROT_NONE) != 0) throw std::bad_alloc();
    }
  }
  ~Stacks() { munmap(memory_, count_ * stride()); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  size_t count() const { return count_; }
  char* bottom(size_t i) const { return memory_ + i * stride() + page_; }
  static constexpr size_t bytes() { return size_t{THREAD_SANITIZER ? 256 : 128} << 10; }

 private:
  size_t stride() const { return bytes() + page_; }

  size_t count_, page_;
  char* memory_;
};

class Fiber {
 public:
  // The context that the caller runs in.
  Fiber() {
#if defined(FRD_THREAD_SANITIZER)
    sanitizer_ = __tsan_get_current_fiber();
#endif
  }

  // Will begin in `entry`, which must not return, when it is first switched to.
  Fiber(void (*entry)(), char* stack, size_t bytes) : bottom_(stack), bytes_(bytes), owned_(true) {
#if defined(FRD_FIBERS_BY_UCONTEXT)
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#else
    // As if frd_switch_stacks had been called: six registers, where to return to, and a return address for `entry`
    // that ends every trace. `entry` then finds the stack aligned as after a call.
    void** top = reinterpret_cast<void**>(stack + bytes - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    top_ = top;
#endif
#if defined(FRD_THREAD_SANITIZER)
    sanitizer_ = __tsan_create_fiber(0);
#endif
  }

  ~Fiber() {
#if defined(FRD_THREAD_SANITIZER)
    if (owned_) __tsan_destroy_fiber(sanitizer_);
#endif
    if (owned_) allow(bottom_, bytes_);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // To be called once by a fiber that begins.
  static void began() { arrive(nullptr); }

  // Called on the running fiber; returns when somebody switches back to it, or never if it is `over`. What it reads of
  // the scheduler's own stack is nothing to ThreadSanitizer, which would hold it against whoever uses that stack next.
  __attribute__((noinline, no_sanitize("thread"))) void switch_to(Fiber& next, bool over = false) {
    void* fake_stack = nullptr;
#if defined(FRD_ADDRESS_SANITIZER)
    leaving_ = this;
    __sanitizer_start_switch_fiber(over ? nullptr : &fake_stack, next.bottom_, next.bytes_);
#endif
#if defined(FRD_THREAD_SANITIZER)
    __tsan_switch_to_fiber(next.sanitizer_, 1);  // 1: which orders nothing
#endif
    static_cast<void>(over);
#if defined(FRD_FIBERS_BY_UCONTEXT)
    swapcontext(&context_, &next.context_);
#else
    frd_switch_stacks(&top_, next.top_);
#endif
    arrive(fake_stack);
  }

 private:
  static void arrive(void* fake_stack) {
#if defined(FRD_ADDRESS_SANITIZER)
    // The bounds of the stack that was left: the only way to learn those of the thread's own.
    __sanitizer_finish_switch_fiber(fake_stack, &leaving_->bottom_, &leaving_->bytes_);
#endif
    static_cast<void>(fake_stack);
  }

#if defined(FRD_FIBERS_BY_UCONTEXT)
  ucontext_t context_;
#else
  void* top_ = nullptr;
#endif
#if defined(FRD_ADDRESS_SANITIZER)
  inline static thread_local Fiber* leaving_ = nullptr;
#endif
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
  bool owned_ = false;
  [[maybe_unused]] void* sanitizer_ = nullptr;
};

}  // namespace frd::cuda::host
