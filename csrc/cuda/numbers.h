// Numbers as the kernels see them: values in memory (D: float, double, __half, __nv_bfloat16), what is computed with
// (State<D>: double for double, else float), and loads and stores of several at once.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/philox.h"
#include "cuda/platform.h"

// A loop that stays one: its bodies side by side would take registers.
#if defined(__CUDACC__)
#define FRD_ROLLED _Pragma("unroll 1")
#else
#define FRD_ROLLED
#endif

namespace frd::cuda {

enum class Type : int { F32, F64, F16, BF16 };

template <class D>
using State = std::conditional_t<std::is_same_v<D, double>, double, float>;

template <class D>
inline constexpr Type type_of = std::is_same_v<D, double>   ? Type::F64
                                : std::is_same_v<D, float>  ? Type::F32
                                : std::is_same_v<D, __half> ? Type::F16
                                                            : Type::BF16;

inline int64_t size_of(Type type) { return type == Type::F64 ? 8 : type == Type::F32 ? 4 : 2; }

// Calls f with a value of the C++ type that `type` stands for.
template <class F>
auto with_type(Type type, F&& f) {
  switch (type) {
  case Type::F64:
    return f(double{});
  case Type::F16:
    return f(__half{});
  case Type::BF16:
    return f(__nv_bfloat16{});
  default:
    return f(float{});
  }
}

// --------------------------------------------------------------------------------------------------------------------
// Conversions, each rounded once, to nearest even
// --------------------------------------------------------------------------------------------------------------------

template <class S>
FRD_INLINE S widen(float x) {
  return x;
}
template <class S>
FRD_INLINE S widen(double x) {
  return static_cast<S>(x);
}
template <class S>
FRD_INLINE S widen(__half x) {
  return __half2float(x);
}
template <class S>
FRD_INLINE S widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <class D, class S>
FRD_INLINE D narrow(S x) {
  if constexpr (std::is_same_v<D, __half>) {
    return __float2half_rn(static_cast<float>(x));
  } else if constexpr (std::is_same_v<D, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(x));
  } else {
    return static_cast<D>(x);
  }
}

// --------------------------------------------------------------------------------------------------------------------
// Several at once
// --------------------------------------------------------------------------------------------------------------------

// Neighbouring numbers that move in one instruction of up to 16 bytes; the address must be a multiple of their size.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

template <int N, class T>
FRD_INLINE Pack<T, N> load(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
// The same numbers in the type that is computed with.
template <int N, class S, class D>
FRD_INLINE Pack<S, N> load_as(const D* p) {
  const Pack<D, N> loaded = load<N>(p);
  Pack<S, N> wide;
  FRD_UNROLL
  for (int i = 0; i < N; ++i) wide.at[i] = widen<S>(loaded.at[i]);
  return wide;
}
template <int N, class D, class S>
FRD_INLINE void store(D* p, const Pack<S, N>& values) {
  Pack<D, N> rounded;
  FRD_UNROLL
  for (int i = 0; i < N; ++i) rounded.at[i] = narrow<D>(values.at[i]);
  *reinterpret_cast<Pack<D, N>*>(p) = rounded;
}

// A struct of the device's, 16 bytes at a time: by its members it would be as many loads.
template <class T>
FRD_INLINE T load_whole(const T* p) {
  static_assert(alignof(T) % 16 == 0 && std::is_trivially_copyable_v<T>);
  struct Pieces {
    Pack<uint32_t, 4> at[sizeof(T) / 16];
  };
  return __builtin_bit_cast(T, *reinterpret_cast<const Pieces*>(p));
}

// How many units a thread of a step kernel takes where the widths allow: 16 bytes of the state. More would leave too
// few threads for a small batch.
template <class D>
inline constexpr int WIDE = 16 / sizeof(State<D>);

// Whether N numbers at every address that starts a row of `width` numbers move at once. Null pointers count as such.
template <int N, class... T>
bool wide_enough(int64_t width, const T*... p) {
  const auto aligned = [](const auto* q) {
    return reinterpret_cast<uintptr_t>(q) % alignof(Pack<std::decay_t<decltype(*q)>, N>) == 0;
  };
  return width % N == 0 && (aligned(p) && ...);
}

// --------------------------------------------------------------------------------------------------------------------
// What csrc/core computes a cell with
// --------------------------------------------------------------------------------------------------------------------

template <class S>
struct Math {
  using Scalar = S;
  using Vec = S;
  using Mask = bool;
  FRD_INLINE S select(bool mask, S yes, S no) { return mask ? yes : no; }
  // exp overflows to infinity for a gate that is shut, which makes it exactly 0.
  FRD_INLINE S sigmoid(S x) { return S(1) / (S(1) + std::exp(-x)); }
  FRD_INLINE S tanh(S x) { return std::tanh(x); }
};

}  // namespace frd::cuda
