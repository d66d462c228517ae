// Terms of the sums that products are: how registers of them are made, and how they are added up.
//
// A sum of BFloat16 takes two products at a time, where the processor does (FRD_BF16_DOT), or one after the other in
// float, as on any processor. Where k is odd, both factors of the last pair end with zero.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/numbers.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

template <class D>
using Terms = Vec<Term<D>>;  // of LANES columns

// Whether sums are made with what every processor has in the place of an instruction: for tests, so that it is better
// small than fast.
#if defined(FRD_BF16_DOT)
template <class D>
inline constexpr bool EMULATED = false;
#else
template <class D>
inline constexpr bool EMULATED = std::is_same_v<D, BFloat16>;
#endif

// Term i of a row.
template <class D>
FRD_INLINE Term<D> term(const D* row, int64_t i) {
  if constexpr (TERM<D> == 1) {
    return row[i];
  } else {
    Term<D> found;
    __builtin_memcpy(&found, row + i * TERM<D>, sizeof found);
    return found;
  }
}

// The last one of a row of k numbers that is no whole term.
template <class D>
FRD_INLINE Term<D> last_term(const D* row, int64_t k) {
  Term<D> found{};
  __builtin_memcpy(&found, row + k / TERM<D> * TERM<D>, static_cast<size_t>(k % TERM<D>) * sizeof(D));
  return found;
}

// LANES terms of a row, of its numbers [0, n): zero beyond them.
template <class D>
FRD_INLINE Terms<D> load_terms(const D* row, int64_t n) {
  if constexpr (TERM<D> == 1) {
    return load(row, n);
  } else {
    if (n >= LANES * TERM<D>) return load(reinterpret_cast<const Term<D>*>(row));
    Terms<D> found{};
    if (n > 0) __builtin_memcpy(&found, row, static_cast<size_t>(n) * sizeof(D));
    return found;
  }
}

// LANES terms of a row, from registers of its numbers.
template <class D>
FRD_INLINE Terms<D> along(const Vec<D>* numbers) {
  if constexpr (TERM<D> == 1) {
    return numbers[0];
  } else {
#if defined(FRD_BF16_DOT)
    return (VecU)_mm512_cvtne2ps_pbh((__m512)numbers[1], (__m512)numbers[0]);
#else
    D row[2 * LANES];
    store(row, numbers[0]), store(row + LANES, numbers[1]);
    return load_terms(row, 2 * LANES);
#endif
  }
}
// The terms of LANES columns, from rows that are neighbours along the sum.
template <class D>
FRD_INLINE Terms<D> across(const Vec<D>* rows) {
  if constexpr (TERM<D> == 1) {
    return rows[0];
  } else {
    return rounded(rows[0]) | rounded(rows[1]) << 16;
  }
}

// sum + the term of a row times those of LANES columns.
template <class V>
FRD_INLINE void add_term(V& sum, float a, V b) {
  sum += a * b;
}
template <class V>
FRD_INLINE void add_term(V& sum, double a, V b) {
  sum += a * b;
}
FRD_INLINE void add_term(VecF& sum, Pair a, VecU b) {
#if defined(FRD_BF16_DOT)
  sum = (VecF)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a.bits)), (__m512bh)b);
#else
  constexpr uint32_t upper = 0xFFFF0000u;
  sum += (VecF)(VecU{} + (a.bits & upper)) * (VecF)(b & upper);
  sum += (VecF)(VecU{} + (a.bits << 16)) * (VecF)(b << 16);
#endif
}

// sum + the terms of a row times those of another, lane by lane.
template <class V>
FRD_INLINE void add_terms(V& sum, V a, V b) {
  sum += a * b;
}
FRD_INLINE void add_terms(VecF& sum, VecU a, VecU b) {
#if defined(FRD_BF16_DOT)
  sum = (VecF)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  constexpr uint32_t upper = 0xFFFF0000u;
  sum += (VecF)(a & upper) * (VecF)(b & upper);
  sum += (VecF)(a << 16) * (VecF)(b << 16);
#endif
}

}  // namespace frd::cpu::FRD_ISA
