// How the operand of a persistent schedule's products lies in exchanged words: in the order in which lanes of mma.sync
// take it, so that a load of 16 bytes is what a lane multiplies with.
//
// The operand of a batch row is a row of *slots*, each with one value. A word has VALUES slots, a *chunk* 16 words,
// four for each lane of a quad. A lane's values of a chunk are TILES products' worth: as the order of the columns of a
// product is free, its slots are neighbours, and U is laid out to match. In memory a chunk of 8 batch rows is LOADS
// runs of 32 lanes, 16 bytes each.
#pragma once

#include "cuda/exchange.h"
#include "cuda/persistent_shape.h"
#include "cuda/ptx.h"

namespace frd::cuda {

template <class D, class Word>
struct OperandWords {
  using Bits = typename Word::Bits;
  static constexpr bool AT_MOST_ONE = sizeof(Bits) == 4;  // PhasedPair, PhasedFloat
  static constexpr bool HALF = sizeof(D) == 2;
  static constexpr int VALUES = (AT_MOST_ONE ? 4 : 6) / sizeof(D);
  static constexpr int WIDTH = 16 / sizeof(Bits);                // words of a load
  static constexpr int LOADS = 4 / WIDTH;                        // of a lane and chunk
  static constexpr int REGISTERS = 4 * VALUES / (HALF ? 2 : 1);  // of a lane and chunk
  static constexpr int TILES = REGISTERS / 2;                    // products of 16 or, of float32, 8 columns
  static constexpr int CHUNK_SLOTS = CHUNK_WORDS * VALUES;
  static constexpr int64_t CHUNK_SIZE = CHUNK_WORDS * TILE_ROWS;  // words, of 8 batch rows

  // Where word w of batch row `row` lies among the words of one step.
  __device__ __forceinline__ static int64_t place(int chunks, int row, int w) {
    const int i = w % 4, lane = row % TILE_ROWS * 4 + w / 4 % 4;
    return ((static_cast<int64_t>(row / TILE_ROWS) * chunks + w / CHUNK_WORDS) * LOADS + i / WIDTH) * 32 * WIDTH +
           lane * WIDTH + i % WIDTH;
  }

  // `as_sent`: as an exchanged word can carry it; else as it is, whatever its size.
  __device__ __forceinline__ static Bits pack(const D (&values)[VALUES], bool as_sent) {
    Bits found = 0;
    FRD_UNROLL
    for (int v = 0; v < VALUES; ++v) {
      const uint32_t bits = AT_MOST_ONE && as_sent ? AtMostOne<D>::bits(values[v]) : bits_of_value(values[v]);
      found |= static_cast<Bits>(bits) << (8 * static_cast<int>(sizeof(D)) * v);
    }
    return found;
  }

  // What was sent, from what arrived: numbers that no word can carry stand for NaN.
  __device__ __forceinline__ static Bits arrived(Bits word) {
    if constexpr (!AT_MOST_ONE) {
      return word;
    } else if constexpr (HALF) {
      return bits_of_value(AtMostOne<D>::value(word & 0xFFFF)) | bits_of_value(AtMostOne<D>::value(word >> 16)) << 16;
    } else {
      return bits_of_value(AtMostOne<D>::value(word));
    }
  }

  // A lane's words of a chunk, whose loads are `first` and the next, side by side as its products take them.
  template <int ALL>
  __device__ __forceinline__ static void unpack(const Bits (&loads)[ALL][WIDTH], int first,
                                                uint32_t (&registers)[REGISTERS]) {
    const auto word = [&](int i) { return loads[first + i / WIDTH][i % WIDTH]; };
    FRD_UNROLL
    for (int r = 0; r < REGISTERS; ++r) {
      if constexpr (VALUES == 3) {
        const Bits one = word(r / 3 * 2), other = word(r / 3 * 2 + 1);
        registers[r] = r % 3 == 0   ? static_cast<uint32_t>(one)
                       : r % 3 == 1 ? static_cast<uint32_t>(one >> 32) | static_cast<uint32_t>(other) << 16
                                    : static_cast<uint32_t>(other >> 16);
      } else {
        registers[r] = static_cast<uint32_t>(word(r));
      }
    }
  }

 private:
  __device__ __forceinline__ static uint32_t bits_of_value(float x) { return __float_as_uint(x); }
  __device__ __forceinline__ static uint32_t bits_of_value(__half x) { return __half_as_ushort(x); }
  __device__ __forceinline__ static uint32_t bits_of_value(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
};

// One product of a tile: d += a b. Of float32 three of tf32, the operands split into their upper bits and the rest: as
// good as float32.
template <class D>
struct TileProduct {
  __device__ __forceinline__ static void add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (sizeof(D) == 2) {
      mma_m16n8k16<D>(d, a, b);
    } else {
      uint32_t a_upper[4], a_rest[4], b_upper[2], b_rest[2];
      FRD_UNROLL
      for (int i = 0; i < 4; ++i) split(a[i], a_upper[i], a_rest[i]);
      FRD_UNROLL
      for (int i = 0; i < 2; ++i) split(b[i], b_upper[i], b_rest[i]);
      mma_m16n8k8_tf32(d, a_rest, b_upper);
      mma_m16n8k8_tf32(d, a_upper, b_rest);
      mma_m16n8k8_tf32(d, a_upper, b_upper);
    }
  }

 private:
  // Infinity and NaN have no rest: infinity minus infinity would be one that nobody gave.
  __device__ __forceinline__ static void split(uint32_t bits, uint32_t& upper, uint32_t& rest) {
    const float x = __uint_as_float(bits);
    upper = to_tf32(x);
    const bool finite = (upper & 0x7F800000u) != 0x7F800000u;
    rest = finite ? to_tf32(x - __uint_as_float(upper)) : 0;
  }
};

}  // namespace frd::cuda
