// What the backward passes of all schedules have in common: what comes before the steps, and what comes after them. The
// steps leave their gradients at the pre-activations in `dgates_`.
#pragma once

#include "cuda/layer.h"

namespace frd::cuda {

template <class D>
class BackwardPass {

 public:
  BackwardPass(const LayerBackward<D>& p, const Surroundings& around)
      : p_(p),
        around_(around),
        info_(CELLS[p.cell]),
        sequence_(p.sequence),
        H_(p.units),
        P_(p.projected),
        B_(p.sequence.batch),
        N_(p.sequence.rows),
        G_(info_.gates),
        width_(info_.gradients() * H_),
        call_(around, p.random, B_, H_),
        w_ih_(p.gates ? Matrix{} : call_.weight(p.w_ih)),
        w_ih_of_dx_(!p.dx                    ? Matrix{}
                    : p.gates || info_.apart ? call_.weight(p.w_ih, info_.apart ? H_ : 0)
                                             : w_ih_),
        w_hh_(call_.weight(p.w_hh)),
        w_hr_(call_.weight(p.w_hr)),
        x_(call_.matrix(p.x, N_, p.inputs)),
        operands_(room(p.dw_hh || !p.gates, N_, P_)),
        dgates_(around.buffer<D>(N_ * width_)),
        dprojected_(room(w_hr_.data, N_, P_)),
        outputs_(room(p.dw_hr, N_, H_)) {}

  // What comes before the steps ...
  void begin() {
    if (operands_.data) {
      const Operand<D> all{.masks = call_.masks(),
                           .scaled = info_.scaled(),
                           .width = P_,
                           .states = p_.states,
                           .h0 = p_.h0,
                           .operand = static_cast<D*>(operands_.data)};
      check(operand(all, sequence_, around_.stream));
    }
    if (N_ && !p_.gates) compute_gates();
  }

  // ... and after them: gradients of x, of the weights and of the biases, products and sums over all steps.
  void gradients() {
    const int64_t GH = G_ * H_;
    if (p_.dx) call_.multiply(columns(0, GH), false, w_ih_of_dx_, false, call_.matrix(p_.dx, N_, p_.inputs));
    of_weight(p_.w_ih, p_.dw_ih, [&](const Matrix& to) {
      each_of_w([&](int64_t first, int64_t count, int64_t at) {
        call_.multiply(columns(first, count), true, x_, false, call_.matrix(row(to, at), count, p_.inputs));
      });
    });
    of_weight(p_.w_hh, p_.dw_hh,
              [&](const Matrix& to) { call_.multiply(columns(info_.apart * H_, GH), true, operands_, false, to); });
    of_weight(p_.w_hr, p_.dw_hr, [&](const Matrix& to) { call_.multiply(dprojected_, true, outputs_, false, to); });
    if (p_.db_ih)
      each_of_w(
          [&](int64_t first, int64_t count, int64_t at) { call_.sum_columns(columns(first, count), p_.db_ih + at); });
    if (p_.db_hh) call_.sum_columns(columns(info_.apart * H_, GH), p_.db_hh);
  }

 protected:
  Matrix room(bool wanted, int64_t rows, int64_t columns) const {
    return call_.matrix(wanted ? around_.buffer<D>(rows * columns) : nullptr, rows, columns);
  }
  static D* row(const Matrix& m, int64_t number) {
    return m.data ? static_cast<D*>(m.data) + number * m.stride : nullptr;
  }
  // Of the gradients of all rows.
  Matrix columns(int64_t first, int64_t count) const { return call_.part(dgates_, N_, first, count, width_); }

  // Those that a forward did not keep.
  void compute_gates() {
    const Matrix gates = room(true, N_, G_ * H_),
                 recurrent = call_.matrix(dgates_, N_, G_ * H_);  // free until the steps
    D* const apart = info_.apart ? around_.buffer<D>(N_ * H_) : nullptr;
    call_.multiply(x_, false, w_ih_, true, gates);
    call_.multiply(operands_, false, w_hh_, true, recurrent);
    gates_ = static_cast<D*>(gates.data);
    check(activate(Activate<D>{.cell = p_.cell,
                               .rows = N_,
                               .units = H_,
                               .b_ih = p_.b_ih,
                               .b_hh = p_.b_hh,
                               .gates = static_cast<D*>(gates.data),
                               .recurrent = dgates_,
                               .apart = apart},
                   around_.stream));
    apart_ = apart;
  }

  template <class Multiply>
  void of_weight(const Weight& w, Gradient target, Multiply&& multiply) {
    if (!target) return;
    const Matrix gradient = call_.gradient(w, target);
    multiply(gradient);
    call_.finish(w, gradient, target);
  }

  // Calls each(first, count, at) for columns of the gradients that go back through W, and the row of W where they
  // begin.
  template <class Each>
  void each_of_w(Each&& each) const {
    const int64_t last = (G_ - 1) * H_;
    if (!info_.apart) return each(int64_t{0}, G_ * H_, int64_t{0});
    each(H_, last, int64_t{0});
    each(int64_t{0}, H_, last);
  }

  const LayerBackward<D>& p_;
  const Surroundings& around_;
  const CellInfo& info_;
  const Sequence& sequence_;
  const int64_t H_, P_, B_, N_, G_, width_;
  const Call<D> call_;
  const Matrix w_ih_, w_ih_of_dx_;  // where gates are computed again; with its rows in the order of a row of gradients
  const Matrix w_hh_, w_hr_;
  const Matrix x_, operands_;          // [N, I]; [N, P], what the recurrent products read
  D* const dgates_;                    // [N, width_]
  const Matrix dprojected_, outputs_;  // [N, P], [N, H]: with a projection, gradients at its product; its operand
  const D *gates_ = p_.gates, *apart_ = p_.apart;
};

}  // namespace frd::cuda
