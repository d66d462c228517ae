// What the two kernels of the persistent schedule share: which rows and units a block has, the steps of a row, and the
// product of a step, whose one operand stays on the chip.
//
// A block has 8 warps, which split the columns of U: each multiplies with the chunks of the operand that it polls
// itself (operand_words.h). What it keeps of U lies in its registers and, what does not fit there, in shared memory.
// The sums of the warps meet in shared memory, in the smaller kernels of two steps in turn, so that one barrier a step
// is enough.
#pragma once

#include "cuda/drawn.h"
#include "cuda/operand_words.h"
#include "cuda/persistent_shape.h"

namespace frd::cuda {

// Where a block stands.
struct BlockPlace {
  int direction, group;  // group: of the batch
  int unit_group;
  int64_t first_row, first_unit;
  int rows, units;  // that it has

  __device__ __forceinline__ static BlockPlace of(const PersistentShape& s) {
    BlockPlace p;
    const int block = static_cast<int>(blockIdx.x);
    p.unit_group = block % s.unit_groups;
    p.group = block / s.unit_groups % s.batch_groups;
    p.direction = block / s.unit_groups / s.batch_groups;
    p.first_row = int64_t{p.group} * s.rows;
    p.first_unit = int64_t{p.unit_group} * s.units;
    p.rows = static_cast<int>(at_most(s.batch - p.first_row, s.rows));
    p.units = static_cast<int>(at_most(s.hidden - p.first_unit, s.units));
    return p;
  }

 private:
  __device__ __forceinline__ static int64_t at_most(int64_t a, int64_t b) { return a < b ? (a < 0 ? 0 : a) : b; }
};

// In which order a launch goes through time, and where rows lie: `offsets` is [T + 1] of a packed batch, null of a
// padded one.
struct TimeOrder {
  const int64_t* offsets;
  int64_t steps, batch;
  bool descending;

  __device__ __forceinline__ int64_t time(int64_t step) const { return descending ? steps - step : step - 1; }
  __device__ __forceinline__ int64_t row(int64_t t) const { return offsets ? offsets[t] : t * batch; }
  // Steps of the sequence of batch row b: batch sizes do not grow.
  __device__ __forceinline__ int64_t length(int64_t b) const {
    if (!offsets) return steps;
    int64_t least = 0, most = steps;  // as many as are known to have the row, and at most
    while (least < most) {
      const int64_t t = (least + most) / 2;
      if (offsets[t + 1] - offsets[t] > b) {
        least = t + 1;
      } else {
        most = t;
      }
    }
    return least;
  }
  // The group's step in which row b begins.
  __device__ __forceinline__ int64_t first(int64_t length) const { return descending ? steps - length + 1 : 1; }
};

// The steps of a block's rows, in shared memory: row i is active in steps first[i] .. last[i].
struct RowSteps {
  int *first, *last;

  __device__ __forceinline__ void fill(const TimeOrder& order, const BlockPlace& place, int rows) const {
    for (int i = static_cast<int>(threadIdx.x); i < rows; i += PERSISTENT_THREADS) {
      const int64_t length = i < place.rows ? order.length(place.first_row + i) : 0;
      first[i] = static_cast<int>(order.first(length));
      last[i] = static_cast<int>(order.first(length) + length - 1);
    }
  }
  __device__ __forceinline__ bool active(int row, int step) const { return first[row] <= step && step <= last[row]; }
};

// --------------------------------------------------------------------------------------------------------------------
// The product of a step
// --------------------------------------------------------------------------------------------------------------------

// Sums of all warps: [warps][row tiles][batch tiles][lane][4], as a product leaves them in the lanes.
FRD_INLINE int place_of_sum(const PersistentShape& s, int row_of_u, int row) {
  const int tile = row_of_u / 16 * s.batch_tiles + row / TILE_ROWS, lane = row_of_u % 8 * 4 + row % TILE_ROWS / 2;
  return (tile * 32 + lane) * 4 + row_of_u % 16 / 8 * 2 + row % 2;
}
__device__ __forceinline__ float sum_of_warps(const PersistentShape& s, const float* sums, int row_of_u, int row) {
  const int at = place_of_sum(s, row_of_u, row), each = s.row_tiles * s.batch_tiles * 128;
  float found = 0;
  FRD_UNROLL
  for (int warp = 0; warp < PERSISTENT_WARPS; ++warp) found += sums[warp * each + at];
  return found;
}

template <class D, class Word, class Tiles>
class ResidentProduct {
  using Words = OperandWords<D, Word>;
  using Bits = typename Word::Bits;
  static constexpr int M = Tiles::M, N = Tiles::N, HELD = Tiles::HELD;
  static constexpr int GROUP = Tiles::GROUP;

 public:
  // of(row, slot): the element of U, as a product reads it, in row `row` of the block and slot `slot` of the operand.
  template <class Of>
  __device__ __forceinline__ ResidentProduct(const PersistentShape& s, uint4* shared, Of&& of) : s_(s) {
    warp_ = static_cast<int>(threadIdx.x) / 32;
    lane_ = static_cast<int>(threadIdx.x) % 32;
    const int each = chunks_of_warp(s), first = warp_ * each, rest = s.chunks - first;
    first_ = first;
    count_ = rest < 0 ? 0 : rest < each ? rest : each;
    shared_ = shared + int64_t{warp_} * (each > HELD ? each - HELD : 0) * Words::TILES * s.row_tiles * 32 + lane_;
    // Found one after the other by the same code, and put where the compiler knows the register.
    FRD_ROLLED
    for (int i = 0; i < HELD * Words::TILES * M; ++i) {
      const int tile = i / M, m = i % M;
      uint32_t a[4] = {0, 0, 0, 0};
      if (tile / Words::TILES < count_ && m < s.row_tiles) fragment(tile / Words::TILES, tile % Words::TILES, m, of, a);
      FRD_UNROLL
      for (int k = 0; k < HELD * Words::TILES * M; ++k) {
        FRD_UNROLL
        for (int n = 0; n < 4; ++n)
          if (k == i) held_[k / M][k % M][n] = a[n];
      }
    }
    FRD_ROLLED
    for (int i = 0; i < (count_ - HELD) * Words::TILES * s.row_tiles; ++i) {
      uint32_t a[4];
      const int tile = i / s.row_tiles;
      fragment(HELD + tile / Words::TILES, tile % Words::TILES, i % s.row_tiles, of, a);
      shared_[i * 32] = uint4{a[0], a[1], a[2], a[3]};
    }
  }

  // Of the words of the step before: `ring` has all slots of the group, `begin` the operand of each row's own first
  // step, or null where there is none. Adds to `seen` what it read, and leaves the warp's sums at `sums`.
  template <class Form>
  __device__ __forceinline__ void multiply(const Form& x, const Bits* ring, const Bits* begin, const RowSteps& steps,
                                           int step, int more, float* sums, uint32_t& seen) {
    float d[M][N][4];
    FRD_UNROLL
    for (int m = 0; m < M; ++m) {
      FRD_UNROLL
      for (int n = 0; n < N; ++n) {
        FRD_UNROLL
        for (int i = 0; i < 4; ++i) d[m][n][i] = 0;
      }
    }
    if (count_ > 0) group<true>(x, ring, begin, steps, step, more, 0, d, seen);
    FRD_ROLLED
    for (int c = GROUP; c < count_; c += GROUP) group<false>(x, ring, begin, steps, step, more, c, d, seen);
    float4* const to = reinterpret_cast<float4*>(sums) + int64_t{warp_} * s_.row_tiles * s_.batch_tiles * 32 + lane_;
    FRD_UNROLL
    for (int m = 0; m < M; ++m) {
      FRD_UNROLL
      for (int n = 0; n < N; ++n)
        if (m < s_.row_tiles && n < s_.batch_tiles)
          to[(m * s_.batch_tiles + n) * 32] = float4{d[m][n][0], d[m][n][1], d[m][n][2], d[m][n][3]};
    }
  }

 private:
  // U's part of a product: rows g and g + 8 of tile m, and the columns that are slots of this lane.
  template <class Of>
  __device__ __forceinline__ void fragment(int chunk, int tile, int m, Of&& of, uint32_t (&a)[4]) const {
    const int first = ((first_ + chunk) * 4 + lane_ % 4) * 4 * Words::VALUES;  // slot
    FRD_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = m * 16 + lane_ / 4 + i % 2 * 8;
      if constexpr (Words::HALF) {
        const int slot = first + 4 * tile + i / 2 * 2;
        const D one = of(row, slot), other = of(row, slot + 1);
        a[i] = pair(one, other);
      } else {
        a[i] = __float_as_uint(of(row, first + 2 * tile + i / 2));
      }
    }
  }
  __device__ __forceinline__ static uint32_t pair(__half one, __half other) {
    return __half_as_ushort(one) | static_cast<uint32_t>(__half_as_ushort(other)) << 16;
  }
  __device__ __forceinline__ static uint32_t pair(__nv_bfloat16 one, __nv_bfloat16 other) {
    return __bfloat16_as_ushort(one) | static_cast<uint32_t>(__bfloat16_as_ushort(other)) << 16;
  }

  template <bool FIRST, class Form>
  __device__ __forceinline__ void group(const Form& x, const Bits* ring, const Bits* begin, const RowSteps& steps,
                                        int step, int more, int chunk, float (&d)[M][N][4], uint32_t& seen) {
    const int count = count_ - chunk < GROUP ? count_ - chunk : GROUP;
    uint32_t b[N][GROUP][Words::REGISTERS];
    FRD_UNROLL
    for (int n = 0; n < N; ++n) {
      Bits words[GROUP * Words::LOADS][Words::WIDTH];
      FRD_UNROLL
      for (int i = 0; i < GROUP * Words::LOADS; ++i) {
        FRD_UNROLL
        for (int k = 0; k < Words::WIDTH; ++k) words[i][k] = 0;
      }
      if (n < s_.batch_tiles) read(x, ring, begin, steps, step, more, n, chunk, count, words, seen);
      FRD_UNROLL
      for (int c = 0; c < GROUP; ++c) Words::unpack(words, c * Words::LOADS, b[n][c]);
    }
    __syncwarp();
    FRD_UNROLL
    for (int c = 0; c < GROUP; ++c) {
      if (c >= count) continue;
      FRD_UNROLL
      for (int j = 0; j < Words::TILES; ++j) {
        FRD_UNROLL
        for (int m = 0; m < M; ++m) {
          if (m >= s_.row_tiles) continue;
          uint32_t a[4];
          if (FIRST && c < HELD) {
            FRD_UNROLL
            for (int i = 0; i < 4; ++i) a[i] = held_[c < HELD ? c * Words::TILES + j : 0][m][i];
          } else {
            const uint4 loaded = shared_[(((chunk + c - HELD) * Words::TILES + j) * s_.row_tiles + m) * 32];
            a[0] = loaded.x, a[1] = loaded.y, a[2] = loaded.z, a[3] = loaded.w;
          }
          FRD_UNROLL
          for (int n = 0; n < N; ++n) {
            if (n >= s_.batch_tiles) continue;
            const uint32_t two[2] = {b[n][c][2 * j], b[n][c][2 * j + 1]};
            TileProduct<D>::add(d[m][n], a, two);
          }
        }
      }
    }
  }

  // This lane's words of `count` chunks, of the row of tile n that is its own: all zeros where that has none. A row
  // whose step is `more` beyond its last still reads what it published last.
  template <class Form>
  __device__ __forceinline__ void read(const Form& x, const Bits* ring, const Bits* begin, const RowSteps& steps,
                                       int step, int more, int n, int chunk, int count,
                                       Bits (&words)[GROUP * Words::LOADS][Words::WIDTH], uint32_t& seen) const {
    const int row = n * TILE_ROWS + lane_ / 4, first = steps.first[row], last = steps.last[row];
    if (last < first || step < first || step > last + more) return;
    const int64_t at = ((int64_t{n} * s_.chunks + first_ + chunk) * Words::LOADS * 32 + lane_) * Words::WIDTH;
    constexpr int64_t STRIDE = 32 * Words::WIDTH;
    if (step == first) {
      if (!begin) return;
      FRD_UNROLL
      for (int i = 0; i < GROUP * Words::LOADS; ++i) {
        if (i >= count * Words::LOADS) continue;
        const Pack<Bits, Words::WIDTH> loaded = load<Words::WIDTH>(begin + at + i * STRIDE);
        FRD_UNROLL
        for (int k = 0; k < Words::WIDTH; ++k) words[i][k] = loaded.at[k];
      }
      return;
    }
    const int64_t own = step - first;  // of the step before
    const Bits* const slot = ring + RingSteps<Form::SLOTS>::slot(own) * slot_size(s_);
    x.template read<Word>(slot + at, STRIDE, own, words, seen, count * Words::LOADS);
    FRD_UNROLL
    for (int i = 0; i < GROUP * Words::LOADS; ++i) {
      FRD_UNROLL
      for (int k = 0; k < Words::WIDTH; ++k) words[i][k] = Words::arrived(words[i][k]);
    }
  }

  const PersistentShape& s_;
  int warp_, lane_, first_, count_;  // chunks first_ .. first_ + count_ are the warp's
  uint4* shared_;
  uint32_t held_[HELD ? HELD * Words::TILES : 1][M][4];
};

// --------------------------------------------------------------------------------------------------------------------
// Masks of a step
// --------------------------------------------------------------------------------------------------------------------

// Draws the masks of step t of all rows and units of the block into shared memory. They are drawn before the words of
// the step before are waited for, so that nothing is drawn between their arrival and what is published then.
__device__ __forceinline__ void draw_step(const PersistentShape& s, const StateMasks<float>& masks,
                                          const BlockPlace& place, int64_t t, Drawn* drawn) {
  const int64_t first = place.first_unit / FIELDS;
  const int calls = static_cast<int>((place.first_unit + place.units - 1) / FIELDS - first) + 1;
  for (int i = static_cast<int>(threadIdx.x); i < place.rows * calls; i += PERSISTENT_THREADS) {
    const int row = i / calls, call = i % calls;
    drawn[row * calls_of_row(s) + call] = drawn_of_call(masks, place.first_row + row, first + call, t);
  }
}
// Those of a unit, with its own byte of what holds for the sequence.
__device__ __forceinline__ Drops<Math<float>> drops_in(const PersistentShape& s, const BlockPlace& place,
                                                       const Drawn* drawn, int row, int64_t unit, uint8_t bits) {
  const int call = static_cast<int>(unit / FIELDS - place.first_unit / FIELDS);
  return drops_of<float>(drawn[row * calls_of_row(s) + call], static_cast<int>(unit % FIELDS), bits);
}

}  // namespace frd::cuda
