// Rows times a weight as it lies in memory: what a packed tile gives, to the last bit, without packing.
//
// Packing reads a weight, writes a copy of it and reads that, which is worth it where many rows or many steps use the
// copy. Where few do, blocks of the weight are turned in registers and used there. The order of each sum is that of
// gemm.h, so that no result tells which of the two ran.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/pack.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

// Sums that grow side by side: what registers allow beside a block that is being turned.
template <class T>
inline constexpr int SUMS_AT_ONCE = LANES == 16 && sizeof(T) == 4 ? 8 : 4;

// LANES units of one gate: rows [row, row + count) of a weight, of which a register holds one column.
template <class T>
struct LyingGate {
  const MaskedWeight<T>* w;
  int64_t row, count;

  // Columns [first, first + LANES), not masked; zero beyond the weight.
  FRD_MEMBER void read(int64_t first, Vec<T>* block) const {
    const int64_t k = w->columns();
    const T* const from = w->data() + row * k + first;
    constexpr int64_t ahead = 4 * LANES;  // LANES rows at once are too many streams for the processor to see
    if (count >= LANES && first + LANES <= k) {
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; ++lane) {
        block[lane] = load(from + lane * k);
        __builtin_prefetch(from + lane * k + ahead);
      }
    } else {
      for (int lane = 0; lane < LANES; ++lane) block[lane] = lane < count ? load(from + lane * k, k - first) : Vec<T>{};
    }
    transpose(block);
  }

  // Columns [first, first + BLOCK), masked, LANES at a time.
  FRD_MEMBER void read_masked(int64_t first, Vec<T> (*blocks)[LANES]) const {
    for (int lane = 0; lane < LANES; ++lane) {
      Vec<T> values[BLOCK_VECTORS] = {};
      if (lane < count) {
        w->fetch(row + lane, first + BLOCK);
        w->read(row + lane, first, values);
      }
      for (int q = 0; q < BLOCK_VECTORS; ++q) blocks[q][lane] = values[q];
    }
    for (int q = 0; q < BLOCK_VECTORS; ++q) transpose(blocks[q]);
  }
};

// acc[m] += a[m][kk .. kk + n) * block, n at most LANES.
template <int MR, class T>
FRD_INLINE void add_block(const T* const* a, int64_t kk, int64_t n, const Vec<T>* block, Vec<T>* acc) {
  const auto column = [&](int i) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m] += a[m][kk + i] * block[i];
  };
  if (n >= LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) column(i);
  } else {
    for (int i = 0; i < n; ++i) column(i);
  }
}

// sums[m * stride] = a[m] times a gate, for MR rows. One gate after the other: the rows of several, which may lie a
// power of two apart, would throw one another out of the cache.
template <int MR, class T>
__attribute__((noinline)) static void multiply_lying(const LyingGate<T>& gate, const T* const* a, Vec<T>* sums,
                                                     int stride) {
  const int64_t k = gate.w->columns();
  Vec<T> acc[MR] = {};
  if (gate.w->on()) {
    for (int64_t first = 0; first < k; first += BLOCK) {
      Vec<T> blocks[BLOCK_VECTORS][LANES];
      gate.read_masked(first, blocks);
      for (int64_t q = 0, kk = first; q < BLOCK_VECTORS && kk < k; ++q, kk += LANES)
        add_block<MR>(a, kk, k - kk, blocks[q], acc);
    }
  } else {
    for (int64_t first = 0; first < k; first += LANES) {
      Vec<T> block[LANES];
      gate.read(first, block);
      add_block<MR>(a, first, k - first, block, acc);
    }
  }
  for (int m = 0; m < MR; ++m) sums[m * stride] = acc[m];
}

template <class T, int... M>
FRD_INLINE void multiply_lying(int64_t rows, const LyingGate<T>& gate, const T* const* a, Vec<T>* sums, int stride,
                               std::integer_sequence<int, M...>) {
  ((rows == M + 1 ? multiply_lying<M + 1, T>(gate, a, sums, stride) : void()), ...);
}

// sums[m] = a[m] times tile `tile` of W [NV * units, k], as multiply_tile has it from the packed tile.
template <int NV, class T>
FRD_INLINE void multiply_lying(const MaskedWeight<T>& w, int64_t tile, int64_t rows, const T* const* a,
                               Vec<T> (*sums)[NV]) {
  const int64_t units = w.rows() / NV, u = tile * LANES;
  constexpr int most = SUMS_AT_ONCE<T>;
  for (int64_t m = 0; m < rows; m += most)
    for (int v = 0; v < NV; ++v)
      multiply_lying(least(rows - m, most), LyingGate<T>{&w, v * units + u, units - u}, a + m, sums[m] + v, NV,
                     std::make_integer_sequence<int, most>{});
}

// A weight whose rows go round: row kk is row (kk + by) of it.
template <class T>
struct TurnedWeight {
  const MaskedWeight<T>& w;
  int64_t by;

  int64_t row(int64_t kk) const { return kk + by < w.rows() ? kk + by : kk + by - w.rows(); }
  FRD_MEMBER void read(int64_t kk, int64_t first, Vec<T>* out) const { w.read(row(kk), first, out); }
  FRD_MEMBER void read(int64_t kk, int64_t first, int64_t width, Vec<T>* out) const {
    w.read(row(kk), first, width, out);
  }
  // Asks for what read(kk, first, width, ...) will read some rows later: rows are far apart.
  FRD_MEMBER void fetch_ahead(int64_t kk, int64_t first, int64_t width) const {
    constexpr int64_t ahead = 8;
    if (kk + ahead < w.rows()) w.fetch(row(kk + ahead), first, width * LANES);
  }
};

// sums[m] = a[m] times columns [first, first + NV * LANES), whose rows are read as they lie.
template <int MR, int NV, class T>
__attribute__((noinline)) static void multiply_columns(const TurnedWeight<T>& turned, int64_t first, const T* const* a,
                                                       Vec<T> (*sums)[NV]) {
  const MaskedWeight<T>& w = turned.w;
  const int64_t k = w.rows(), columns = w.columns();
  Vec<T> acc[MR][NV] = {};
  const auto add = [&](int64_t kk, const Vec<T>* weights) {
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      const T value = a[m][kk];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += value * weights[v];
    }
  };
  if (w.on() || first + NV * LANES > columns) {
    for (int64_t kk = 0; kk < k; ++kk) {
      turned.fetch_ahead(kk, first, NV);
      Vec<T> weights[NV];
      turned.read(kk, first, NV, weights);
      add(kk, weights);
    }
  } else {
    const T* row = w.data() + turned.by * columns + first;
    for (int64_t kk = 0; kk < k; ++kk, row += columns) {
      if (kk + turned.by == k) row = w.data() + first;
      __builtin_prefetch(row + 8 * columns);
      Vec<T> weights[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) weights[v] = load(row + v * LANES);
      add(kk, weights);
    }
  }
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) sums[m][v] = acc[m][v];
}
template <int NV, class T, int... M>
FRD_INLINE void multiply_columns(int64_t rows, const TurnedWeight<T>& w, int64_t first, const T* const* a,
                                 Vec<T> (*sums)[NV], std::integer_sequence<int, M...>) {
  ((rows == M + 1 ? multiply_columns<M + 1, NV, T>(w, first, a, sums) : void()), ...);
}

}  // namespace frd::cpu::FRD_ISA
