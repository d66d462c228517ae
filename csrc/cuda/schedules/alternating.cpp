// The alternating schedule: one product and one pointwise kernel a step, of any cell. All its memory is taken before
// the first step, everything runs on one stream, and the host waits for nothing.
#include "cuda/layer.h"
#include "cuda/schedules/backward_pass.h"

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
class AlternatingBackward : BackwardPass<D> {
  using S = State<D>;
  using Base = BackwardPass<D>;
  using Base::p_, Base::around_, Base::info_, Base::sequence_, Base::call_, Base::w_hh_, Base::w_hr_, Base::dgates_,
      Base::H_, Base::P_, Base::B_, Base::G_, Base::width_;

 public:
  AlternatingBackward(const LayerBackward<D>& p, const Surroundings& around)
      : Base(p, around),
        through_(around.buffer<D>(B_ * P_)),
        dh_(info_.scaled() || (p.random.flags & FLAG_ZONEOUT_H) ? around.buffer<S>(B_ * P_) : nullptr),
        dc_(info_.has_c ? around.buffer<S>(B_ * H_) : nullptr),
        written_(p.dout ? this->call_.written(sequence_, P_) : nullptr),
        doutputs_(this->room(w_hr_.data, B_, H_)) {}

  void run() {
    this->begin();
    if (this->N_) {
      steps();
      leave();
    }
    this->gradients();
  }

 private:
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
      step.gates = this->gates_ + now.row * G_ * H_;
      step.apart = this->apart_ ? this->apart_ + now.row * H_ : nullptr;
      step.c_before = p_.cells ? p_.cells + now.row_before * H_ : nullptr;
      step.states_before = info_.scaled() ? p_.states + now.row_before * H_ : nullptr;
      step.dgates = dgates_ + now.row * width_;
      if (w_hr_.data) {
        step.dprojected = Base::row(this->dprojected_, now.row);
        step.outputs = Base::row(this->outputs_, now.row);
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

  D* const through_;              // [B, P]: what came through U
  S *const dh_, *const dc_;       // [B, P], [B, H]: carried
  const uint8_t* const written_;  // the masks of the rows that p_.dout is of
  const Matrix doutputs_;         // [B, H]: with a projection, the gradient at its operand
};

}  // namespace

template <class D>
void alternating(const LayerBackward<D>& p, const Surroundings& around) {
  AlternatingBackward<D>(p, around).run();
}

#define FRD_INSTANTIATE(D)                                                                                             \
  template void alternating(const LayerForward<D>&, const Surroundings&);                                              \
  template void alternating(const LayerBackward<D>&, const Surroundings&)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
