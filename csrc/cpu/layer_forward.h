// A layer in one direction, forward: one pass over time, for any cell. Each group of threads owns hidden units, with
// their weights, memory and masks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/counters.h"
#include "core/flags.h"
#include "core/rows.h"
#include "core/sites.h"
#include "cpu/cells.h"
#include "cpu/chunks.h"
#include "cpu/dropout.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"
#include "cpu/products.h"
#include "cpu/profile.h"
#include "cpu/simd.h"
#include "cpu/team.h"
#include "cpu/tiles.h"

namespace frd::cpu::FRD_ISA {

// Rows whose last step is t: their state goes to h_n and c_n.
inline bool ends(const Sequence& sequence, int64_t t, int64_t b) { return b >= sequence.continued_by(t); }

template <class D, template <class Math> class Cells>
class ForwardPass {
  using S = Arithmetic<D>;
  using V = Vec<D>;
  using Math = SimdMath<S>;
  using Cell = LayerCell<D, Cells>;
  static constexpr int G = Cell::G;
  static constexpr bool HAS_C = Cell::INFO.has_c;
  static constexpr bool IN_PLACE = std::is_same_v<D, S>;  // W x + b lies where the gates are kept

 public:
  explicit ForwardPass(const LayerForward<D>& p)
      : p_(p),
        H_(p.units),
        P_(p.projected),
        B_(p.sequence.batch),
        most_(chunk_rows<S>(p.sequence, G * H_)),
        cell_(p, largest_chunk(p.sequence, most_)),
        reads_(p.parallel, p.sequence, p.masks.of_rows(false, 0, p.inputs), largest_chunk(p.sequence, most_)),
        writes_(p.parallel, p.sequence, p.masks.of_rows(true, p.first, P_), largest_chunk(p.sequence, most_)),
        m_ih_(p.parallel, p.w_ih, G * H_, p.inputs, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, p.masks),
        w_ih_(p.parallel, m_ih_,
              p.keep == KEEP_STATES ? sparing_packing(p, m_ih_) : packing_of_gates(p, m_ih_, p.sequence.rows)),
        m_hh_(p.parallel, p.w_hh, G * H_, P_, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, p.masks),
        w_hh_(p.parallel, m_hh_, packing_of_gates(p, m_hh_, B_, p.sequence.steps)),
        m_hr_(p.parallel, p.w_hr, projects() ? P_ : 0, H_, FLAG_WEIGHT_HR, KIND_WEIGHT_HR, p.masks),
        w_hr_(p.parallel, m_hr_, packing_of_gates(p, m_hr_, B_, p.sequence.steps)),
        buffer_(scratch<S>(IN_PLACE && p.gates ? 0 : largest_chunk(p.sequence, most_) * G * H_)),
        x_(scratch<D>(reads_.on() ? largest_chunk(p.sequence, most_) * p.inputs : 0)),
        read_(scratch<D>(2 * B_ * P_)),
        h_(scratch<S>(B_ * P_)),
        c_(scratch<S>(HAS_C ? B_ * H_ : 0)),
        outputs_(scratch<D>(projects() ? B_ * H_ : 0)) {
    for (int64_t b = 0; b < B_; ++b) enter_row(b);
  }

  void run() {
    Stopwatch watch;
    for (int64_t begin = 0; begin < p_.sequence.steps; begin = chunk_.end) {
      chunk_ = Chunk::from(p_.sequence, begin, most_);
      gates_ = buffer_.get();
      if constexpr (IN_PLACE)
        if (p_.gates) gates_ = p_.gates + chunk_.row * G * H_;
      const D* const x = reads_.masked(chunk_, p_.x + chunk_.row * p_.inputs, x_.get());
      watch.lap(DROP_ROWS);
      input_product<G>(p_.parallel, x, chunk_.rows, w_ih_, cell_.bias(), gates_);
      watch.lap(INPUT_PRODUCT);
      cell_.draw(chunk_);
      writes_.draw(chunk_);
      watch.lap(MASKS);
      steps();
      watch.restart();
    }
  }

 private:
  bool projects() const { return Cell::INFO.projects && p_.w_hr; }

  // Both halves of read_ start as h_0, so that a packed row finds it whenever its reverse pass begins.
  void enter_row(int64_t b) {
    for (int64_t u = 0; HAS_C && u < H_; u += LANES)
      store(&c_[b * H_ + u], cell_.enter_c(b, u, load(p_.c0 + b * H_ + u, H_ - u)), H_ - u);
    for (int64_t u = 0; u < P_; u += LANES) {
      const V h = cell_.enter_h(b, u, load(p_.h0 + b * P_ + u, P_ - u)), read = cell_.read(b, u, h);
      store(&h_[b * P_ + u], h, P_ - u);
      for (int half = 0; half < 2; ++half) store(&read_[(half * B_ + b) * P_ + u], read, P_ - u);
    }
  }

  void steps() {
    const int64_t tiles = tiles_of(H_, LANES), columns = tiles_of(P_, LANES), phases = projects() ? 2 : 1;
    const int groups = groups_for(p_.parallel, tiles, 2.0 * G * B_ * H_ * P_);
    Team(p_.parallel, (chunk_.end - chunk_.begin) * phases, groups).run([&](int64_t step, int group) {
      const int64_t s = chunk_.begin + step / phases, t = p_.sequence.time(s);
      if (!Cell::INFO.projects || step % phases == 0) {
        for (int64_t tile = share(tiles, group, groups); tile < share(tiles, group + 1, groups); ++tile)
          units(s, t, tile * LANES);
      } else if constexpr (Cell::INFO.projects) {
        for (int64_t tile = share(columns, group, groups); tile < share(columns, group + 1, groups); ++tile)
          project(s, t, tile * LANES);
      }
    });
  }

  // LANES hidden units at step t: recurrent product, gates, memory.
  void units(int64_t s, int64_t t, int64_t u) {
    const int64_t n = H_ - u, row0 = p_.sequence.row(t);
    const D* read = &read_[(s % 2) * B_ * P_];
    const V bias = cell_.bias_apart(u, n);
    product<G>(
        0, p_.sequence.active(t), [&](int64_t b) { return read + b * P_; }, w_hh_.at(u / LANES),
        [&](int64_t b) {
          for (int v = 0; v < G; ++v) prefetch<true>(gates_ + ((row0 - chunk_.row + b) * G + v) * H_ + u, LANES);
          for (int v = 0; v < G && !IN_PLACE && p_.gates; ++v)
            prefetch<true>(p_.gates + ((row0 + b) * G + v) * H_ + u, LANES);
          if (p_.c) prefetch<true>(p_.c + (row0 + b) * H_ + u, LANES);
          if (p_.apart) prefetch<true>(p_.apart + (row0 + b) * H_ + u, LANES);
          if (!projects()) prefetch<true>(p_.out + (row0 + b) * p_.out_stride + u, LANES);
        },
        [&](int64_t b, const V* sums) {
          const int64_t row = row0 + b;
          const S* gates = gates_ + (row - chunk_.row) * G * H_ + u;
          S* carried = HAS_C ? &c_[b * H_ + u] : &h_[b * P_ + u];
          V a[G], memory = load(carried, n);
          const V apart = Cell::preactivations(gates, H_, n, sums, bias, a);
          const Drops<Math> drops = cell_.drops(t, b, u);
          const V h_new = Cell::Equations::forward(cell_.sites(), drops, a, apart, memory);
          if (p_.gates) {
#pragma GCC unroll 8
            for (int v = 0; v < G; ++v) store(p_.gates + (row * G + v) * H_ + u, a[v], n);
          }
          if (p_.apart) store(p_.apart + row * H_ + u, apart, n);
          if (HAS_C) {
            if (p_.c) store(p_.c + row * H_ + u, memory, n);
            store(carried, memory, n);
            if (ends(p_.sequence, t, b)) store(p_.c_n + b * H_ + u, memory, n);
          }
          if (projects()) {
            store(&outputs_[b * H_ + u], h_new, n);
          } else {
            finish(s, t, b, u, drops.of[STATE_ZONE_H], HAS_C ? load(&h_[b * P_ + u], n) : memory, h_new);
          }
        });
  }

  // LANES units of the projected h at step t.
  void project(int64_t s, int64_t t, int64_t u) {
    product<1>(
        0, p_.sequence.active(t), [&](int64_t b) { return &outputs_[b * H_]; }, w_hr_.at(u / LANES),
        [&](int64_t b, const V* sums) {
          finish(s, t, b, u, cell_.drops(t, b, u).of[STATE_ZONE_H], load(&h_[b * P_ + u], P_ - u), sums[0]);
        });
  }

  // Zoneout of h, and everything that h goes to. The mask of the output is on the output alone.
  void finish(int64_t s, int64_t t, int64_t b, int64_t u, Mask<D> keep, V h_old, V h_new) {
    const int64_t n = P_ - u, row = p_.sequence.row(t) + b;
    const V h = Zone<Math>::mix(cell_.sites().zone_h, keep, h_old, h_new), seen = cell_.seen(h);
    store(&h_[b * P_ + u], h, n);
    store(&read_[(((s + 1) % 2) * B_ + b) * P_ + u], cell_.read(b, u, h), n);
    const V written = writes_.apply(row - chunk_.row, u, cell_.sites().unzoned ? cell_.seen(h_new) : seen);
    store(p_.out + row * p_.out_stride + u, written, n);
    if (p_.states) store(p_.states + row * P_ + u, h, n);
    if (ends(p_.sequence, t, b)) store(p_.h_n + b * P_ + u, seen, n);
  }

  const LayerForward<D>& p_;
  const int64_t H_, P_, B_, most_;
  Cell cell_;
  RowMasks<D> reads_, writes_;
  const MaskedWeight<D> m_ih_;
  const GateTiles<G, D> w_ih_;
  const MaskedWeight<D> m_hh_;
  const GateTiles<G, D> w_hh_;
  const MaskedWeight<D> m_hr_;
  const GateTiles<1, D> w_hr_;
  Buffer<S> buffer_;   // [rows of a chunk, GH]: W x + b, where no gates are kept in its place
  Buffer<D> x_;        // [rows of a chunk, I]: the input, where it is masked
  Buffer<D> read_;     // [2, B, P]: h as the recurrent product sees it, of this step and of the next
  Buffer<S> h_, c_;    // [B, P], [B, H]: the state; each unit is touched by its owner alone
  Buffer<D> outputs_;  // [B, H]: with a projection, what it reads
  Chunk chunk_{};
  S* gates_ = nullptr;  // of the chunk: W x + b
};

}  // namespace frd::cpu::FRD_ISA
