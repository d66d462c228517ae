// Packing: matrices into the tiles that the products read, weights masked on the way.
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "core/flags.h"
#include "cpu/buffer.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/masks.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

// A matrix [rows, columns], read some registers of a row at a time.
template <class T>
struct Plain {
  const T* data;
  int64_t rows, columns;

  // `width` registers of a row from column `first` on; zero beyond the matrix.
  FRD_MEMBER void read(int64_t row, int64_t first, int64_t width, Vec<T>* out) const {
    for (int64_t v = 0; v < width; ++v) {
      const int64_t column = first + v * LANES, n = columns - column;
      out[v] = n > 0 ? load(data + row * columns + column, n) : Vec<T>{};
    }
  }
  FRD_MEMBER void read(int64_t row, int64_t first, Vec<T>* out) const { read(row, first, BLOCK_VECTORS, out); }
};

// A weight as weight dropout leaves it. Its mask is drawn when this is made, as bits, for all that a pass reads of it:
// the packed weight, its tiles in turn, its gradient.
template <class T>
class MaskedWeight {
 public:
  MaskedWeight(const Parallel& parallel, const T* data, int64_t rows, int64_t columns, uint32_t flag, uint32_t kind,
               const Masks& masks)
      : plain_{data, rows, columns},
        on_(data && masks.sampled(flag)),
        by_row_(masks.flags & FLAG_WEIGHT_ROW),
        scale_(T(keep_scale(masks.thresholds[SITE_WEIGHT_DROPOUT]))),
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

  // Asks for columns first .. first + n of a row, as far as there are any.
  FRD_MEMBER void fetch(int64_t row, int64_t first, int64_t n = BLOCK) const {
    if (first < plain_.columns) prefetch(plain_.data + row * plain_.columns + first, least(n, plain_.columns - first));
  }

  // `width` registers of a row from column `first` on; first % LANES == 0.
  FRD_MEMBER void read(int64_t row, int64_t first, int64_t width, Vec<T>* out) const {
    plain_.read(row, first, width, out);
    if (!on_) return;
    for (int64_t v = 0; v < width && first + v * LANES < columns(); ++v)
      out[v] = masked(row, first + v * LANES, out[v]);
  }
  FRD_MEMBER void read(int64_t row, int64_t first, Vec<T>* out) const { read(row, first, BLOCK_VECTORS, out); }

  // Columns column .. column + LANES of a row, or their gradient. column % LANES == 0.
  FRD_MEMBER Vec<T> masked(int64_t row, int64_t column, Vec<T> value) const {
    if (!on_) return value;
    if (by_row_) return bits_[row / 8] >> row % 8 & 1 ? Vec<T>{} : scale_ * value;
    return select(Simd<T>::mask_of(spread(&bits_[row * bytes_], column)), Vec<T>{}, scale_ * value);
  }

 private:
  const Plain<T> plain_;
  const bool on_, by_row_;
  const T scale_;
  const int64_t bytes_;         // of a row of masks
  const Buffer<uint8_t> bits_;  // [rows], or one row for all
};

// Tile `tile` of W [NV * units, k]: its columns are LANES units of each of NV gates. target [k][NV][LANES].
template <int NV, class T>
void pack_gate_tile(const MaskedWeight<T>& w, int64_t tile, T* target) {
  const int64_t units = w.rows() / NV, k = w.columns();
  for (int v = 0; v < NV; ++v)
    for (int64_t first = 0; first < k; first += BLOCK) {
      Vec<T> block[BLOCK_VECTORS][LANES] = {};
      for (int lane = 0; lane < LANES && tile * LANES + lane < units; ++lane) {
        Vec<T> values[BLOCK_VECTORS];
        const int64_t row = v * units + tile * LANES + lane;
        w.fetch(row, first + BLOCK);  // LANES rows at once are too many streams for the processor to see
        w.read(row, first, values);
        for (int q = 0; q < BLOCK_VECTORS; ++q) block[q][lane] = values[q];
      }
      for (int q = 0; q < BLOCK_VECTORS && first + q * LANES < k; ++q) {
        transpose(block[q]);
        for (int64_t kk = first + q * LANES, i = 0; i < LANES && kk < k; ++i, ++kk)
          store(target + (kk * NV + v) * LANES, block[q][i]);
      }
    }
}
// All of them: [unit / LANES][k][NV][LANES].
template <int NV, class T>
Buffer<T> pack_gates(const Parallel& parallel, const MaskedWeight<T>& w) {
  const int64_t tiles = tiles_of(w.rows() / NV, LANES), size = w.columns() * NV * LANES;
  Buffer<T> packed = scratch<T>(tiles * size);
  T* const target = packed.get();
  parallel.each(tiles, size, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) pack_gate_tile<NV>(w, tile, target + tile * size);
  });
  return packed;
}

// A [k, columns] into the tiles of `layout`, one after the other; [k][registers][LANES] each.
template <class T, class Matrix>
void pack_columns(const Parallel& parallel, const Columns& layout, const Matrix& matrix, int64_t k, T* target) {
  parallel.each(k, layout.vectors * LANES, [&](int64_t begin, int64_t end) {
    for (int64_t kk = begin; kk < end; ++kk) {
      Vec<T> values[BLOCK_VECTORS];
      for (int64_t tile = 0; tile < layout.tiles; ++tile) {
        const int64_t first = layout.first(tile), width = layout.width(tile);
        for (int64_t v = 0; v < width; ++v) {
          const int64_t vector = first + v;
          if (vector % BLOCK_VECTORS == 0) matrix.read(kk, vector * LANES, values);
          store(target + layout.start(tile, k) + (kk * width + v) * LANES, values[vector % BLOCK_VECTORS]);
        }
      }
    }
  });
}
template <class T, class Matrix>
Buffer<T> pack_columns(const Parallel& parallel, const Columns& layout, const Matrix& matrix, int64_t k) {
  Buffer<T> packed = scratch<T>(layout.vectors * LANES * k);
  pack_columns(parallel, layout, matrix, k, packed.get());
  return packed;
}

// [rows, width] whose rows are `stride` apart to [width, rows].
template <class T>
void turn(const T* from, int64_t rows, int64_t width, int64_t stride, T* to) {
  for (int64_t column = 0; column < width; column += LANES)
    for (int64_t row = 0; row < rows; row += LANES) {
      Vec<T> block[LANES];
      for (int i = 0; i < LANES; ++i)
        block[i] = row + i < rows ? load(from + (row + i) * stride + column, width - column) : Vec<T>{};
      transpose(block);
      for (int i = 0; i < LANES && column + i < width; ++i) store(to + (column + i) * rows + row, block[i], rows - row);
    }
}

}  // namespace frd::cpu::FRD_ISA
