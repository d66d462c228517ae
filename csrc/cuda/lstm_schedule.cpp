#include "cuda/lstm_schedule.h"

namespace frd::cuda {

template <class D>
void run(const LstmForward<D>& p, const Surroundings& around) {
  using S = State<D>;
  const Sequence& sequence = p.sequence;
  const int64_t H = p.units, P = p.projected, B = sequence.batch, N = sequence.rows;
  if (N == 0) return;
  const Call<D> call(around, p.random, B, H);
  const Matrix w_ih = call.weight(p.w_ih), w_hh = call.weight(p.w_hh), w_hr = call.weight(p.w_hr);
  D* const gates = p.gates ? p.gates : around.buffer<D>(N * 4 * H);
  D* const recurrent = around.buffer<D>(B * 4 * H);
  D* const read = around.buffer<D>(B * P);
  S* const c = p.cells ? nullptr : around.buffer<S>(B * H);
  S* const h = (p.random.flags & FLAG_ZONEOUT_H) ? around.buffer<S>(B * P) : nullptr;
  D* const outputs = w_hr.data ? around.buffer<D>(B * H) : nullptr;
  D* const projected = w_hr.data ? around.buffer<D>(B * P) : nullptr;

  call.multiply(call.matrix(p.x, N, p.inputs), false, w_ih, true, call.matrix(gates, N, 4 * H));
  const Operand<D> first{
      .masks = call.masks(), .gru = false, .width = P, .states = nullptr, .h0 = p.h0, .operand = read};
  check(first_operand(first, B, around.stream));

  LstmForwardStep<D> step{};
  step.masks = call.masks();
  step.units = H;
  step.projected = P;
  step.b_ih = p.b_ih;
  step.b_hh = p.b_hh;
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
    step.gates = gates + now.row * 4 * H;
    step.c_before = p.cells ? p.cells + now.row_before * H : c;
    step.c_after = p.cells ? p.cells + now.row * H : c;
    step.out = p.out + now.row * P;
    step.states = p.states ? p.states + now.row * P : nullptr;
    call.multiply(call.matrix(read, now.active, P), false, w_hh, true, call.matrix(recurrent, now.active, 4 * H));
    check(lstm_forward(step, around.stream));
    if (!w_hr.data) continue;
    call.multiply(call.matrix(outputs, now.active, H), false, w_hr, true, call.matrix(projected, now.active, P));
    check(lstm_projection(step, projected, around.stream));
  }
}

template <class D>
void run(const LstmBackward<D>& p, const Surroundings& around) {
  using S = State<D>;
  const Sequence& sequence = p.sequence;
  const int64_t H = p.units, P = p.projected, B = sequence.batch, N = sequence.rows;
  const Call<D> call(around, p.random, B, H);
  const Matrix w_hh = call.weight(p.w_hh), w_hr = call.weight(p.w_hr);
  const Matrix w_ih = p.dx || !p.gates ? call.weight(p.w_ih) : Matrix{};
  const bool zoned = p.random.flags & FLAG_ZONEOUT_H, projection = w_hr.data;
  const Matrix x = call.matrix(p.x, N, p.inputs);
  const Matrix operands = call.matrix(p.dw_hh || !p.gates ? around.buffer<D>(N * P) : nullptr, N, P);
  const Matrix dgates = call.matrix(around.buffer<D>(N * 4 * H), N, 4 * H);
  D* const again = p.gates ? nullptr : around.buffer<D>(N * 4 * H);
  D* const through = around.buffer<D>(B * P);
  S* const dh = zoned ? around.buffer<S>(B * P) : nullptr;
  S* const dc = around.buffer<S>(B * H);
  const Matrix dprojected = call.matrix(projection ? around.buffer<D>(N * P) : nullptr, N, P);
  D* const doutputs = projection ? around.buffer<D>(B * H) : nullptr;
  const Matrix outputs = call.matrix(p.dw_hr ? around.buffer<D>(N * H) : nullptr, N, H);

  if (operands.data) {
    const Operand<D> all{call.masks(), false, P, p.states, p.h0, static_cast<D*>(operands.data)};
    check(operand(all, sequence, around.stream));
  }
  if (again && N) {
    call.multiply(x, false, w_ih, true, call.matrix(again, N, 4 * H));
    call.multiply(operands, false, w_hh, true, dgates);  // which is free until the first step
    const D* const recurrent = static_cast<D*>(dgates.data);
    check(activate(Activate<D>{false, N, H, p.b_ih, p.b_hh, again, recurrent, nullptr}, around.stream));
  }
  const D* const gates = p.gates ? p.gates : again;
  const auto gradients = [&](int64_t t, int64_t rows) {  // at the pre-activations of a step
    return call.matrix(static_cast<D*>(dgates.data) + sequence.row(t) * 4 * H, rows, 4 * H);
  };
  const auto leave_h = [&](int64_t begin, int64_t end) {
    check(leave(Leave<D>{call.masks(), Leaving::LSTM_H, begin, end, P, dh, through, p.dh0}, around.stream));
  };

  LstmBackwardStep<D> step{};
  step.masks = call.masks();
  step.units = H;
  step.projected = P;
  step.through = through;
  step.dh_n = p.dh_n;
  step.dc_n = p.dc_n;
  step.dh = dh;
  step.dc = dc;
  step.c0 = p.c0;
  step.doutputs = doutputs;
  for (int64_t s = sequence.steps - 1; N && s >= 0; --s) {
    const int64_t t = sequence.time(s), after = sequence.after(t);
    const Step now = step.step = Step::of(sequence, t);
    // Rows that begin in the step after, which only a reversed packed batch has, leave for h_0.
    const int64_t sent = sequence.exists(after) ? sequence.active(after) : 0;
    if (sent) call.multiply(gradients(after, sent), false, w_hh, false, call.matrix(through, sent, P));
    leave_h(now.active, sent);
    step.dout = p.dout ? p.dout + now.row * P : nullptr;
    step.gates = gates + now.row * 4 * H;
    step.c_before = p.cells + now.row_before * H;
    step.dgates = static_cast<D*>(dgates.data) + now.row * 4 * H;
    if (projection) {
      step.dprojected = static_cast<D*>(dprojected.data) + now.row * P;
      step.outputs = outputs.data ? static_cast<D*>(outputs.data) + now.row * H : nullptr;
      check(lstm_projection_backward(step, around.stream));
      call.multiply(call.matrix(step.dprojected, now.active, P), false, w_hr, false,
                    call.matrix(doutputs, now.active, H));
    }
    check(lstm_backward(step, around.stream));
  }
  if (N) {
    const int64_t first = sequence.time(0), rows = sequence.active(first);
    call.multiply(gradients(first, rows), false, w_hh, false, call.matrix(through, rows, P));
    leave_h(0, rows);
    check(leave(Leave<D>{call.masks(), Leaving::LSTM_C, 0, B, H, dc, nullptr, p.dc0}, around.stream));
  }

  if (p.dx) call.multiply(dgates, false, w_ih, false, call.matrix(p.dx, N, p.inputs));
  const auto weight_gradient = [&](const Weight& w, const Matrix& left, const Matrix& right, Gradient target) {
    if (!target) return;
    const Matrix gradient = call.gradient(w, target);
    call.multiply(left, true, right, false, gradient);
    call.finish(w, gradient, target);
  };
  weight_gradient(p.w_ih, dgates, x, p.dw_ih);
  weight_gradient(p.w_hh, dgates, operands, p.dw_hh);
  weight_gradient(p.w_hr, dprojected, outputs, p.dw_hr);
  if (p.db) call.sum_columns(dgates, p.db);
}

#define FRD_INSTANTIATE(D)                                                                                             \
  template void run(const LstmForward<D>&, const Surroundings&);                                                       \
  template void run(const LstmBackward<D>&, const Surroundings&)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
