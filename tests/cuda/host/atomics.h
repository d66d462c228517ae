// Atomic functions, for the types that CUDA has them for, and fences. Relaxed, as on a GPU.
#pragma once

#include "scheduler.h"

#include <atomic>
#include <concepts>

namespace frd::cuda::host {

template <class T, class... Types>
concept OneOf = (std::same_as<T, Types> || ...);

template <class T>
concept AtomicInteger = OneOf<T, int, unsigned, unsigned long long>;

template <class T>
concept AtomicNumber = AtomicInteger<T> || OneOf<T, float, double>;

// Replaces *at by change(*at) and returns what it was.
template <class T, class Change>
T atomically(T* at, Change change, const Where& where) {
  Scheduler::running().maybe_yield(where);
  std::atomic_ref<T> value(*at);
  T old = value.load(std::memory_order_relaxed);
  while (!value.compare_exchange_weak(old, change(old), std::memory_order_relaxed)) {
  }
  return old;
}

// ThreadSanitizer knows no fences. All of them are ordered here as if one variable had been passed on: that can hide
// a race that an atomic between them does not forbid, and reports none that is not there.
inline void fence(const Where& where) {
  static char order;
  Scheduler::running().maybe_yield(where);
  acquire(&order);
  release(&order);
  std::atomic_signal_fence(std::memory_order_seq_cst);  // one thread of the system: only the compiler could reorder
}

}  // namespace frd::cuda::host

#define FRD_ATOMIC(name, Concept, expression)                                                                          \
  template <frd::cuda::host::Concept T>                                                                                \
  T name(T* at, std::type_identity_t<T> value, FRD_WHERE) {                                                            \
    return frd::cuda::host::atomically(at, [value](T old) -> T { return expression; }, where);                         \
  }
FRD_ATOMIC(atomicAdd, AtomicNumber, old + value)
FRD_ATOMIC(atomicSub, AtomicInteger, old - value)
FRD_ATOMIC(atomicMin, AtomicInteger, old < value ? old : value)
FRD_ATOMIC(atomicMax, AtomicInteger, old > value ? old : value)
FRD_ATOMIC(atomicAnd, AtomicInteger, old& value)
FRD_ATOMIC(atomicOr, AtomicInteger, old | value)
FRD_ATOMIC(atomicXor, AtomicInteger, old ^ value)
FRD_ATOMIC(atomicExch, AtomicNumber, (static_cast<void>(old), value))
#undef FRD_ATOMIC

template <frd::cuda::host::AtomicInteger T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value, FRD_WHERE) {
  return frd::cuda::host::atomically(at, [=](T old) { return old == expected ? value : old; }, where);
}

inline void __threadfence_block(FRD_WHERE) { frd::cuda::host::fence(where); }
inline void __threadfence(FRD_WHERE) { frd::cuda::host::fence(where); }
inline void __threadfence_system(FRD_WHERE) { frd::cuda::host::fence(where); }

// What a loop that waits for another thread must call: nothing else takes the turn away from it but an atomic.
inline void __nanosleep(unsigned, FRD_WHERE) { frd::cuda::host::Scheduler::running().yield(where); }
