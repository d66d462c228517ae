// The types that numbers lie in memory in, D, and those that they are computed in, S.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace frd::cpu {

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  // The nearest, of two the even one; a NaN stays one.
  explicit BFloat16(float x) {
    const uint32_t all = std::bit_cast<uint32_t>(x), upper = all >> 16;
    bits = static_cast<uint16_t>(x != x ? upper | 0x40u : (all + 0x7FFFu + (upper & 1u)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

// What sums, states, their gradients and the functions of the gates are computed in.
template <class D>
using Arithmetic = std::conditional_t<std::is_same_v<D, BFloat16>, float, D>;

// What products read of a tile, and of the rows that they multiply it with: numbers, or two of BFloat16 that are
// neighbours along the sum, the first in the lower half.
struct Pair {
  uint32_t bits;
};
template <class D>
using Term = std::conditional_t<std::is_same_v<D, BFloat16>, Pair, D>;

// Numbers in a term, and the terms of a sum of k.
template <class D>
inline constexpr int64_t TERM = sizeof(Term<D>) / sizeof(D);
template <class D>
constexpr int64_t terms(int64_t k) {
  return (k + TERM<D> - 1) / TERM<D>;
}

}  // namespace frd::cpu
