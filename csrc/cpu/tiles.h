// Weights as the products over many steps read them: packed all at once, or each tile in its turn, which takes the room
// of one tile a thread and packs anew for every chunk of steps, and for every part that a chunk's rows are cut into.
#pragma once

#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/pack.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

enum class Packing : bool { AT_ONCE, IN_TURN };

// For callers who asked for little memory: at once only where a weight is little beside the states that are kept.
template <class T>
Packing sparing_packing(const LayerInputs<T>& p, const MaskedWeight<T>& w) {
  return 5 * w.rows() * w.columns() > p.sequence.rows * p.units ? Packing::IN_TURN : Packing::AT_ONCE;
}

// Rows that are worth a packing of their own; where there is none, those that are worth a call.
inline int64_t fewest_rows(Packing packing) { return packing == Packing::IN_TURN ? 128 : 16; }

// The weight whose columns dx is made of. Where gates were kept, nobody asked for little memory: then in turn only
// where that packs it about twice at most, and reading it is all that this takes. Chunks have `most` rows.
template <class T>
Packing packing_of_dx(const LayerBackward<T>& p, const MaskedWeight<T>& w, int64_t most) {
  if (!p.gates) return sparing_packing(p, w);
  const bool uncut = Columns(w.columns(), 1).tiles >= 4 * int64_t{p.parallel.threads};
  return !w.on() && uncut && p.sequence.rows <= 2 * most ? Packing::IN_TURN : Packing::AT_ONCE;
}

template <int NV, class T>
class GateTiles {
 public:
  GateTiles(const Parallel& parallel, const MaskedWeight<T>& w, Packing packing)
      : w_(w),
        size_(w.columns() * NV * LANES),
        packed_(packing == Packing::AT_ONCE ? pack_gates<NV>(parallel, w) : Buffer<T>(nullptr, nullptr)) {}

  int64_t inputs() const { return w_.columns(); }
  int64_t units() const { return w_.rows() / NV; }
  int64_t fewest_rows() const { return FRD_ISA::fewest_rows(packed_ ? Packing::AT_ONCE : Packing::IN_TURN); }
  int64_t room() const { return packed_ ? 0 : size_; }  // that at(...) needs
  const T* at(int64_t tile, T* room) const {
    if (packed_) return packed_.get() + tile * size_;
    pack_gate_tile<NV>(w_, tile, room);
    return room;
  }

 private:
  const MaskedWeight<T>& w_;
  const int64_t size_;
  Buffer<T> packed_;
};

// The columns of a weight. Row kk of the tiles is row (kk + turned) of the weight, whose rows go round.
template <class T>
class ColumnTiles {
 public:
  ColumnTiles(const Parallel& parallel, const MaskedWeight<T>& w, int64_t turned, Packing packing)
      : matrix_{w, turned},
        layout_(w.columns(), 1),
        packed_(packing == Packing::AT_ONCE ? pack_columns<T>(parallel, layout_, matrix_, w.rows())
                                            : Buffer<T>(nullptr, nullptr)) {}

  const Columns& layout() const { return layout_; }
  int64_t rows() const { return matrix_.w.rows(); }
  int64_t columns() const { return matrix_.w.columns(); }
  int64_t fewest_rows() const { return FRD_ISA::fewest_rows(packed_ ? Packing::AT_ONCE : Packing::IN_TURN); }
  int64_t room() const { return packed_ ? 0 : layout_.largest(rows()); }
  const T* at(int64_t tile, T* room) const {
    const int64_t k = rows(), width = layout_.width(tile);
    if (packed_) return packed_.get() + layout_.start(tile, k);
    for (int64_t kk = 0; kk < k; ++kk) {
      constexpr int64_t ahead = 8;  // rows are far apart
      const int64_t first = layout_.first(tile) * LANES;
      if (kk + ahead < k) matrix_.w.fetch(matrix_.row(kk + ahead), first, width * LANES);
      Vec<T> values[4];
      matrix_.w.read(matrix_.row(kk), first, width, values);
      for (int64_t v = 0; v < width; ++v) store(room + (kk * width + v) * LANES, values[v]);
    }
    return room;
  }

 private:
  struct Turned {
    const MaskedWeight<T>& w;
    const int64_t by;

    int64_t row(int64_t kk) const { return kk + by < w.rows() ? kk + by : kk + by - w.rows(); }
    FRD_MEMBER void read(int64_t kk, int64_t first, Vec<T>* out) const { w.read(row(kk), first, out); }
  };

  const Turned matrix_;
  const Columns layout_;
  Buffer<T> packed_;
};

}  // namespace frd::cpu::FRD_ISA
