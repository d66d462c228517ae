// Rows times a tile of packed columns: the one inner loop of every product here.
//
// A tile holds NV * LANES columns of B [K, N], term after term of their sums: [terms(K)][NV][LANES], so that a step
// reads it front to back.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/profile.h"
#include "cpu/simd.h"
#include "cpu/terms.h"

namespace frd::cpu::FRD_ISA {

// Rows that share one reading of a tile: as many as leave registers for the tile's terms and a broadcast.
template <class D, int NV>
constexpr int rows_at_once() {
  if (EMULATED<D>) return 2;
  constexpr int registers = (LANES == 16 ? 24 : 12) * sizeof(VecF) / sizeof(Vec<D>), rows = registers / NV;
  return rows < 1 ? 1 : rows > 12 ? 12 : rows;
}

// acc[m] += `count` terms of a[m] times those of a tile.
template <int MR, int NV, class D>
FRD_INLINE void add_terms(const D* const* a, const Term<D>* tile, int64_t count, Vec<D> (*acc)[NV]) {
  for (int64_t i = 0; i < count; ++i) {
    Terms<D> weights[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) weights[v] = load(tile + (i * NV + v) * LANES);
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      const Term<D> value = term(a[m], i);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) add_term(acc[m][v], value, weights[v]);
    }
  }
}

// sums[m] += the term of a[m] that is no whole one, if there is one, times of(v), that of the columns.
template <int NV, class D, class Of>
FRD_INLINE void add_last_term(int rows, const D* const* a, int64_t k, Vec<D> (*sums)[NV], Of&& of) {
  if (k % TERM<D> == 0) return;
#pragma GCC unroll 1
  for (int v = 0; v < NV; ++v) {
    const Terms<D> weights = of(v);
#pragma GCC unroll 1
    for (int m = 0; m < rows; ++m) add_term(sums[m][v], last_term(a[m], k), weights);
  }
}

template <int MR, int NV, class D>
__attribute__((noinline)) static void multiply_rows(const D* const* a, const Term<D>* tile, int64_t k,
                                                    Vec<D> (*sums)[NV]) {
  Vec<D> acc[MR][NV] = {};
  add_terms<MR, NV>(a, tile, k / TERM<D>, acc);
#pragma GCC unroll 12
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = acc[m][v];
  add_last_term<NV>(MR, a, k, sums, [&](int v) { return load(tile + (k / TERM<D> * NV + v) * LANES); });
}

// sums[m] = a[m][0..k) * tile for m < rows. The order of the sum over k is the same whatever `rows` and NV are, so a
// result does not depend on how a batch or a product is cut.
template <int NV, class D, int... M>
FRD_INLINE void multiply_tile(int64_t rows, const D* const* a, const Term<D>* tile, int64_t k, Vec<D> (*sums)[NV],
                              std::integer_sequence<int, M...>) {
  ((rows == M + 1 ? multiply_rows<M + 1, NV, D>(a, tile, k, sums) : void()), ...);
}

// A tile in memory. Others, which make it while they are used, have a `multiply` too.
template <int NV, class D>
struct PackedTile {
  using Number = D;
  const Term<D>* data;
  int64_t k;

  FRD_MEMBER void multiply(int64_t rows, const D* const* a, Vec<D> (*sums)[NV]) const {
    multiply_tile<NV, D>(rows, a, data, k, sums, std::make_integer_sequence<int, rows_at_once<D, NV>()>{});
  }
};

// Rows [begin, end) of a product with one tile, `each(row, sums)` called with each row's NV registers. `row(b)` points
// to the k numbers of row b. `fetch(row)` comes a whole block of products before each(row), to prefetch what that
// reads.
template <int NV, class Tile, class Row, class Fetch, class Each>
FRD_INLINE void product(int64_t begin, int64_t end, Row&& row, const Tile& tile, Fetch&& fetch, Each&& each) {
  using D = typename Tile::Number;
  constexpr int most = rows_at_once<D, NV>();
  const int64_t blocks = (end - begin + most - 1) / most;
  for (int64_t block = 0; block < blocks; ++block) {
    // Blocks of like size: a last one of few rows would wait for its own sums.
    const int64_t first = begin + (end - begin) * block / blocks;
    const int64_t rows = begin + (end - begin) * (block + 1) / blocks - first;
    const D* a[most];
    for (int64_t m = 0; m < rows; ++m) {
      a[m] = row(first + m);
      fetch(first + m);
    }
    Vec<D> sums[most][NV];
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
  // Terms before a tile where the tiles of k terms lie one after the other, and the most that one takes.
  int64_t start(int64_t tile, int64_t k) const { return first(tile) * LANES * k; }
  int64_t largest(int64_t k) const { return least(vectors, 4) * LANES * k; }
};

// A tile of them in memory. Others, which make it while they are used, have an `of` too.
template <class D>
struct PackedColumns {
  const Term<D>* data;
  int64_t k;

  template <int NV>
  FRD_MEMBER PackedTile<NV, D> of() const {
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
