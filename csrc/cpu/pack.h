// Packing: matrices into the tiles that the products read, weights masked on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/counters.h"
#include "core/flags.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/masks.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

template <class T>
using Buffer = std::unique_ptr<T[], void (*)(T*)>;

// n numbers at the start of a cache line, not initialised.
template <class T>
Buffer<T> scratch(int64_t n) {
  void* memory = take_scratch(static_cast<size_t>(n > 0 ? n : 1) * sizeof(T));
  return Buffer<T>(static_cast<T*>(memory), [](T* p) { give_scratch(p); });
}

inline constexpr int64_t QUAD = 4 * LANES;  // columns whose masks one Philox call draws

// A matrix [rows, columns] to be read QUAD columns at a time.
template <class T>
struct Plain {
  const T* data;
  int64_t rows, columns;

  // Columns first .. first + QUAD of a row; zero beyond the matrix.
  FRD_MEMBER void read(int64_t row, int64_t first, Vec<T>* out) const {
    for (int v = 0; v < 4; ++v) {
      const int64_t n = columns - first - v * LANES;
      out[v] = n > 0 ? load(data + row * columns + first + v * LANES, n) : Vec<T>{};
    }
  }
};

// A weight as weight dropout leaves it.
template <class T>
class MaskedWeight {
 public:
  MaskedWeight(const T* data, int64_t rows, int64_t columns, uint32_t flag, uint32_t kind, const Masks& masks)
      : plain_{data, rows, columns},
        on_(masks.sampled(flag)),
        by_row_(masks.flags & FLAG_WEIGHT_ROW),
        kind_(kind),
        threshold_(masks.thresholds[SITE_WEIGHT_DROPOUT]),
        scale_(T(keep_scale(threshold_))),
        stream_(stream_of(by_row_ ? KIND_WEIGHT_ROW : kind, masks.layer, masks.direction)),
        key_(masks.weight),
        keys_(masks.weight) {}

  bool on() const { return on_; }
  int64_t rows() const { return plain_.rows; }
  int64_t columns() const { return plain_.columns; }

  // Asks for columns first .. first + n of a row, as far as there are any.
  FRD_MEMBER void fetch(int64_t row, int64_t first, int64_t n = QUAD) const {
    if (first < plain_.columns) prefetch(plain_.data + row * plain_.columns + first, least(n, plain_.columns - first));
  }

  FRD_MEMBER void read(int64_t row, int64_t first, Vec<T>* out) const {
    plain_.read(row, first, out);
    if (on_) mask(row, first, out);
  }
  // `width` registers of a row from column `first` on, which need not be a multiple of QUAD.
  FRD_MEMBER void read(int64_t row, int64_t first, int64_t width, Vec<T>* out) const {
    Vec<T> quad[4];
    for (int64_t v = 0; v < width; ++v) {
      const int64_t column = first + v * LANES, n = plain_.columns - column;
      if (!on_) {
        out[v] = load(plain_.data + row * plain_.columns + column, n);
      } else {
        if (v == 0 || column % QUAD == 0) read(row, column / QUAD * QUAD, quad);
        out[v] = quad[column % QUAD / LANES];
      }
    }
  }

  // The mask on QUAD columns of a row.
  FRD_MEMBER void mask(int64_t row, int64_t first, Vec<T>* out) const {
    const Vec<T> zero{};
    if (by_row_) {
      const Words drawn = frd::philox(static_cast<uint32_t>(row / 4), kind_ - KIND_WEIGHT_HH, SEQ, stream_, key_);
      const bool drop = dropped(drawn.w[row % 4], threshold_);
      for (int v = 0; v < 4; ++v) out[v] = drop ? zero : scale_ * out[v];
    } else {
      const VecWords drawn = quad_words(static_cast<uint32_t>(first), static_cast<uint32_t>(row), SEQ, stream_, keys_);
      for (int v = 0; v < 4; ++v)
        out[v] = select(Simd<T>::mask_of(below(drawn.w[v], threshold_)), zero, scale_ * out[v]);
    }
  }

 private:
  const Plain<T> plain_;
  const bool on_, by_row_;
  const uint32_t kind_;
  const uint64_t threshold_;
  const T scale_;
  const uint32_t stream_;
  const Key key_;
  const RoundKeys keys_;
};

// The mask of a weight on its gradient, in place.
template <class T>
void mask_gradient(const Parallel& parallel, const MaskedWeight<T>& weight, T* gradient) {
  if (!weight.on()) return;
  const int64_t rows = weight.rows(), columns = weight.columns();
  parallel.each(rows, columns, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t first = 0; first < columns; first += QUAD) {
        Vec<T> values[4];
        Plain<T>{gradient, rows, columns}.read(row, first, values);
        weight.mask(row, first, values);
        for (int v = 0; v < 4 && first + v * LANES < columns; ++v)
          store(gradient + row * columns + first + v * LANES, values[v], columns - first - v * LANES);
      }
  });
}

// Tile `tile` of W [NV * units, k]: its columns are LANES units of each of NV gates. target [k][NV][LANES].
template <int NV, class T>
void pack_gate_tile(const MaskedWeight<T>& w, int64_t tile, T* target) {
  const int64_t units = w.rows() / NV, k = w.columns();
  for (int v = 0; v < NV; ++v)
    for (int64_t first = 0; first < k; first += QUAD) {
      Vec<T> block[4][LANES] = {};
      for (int lane = 0; lane < LANES && tile * LANES + lane < units; ++lane) {
        Vec<T> values[4];
        const int64_t row = v * units + tile * LANES + lane;
        w.fetch(row, first + QUAD);  // LANES rows at once are too many streams for the processor to see
        w.read(row, first, values);
        for (int q = 0; q < 4; ++q) block[q][lane] = values[q];
      }
      for (int q = 0; q < 4 && first + q * LANES < k; ++q) {
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
      Vec<T> values[4];
      for (int64_t tile = 0; tile < layout.tiles; ++tile) {
        const int64_t first = layout.first(tile), width = layout.width(tile);
        for (int64_t v = 0; v < width; ++v) {
          const int64_t vector = first + v;
          if (vector % 4 == 0) matrix.read(kk, vector * LANES, values);
          store(target + layout.start(tile, k) + (kk * width + v) * LANES, values[vector % 4]);
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
