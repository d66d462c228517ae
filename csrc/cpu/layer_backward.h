// A layer in one direction, backward: the mirror image of the forward pass, a chunk of steps at a time, for any cell.
// What a chunk adds to the gradients of x and of the weights is left to products over all its steps.
//
// A row of gradients holds WIDE numbers of each unit. Where a cell takes nothing apart they are its gates'. Else the
// last gate has two: W x gave the first, U h the second. They stand first and last in the row, the gates that W and U
// have in common between them, so that G in a row go back through W, whose rows are read from the last gate's on, and G
// through U.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#include "core/counters.h"
#include "core/flags.h"
#include "core/sites.h"
#include "cpu/cells.h"
#include "cpu/chunks.h"
#include "cpu/dropout.h"
#include "cpu/gates_again.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/operand.h"
#include "cpu/pack.h"
#include "cpu/products.h"
#include "cpu/profile.h"
#include "cpu/simd.h"
#include "cpu/team.h"
#include "cpu/tiles.h"

namespace frd::cpu::FRD_ISA {

template <class D, template <class Math> class Cells>
class BackwardPass {
  using S = Arithmetic<D>;
  using V = Vec<D>;
  using Math = SimdMath<S>;
  using Cell = LayerCell<D, Cells>;
  static constexpr int G = Cell::G, WIDE = Cell::INFO.gradients();
  static constexpr bool HAS_C = Cell::INFO.has_c, APART = Cell::INFO.apart;
  static constexpr int FIRST_OF_W = APART ? G - 1 : 0;  // the gate whose gradient stands first in a row
  static constexpr int FIRST_OF_U = APART ? 1 : 0;      // where in a row the gradients that go through U begin

 public:
  explicit BackwardPass(const LayerBackward<D>& p)
      : p_(p),
        H_(p.units),
        P_(p.projected),
        B_(p.sequence.batch),
        most_(chunk_rows<D>(p.sequence, WIDE * H_, !p.gates)),
        largest_(largest_chunk(p.sequence, most_)),
        groups_(groups_for(p.parallel, tiles_of(P_, LANES), 2.0 * G * B_ * H_ * P_)),
        cell_(p, largest_),
        reads_(p.parallel, p.sequence, mask_of_x(), largest_),
        writes_(p.parallel, p.sequence, mask_of_out(), largest_),
        m_ih_(p.parallel, p.w_ih, G * H_, p.inputs, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, p.masks),
        m_hh_(p.parallel, p.w_hh, G * H_, P_, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, p.masks),
        m_hr_(p.parallel, p.w_hr, projects() ? P_ : 0, H_, FLAG_WEIGHT_HR, KIND_WEIGHT_HR, p.masks),
        w_hh_(p.parallel, m_hh_, 0, packing_of_columns<D>(B_, p.sequence.steps), groups_),
        w_hr_(p.parallel, m_hr_, 0, packing_of_columns<D>(B_, p.sequence.steps), groups_),
        of_h_(w_hh_.layout()),
        of_outputs_(w_hr_.layout()),
        dgates_(scratch<D>(p.gates || APART ? largest_ * WIDE * H_ : 0)),
        later_(scratch<D>(B_ * G * H_)),
        dh_(scratch<S>(B_ * P_)),
        dc_(scratch<S>(HAS_C ? B_ * H_ : 0)),
        operand_(scratch<D>(operand_wanted() ? largest_ * P_ : 0)),
        dprojected_(scratch<D>(projects() ? largest_ * P_ : 0)),
        outputs_(scratch<D>(projects() ? largest_ * H_ : 0)),
        x_(scratch<D>(reads_.on() && !p.gates ? largest_ * p.inputs : 0)),
        dw_ih_(p.parallel, p.dw_ih, m_ih_, largest_),
        dw_hh_(p.parallel, p.dw_hh, m_hh_, largest_),
        dw_hr_(p.parallel, p.dw_hr, m_hr_, largest_),
        again_(p.gates ? nullptr : new GatesAgain<D, Cell>(p, cell_, m_ih_, m_hh_, largest_)) {
    if (p.dx) w_ih_.reset(new ColumnTiles<D>(p.parallel, m_ih_, FIRST_OF_W * H_, packing_of_dx(p, m_ih_, most_)));
    for (int64_t b = 0; b < B_; ++b) begin_row(b);
  }

  void run() {
    Stopwatch watch;
    for (int64_t end = p_.sequence.steps; end > 0; end = chunk_.begin) {
      chunk_ = Chunk::upto(p_.sequence, end, most_);
      if (operand_wanted()) read_operand(p_, cell_, chunk_, operand_.get());
      if (p_.gates) {
        reads_.draw(chunk_);
        gates_ = p_.gates + chunk_.row * G * H_;
        apart_ = APART ? p_.apart + chunk_.row * H_ : nullptr;
        gradients_ = dgates_.get();
      } else {
        again_->run(chunk_, reads_.masked(chunk_, p_.x + chunk_.row * p_.inputs, x_.get()), operand_.get());
        gates_ = again_->gates();
        apart_ = again_->apart();
        gradients_ = APART ? dgates_.get() : again_->gates();  // in the place of gates that are not read again
      }
      watch.lap(INPUT_PRODUCT);
      cell_.draw(chunk_);
      writes_.draw(chunk_);
      watch.lap(MASKS);
      steps();
      watch.restart();
      add_gradients();
      watch.lap(GRADIENTS);
      const int64_t t = p_.sequence.time(chunk_.begin);
      for (int64_t b = 0; b < p_.sequence.active(t); ++b)
        std::memcpy(&later_[b * G * H_], through_u(t, b), G * H_ * sizeof(D));
    }
    leave();
    watch.lap(GRADIENTS);
  }

 private:
  bool projects() const { return Cell::INFO.projects && p_.w_hr; }
  bool operand_wanted() const { return p_.dw_hh || !p_.gates; }
  // Those that somebody asks for.
  RowMask mask_of_x() const {
    return p_.dx || p_.dw_ih || !p_.gates ? p_.masks.of_rows(false, 0, p_.inputs) : RowMask{};
  }
  RowMask mask_of_out() const { return p_.dout ? p_.masks.of_rows(true, p_.first, P_) : RowMask{}; }
  int64_t row_in_chunk(int64_t t, int64_t b) const { return p_.sequence.row(t) + b - chunk_.row; }
  D* dgates(int64_t t, int64_t b) const { return gradients_ + row_in_chunk(t, b) * WIDE * H_; }
  D* through_u(int64_t t, int64_t b) const { return dgates(t, b) + FIRST_OF_U * H_; }

  // The gradients at the caller's h_n and c_n.
  void begin_row(int64_t b) {
    for (int64_t u = 0; u < P_; u += LANES)
      store(&dh_[b * P_ + u], p_.dh_n ? cell_.seen(load(p_.dh_n + b * P_ + u, P_ - u)) : V{}, P_ - u);
    for (int64_t u = 0; HAS_C && u < H_; u += LANES)
      store(&dc_[b * H_ + u], p_.dc_n ? load(p_.dc_n + b * H_ + u, H_ - u) : V{}, H_ - u);
  }

  void steps() {
    const int64_t phases = projects() ? 2 : 1;
    Team(p_.parallel, (chunk_.end - chunk_.begin) * phases, groups_).run([&](int64_t step, int group) {
      const int64_t s = chunk_.end - 1 - step / phases, t = p_.sequence.time(s);
      const bool of_h = !Cell::INFO.projects || step % phases == 0;
      const int64_t tiles = (of_h ? of_h_ : of_outputs_).tiles;
      for (int64_t i = share(tiles, group, groups_); i < share(tiles, group + 1, groups_); ++i) {
        if constexpr (Cell::INFO.projects)
          if (!of_h) projected(t, i);
        if (of_h) hidden(s, t, i);
      }
    });
  }

  // One tile of h at step s. The step after sends its gradient through U; rows that have no such step get none, and
  // rows that end in the step after, which only a reversed packed batch has, leave for h_0.
  void hidden(int64_t s, int64_t t, int64_t tile) {
    const int64_t after = p_.sequence.after(t), active = p_.sequence.active(t);
    const int64_t sent = p_.sequence.exists(after) ? p_.sequence.active(after) : 0;
    const bool held = chunk_.contains(s + 1);
    const D* from = held ? through_u(after, 0) : later_.get();
    const int64_t stride = (held ? WIDE : G) * H_;
    product(
        of_h_, tile, 0, sent, [&](int64_t b) { return from + b * stride; }, w_hh_.at(tile),
        [&](int64_t b, int64_t u, int64_t n) { fetch(t, b, u, n); },
        [&](int64_t b, int64_t u, V sum) { b < active ? at_h(t, b, u, sum) : leave_h(b, u, sum); });
    for (int64_t b = sent; b < active; ++b)
      for (int64_t v = of_h_.first(tile); v < of_h_.first(tile + 1); ++v) at_h(t, b, v * LANES, V{});
  }

  // What the cell at n units will read, which the forward left in memory long ago, and where it will write.
  void fetch(int64_t t, int64_t b, int64_t u, int64_t n) const {
    const int64_t row = p_.sequence.row(t) + b, in_chunk = row - chunk_.row, before = p_.sequence.before(t);
    for (int v = 0; v < G; ++v) prefetch(gates_ + (in_chunk * G + v) * H_ + u, n);
    for (int v = 0; v < WIDE; ++v)
      prefetch<true>(dgates(t, b) + v * H_ + u, n);  // another thread may hold its lines from the last chunk
    if (APART) prefetch(apart_ + in_chunk * H_ + u, n);
    if (p_.sequence.exists(before)) prefetch(memory(p_.sequence.row(before) + b) + u, n);
    if (p_.dout) prefetch(p_.dout + row * p_.dout_stride + u, n);
  }

  // Gradients at LANES units of h_t. sum: what came through U.
  void at_h(int64_t t, int64_t b, int64_t u, V sum) {
    const int64_t n = P_ - u;
    const StateSites<Math>& sites = cell_.sites();
    const Drops<Math> drops = cell_.drops(t, b, u);
    const V dout = p_.dout ? cell_.seen(at_output(t, b, u)) : V{};
    S* carried = &dh_[b * P_ + u];
    V dh = load(carried, n) + cell_.through(b, u, sum);
    if (!sites.unzoned) dh += dout;
    V dh_new = Zone<Math>::to_new(sites.zone_h, drops.of[STATE_ZONE_H], dh);
    if (sites.unzoned) dh_new += dout;
    if (!HAS_C) {
      const V leak = at_gates(t, b, u, drops, dh_new, V{});
      return store(carried, Zone<Math>::to_old(sites.zone_h, drops.of[STATE_ZONE_H], dh) + leak, n);
    }
    store(carried, Zone<Math>::to_old(sites.zone_h, drops.of[STATE_ZONE_H], dh), n);
    if (projects()) {
      store(&dprojected_[row_in_chunk(t, b) * P_ + u], dh_new, n);
    } else {
      at_c(t, b, u, drops, dh_new);
    }
  }

  // The gradient at LANES units of h_t as the output has them, before its mask.
  V at_output(int64_t t, int64_t b, int64_t u) const {
    const V given = load(p_.dout + (p_.sequence.row(t) + b) * p_.dout_stride + u, P_ - u);
    return writes_.apply(row_in_chunk(t, b), u, given);
  }

  // With a projection: the gradient at one tile of what it reads.
  void projected(int64_t t, int64_t tile) {
    const D* from = &dprojected_[row_in_chunk(t, 0) * P_];
    product(
        of_outputs_, tile, 0, p_.sequence.active(t), [&](int64_t b) { return from + b * P_; }, w_hr_.at(tile),
        [&](int64_t b, int64_t u, V sum) { at_c(t, b, u, cell_.drops(t, b, u), sum); });
  }

  // Gradients at LANES units of c_t, whose new h has dh_new.
  void at_c(int64_t t, int64_t b, int64_t u, const Drops<Math>& drops, V dh_new) {
    S* carried = &dc_[b * H_ + u];
    store(carried, at_gates(t, b, u, drops, dh_new, load(carried, H_ - u)), H_ - u);
  }

  // From the gradients at LANES units of the new h and of c to those at the gates. Returns the gradient at the memory
  // of the step before.
  FRD_MEMBER V at_gates(int64_t t, int64_t b, int64_t u, const Drops<Math>& drops, V dh_new, V dc) {
    const int64_t n = H_ - u, row = row_in_chunk(t, b);
    const D* gates = gates_ + row * G * H_ + u;
    V a[G], apart = APART ? load(apart_ + row * H_ + u, n) : V{};
#pragma GCC unroll 8
    for (int v = 0; v < G; ++v) a[v] = load(gates + v * H_, n);
    const V before = memory_before(t, b, u);
    if constexpr (Cell::INFO.projects)
      if (p_.w_hr) store(&outputs_[row * H_ + u], Cell::Equations::output(cell_.sites(), drops, a, before), n);
    const V dbefore = Cell::Equations::backward(cell_.sites(), drops, a, apart, before, dh_new, dc);
    D* to = dgates(t, b) + u;
    if (APART) store(to, a[G - 1], n);
#pragma GCC unroll 8
    for (int v = 0; v < G - APART; ++v) store(to + (FIRST_OF_U + v) * H_, a[v], n);
    if (APART) store(to + G * H_, apart, n);
    return dbefore;
  }

  // The memory of H units after a step.
  const auto* memory(int64_t row) const {
    if constexpr (HAS_C) {
      return p_.c + row * H_;
    } else {
      return p_.states + row * p_.states_stride;
    }
  }
  V memory_before(int64_t t, int64_t b, int64_t u) const {
    const int64_t n = H_ - u;
    if (b < p_.sequence.continued_from(t)) return load(memory(p_.sequence.row(p_.sequence.before(t)) + b) + u, n);
    return HAS_C ? cell_.enter_c(b, u, load(p_.c0 + b * H_ + u, n)) : cell_.enter_h(b, u, load(p_.h0 + b * H_ + u, n));
  }

  // What the steps of a chunk add to the gradients of x and of the weights.
  void add_gradients() {
    const int64_t rows = chunk_.rows, width = WIDE * H_;
    const D* x = p_.x + chunk_.row * p_.inputs;
    const Ends ends{chunk_.end == p_.sequence.steps, chunk_.begin == 0};
    if (p_.dx) input_gradient(p_.parallel, gradients_, rows, width, *w_ih_, reads_, p_.dx + chunk_.row * p_.inputs);
    if (p_.dw_ih || p_.dw_hh || p_.db_ih) {
      dw_ih_.chunk(x, rows, reads_);
      dw_hh_.chunk(operand_.get(), rows);
      if constexpr (APART) {
        add_weight_gradients<D>(p_.parallel, gradients_, rows, width, width, H_, ends,
                                {{&dw_ih_, p_.db_ih, 0, H_, FIRST_OF_W * H_},
                                 {&dw_ih_, p_.db_ih, H_, G * H_, 0},
                                 {&dw_hh_, p_.db_hh, FIRST_OF_U * H_, width, 0}});
      } else {
        add_weight_gradients<D>(p_.parallel, gradients_, rows, width, width, width, ends,
                                {{&dw_ih_, p_.db_ih, 0, width, 0}, {&dw_hh_, nullptr, 0, width, 0}});
      }
    }
    if (p_.dw_hr) {
      dw_hr_.chunk(outputs_.get(), rows);
      add_weight_gradients<D>(p_.parallel, dprojected_.get(), rows, P_, P_, P_, ends, {{&dw_hr_, nullptr, 0, P_, 0}});
    }
  }

  // From the gates of the first step to h_0 and c_0.
  void leave() {
    const int64_t n = p_.sequence.active(p_.sequence.time(0));
    p_.parallel.each(of_h_.tiles, G * H_ * P_, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile)
        product(
            of_h_, tile, 0, n, [&](int64_t b) { return &later_[b * G * H_]; }, w_hh_.at(tile),
            [&](int64_t b, int64_t u, V sum) { leave_h(b, u, sum); });
    });
    for (int64_t b = 0; b < B_; ++b)
      for (int64_t u = 0; HAS_C && u < H_; u += LANES)
        store(p_.dc0 + b * H_ + u, cell_.enter_c(b, u, load(&dc_[b * H_ + u], H_ - u)), H_ - u);
  }
  void leave_h(int64_t b, int64_t u, V sum) {
    const int64_t n = P_ - u;
    const V dh = load(&dh_[b * P_ + u], n) + cell_.through(b, u, sum);
    store(p_.dh0 + b * P_ + u, cell_.enter_h(b, u, dh), n);
  }

  const LayerBackward<D>& p_;
  const int64_t H_, P_, B_, most_, largest_;
  const int groups_;
  Cell cell_;
  RowMasks<D> reads_, writes_;
  const MaskedWeight<D> m_ih_, m_hh_, m_hr_;
  const ColumnTiles<D> w_hh_, w_hr_;
  const Columns &of_h_, &of_outputs_;
  std::unique_ptr<ColumnTiles<D>> w_ih_;  // where dx is wanted
  Buffer<D> dgates_;      // [rows of a chunk, WIDE * H]: gradients, where they have a place of their own
  Buffer<D> later_;       // [B, GH]: of the step after the chunk, those that go through U
  Buffer<S> dh_, dc_;     // [B, P], [B, H]: carried; each unit is touched by its owner alone
  Buffer<D> operand_;     // [rows of a chunk, P]: what the recurrent product read
  Buffer<D> dprojected_;  // [rows of a chunk, P]: with a projection, gradients at its product
  Buffer<D> outputs_;     // [rows of a chunk, H]: what the projection read
  Buffer<D> x_;           // [rows of a chunk, I]: the input, where it is masked and gates are computed again
  WeightGradient<D> dw_ih_, dw_hh_, dw_hr_;
  std::unique_ptr<GatesAgain<D, Cell>> again_;  // where the forward kept no gates
  Chunk chunk_{};
  const D *gates_ = nullptr, *apart_ = nullptr;  // of the chunk: activated, and what the last gate takes apart
  D* gradients_ = nullptr;                       // of the chunk, [rows, WIDE * H]
};

}  // namespace frd::cpu::FRD_ISA
