// Vectors of the instruction set this file is included for, and the functions of the cells on them.
//
// FRD_ISA names the instruction set, and the namespace of all that is compiled for it; FRD_LANES floats are in a
// register. Every header that opens that namespace begins with this one, and isa_*.cpp say what comes before it.
#pragma once

#include "cpu/any_isa.h"

namespace frd::cpu::FRD_ISA {

inline constexpr int LANES = FRD_LANES;

typedef float VecF __attribute__((vector_size(4 * FRD_LANES)));
typedef double VecD __attribute__((vector_size(8 * FRD_LANES)));  // two registers
typedef int32_t VecI __attribute__((vector_size(4 * FRD_LANES)));
typedef int8_t VecB __attribute__((vector_size(FRD_LANES)));
typedef int64_t VecL __attribute__((vector_size(8 * FRD_LANES)));
typedef uint32_t VecU __attribute__((vector_size(4 * FRD_LANES)));
typedef uint16_t VecH __attribute__((vector_size(4 * FRD_LANES)));  // the halves of VecU
typedef uint64_t VecUL __attribute__((vector_size(8 * FRD_LANES)));

template <class T>
struct Simd;  // the types of a register of T

template <>
struct Simd<float> {
  using Vec = VecF;
  using Mask = VecI;
  FRD_INLINE Mask mask_of(VecI words) { return words; }
};
template <>
struct Simd<double> {
  using Vec = VecD;
  using Mask = VecL;
  FRD_INLINE Mask mask_of(VecI words) { return __builtin_convertvector(words, VecL); }
};
template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
using Mask = typename Simd<T>::Mask;

// Between numbers of one byte and of four; those of four must fit a byte. The compiler's own conversion takes the lanes
// one by one.
FRD_INLINE VecI widen(VecB x) {
#if FRD_LANES == 16 && defined(__x86_64__)
  return (VecI)_mm512_cvtepi8_epi32((__m128i)x);
#elif FRD_LANES == 8 && defined(__x86_64__)
  return (VecI)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)x));
#else
  return __builtin_convertvector(x, VecI);
#endif
}
FRD_INLINE VecB narrow(VecI x) {
#if FRD_LANES == 16 && defined(__x86_64__)
  return (VecB)_mm512_cvtepi32_epi8((__m512i)x);
#elif FRD_LANES == 8 && defined(__x86_64__)
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  return (VecB)_mm_cvtsi128_si64(_mm_packs_epi16(words, words));
#else
  return __builtin_convertvector(x, VecB);
#endif
}

FRD_INLINE bool any(VecI x) {
#if FRD_LANES == 16 && defined(__x86_64__)
  return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
#elif FRD_LANES == 8 && defined(__x86_64__)
  return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
  int32_t found = 0;
  for (int lane = 0; lane < LANES; ++lane) found |= x[lane];
  return found != 0;
#endif
}

template <class V, class M>
FRD_INLINE V select(M mask, V yes, V no) {
  return mask ? yes : no;
}

template <class T>
FRD_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T, class V>
FRD_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
// The first n lanes; the others are zero.
template <class T>
FRD_INLINE Vec<T> load(const T* p, int64_t n) {
  if (n >= LANES) return load(p);
#if FRD_LANES == 16 && defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(n > 0 ? (1u << n) - 1 : 0, p);
#endif
  Vec<T> v{};
  for (int64_t lane = 0; lane < n; ++lane) v[lane] = p[lane];
  return v;
}
template <class T, class V>
FRD_INLINE void store(T* p, V v, int64_t n) {
  if (n >= LANES) return store(p, v);
#if FRD_LANES == 16 && defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, n > 0 ? (1u << n) - 1 : 0, (__m512)v);
#endif
  for (int64_t lane = 0; lane < n; ++lane) p[lane] = v[lane];
}

// Asks for the cache lines of n numbers, to be written too where `write`.
template <bool write = false, class T>
FRD_INLINE void prefetch(const T* p, int64_t n) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += line) __builtin_prefetch(p + i, write);
}

// Lane i of the result is lane Lanes[i] of a, or of b from LANES on.
template <int... Lanes, class V>
FRD_INLINE V pick(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lanes...);
#else
  using Index = std::conditional_t<sizeof(V) == sizeof(VecL), VecL, VecI>;
  return __builtin_shuffle(a, b, Index{Lanes...});
#endif
}

using Lanes = std::make_integer_sequence<int, LANES>;

template <int S, int... L, class V>
FRD_INLINE void exchange(V& a, V& b, std::integer_sequence<int, L...>) {
  const V old = a;
  a = pick<((L & S) ? LANES + (L ^ S) : L)...>(old, b);
  b = pick<((L & S) ? LANES + L : (L ^ S))...>(old, b);
}
template <int S, class V>
FRD_INLINE void exchange_all(V* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i)
    if (!(i & S)) exchange<S>(rows[i], rows[i | S], Lanes{});
}
// LANES rows of LANES numbers become their columns.
template <class V>
FRD_INLINE void transpose(V* rows) {
  exchange_all<1>(rows);
  exchange_all<2>(rows);
  if constexpr (LANES > 4) exchange_all<4>(rows);
  if constexpr (LANES > 8) exchange_all<8>(rows);
}

// exp(x) - 1 = 2^k (1 + q) - 1 with x = k ln 2 + r, |r| <= ln 2 / 2, and q = exp(r) - 1. Returns q and 2^k. For float
// q is the polynomial r + r^2 p(r) of degree 6 whose relative error is least: 3e-9, a twentieth of a rounding. For
// double it is the Taylor series, whose first left-out term is below half an ulp.
//
// Adding `round` leaves k in the lowest bits, with the bias of an exponent, which a shift puts in its place.
FRD_INLINE void exp_parts(VecF x, VecF& q, VecF& power) {
  constexpr float log2e = 1.44269504f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  constexpr float round = 12582912.f + 127;  // 1.5 * 2^23
  const VecF shifted = x * log2e + round, k = shifted - round;
  const VecF r = (x - k * ln2_hi) - k * ln2_lo;
  VecF p = VecF{} + 0.0013814467f;
  p = p * r + 0.0083687805f;
  p = p * r + 0.0416683942f;
  p = p * r + 0.1666652011f;
  p = p * r + 0.4999999341f;
  q = p * r * r + r;
  power = (VecF)((VecI)shifted << 23);
}
FRD_INLINE void exp_parts(VecD x, VecD& q, VecD& power) {
  constexpr double log2e = 1.4426950408889634, ln2_hi = 6.93145751953125e-1, ln2_lo = 1.42860682030941723212e-6;
  constexpr double round = 6755399441055744.0 + 1023;  // 1.5 * 2^52
  const VecD shifted = x * log2e + round, k = shifted - round;
  const VecD r = (x - k * ln2_hi) - k * ln2_lo;
  VecD p = VecD{} + 1. / 87178291200;
  p = p * r + 1. / 6227020800;
  p = p * r + 1. / 479001600;
  p = p * r + 1. / 39916800;
  p = p * r + 1. / 3628800;
  p = p * r + 1. / 362880;
  p = p * r + 1. / 40320;
  p = p * r + 1. / 5040;
  p = p * r + 1. / 720;
  p = p * r + 1. / 120;
  p = p * r + 1. / 24;
  p = p * r + 1. / 6;
  p = p * r + .5;
  q = p * r * r + r;
  power = (VecD)((VecL)shifted << 52);
}

// Beyond these limits sigmoid and tanh are 0 or 1 to rounding, and an exponential would be no normal number.
template <class V>
struct Limits;
template <>
struct Limits<VecF> {
  static constexpr float sigmoid = 87, shut = -88, tanh = 43;
  static constexpr int32_t sign = INT32_MIN;
  using Bits = VecI;
};
template <>
struct Limits<VecD> {
  static constexpr double sigmoid = 708, shut = -709, tanh = 354;
  static constexpr int64_t sign = INT64_MIN;
  using Bits = VecL;
};

// The smaller of x and `limit`. A NaN passes through, as in the functions below: comparisons with it are false.
template <class V, class T>
FRD_INLINE V at_most(V x, T limit) {
#if FRD_LANES == 16 && defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return (V)_mm512_min_ps(_mm512_set1_ps(limit), (__m512)x);
#endif
  return select(x > limit, V{} + limit, x);
}

template <class V>
FRD_INLINE V sigmoid(V x) {
  V q, power;
  exp_parts(-at_most(x, Limits<V>::sigmoid), q, power);
  // Exactly 0 where exp(-x) is next to its largest number: a gate that is shut, not a denormal number that slows every
  // product. What exp_parts makes of an x below that is nothing.
  return select(x < Limits<V>::shut, V{}, 1 / (1 + (power + power * q)));
}

// With e = exp(-2|x|) - 1, which keeps its relative precision near 0: tanh |x| = -e / (e + 2).
template <class V>
FRD_INLINE V tanh(V x) {
  using Bits = typename Limits<V>::Bits;
  const Bits sign = Bits{} + Limits<V>::sign, bits = (Bits)x;
  const V size = at_most((V)(bits & ~sign), Limits<V>::tanh);
  V q, power;
  exp_parts(-(size + size), q, power);
  const V e = power * q + (power - 1), negative = e / (e + 2);
  return (V)(((Bits)negative & ~sign) | (bits & sign));
}

// What the cells of core/ compute with.
template <class T>
struct SimdMath {
  using Scalar = T;
  using Vec = typename Simd<T>::Vec;
  using Mask = typename Simd<T>::Mask;
  FRD_INLINE Vec select(Mask mask, Vec yes, Vec no) { return mask ? yes : no; }
  FRD_INLINE Vec sigmoid(Vec x) { return FRD_ISA::sigmoid(x); }
  FRD_INLINE Vec tanh(Vec x) { return FRD_ISA::tanh(x); }
};

}  // namespace frd::cpu::FRD_ISA
