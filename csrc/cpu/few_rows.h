// Rows times a weight as it lies in memory, without packing.
//
// Packing reads a weight, writes a copy of it and reads that, which is worth it where many rows or many steps use the
// copy. Where few do, blocks of the weight are turned in registers and used there. The order of each sum is that of
// gemm.h, so that no result tells which of the two ran. Where a layer has so few rows that turning costs more than the
// products, these are dot products along the weight's rows: each lane sums its own columns, and the lanes are added
// last.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"
#include "cpu/simd.h"
#include "cpu/terms.h"

namespace frd::cpu::FRD_ISA {

// Sums that grow side by side: what registers allow beside a block that is being turned.
template <class D>
inline constexpr int SUMS_AT_ONCE = EMULATED<D>                                 ? 2
                                    : LANES == 16 && sizeof(Arithmetic<D>) == 4 ? 8
                                                                                : 4;

// LANES units of one gate: rows [row, row + count) of a weight, of which a register holds one term's columns.
template <class D>
struct LyingGate {
  const MaskedWeight<D>* w;
  int64_t row, count;

  static constexpr int64_t NUMBERS = LANES * TERM<D>;            // of a row, in a register
  static constexpr int64_t REGISTERS = BLOCK_VECTORS / TERM<D>;  // of a block of a row

  // Columns [first, first + NUMBERS), not masked; zero beyond the weight.
  FRD_MEMBER void read(int64_t first, Terms<D>* block) const {
    const int64_t k = w->columns();
    const D* const from = w->data() + row * k + first;
    constexpr int64_t ahead = 4 * NUMBERS;  // LANES rows at once are too many streams for the processor to see
    if (count >= LANES && first + NUMBERS <= k) {
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; ++lane) {
        block[lane] = load_terms(from + lane * k, NUMBERS);
        __builtin_prefetch(from + lane * k + ahead);
      }
      transpose(block);
    } else {
      read_end(first, block);
    }
  }
  // Those at an end of the weight.
  __attribute__((noinline)) void read_end(int64_t first, Terms<D>* block) const {
    const int64_t k = w->columns();
    for (int lane = 0; lane < LANES; ++lane)
      block[lane] = lane < count ? load_terms(w->data() + (row + lane) * k + first, k - first) : Terms<D>{};
    transpose(block);
  }

  // Columns [first, first + BLOCK), masked, NUMBERS at a time.
  __attribute__((noinline)) void read_masked(int64_t first, Terms<D> (*blocks)[LANES]) const {
    for (int lane = 0; lane < LANES; ++lane) {
      Terms<D> values[REGISTERS] = {};
      if (lane < count) {
        w->fetch(row + lane, first + BLOCK);
        w->read_terms(row + lane, first, values);
      }
      for (int q = 0; q < REGISTERS; ++q) blocks[q][lane] = values[q];
    }
    for (int q = 0; q < REGISTERS; ++q) transpose(blocks[q]);
  }
};

// acc[m] += a[m][kk .. k) * block, as far as the block goes. kk is the first number of a term.
template <int MR, class D>
FRD_INLINE void add_block(const D* const* a, int64_t kk, int64_t k, const Terms<D>* block, Vec<D>* acc) {
  const auto column = [&](int64_t i) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) add_term(acc[m], term(a[m] + kk, i), block[i]);
  };
  const int64_t whole = (k - kk) / TERM<D>;
  if (whole >= LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) column(i);
    return;
  }
  for (int64_t i = 0; i < whole; ++i) column(i);
  if ((k - kk) % TERM<D>) {
    for (int m = 0; m < MR; ++m) add_term(acc[m], last_term(a[m], k), block[whole]);
  }
}

// sums[m * stride] = a[m] times a gate, for MR rows, whose blocks are turned.
template <int MR, class D>
__attribute__((noinline)) static void multiply_turned(const LyingGate<D>& gate, const D* const* a, Vec<D>* sums,
                                                      int stride) {
  const int64_t k = gate.w->columns();
  Vec<D> acc[MR] = {};
  if (gate.w->on()) {
    for (int64_t first = 0; first < k; first += BLOCK) {
      Terms<D> blocks[LyingGate<D>::REGISTERS][LANES];
      gate.read_masked(first, blocks);
      for (int64_t q = 0, kk = first; q < LyingGate<D>::REGISTERS && kk < k; ++q, kk += LyingGate<D>::NUMBERS)
        add_block<MR>(a, kk, k, blocks[q], acc);
    }
  } else {
    for (int64_t first = 0; first < k; first += LyingGate<D>::NUMBERS) {
      Terms<D> block[LANES];
      gate.read(first, block);
      add_block<MR>(a, first, k, block, acc);
    }
  }
  for (int m = 0; m < MR; ++m) sums[m * stride] = acc[m];
}

// The most rows that dot products along the rows of a weight are made of.
inline constexpr int64_t ROWS_ALONG = 4;
// Whether that is fewer instructions than turning, for a layer of so many rows, steps times batch: what it adds up last
// is as much for each of them as some registers of a weight's row. Measured.
inline bool worth_sums_along(int64_t rows, int64_t k) { return rows <= ROWS_ALONG && 4 * LANES * rows <= k; }

// partial[m][lane] += a[m] times `count` rows of a gate from `lane` on, each register lane by lane.
template <int MR, int count, class D>
FRD_INLINE void add_along(const LyingGate<D>& gate, int lane, const D* const* a, Vec<D> (*partial)[LANES]) {
  constexpr int64_t numbers = LyingGate<D>::NUMBERS, registers = LyingGate<D>::REGISTERS;
  const MaskedWeight<D>& w = *gate.w;
  const int64_t k = w.columns();
  Vec<D> acc[MR][count] = {};
  const auto add = [&](int64_t first, const auto& weight) {
    Terms<D> values[MR];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) values[m] = load_terms(a[m] + first, k - first);
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i) {
      const Terms<D> lying = weight(i);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) add_terms(acc[m][i], values[m], lying);
    }
  };
  if (w.on()) {
    for (int64_t block = 0; block < k; block += BLOCK) {
      Terms<D> masked[count][registers];
      for (int i = 0; i < count; ++i) w.read_terms(gate.row + lane + i, block, masked[i]);
      for (int64_t q = 0, first = block; q < registers && first < k; ++q, first += numbers)
        add(first, [&](int i) { return masked[i][q]; });
    }
  } else {
    const D* const from = w.data() + (gate.row + lane) * k;
    for (int64_t first = 0; first < k; first += numbers)
      add(first, [&](int i) { return load_terms(from + i * k + first, k - first); });
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i) partial[m][lane + i] = acc[m][i];
}

// sums[m * stride] = a[m] times a gate, as dot products along its rows.
template <int MR, class D>
__attribute__((noinline)) static void multiply_along(const LyingGate<D>& gate, const D* const* a, Vec<D>* sums,
                                                     int stride) {
  constexpr int together = 4;  // rows that share a register of a[m], and that the processor reads ahead of
  Vec<D> partial[MR][LANES] = {};
  int lane = 0;
  for (; lane + together <= least(gate.count, LANES); lane += together) add_along<MR, together>(gate, lane, a, partial);
  for (; lane < least(gate.count, LANES); ++lane) add_along<MR, 1>(gate, lane, a, partial);
  for (int m = 0; m < MR; ++m) {
    transpose(partial[m]);
    for (int half = LANES / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) partial[m][i] += partial[m][i + half];
    sums[m * stride] = partial[m][0];
  }
}

// sums[m] = a[m] times tile `tile` of W [NV * units, k], `most` rows at once: multiply(constant, gate, a, sums) has the
// rows as a constant. One gate after the other: the rows of several, which may lie a power of two apart, would throw
// one another out of the cache.
template <int NV, class D, int... M, class Multiply>
FRD_INLINE void multiply_gates(const MaskedWeight<D>& w, int64_t tile, int64_t rows, const D* const* a,
                               Vec<D> (*sums)[NV], std::integer_sequence<int, M...>, Multiply&& multiply) {
  const int64_t units = w.rows() / NV, u = tile * LANES;
  constexpr int most = sizeof...(M);
  for (int64_t m = 0; m < rows; m += most)
    for (int v = 0; v < NV; ++v) {
      const LyingGate<D> gate{&w, v * units + u, units - u};
      const int64_t n = least(rows - m, most);
      ((n == M + 1 ? multiply(std::integral_constant<int, M + 1>{}, gate, a + m, sums[m] + v) : void()), ...);
    }
}

// As multiply_tile has it from the packed tile.
template <int NV, class D>
FRD_INLINE void multiply_turned(const MaskedWeight<D>& w, int64_t tile, int64_t rows, const D* const* a,
                                Vec<D> (*sums)[NV]) {
  multiply_gates<NV>(w, tile, rows, a, sums, std::make_integer_sequence<int, SUMS_AT_ONCE<D>>{},
                     [](auto MR, const auto& gate, const D* const* a, Vec<D>* sums) {
                       multiply_turned<decltype(MR)::value, D>(gate, a, sums, NV);
                     });
}
template <int NV, class D>
FRD_INLINE void multiply_along(const MaskedWeight<D>& w, int64_t tile, int64_t rows, const D* const* a,
                               Vec<D> (*sums)[NV]) {
  multiply_gates<NV>(w, tile, rows, a, sums, std::make_integer_sequence<int, ROWS_ALONG>{},
                     [](auto MR, const auto& gate, const D* const* a, Vec<D>* sums) {
                       multiply_along<decltype(MR)::value, D>(gate, a, sums, NV);
                     });
}

// How many rows before its turn a row is asked for, where rows are read as they lie: they are far apart.
inline constexpr int64_t ROWS_AHEAD = 8;

// A weight whose rows go round: row kk is row (kk + by) of it.
template <class D>
struct TurnedWeight {
  const MaskedWeight<D>& w;
  int64_t by;

  int64_t row(int64_t kk) const { return kk + by < w.rows() ? kk + by : kk + by - w.rows(); }
  FRD_MEMBER void read(int64_t kk, int64_t first, Vec<D>* out) const { w.read(row(kk), first, out); }
  FRD_MEMBER void read(int64_t kk, int64_t first, int64_t width, Vec<D>* out) const {
    w.read(row(kk), first, width, out);
  }
  // As read_across(...) does. Asks for what will be read some rows later.
  FRD_MEMBER void read_terms(int64_t term, int64_t first, int64_t width, Terms<D>* out) const {
    for (int64_t kk = term * TERM<D> + ROWS_AHEAD, i = 0; i < TERM<D> && kk < w.rows(); ++i, ++kk)
      w.fetch(row(kk), first, width * LANES);
    read_across<D>(*this, term, w.rows(), first, width, out);
  }
};

// sums[m] = a[m] times columns [first, first + NV * LANES), whose rows are read as they lie.
template <int MR, int NV, class D>
__attribute__((noinline)) static void multiply_columns(const TurnedWeight<D>& turned, int64_t first, const D* const* a,
                                                       Vec<D> (*sums)[NV]) {
  const MaskedWeight<D>& w = turned.w;
  const int64_t k = w.rows(), columns = w.columns();
  Vec<D> acc[MR][NV] = {};
  const auto add = [&](int64_t i, const Terms<D>* weights) {
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      const Term<D> value = term(a[m], i);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) add_term(acc[m][v], value, weights[v]);
    }
  };
  if (TERM<D> > 1 || w.on() || first + NV * LANES > columns) {
    for (int64_t i = 0; i < k / TERM<D>; ++i) {
      Terms<D> weights[NV];
      turned.read_terms(i, first, NV, weights);
      add(i, weights);
    }
  } else if constexpr (TERM<D> == 1) {
    const D* row = w.data() + turned.by * columns + first;
    for (int64_t kk = 0; kk < k; ++kk, row += columns) {
      if (kk + turned.by == k) row = w.data() + first;
      __builtin_prefetch(row + ROWS_AHEAD * columns);
      Terms<D> weights[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) weights[v] = load(row + v * LANES);
      add(kk, weights);
    }
  }
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) sums[m][v] = acc[m][v];
  add_last_term<NV>(MR, a, k, sums, [&](int v) {
    Terms<D> weights;
    turned.read_terms(k / TERM<D>, first + v * LANES, 1, &weights);
    return weights;
  });
}
template <int NV, class D, int... M>
FRD_INLINE void multiply_columns(int64_t rows, const TurnedWeight<D>& w, int64_t first, const D* const* a,
                                 Vec<D> (*sums)[NV], std::integer_sequence<int, M...>) {
  ((rows == M + 1 ? multiply_columns<M + 1, NV, D>(w, first, a, sums) : void()), ...);
}

}  // namespace frd::cpu::FRD_ISA
