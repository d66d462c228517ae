// Multiply-adds whose sums stay in registers, and nothing else: the rate that products are measured against.
#pragma once

#include <cstdint>

#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/simd.h"
#include "cpu/terms.h"

namespace frd::cpu::FRD_ISA {

// Sums that grow side by side: more than a multiply-add's cycles times those that begin in one, and no more than the
// registers hold beside their factors.
inline constexpr int PEAK_ROWS = LANES == 16 ? 3 : 2, PEAK_COLUMNS = 4;

// The compiler takes the number in this register for another one from here on.
template <class V>
FRD_INLINE void made_anew(V& value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

// Returns how many floating-point operations `rounds` of them are. factors: [PEAK_NUMBERS].
template <class D>
int64_t multiply_adds(int64_t rounds, D* factors) {
  constexpr int across = LANES * TERM<D>, columns = PEAK_COLUMNS;
  static_assert(across * columns <= PEAK_NUMBERS);
  Vec<D> sums[PEAK_ROWS * columns] = {};
  Terms<D> b[columns];
#pragma GCC unroll 4
  for (int c = 0; c < columns; ++c) b[c] = load_terms(factors + c * across, across);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) made_anew(b[c]);  // or their products would be made once for all rounds
#pragma GCC unroll 3
    for (int r = 0; r < PEAK_ROWS; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) add_term(sums[r * columns + c], term(factors, r), b[c]);
    }
  }
  Vec<D> sum{};
#pragma GCC unroll 12
  for (int i = 0; i < PEAK_ROWS * columns; ++i) sum += sums[i];
  store(factors, sum);  // who reads them makes sure that they are computed
  return rounds * 2 * PEAK_ROWS * columns * across;
}

}  // namespace frd::cpu::FRD_ISA
