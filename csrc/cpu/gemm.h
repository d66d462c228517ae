// Rows times a tile of packed columns: the one inner loop of every product here.
//
// A tile holds NV * LANES columns of B [K, N], row after row: [K][NV][LANES], so that a step reads it front to back.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/layer.h"
#include "cpu/profile.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

// Rows that share one reading of a tile: as many as leave registers for the tile's row and a broadcast.
template <class T, int NV>
constexpr int rows_at_once() {
  constexpr int registers = (LANES == 16 ? 24 : 12) * sizeof(VecF) / sizeof(Vec<T>), rows = registers / NV;
  return rows < 1 ? 1 : rows > 12 ? 12 : rows;
}

template <int MR, int NV, class T>
__attribute__((noinline)) static void multiply_rows(const T* const* a, const T* tile, int64_t k, Vec<T> (*sums)[NV]) {
  Vec<T> acc[MR][NV] = {};
  for (int64_t kk = 0; kk < k; ++kk) {
    Vec<T> weights[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) weights[v] = load(tile + (kk * NV + v) * LANES);
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      const T value = a[m][kk];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += value * weights[v];
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = acc[m][v];
}

// sums[m] = a[m][0..k) * tile for m < rows. The order of the sum over k is the same whatever `rows` and NV are, so a
// result does not depend on how a batch or a product is cut.
template <int NV, class T, int... M>
FRD_INLINE void multiply_tile(int64_t rows, const T* const* a, const T* tile, int64_t k, Vec<T> (*sums)[NV],
                              std::integer_sequence<int, M...>) {
  ((rows == M + 1 ? multiply_rows<M + 1, NV, T>(a, tile, k, sums) : void()), ...);
}

// A tile in memory. Others, which make it while they are used, have a `multiply` too.
template <int NV, class T>
struct PackedTile {
  using Number = T;
  const T* data;
  int64_t k;

  FRD_MEMBER void multiply(int64_t rows, const T* const* a, Vec<T> (*sums)[NV]) const {
    multiply_tile<NV, T>(rows, a, data, k, sums, std::make_integer_sequence<int, rows_at_once<T, NV>()>{});
  }
};

// Rows [begin, end) of a product with one tile, `each(row, sums)` called with each row's NV registers. `row(b)` points
// to the k numbers of row b. `fetch(row)` comes a whole block of products before each(row), to prefetch what that
// reads.
template <int NV, class Tile, class Row, class Fetch, class Each>
FRD_INLINE void product(int64_t begin, int64_t end, Row&& row, const Tile& tile, Fetch&& fetch, Each&& each) {
  using T = typename Tile::Number;
  constexpr int most = rows_at_once<T, NV>();
  const int64_t blocks = (end - begin + most - 1) / most;
  for (int64_t block = 0; block < blocks; ++block) {
    // Blocks of like size: a last one of few rows would wait for its own sums.
    const int64_t first = begin + (end - begin) * block / blocks;
    const int64_t rows = begin + (end - begin) * (block + 1) / blocks - first;
    const T* a[most];
    for (int64_t m = 0; m < rows; ++m) {
      a[m] = row(first + m);
      fetch(first + m);
    }
    Vec<T> sums[most][NV];
    const int64_t start = is_profiling() ? now_ns() : 0;
    tile.multiply(rows, a, sums);
    if (start) product_ns += now_ns() - start;
    for (int64_t m = 0; m < rows; ++m) each(first + m, sums[m]);
  }
}

template <int NV, class Tile, class Row, class Each>
FRD_INLINE void product(int64_t begin, int64_t end, Row&& row, const Tile& tile, Each&& each) {
  product<NV>(begin, end, row, tile, [](int64_t) {}, each);
}

// Neighbouring columns cut into tiles of 1 to 4 registers, of like size and as many for each group of threads.
struct Columns {
  int64_t vectors, tiles;

  Columns(int64_t columns, int64_t groups) : vectors(tiles_of(columns, LANES)) {
    const int64_t even = tiles_of(tiles_of(vectors, 4), groups) * groups;
    tiles = even < vectors ? even : vectors;
  }
  int64_t first(int64_t tile) const { return vectors * tile / tiles; }  // in registers
  int64_t width(int64_t tile) const { return first(tile + 1) - first(tile); }
  // Numbers before a tile where the tiles of k rows lie one after the other, and the most that one takes.
  int64_t start(int64_t tile, int64_t k) const { return first(tile) * LANES * k; }
  int64_t largest(int64_t k) const { return least(vectors, 4) * LANES * k; }
};

// A tile of them in memory. Others, which make it while they are used, have an `of` too.
template <class T>
struct PackedColumns {
  const T* data;
  int64_t k;

  template <int NV>
  FRD_MEMBER PackedTile<NV, T> of() const {
    return {data, k};
  }
};

// The same with tile `index` of `columns`; `each(row, column, sum)` is called for each register, `fetch(row, column,
// n)` for the n columns of the tile.
template <class Tile, class Row, class Fetch, class Each>
FRD_INLINE void product(const Columns& columns, int64_t index, int64_t begin, int64_t end, Row&& row, const Tile& tile,
                        Fetch&& fetch, Each&& each) {
  const int64_t first = columns.first(index);
  const auto run = [&](auto width) {
    constexpr int NV = decltype(width)::value;
    product<NV>(
        begin, end, row, tile.template of<NV>(), [&](int64_t b) { fetch(b, first * LANES, int64_t{NV * LANES}); },
        [&](int64_t b, const auto* sums) {
          for (int v = 0; v < NV; ++v) each(b, (first + v) * LANES, sums[v]);
        });
  };
  switch (columns.width(index)) {
  case 1:
    return run(std::integral_constant<int, 1>{});
  case 2:
    return run(std::integral_constant<int, 2>{});
  case 3:
    return run(std::integral_constant<int, 3>{});
  case 4:
    return run(std::integral_constant<int, 4>{});
  }
}

template <class Tile, class Row, class Each>
FRD_INLINE void product(const Columns& columns, int64_t index, int64_t begin, int64_t end, Row&& row, const Tile& tile,
                        Each&& each) {
  product(columns, index, begin, end, row, tile, [](int64_t, int64_t, int64_t) {}, each);
}

}  // namespace frd::cpu::FRD_ISA
