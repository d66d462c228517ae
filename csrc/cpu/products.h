// The products over many steps: W x before them, and the gradients of x and of the weights after them.
//
// They run over a chunk of steps at a time, whose operands stay in the caches between a product and the recurrence.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/dropout.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"
#include "cpu/simd.h"
#include "cpu/tiles.h"

namespace frd::cpu::FRD_ISA {

// Calls body(tile, begin, end) so that all of [0, tiles) x [0, rows) is covered; rows are cut where tiles are too few,
// but not below `fewest`.
template <class Body>
void each_tile(const Parallel& parallel, int64_t tiles, int64_t rows, int64_t fewest, int64_t work, Body&& body) {
  if (tiles == 0 || rows == 0) return;
  const int64_t wanted = 4 * int64_t{parallel.threads}, most = tiles_of(rows, fewest);
  const int64_t parts = tiles >= wanted ? 1 : least(tiles_of(wanted, tiles), most);
  parallel.each(tiles * parts, tiles_of(rows, parts) * work, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i / parts, part = i % parts;
      body(tile, rows * part / parts, rows * (part + 1) / parts);
    }
  });
}

// For each of `rows` rows of x, and LANES units at a time, each(row, unit, sums): W x[row], of each gate.
template <int NV, class D, class Each>
void gate_products(const Parallel& parallel, const D* x, int64_t rows, const GateTiles<NV, D>& w, Each&& each) {
  const int64_t k = w.inputs();
  each_tile(parallel, tiles_of(w.units(), LANES), rows, w.fewest_rows(), NV * LANES * k,
            [&](int64_t tile, int64_t begin, int64_t end) {
              const Buffer<Term<D>> room = scratch<Term<D>>(w.room());
              product<NV>(
                  begin, end, [&](int64_t row) { return x + row * k; }, w.at(tile, room.get()),
                  [&](int64_t row, const Vec<D>* sums) { each(row, tile * LANES, sums); });
            });
}

// gates[row] = bias + W x[row], for `rows` rows. bias [NV * units], or null.
template <int NV, class D>
void input_product(const Parallel& parallel, const D* x, int64_t rows, const GateTiles<NV, D>& w,
                   const Arithmetic<D>* bias, Arithmetic<D>* gates) {
  const int64_t units = w.units();
  gate_products(parallel, x, rows, w, [&](int64_t row, int64_t u, const Vec<D>* sums) {
    const int64_t n = units - u;
    for (int v = 0; v < NV; ++v)
      store(gates + (row * NV + v) * units + u, sums[v] + (bias ? load(bias + v * units + u, n) : Vec<D>{}), n);
  });
}

// The gradient of a layer's input: dx[row] = dgates[row] * W, masked as x was, for `rows` rows of `stride` numbers.
template <class D>
void input_gradient(const Parallel& parallel, const D* dgates, int64_t rows, int64_t stride, const ColumnTiles<D>& w,
                    const RowMasks<D>& masks, D* dx) {
  const int64_t k = w.rows(), inputs = w.columns();
  each_tile(
      parallel, w.layout().tiles, rows, w.fewest_rows(), 4 * LANES * k, [&](int64_t tile, int64_t begin, int64_t end) {
        const Buffer<Term<D>> room = scratch<Term<D>>(w.room());
        product(
            w.layout(), tile, begin, end, [&](int64_t row) { return dgates + row * stride; }, w.at(tile, room.get()),
            [&](int64_t row, int64_t column, Vec<D> sum) {
              store(dx + row * inputs + column, masks.apply(row, column, sum), inputs - column);
            });
      });
}

// Whether a chunk is the first of a sum over all chunks, and whether it is the last; one may be both.
struct Ends {
  bool first, last;
};

// The gradient of a weight, summed over chunks of steps. Its mask is a factor of the whole sum, and so the last
// chunk's.
template <class D>
class WeightGradient {
  using S = Arithmetic<D>;

 public:
  WeightGradient(const Parallel&, S*, const MaskedWeight<D>&&, int64_t) = delete;  // it is kept by reference
  // target: null where nobody asks for it. most: the rows of the largest chunk.
  WeightGradient(const Parallel& parallel, S* target, const MaskedWeight<D>& weight, int64_t most)
      : parallel_(parallel),
        target_(target),
        weight_(weight),
        columns_(weight.columns()),
        layout_(columns_, 1),
        packed_(scratch<Term<D>>(target ? layout_.vectors * LANES * terms<D>(most) : 0)) {}

  bool wanted() const { return target_; }
  int64_t tiles() const { return target_ ? layout_.tiles : 0; }

  // The next chunk: what the weight was multiplied with, right [k, columns].
  void chunk(const D* right, int64_t k) { pack(Plain<D>{right, k, columns_}, k); }
  void chunk(const D* right, int64_t k, const RowMasks<D>& masks) {
    pack(MaskedRows<D>{{right, k, columns_}, masks}, k);
  }

  // Rows [row, row + n), the columns of one tile; left [n, k] are the gradients at what the weight gave.
  void add(const D* left, int64_t k, int64_t row, int64_t n, int64_t tile, Ends ends) const {
    product(
        layout_, tile, 0, n, [&](int64_t i) { return left + i * k; },
        PackedColumns<D>{packed_.get() + layout_.start(tile, terms<D>(k)), k},
        [&](int64_t i, int64_t column, Vec<D> sum) {
          S* to = target_ + (row + i) * columns_ + column;
          if (!ends.first) sum += load(to, columns_ - column);
          store(to, ends.last ? weight_.masked(row + i, column, sum) : sum, columns_ - column);
        });
  }

 private:
  template <class Matrix>
  void pack(const Matrix& right, int64_t k) {
    if (target_) pack_columns<D>(parallel_, layout_, right, k, packed_.get());
  }

  const Parallel& parallel_;
  S* const target_;
  const MaskedWeight<D>& weight_;
  const int64_t columns_;
  const Columns layout_;
  Buffer<Term<D>> packed_;
};

// target[i] (+)= the sum of the k numbers of row i of left [n, k].
template <class D>
void add_row_sums(const D* left, int64_t k, int64_t n, bool first, Arithmetic<D>* target) {
  for (int64_t i = 0; i < n; ++i) {
    Vec<D> sums{};
    for (int64_t kk = 0; kk < k; kk += LANES) sums += load(left + i * k + kk, k - kk);
    Arithmetic<D> total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += sums[lane];
    target[i] = first ? total : target[i] + total;
  }
}

// A weight and its bias, and which of their rows columns [begin, end) of a row of gradients belong to: from `row` on.
template <class D>
struct GradientTarget {
  const WeightGradient<D>* weight;
  Arithmetic<D>* bias;  // null where nobody asks
  int64_t begin, end, row;
};

// What a chunk of k steps' rows adds to the gradients of weights and biases. gradients [k, stride]: at what the weights
// gave, of which the first `width` columns count. They are turned a panel at a time, which stays in the cache for all
// columns of the weights. A panel's rows all have the same targets where `cut` divides their begins and ends.
template <class D, size_t N>
void add_weight_gradients(const Parallel& parallel, const D* gradients, int64_t k, int64_t stride, int64_t width,
                          int64_t cut, Ends ends, const GradientTarget<D> (&targets)[N]) {
  if (width == 0) return;  // a layer may have no units
  const int64_t wanted = 4 * int64_t{parallel.threads}, even = tiles_of(tiles_of(width, wanted), LANES) * LANES;
  const int64_t height = even < 128 ? even : 128, of_cut = tiles_of(cut, height), panels = of_cut * (width / cut);
  int64_t tiles = 0;
  for (const GradientTarget<D>& target : targets) tiles += target.weight->tiles();
  // Where panels are too few for the threads, columns are cut too.
  const int64_t parts = panels >= wanted || tiles == 0 ? 1 : least(tiles_of(wanted, panels), tiles);
  parallel.each(panels * parts, height * k * (tiles / parts + 1), [&](int64_t begin, int64_t end) {
    const Buffer<D> panel = scratch<D>(height * k);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t index = item / parts, part = item % parts;
      const int64_t from = index / of_cut * cut + index % of_cut * height;
      const int64_t n = least(height, (index / of_cut + 1) * cut - from);
      turn(gradients + from, k, n, stride, panel.get());
      int64_t tile = 0;
      for (const GradientTarget<D>& target : targets) {
        const bool mine = target.begin <= from && from < target.end;
        const int64_t row = target.row + from - target.begin;
        for (int64_t own = 0; own < target.weight->tiles(); ++own, ++tile)
          if (mine && tile % parts == part) target.weight->add(panel.get(), k, row, n, own, ends);
        if (mine && target.bias && part == 0) add_row_sums(panel.get(), k, n, ends.first, target.bias + row);
      }
    }
  });
}

}  // namespace frd::cpu::FRD_ISA
