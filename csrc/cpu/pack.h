// Packing: matrices into the tiles that the products read, weights masked on the way.
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "core/flags.h"
#include "cpu/buffer.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/masks.h"
#include "cpu/numbers.h"
#include "cpu/simd.h"
#include "cpu/terms.h"

namespace frd::cpu::FRD_ISA {

// A matrix [rows, columns], read some registers of a row at a time.
template <class D>
struct Plain {
  const D* data;
  int64_t rows, columns;

  // `width` registers of a row from column `first` on; zero beyond the matrix.
  FRD_MEMBER void read(int64_t row, int64_t first, int64_t width, Vec<D>* out) const {
    for (int64_t v = 0; v < width; ++v) {
      const int64_t column = first + v * LANES, n = columns - column;
      out[v] = n > 0 ? load(data + row * columns + column, n) : Vec<D>{};
    }
  }
  FRD_MEMBER void read(int64_t row, int64_t first, Vec<D>* out) const { read(row, first, BLOCK_VECTORS, out); }
};

// A weight as weight dropout leaves it. Its mask is drawn when this is made, as bits, for all that a pass reads of it:
// the packed weight, its tiles in turn, its gradient.
template <class D>
class MaskedWeight {
 public:
  MaskedWeight(const Parallel& parallel, const D* data, int64_t rows, int64_t columns, uint32_t flag, uint32_t kind,
               const Masks& masks)
      : plain_{data, rows, columns},
        on_(data && masks.sampled(flag)),
        by_row_(masks.flags & FLAG_WEIGHT_ROW),
        scale_(Arithmetic<D>(keep_scale(masks.thresholds[SITE_WEIGHT_DROPOUT]))),
        bytes_(bytes_of(by_row_ ? rows : columns)),
        bits_(scratch<uint8_t>(on_ ? (by_row_ ? 1 : rows) * bytes_ : 0)) {
    if (!on_) return;
    const RoundKeys keys(masks.keys[GROUP_WEIGHT]);
    const uint64_t threshold = masks.thresholds[SITE_WEIGHT_DROPOUT];
    const uint32_t stream = stream_of(by_row_ ? by_rows(kind) : kind, masks.layer, masks.direction);
    const SiteMasks drawn{stream, SEQ, threshold, by_row_ ? rows : columns};
    if (by_row_) {
      drawn.draw(keys, 0, bits_.get());
      return;
    }
    parallel.each(rows, columns, [&](int64_t begin, int64_t end) {
      drawn.draw(
          keys, begin, end, [](int64_t row) { return static_cast<uint32_t>(row); },
          [&](int64_t row) { return &bits_[row * bytes_]; });
    });
  }

  bool on() const { return on_; }
  int64_t rows() const { return plain_.rows; }
  int64_t columns() const { return plain_.columns; }
  const D* data() const { return plain_.data; }

  // Asks for columns first .. first + n of a row, as far as there are any.
  FRD_MEMBER void fetch(int64_t row, int64_t first, int64_t n = BLOCK) const {
    if (first < plain_.columns) prefetch(plain_.data + row * plain_.columns + first, least(n, plain_.columns - first));
  }

  // `width` registers of a row from column `first` on; first % LANES == 0.
  FRD_MEMBER void read(int64_t row, int64_t first, int64_t width, Vec<D>* out) const {
    plain_.read(row, first, width, out);
    if (!on_) return;
    for (int64_t v = 0; v < width && first + v * LANES < columns(); ++v)
      out[v] = masked(row, first + v * LANES, out[v]);
  }
  FRD_MEMBER void read(int64_t row, int64_t first, Vec<D>* out) const { read(row, first, BLOCK_VECTORS, out); }
  // A block's terms of a row, from column `first` on; first % BLOCK == 0.
  FRD_MEMBER void read_terms(int64_t row, int64_t first, Terms<D>* out) const {
    constexpr int64_t registers = BLOCK_VECTORS / TERM<D>, numbers = LANES * TERM<D>;
    if (TERM<D> == 1 || on_) {
      Vec<D> values[BLOCK_VECTORS];
      read(row, first, values);
      for (int64_t q = 0; q < registers; ++q) out[q] = along<D>(values + q * TERM<D>);
    } else {
      for (int64_t q = 0, column = first; q < registers; ++q, column += numbers)
        out[q] = load_terms(plain_.data + row * columns() + column, columns() - column);
    }
  }

  // Columns column .. column + LANES of a row, or their gradient. column % LANES == 0.
  FRD_MEMBER Vec<D> masked(int64_t row, int64_t column, Vec<D> value) const {
    if (!on_) return value;
    if (by_row_) return bits_[row / 8] >> row % 8 & 1 ? Vec<D>{} : scale_ * value;
    return select(Simd<D>::mask_of(spread(&bits_[row * bytes_], column)), Vec<D>{}, scale_ * value);
  }

 private:
  const Plain<D> plain_;
  const bool on_, by_row_;
  const Arithmetic<D> scale_;
  const int64_t bytes_;         // of a row of masks
  const Buffer<uint8_t> bits_;  // [rows], or one row for all
};

// Tile `tile` of W [NV * units, k]: its columns are LANES units of each of NV gates. target [terms(k)][NV][LANES].
template <int NV, class D>
void pack_gate_tile(const MaskedWeight<D>& w, int64_t tile, Term<D>* target) {
  constexpr int registers = BLOCK_VECTORS / TERM<D>;
  constexpr int64_t numbers = LANES * TERM<D>;  // of a row, in a register
  const int64_t units = w.rows() / NV, k = w.columns();
  for (int v = 0; v < NV; ++v)
    for (int64_t first = 0; first < k; first += BLOCK) {
      Terms<D> block[registers][LANES] = {};
      for (int lane = 0; lane < LANES && tile * LANES + lane < units; ++lane) {
        Terms<D> values[registers];
        const int64_t row = v * units + tile * LANES + lane;
        w.fetch(row, first + BLOCK);  // LANES rows at once are too many streams for the processor to see
        w.read_terms(row, first, values);
        for (int q = 0; q < registers; ++q) block[q][lane] = values[q];
      }
      for (int q = 0; q < registers && first + q * numbers < k; ++q) {
        transpose(block[q]);
        for (int64_t term = first / TERM<D> + q * LANES, i = 0; i < LANES && term < terms<D>(k); ++i, ++term)
          store(target + (term * NV + v) * LANES, block[q][i]);
      }
    }
}
// All of them: [unit / LANES][terms(k)][NV][LANES].
template <int NV, class D>
Buffer<Term<D>> pack_gates(const Parallel& parallel, const MaskedWeight<D>& w) {
  const int64_t tiles = tiles_of(w.rows() / NV, LANES), size = terms<D>(w.columns()) * NV * LANES;
  Buffer<Term<D>> packed = scratch<Term<D>>(tiles * size);
  Term<D>* const target = packed.get();
  parallel.each(tiles, size, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) pack_gate_tile<NV>(w, tile, target + tile * size);
  });
  return packed;
}

// The rows of a matrix [k, columns] that make up a term of its columns' sums, `width` registers from column `first` on.
template <class D, class Matrix>
FRD_INLINE void read_across(const Matrix& matrix, int64_t term, int64_t k, int64_t first, int64_t width,
                            Terms<D>* out) {
  if constexpr (TERM<D> == 1) return matrix.read(term, first, width, out);
  Vec<D> rows[TERM<D>][BLOCK_VECTORS] = {};
  for (int64_t i = 0; i < TERM<D> && term * TERM<D> + i < k; ++i)
    matrix.read(term * TERM<D> + i, first, width, rows[i]);
  for (int64_t v = 0; v < width; ++v) {
    Vec<D> of_column[TERM<D>];
    for (int64_t i = 0; i < TERM<D>; ++i) of_column[i] = rows[i][v];
    out[v] = across<D>(of_column);
  }
}

// A [k, columns] into the tiles of `layout`, one after the other; [terms(k)][registers][LANES] each.
template <class D, class Matrix>
void pack_columns(const Parallel& parallel, const Columns& layout, const Matrix& matrix, int64_t k, Term<D>* target) {
  const int64_t count = terms<D>(k);
  parallel.each(count, layout.vectors * LANES * TERM<D>, [&](int64_t begin, int64_t end) {
    for (int64_t term = begin; term < end; ++term) {
      Terms<D> values[BLOCK_VECTORS];
      for (int64_t tile = 0; tile < layout.tiles; ++tile) {
        const int64_t first = layout.first(tile), width = layout.width(tile);
        for (int64_t v = 0; v < width; ++v) {
          const int64_t vector = first + v;
          if (vector % BLOCK_VECTORS == 0)
            read_across<D>(matrix, term, k, vector * LANES, int64_t{BLOCK_VECTORS}, values);
          store(target + layout.start(tile, count) + (term * width + v) * LANES, values[vector % BLOCK_VECTORS]);
        }
      }
    }
  });
}
template <class D, class Matrix>
Buffer<Term<D>> pack_columns(const Parallel& parallel, const Columns& layout, const Matrix& matrix, int64_t k) {
  Buffer<Term<D>> packed = scratch<Term<D>>(layout.vectors * LANES * terms<D>(k));
  pack_columns<D>(parallel, layout, matrix, k, packed.get());
  return packed;
}

// [rows, width] whose rows are `stride` apart to [width, rows].
template <class D>
void turn(const D* from, int64_t rows, int64_t width, int64_t stride, D* to) {
  for (int64_t column = 0; column < width; column += LANES)
    for (int64_t row = 0; row < rows; row += LANES) {
      Vec<D> block[LANES];
      for (int i = 0; i < LANES; ++i)
        block[i] = row + i < rows ? load(from + (row + i) * stride + column, width - column) : Vec<D>{};
      transpose(block);
      for (int i = 0; i < LANES && column + i < width; ++i) store(to + (column + i) * rows + row, block[i], rows - row);
    }
}

}  // namespace frd::cpu::FRD_ISA
