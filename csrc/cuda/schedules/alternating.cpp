// The alternating schedule: one product and one pointwise kernel a step, of any cell. All its memory is taken before
// the first step, everything runs on one stream, and the host waits for nothing.
#include "cuda/layer.h"

namespace frd::cuda {

template <class D>
void alternating(const LayerForward<D>& p, const Surroundings& around) {
  using S = State<D>;
  const CellInfo& info = CELLS[p.cell];
  const Sequence& sequence = p.sequence;
  const int64_t H = p.units, P = p.projected, GH = info.gates * H, B = sequence.batch, N = sequence.rows;
  if (N == 0) return;
  const Call<D> call(around, p.random, B, H);
  const Matrix w_ih = call.weight(p.w_ih), w_hh = call.weight(p.w_hh), w_hr = call.weight(p.w_hr);
  D* const gates = p.gates ? p.gates : around.buffer<D>(N * GH);
  D* const recurrent = around.buffer<D>(B * GH);
  D* const read = around.buffer<D>(B * P);
  S* const c = info.has_c && !p.cells ? around.buffer<S>(B * H) : nullptr;
  S* const h = info.scaled() || (p.random.flags & FLAG_ZONEOUT_H) ? around.buffer<S>(B * P) : nullptr;
  D* const outputs = w_hr.data ? around.buffer<D>(B * H) : nullptr;
  D* const projected = w_hr.data ? around.buffer<D>(B * P) : nullptr;

  const uint8_t* const written = call.written(sequence, P);

  call.multiply(call.matrix(p.x, N, p.inputs), false, w_ih, true, call.matrix(gates, N, GH));
  const Operand<D> first{
      .masks = call.masks(), .scaled = info.scaled(), .width = P, .states = nullptr, .h0 = p.h0, .operand = read};
  check(first_operand(first, B, around.stream));

  LayerForwardStep<D> step{};
  step.cell = p.cell;
  step.units = H;
  step.projected = P;
  step.bias = call.bias(p.b_ih, p.b_hh, GH, info.apart * H);
  step.bias_apart = info.apart && p.b_hh ? p.b_hh + (GH - H) : nullptr;
  step.recurrent = recurrent;
  step.keep_gates = p.gates != nullptr;
  step.c0 = p.c0;
  step.c_n = p.c_n;
  step.outputs = outputs;
  step.h0 = p.h0;
  step.h = h;
  step.read = read;
  step.h_n = p.h_n;
  for (int64_t s = 0; s < sequence.steps; ++s) {
    const Step now = step.step = Step::of(sequence, sequence.time(s));
    step.masks = call.masks().at(now.t);
    step.gates = gates + now.row * GH;
    step.apart = p.apart ? p.apart + now.row * H : nullptr;
    step.c_before = p.cells ? p.cells + now.row_before * H : c;
    step.c_after = p.cells ? p.cells + now.row * H : c;
    step.out = p.out + now.row * P;
    step.written = call.written_at(written, now.row, P);
    step.states = p.states ? p.states + now.row * P : nullptr;
    // Apart from W x, which is there already: a cell may take the halves of a gate apart.
    call.multiply(call.matrix(read, now.active, P), false, w_hh, true, call.matrix(recurrent, now.active, GH));
    check(forward_step(step, around.stream));
    if (!w_hr.data) continue;
    call.multiply(call.matrix(outputs, now.active, H), false, w_hr, true, call.matrix(projected, now.active, P));
    check(project_step(step, projected, around.stream));
  }
}

namespace {

template <class D>
class BackwardPass {
  using S = State<D>;

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
        through_(around.buffer<D>(B_ * P_)),
        dh_(info_.scaled() || (p.random.flags & FLAG_ZONEOUT_H) ? around.buffer<S>(B_ * P_) : nullptr),
        dc_(info_.has_c ? around.buffer<S>(B_ * H_) : nullptr),
        written_(p.dout ? call_.written(sequence_, P_) : nullptr),
        dprojected_(room(w_hr_.data, N_, P_)),
        doutputs_(room(w_hr_.data, B_, H_)),
        outputs_(room(p.dw_hr, N_, H_)) {}

  void run() {
    if (operands_.data) {
      const Operand<D> all{.masks = call_.masks(),
                           .scaled = info_.scaled(),
                           .width = P_,
                           .states = p_.states,
                           .h0 = p_.h0,
                           .operand = static_cast<D*>(operands_.data)};
      check(operand(all, sequence_, around_.stream));
    }
    if (N_) {
      if (!p_.gates) compute_gates();
      steps();
      leave();
    }
    gradients();
  }

 private:
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
    const Matrix gates = room(true, N_, G_ * H_), recurrent = call_.matrix(dgates_, N_, G_ * H_);  // free until steps()
    D* const apart = info_.apart ? around_.buffer<D>(N_ * H_) : nullptr;
    call_.multiply(x_, false, w_ih_, true, gates);
    call_.multiply(operands_, false, w_hh_, true, recurrent);
    gates_ = static_cast<D*>(gates.data);
    check(activate(Activate<D>{.cell = p_.cell,
                               .rows = N_,
                               .units = H_,
                               .bias = call_.bias(p_.b_ih, p_.b_hh, G_ * H_, info_.apart * H_),
                               .bias_apart = info_.apart && p_.b_hh ? p_.b_hh + (G_ - 1) * H_ : nullptr,
                               .gates = static_cast<D*>(gates.data),
                               .recurrent = dgates_,
                               .apart = apart},
                   around_.stream));
    apart_ = apart;
  }

  void steps() {
    LayerBackwardStep<D> step{};
    step.cell = p_.cell;
    step.units = H_;
    step.projected = P_;
    step.through = through_;
    step.dh_n = p_.dh_n;
    step.dc_n = p_.dc_n;
    step.dh = dh_;
    step.dc = dc_;
    step.c0 = p_.c0;
    step.h0 = info_.scaled() ? p_.h0 : nullptr;
    step.doutputs = static_cast<D*>(doutputs_.data);
    for (int64_t s = sequence_.steps - 1; s >= 0; --s) {
      const int64_t t = sequence_.time(s), after = sequence_.after(t);
      const Step now = step.step = Step::of(sequence_, t);
      step.masks = call_.masks().at(t);
      // Rows that begin in the step after, which only a reversed packed batch has, leave for h_0.
      const int64_t sent = sequence_.exists(after) ? sequence_.active(after) : 0;
      if (sent) send(after, sent);
      leave_h(now.active, sent);
      step.dout = p_.dout ? p_.dout + now.row * P_ : nullptr;
      step.written = call_.written_at(written_, now.row, P_);
      step.gates = gates_ + now.row * G_ * H_;
      step.apart = apart_ ? apart_ + now.row * H_ : nullptr;
      step.c_before = p_.cells ? p_.cells + now.row_before * H_ : nullptr;
      step.states_before = info_.scaled() ? p_.states + now.row_before * H_ : nullptr;
      step.dgates = dgates_ + now.row * width_;
      if (w_hr_.data) {
        step.dprojected = row(dprojected_, now.row);
        step.outputs = row(outputs_, now.row);
        check(unproject_step(step, around_.stream));
        call_.multiply(call_.matrix(step.dprojected, now.active, P_), false, w_hr_, false,
                       call_.matrix(step.doutputs, now.active, H_));
      }
      check(backward_step(step, around_.stream));
    }
  }

  // What the rows of step t send through U to the step before.
  void send(int64_t t, int64_t rows) {
    const D* const from = dgates_ + sequence_.row(t) * width_;
    call_.multiply(call_.part(from, rows, info_.apart * H_, G_ * H_, width_), false, w_hh_, false,
                   call_.matrix(through_, rows, P_));
  }

  void leave_h(int64_t begin, int64_t end) {
    check(cuda::leave(Leave<D>{.masks = call_.masks(),
                               .memory = info_.scaled(),
                               .scaled = info_.scaled(),
                               .begin = begin,
                               .end = end,
                               .width = P_,
                               .carried = dh_,
                               .through = through_,
                               .gradient = p_.dh0},
                      around_.stream));
  }

  // From the first step to h_0 and c_0.
  void leave() {
    const int64_t first = sequence_.time(0), rows = sequence_.active(first);
    send(first, rows);
    leave_h(0, rows);
    if (!info_.has_c) return;
    check(cuda::leave(Leave<D>{.masks = call_.masks(),
                               .memory = true,
                               .scaled = false,
                               .begin = 0,
                               .end = B_,
                               .width = H_,
                               .carried = dc_,
                               .through = nullptr,
                               .gradient = p_.dc0},
                      around_.stream));
  }

  // Of x, of the weights and of the biases: products and sums over all steps.
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
  const Matrix x_, operands_;           // [N, I]; [N, P], what the recurrent products read
  D* const dgates_;                     // [N, width_]
  D* const through_;                    // [B, P]: what came through U
  S *const dh_, *const dc_;             // [B, P], [B, H]: carried
  const uint8_t* const written_;        // the masks of the rows that p.dout is of
  const Matrix dprojected_, doutputs_;  // [N, P], [B, H]: with a projection, gradients at its product and its operand
  const Matrix outputs_;                // [N, H]: that operand
  const D *gates_ = p_.gates, *apart_ = p_.apart;
};

}  // namespace

template <class D>
void alternating(const LayerBackward<D>& p, const Surroundings& around) {
  BackwardPass<D>(p, around).run();
}

#define FRD_INSTANTIATE(D)                                                                                             \
  template void alternating(const LayerForward<D>&, const Surroundings&);                                              \
  template void alternating(const LayerBackward<D>&, const Surroundings&)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
