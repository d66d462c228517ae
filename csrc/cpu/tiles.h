// Weights as the products read them: packed at once; packed a tile at a time, which takes the room of one tile a thread
// and packs anew for every chunk of steps, and for every part that a chunk's rows are cut into; or as they lie.
#pragma once

#include <cstdint>

#include "cpu/few_rows.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/pack.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

enum class Packing { AT_ONCE, IN_TURN, NEVER };

// Whether `rows` rows, which meet a weight in each of `steps` products, are too few to be worth a copy of it. Measured:
// a copy costs as much as `readings` of the weight as it lies, each by as many rows as share one.
template <class T>
bool few(int64_t rows, int64_t steps, int64_t readings) {
  return steps * tiles_of(rows, SUMS_AT_ONCE<T>) <= readings;
}
// As gates, whose blocks are turned: a copy is dearer where the weight is larger than the caches of a core.
template <class T>
bool few_for_gates(const MaskedWeight<T>& w, int64_t rows, int64_t steps = 1) {
  const bool large = w.rows() * w.columns() * static_cast<int64_t>(sizeof(T)) > 1 << 20;
  return few<T>(rows, steps, large ? 4 : 2);
}
// As columns, which are read row by row.
template <class T>
bool few_for_columns(int64_t rows, int64_t steps = 1) {
  return few<T>(rows, steps, 4);
}

// For callers who asked for little memory: at once only where a weight is little beside the states that are kept.
template <class T>
Packing sparing_packing(const LayerInputs<T>& p, const MaskedWeight<T>& w) {
  if (few_for_gates(w, p.sequence.rows)) return Packing::NEVER;
  return 5 * w.rows() * w.columns() > p.sequence.rows * p.units ? Packing::IN_TURN : Packing::AT_ONCE;
}
inline Packing once_unless(bool few) { return few ? Packing::NEVER : Packing::AT_ONCE; }

// Rows that are worth a packing of their own; where there is none, those that are worth a call.
inline int64_t fewest_rows(Packing packing) { return packing == Packing::IN_TURN ? 128 : 16; }

// The weight whose columns dx is made of. Where gates were kept, nobody asked for little memory: then in turn only
// where that packs it about twice at most, and reading it is all that this takes. Chunks have `most` rows.
template <class T>
Packing packing_of_dx(const LayerBackward<T>& p, const MaskedWeight<T>& w, int64_t most) {
  if (!p.gates) return sparing_packing(p, w);
  if (few_for_columns<T>(p.sequence.rows)) return Packing::NEVER;
  const bool uncut = Columns(w.columns(), 1).tiles >= 4 * int64_t{p.parallel.threads};
  return !w.on() && uncut && p.sequence.rows <= 2 * most ? Packing::IN_TURN : Packing::AT_ONCE;
}

// LANES units of each of NV gates of a weight [NV * units, k].
template <int NV, class T>
struct GateTile {
  using Number = T;
  const T* packed;  // or null: it is read as it lies
  const MaskedWeight<T>& w;
  int64_t tile;

  FRD_MEMBER void multiply(int64_t rows, const T* const* a, Vec<T> (*sums)[NV]) const {
    if (packed) return PackedTile<NV, T>{packed, w.columns()}.multiply(rows, a, sums);
    multiply_lying<NV, T>(w, tile, rows, a, sums);
  }
};

template <int NV, class T>
class GateTiles {
 public:
  GateTiles(const Parallel&, const MaskedWeight<T>&&, Packing) = delete;  // it is kept by reference
  GateTiles(const Parallel& parallel, const MaskedWeight<T>& w, Packing packing)
      : w_(w),
        packing_(packing),
        size_(w.columns() * NV * LANES),
        packed_(packing == Packing::AT_ONCE ? pack_gates<NV>(parallel, w) : Buffer<T>(nullptr, nullptr)) {}

  int64_t inputs() const { return w_.columns(); }
  int64_t units() const { return w_.rows() / NV; }
  int64_t fewest_rows() const { return FRD_ISA::fewest_rows(packing_); }
  int64_t room() const { return packing_ == Packing::IN_TURN ? size_ : 0; }  // that at(...) needs
  FRD_MEMBER GateTile<NV, T> at(int64_t tile, T* room = nullptr) const {
    if (packing_ == Packing::AT_ONCE) return {packed_.get() + tile * size_, w_, tile};
    if (packing_ == Packing::NEVER) return {nullptr, w_, tile};
    pack_gate_tile<NV>(w_, tile, room);
    return {room, w_, tile};
  }

 private:
  const MaskedWeight<T>& w_;
  const Packing packing_;
  const int64_t size_;
  Buffer<T> packed_;
};

// Some registers of a row of a weight's columns.
template <class T>
struct ColumnTile {
  const T* packed;  // or null: it is read as it lies
  const TurnedWeight<T>& w;
  int64_t first;

  template <int NV>
  struct Of {
    using Number = T;
    const ColumnTile& tile;

    FRD_MEMBER void multiply(int64_t rows, const T* const* a, Vec<T> (*sums)[NV]) const {
      if (tile.packed) return PackedTile<NV, T>{tile.packed, tile.w.w.rows()}.multiply(rows, a, sums);
      multiply_columns<NV, T>(rows, tile.w, tile.first, a, sums,
                              std::make_integer_sequence<int, rows_at_once<T, NV>()>{});
    }
  };
  template <int NV>
  FRD_MEMBER Of<NV> of() const {
    return {*this};
  }
};

// The columns of a weight. Row kk of the tiles is row (kk + turned) of the weight, whose rows go round.
template <class T>
class ColumnTiles {
 public:
  ColumnTiles(const Parallel&, const MaskedWeight<T>&&, int64_t, Packing, int = 1) = delete;
  ColumnTiles(const Parallel& parallel, const MaskedWeight<T>& w, int64_t turned, Packing packing, int groups = 1)
      : w_{w, turned},
        packing_(packing),
        layout_(w.columns(), groups),
        packed_(packing == Packing::AT_ONCE ? pack_columns<T>(parallel, layout_, w_, w.rows())
                                            : Buffer<T>(nullptr, nullptr)) {}

  const Columns& layout() const { return layout_; }
  int64_t rows() const { return w_.w.rows(); }
  int64_t columns() const { return w_.w.columns(); }
  int64_t fewest_rows() const { return FRD_ISA::fewest_rows(packing_); }
  int64_t room() const { return packing_ == Packing::IN_TURN ? layout_.largest(rows()) : 0; }
  FRD_MEMBER ColumnTile<T> at(int64_t tile, T* room = nullptr) const {
    const int64_t first = layout_.first(tile) * LANES;
    if (packing_ == Packing::AT_ONCE) return {packed_.get() + layout_.start(tile, rows()), w_, first};
    if (packing_ == Packing::NEVER) return {nullptr, w_, first};
    pack(tile, room);
    return {room, w_, first};
  }

 private:
  void pack(int64_t tile, T* room) const {
    const int64_t first = layout_.first(tile) * LANES, width = layout_.width(tile);
    for (int64_t kk = 0; kk < rows(); ++kk) {
      w_.fetch_ahead(kk, first, width);
      Vec<T> values[4];
      w_.read(kk, first, width, values);
      for (int64_t v = 0; v < width; ++v) store(room + (kk * width + v) * LANES, values[v]);
    }
  }

  const TurnedWeight<T> w_;
  const Packing packing_;
  const Columns layout_;
  Buffer<T> packed_;
};

}  // namespace frd::cpu::FRD_ISA
