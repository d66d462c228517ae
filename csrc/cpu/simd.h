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
typedef uint16_t VecN __attribute__((vector_size(2 * FRD_LANES)));  // a number of 16 bits a lane
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
template <>
struct Simd<BFloat16> : Simd<float> {};
template <>
struct Simd<Pair> {
  using Vec = VecU;
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

// Numbers of 16 bits are widened where they are read, and rounded to the nearest where they are written, ties to even.
FRD_INLINE VecF widened(VecN x) {
#if FRD_LANES == 16 && defined(__x86_64__)
  return (VecF)((VecU)_mm512_cvtepu16_epi32((__m256i)x) << 16);
#elif FRD_LANES == 8 && defined(__x86_64__)
  return (VecF)((VecU)_mm256_cvtepu16_epi32((__m128i)x) << 16);
#else
  return (VecF)(__builtin_convertvector(x, VecU) << 16);
#endif
}
// As numbers of 32 bits.
FRD_INLINE VecU rounded(VecF x) {
#if defined(FRD_BF16_DOT)
  return (VecU)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  const VecU bits = (VecU)x, upper = bits >> 16;
  const VecU nearest = (bits + 0x7FFFu + (upper & 1u)) >> 16;
  return select(x != x, upper | 0x40u, nearest);  // a NaN stays one
#endif
}
FRD_INLINE VecN narrowed(VecF x) {
#if defined(FRD_BF16_DOT)
  return (VecN)_mm512_cvtneps_pbh((__m512)x);
#elif FRD_LANES == 16 && defined(__x86_64__)
  return (VecN)_mm512_cvtepi32_epi16((__m512i)rounded(x));
#elif FRD_LANES == 8 && defined(__x86_64__)
  const __m256i words = (__m256i)rounded(x);
  return (VecN)_mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
  return __builtin_convertvector(rounded(x), VecN);
#endif
}

FRD_INLINE VecF load(const BFloat16* p) {
  VecN x;
  __builtin_memcpy(&x, p, sizeof x);
  return widened(x);
}
FRD_INLINE void store(BFloat16* p, VecF v) {
  const VecN x = narrowed(v);
  __builtin_memcpy(p, &x, sizeof x);
}
FRD_INLINE VecF load(const BFloat16* p, int64_t n) {
  if (n >= LANES) return load(p);
#if FRD_LANES == 16 && defined(__x86_64__)
  return widened((VecN)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(n > 0 ? (1u << n) - 1 : 0), p));
#endif
  VecN x{};
  for (int64_t lane = 0; lane < n; ++lane) x[lane] = p[lane].bits;
  return widened(x);
}
FRD_INLINE void store(BFloat16* p, VecF v, int64_t n) {
  if (n >= LANES) return store(p, v);
  const VecN x = narrowed(v);
#if FRD_LANES == 16 && defined(__x86_64__)
  return _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(n > 0 ? (1u << n) - 1 : 0), (__m256i)x);
#endif
  for (int64_t lane = 0; lane < n; ++lane) p[lane].bits = x[lane];
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
#if FRD_LANES == 16 && defined(__x86_64__)
// The same in instructions that need no table of lanes: neighbours twice, within each quarter of a register, then whole
// quarters twice. As floats, whatever numbers of 32 bits they are: those of integers would need a table.
template <class V, int... L>
FRD_INLINE void transpose_quarters(V* rows, std::integer_sequence<int, L...>) {
  VecF a[LANES], b[LANES];
#pragma GCC unroll 8
  for (int i = 0; i < LANES; i += 2) {
    a[i] = pick<((L & ~3) + (L & 3) / 2 + (L & 1) * LANES)...>((VecF)rows[i], (VecF)rows[i + 1]);
    a[i + 1] = pick<((L & ~3) + (L & 3) / 2 + (L & 1) * LANES + 2)...>((VecF)rows[i], (VecF)rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < LANES; i += 4) {  // b[i + j]: of rows i .. i + 3, columns j, j + 4, j + 8, j + 12
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = pick<((L & ~2) + (L & 2) / 2 * LANES)...>(a[i + j], a[i + j + 2]);
      b[i + 2 * j + 1] = pick<((L & ~2) + (L & 2) / 2 * LANES + 2)...>(a[i + j], a[i + j + 2]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    VecF even[2], odd[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const VecF low = b[8 * half + j], high = b[8 * half + 4 + j];
      even[half] = pick<((L & 4) * 2 + (L & 3) + (L & 8) / 8 * LANES)...>(low, high);
      odd[half] = pick<((L & 4) * 2 + (L & 3) + (L & 8) / 8 * LANES + 4)...>(low, high);
    }
    rows[j] = (V)pick<((L & 4) * 2 + (L & 3) + (L & 8) / 8 * LANES)...>(even[0], even[1]);
    rows[8 + j] = (V)pick<((L & 4) * 2 + (L & 3) + (L & 8) / 8 * LANES + 4)...>(even[0], even[1]);
    rows[4 + j] = (V)pick<((L & 4) * 2 + (L & 3) + (L & 8) / 8 * LANES)...>(odd[0], odd[1]);
    rows[12 + j] = (V)pick<((L & 4) * 2 + (L & 3) + (L & 8) / 8 * LANES + 4)...>(odd[0], odd[1]);
  }
}
#endif

// LANES rows of LANES numbers become their columns.
template <class V>
FRD_INLINE void transpose(V* rows) {
#if FRD_LANES == 16 && defined(__x86_64__)
  if constexpr (sizeof(rows[0][0]) == 4) return transpose_quarters(rows, Lanes{});
#endif
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
  if constexpr (sizeof(T) == 4) return (V)_mm512_maskz_min_ps(0xFFFF, _mm512_set1_ps(limit), (__m512)x);
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
