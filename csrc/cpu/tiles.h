// Weights as the products read them: packed at once; packed a tile at a time, which takes the room of one tile a thread
// and packs anew for every chunk of steps, and for every part that a chunk's rows are cut into; or as they lie.
#pragma once

#include <cstdint>

#include "cpu/few_rows.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"
#include "cpu/simd.h"
#include "cpu/terms.h"

namespace frd::cpu::FRD_ISA {

// NEVER has the order of sums of the packed ones; ALONG has another for gates, that of dot products, and is the same as
// NEVER for columns.
enum class Packing { AT_ONCE, IN_TURN, NEVER, ALONG };

// Whether `rows` rows, which meet a weight in each of `steps` products, are too few to be worth a copy of it. Measured:
// a copy costs as much as `readings` of the weight as it lies, each by as many rows as share one.
template <class D>
bool few(int64_t rows, int64_t steps, int64_t readings) {
  return steps * tiles_of(rows, SUMS_AT_ONCE<D>) <= readings;
}
// As gates, whose blocks are turned: a copy is dearer where the weight is larger than the caches of a core.
template <class D>
bool few_for_gates(const MaskedWeight<D>& w, int64_t rows, int64_t steps = 1) {
  const bool large = w.rows() * w.columns() * static_cast<int64_t>(sizeof(D)) > 1 << 20;
  return few<D>(rows, steps, large ? 4 : 2);
}
// As columns, which are read row by row.
template <class D>
bool few_for_columns(int64_t rows, int64_t steps = 1) {
  return few<D>(rows, steps, 4);
}

// For callers who asked for little memory: at once only where a weight is little beside the states that are kept.
template <class D>
Packing sparing_packing(const LayerInputs<D>& p, const MaskedWeight<D>& w) {
  if (worth_sums_along(p.sequence.rows, w.columns())) return Packing::ALONG;
  if (few_for_gates(w, p.sequence.rows)) return Packing::NEVER;
  return 5 * w.rows() * w.columns() > p.sequence.rows * p.units ? Packing::IN_TURN : Packing::AT_ONCE;
}
// For all others. `rows` meet the weight in each of `steps` products. Whether sums run along its rows is a question of
// the whole layer's rows, so that a backward that makes the gates again gets the same bits.
template <class D>
Packing packing_of_gates(const LayerInputs<D>& p, const MaskedWeight<D>& w, int64_t rows, int64_t steps = 1) {
  if (worth_sums_along(p.sequence.rows, w.columns())) return Packing::ALONG;
  return few_for_gates(w, rows, steps) ? Packing::NEVER : Packing::AT_ONCE;
}
template <class D>
Packing packing_of_columns(int64_t rows, int64_t steps) {
  return few_for_columns<D>(rows, steps) ? Packing::NEVER : Packing::AT_ONCE;
}

// Rows that are worth a packing of their own; where there is none, those that are worth a call.
inline int64_t fewest_rows(Packing packing) { return packing == Packing::IN_TURN ? 128 : 16; }

// The weight whose columns dx is made of. Where gates were kept, nobody asked for little memory: then in turn only
// where that packs it about twice at most, and reading it is all that this takes. Chunks have `most` rows.
template <class D>
Packing packing_of_dx(const LayerBackward<D>& p, const MaskedWeight<D>& w, int64_t most) {
  if (!p.gates) return sparing_packing(p, w);
  if (few_for_columns<D>(p.sequence.rows)) return Packing::NEVER;
  const bool uncut = Columns(w.columns(), 1).tiles >= 4 * int64_t{p.parallel.threads};
  return !w.on() && uncut && p.sequence.rows <= 2 * most ? Packing::IN_TURN : Packing::AT_ONCE;
}

// LANES units of each of NV gates of a weight [NV * units, k].
template <int NV, class D>
struct GateTile {
  using Number = D;
  const Term<D>* packed;  // or null: it is read as it lies
  const MaskedWeight<D>& w;
  int64_t tile;
  bool along;

  FRD_MEMBER void multiply(int64_t rows, const D* const* a, Vec<D> (*sums)[NV]) const {
    if (packed) return PackedTile<NV, D>{packed, w.columns()}.multiply(rows, a, sums);
    if (along) return multiply_along<NV, D>(w, tile, rows, a, sums);
    multiply_turned<NV, D>(w, tile, rows, a, sums);
  }
};

template <int NV, class D>
class GateTiles {
 public:
  GateTiles(const Parallel&, const MaskedWeight<D>&&, Packing) = delete;  // it is kept by reference
  GateTiles(const Parallel& parallel, const MaskedWeight<D>& w, Packing packing)
      : w_(w),
        packing_(packing),
        size_(terms<D>(w.columns()) * NV * LANES),
        packed_(packing == Packing::AT_ONCE ? pack_gates<NV>(parallel, w) : Buffer<Term<D>>(nullptr, nullptr)) {}

  int64_t inputs() const { return w_.columns(); }
  int64_t units() const { return w_.rows() / NV; }
  int64_t fewest_rows() const { return FRD_ISA::fewest_rows(packing_); }
  int64_t room() const { return packing_ == Packing::IN_TURN ? size_ : 0; }  // that at(...) needs
  FRD_MEMBER GateTile<NV, D> at(int64_t tile, Term<D>* room = nullptr) const {
    if (packing_ == Packing::AT_ONCE) return {packed_.get() + tile * size_, w_, tile, false};
    if (packing_ != Packing::IN_TURN) return {nullptr, w_, tile, packing_ == Packing::ALONG};
    pack_gate_tile<NV>(w_, tile, room);
    return {room, w_, tile, false};
  }

 private:
  const MaskedWeight<D>& w_;
  const Packing packing_;
  const int64_t size_;
  Buffer<Term<D>> packed_;
};

// Some registers of a row of a weight's columns.
template <class D>
struct ColumnTile {
  const Term<D>* packed;  // or null: it is read as it lies
  const TurnedWeight<D>& w;
  int64_t first;

  template <int NV>
  struct Of {
    using Number = D;
    const ColumnTile& tile;

    FRD_MEMBER void multiply(int64_t rows, const D* const* a, Vec<D> (*sums)[NV]) const {
      if (tile.packed) return PackedTile<NV, D>{tile.packed, tile.w.w.rows()}.multiply(rows, a, sums);
      multiply_columns<NV, D>(rows, tile.w, tile.first, a, sums,
                              std::make_integer_sequence<int, rows_at_once<D, NV>()>{});
    }
  };
  template <int NV>
  FRD_MEMBER Of<NV> of() const {
    return {*this};
  }
};

// The columns of a weight. Row kk of the tiles is row (kk + turned) of the weight, whose rows go round.
template <class D>
class ColumnTiles {
 public:
  ColumnTiles(const Parallel&, const MaskedWeight<D>&&, int64_t, Packing, int = 1) = delete;
  ColumnTiles(const Parallel& parallel, const MaskedWeight<D>& w, int64_t turned, Packing packing, int groups = 1)
      : w_{w, turned},
        packing_(packing),
        layout_(w.columns(), groups),
        packed_(packing == Packing::AT_ONCE ? pack_columns<D>(parallel, layout_, w_, w.rows())
                                            : Buffer<Term<D>>(nullptr, nullptr)) {}

  const Columns& layout() const { return layout_; }
  int64_t rows() const { return w_.w.rows(); }
  int64_t columns() const { return w_.w.columns(); }
  int64_t fewest_rows() const { return FRD_ISA::fewest_rows(packing_); }
  int64_t room() const { return packing_ == Packing::IN_TURN ? layout_.largest(terms<D>(rows())) : 0; }
  FRD_MEMBER ColumnTile<D> at(int64_t tile, Term<D>* room = nullptr) const {
    const int64_t first = layout_.first(tile) * LANES;
    if (packing_ == Packing::AT_ONCE) return {packed_.get() + layout_.start(tile, terms<D>(rows())), w_, first};
    if (packing_ != Packing::IN_TURN) return {nullptr, w_, first};
    pack(tile, room);
    return {room, w_, first};
  }

 private:
  void pack(int64_t tile, Term<D>* room) const {
    const int64_t first = layout_.first(tile) * LANES, width = layout_.width(tile);
    for (int64_t term = 0; term < terms<D>(rows()); ++term) {
      Terms<D> values[4];
      w_.read_terms(term, first, width, values);
      for (int64_t v = 0; v < width; ++v) store(room + (term * width + v) * LANES, values[v]);
    }
  }

  const TurnedWeight<D> w_;
  const Packing packing_;
  const Columns layout_;
  Buffer<Term<D>> packed_;
};

}  // namespace frd::cpu::FRD_ISA
