#include "cuda/gru_schedule.h"

namespace frd::cuda {

template <class D>
void run(const GruForward<D>& p, const Surroundings& around) {
  using S = State<D>;
  const Sequence& sequence = p.sequence;
  const int64_t H = p.units, B = sequence.batch, N = sequence.rows;
  if (N == 0) return;
  const Call<D> call(around, p.random, B, H);
  const Matrix w_ih = call.weight(p.w_ih), w_hh = call.weight(p.w_hh);
  D* const gates = p.gates ? p.gates : around.buffer<D>(N * 3 * H);
  D* const recurrent = around.buffer<D>(B * 3 * H);
  D* const read = around.buffer<D>(B * H);
  S* const h = around.buffer<S>(B * H);

  call.multiply(call.matrix(p.x, N, p.inputs), false, w_ih, true, call.matrix(gates, N, 3 * H));
  const Operand<D> first{
      .masks = call.masks(), .gru = true, .width = H, .states = nullptr, .h0 = p.h0, .operand = read};
  check(first_operand(first, B, around.stream));

  GruForwardStep<D> step{};
  step.masks = call.masks();
  step.units = H;
  step.b_ih = p.b_ih;
  step.b_hh = p.b_hh;
  step.recurrent = recurrent;
  step.keep_gates = p.gates != nullptr;
  step.h0 = p.h0;
  step.h = h;
  step.read = read;
  step.h_n = p.h_n;
  for (int64_t s = 0; s < sequence.steps; ++s) {
    const Step now = step.step = Step::of(sequence, sequence.time(s));
    step.gates = gates + now.row * 3 * H;
    step.resets = p.resets ? p.resets + now.row * H : nullptr;
    step.out = p.out + now.row * H;
    step.states = p.states ? p.states + now.row * H : nullptr;
    // Apart from W x: the reset gate is applied to the recurrent part of n alone.
    call.multiply(call.matrix(read, now.active, H), false, w_hh, true, call.matrix(recurrent, now.active, 3 * H));
    check(gru_forward(step, around.stream));
  }
}

// W x and U h have the gradients of r and z in common and their own of n, so that a row of gradients holds four: n at
// W x, r, z, n at U h. The first three are what goes back through W, the last three what goes back through U; W is
// written with its rows in that order.
template <class D>
void run(const GruBackward<D>& p, const Surroundings& around) {
  using S = State<D>;
  const Sequence& sequence = p.sequence;
  const int64_t H = p.units, B = sequence.batch, N = sequence.rows;
  const Call<D> call(around, p.random, B, H);
  const Matrix w_hh = call.weight(p.w_hh), w_ih = p.dx ? call.weight(p.w_ih, H) : Matrix{};
  const Matrix x = call.matrix(p.x, N, p.inputs);
  const Matrix operands = call.matrix(p.dw_hh || !p.gates ? around.buffer<D>(N * H) : nullptr, N, H);
  D* const dgates = around.buffer<D>(N * 4 * H);
  D* const gates_again = p.gates ? nullptr : around.buffer<D>(N * 3 * H);
  D* const resets_again = p.gates ? nullptr : around.buffer<D>(N * H);
  D* const through = around.buffer<D>(B * H);
  S* const dh = around.buffer<S>(B * H);

  if (operands.data) {
    const Operand<D> all{call.masks(), true, H, p.states, p.h0, static_cast<D*>(operands.data)};
    check(operand(all, sequence, around.stream));
  }
  if (gates_again && N) {
    D* const recurrent = dgates;  // free until the first step, and wide enough
    call.multiply(x, false, call.weight(p.w_ih), true, call.matrix(gates_again, N, 3 * H));
    call.multiply(operands, false, w_hh, true, call.matrix(recurrent, N, 3 * H));
    check(activate(Activate<D>{true, N, H, p.b_ih, p.b_hh, gates_again, recurrent, resets_again}, around.stream));
  }
  const D* const gates = p.gates ? p.gates : gates_again;
  const D* const resets = p.gates ? p.resets : resets_again;
  const auto recurrent_gradients = [&](int64_t t, int64_t rows) {  // at r, z and n of U h of a step
    return call.part(dgates + sequence.row(t) * 4 * H, rows, H, 3 * H, 4 * H);
  };
  const auto leave_h = [&](int64_t begin, int64_t end) {
    check(leave(Leave<D>{call.masks(), Leaving::GRU_H, begin, end, H, dh, through, p.dh0}, around.stream));
  };

  GruBackwardStep<D> step{};
  step.masks = call.masks();
  step.units = H;
  step.through = through;
  step.dh_n = p.dh_n;
  step.dh = dh;
  step.h0 = p.h0;
  for (int64_t s = sequence.steps - 1; N && s >= 0; --s) {
    const int64_t t = sequence.time(s), after = sequence.after(t);
    const Step now = step.step = Step::of(sequence, t);
    // Rows that begin in the step after, which only a reversed packed batch has, leave for h_0.
    const int64_t sent = sequence.exists(after) ? sequence.active(after) : 0;
    if (sent) call.multiply(recurrent_gradients(after, sent), false, w_hh, false, call.matrix(through, sent, H));
    leave_h(now.active, sent);
    step.dout = p.dout ? p.dout + now.row * H : nullptr;
    step.gates = gates + now.row * 3 * H;
    step.resets = resets + now.row * H;
    step.states_before = p.states + now.row_before * H;
    step.dgates = dgates + now.row * 4 * H;
    check(gru_backward(step, around.stream));
  }
  if (N) {
    const int64_t first = sequence.time(0), rows = sequence.active(first);
    call.multiply(recurrent_gradients(first, rows), false, w_hh, false, call.matrix(through, rows, H));
    leave_h(0, rows);
  }

  const auto columns = [&](int64_t first, int64_t count) { return call.part(dgates, N, first, count, 4 * H); };
  if (p.dx) call.multiply(columns(0, 3 * H), false, w_ih, false, call.matrix(p.dx, N, p.inputs));
  if (p.dw_ih) {
    const Matrix gradient = call.gradient(p.w_ih, p.dw_ih);
    D* const data = static_cast<D*>(gradient.data);
    call.multiply(columns(H, 2 * H), true, x, false, call.matrix(data, 2 * H, p.inputs));
    call.multiply(columns(0, H), true, x, false, call.matrix(data + 2 * H * p.inputs, H, p.inputs));
    call.finish(p.w_ih, gradient, p.dw_ih);
  }
  if (p.dw_hh) {
    const Matrix gradient = call.gradient(p.w_hh, p.dw_hh);
    call.multiply(columns(H, 3 * H), true, operands, false, gradient);
    call.finish(p.w_hh, gradient, p.dw_hh);
  }
  if (p.db_ih) {
    call.sum_columns(columns(H, 2 * H), p.db_ih);
    call.sum_columns(columns(0, H), p.db_ih + 2 * H);
    call.sum_columns(columns(H, 3 * H), p.db_hh);
  }
}

#define FRD_INSTANTIATE(D)                                                                                             \
  template void run(const GruForward<D>&, const Surroundings&);                                                        \
  template void run(const GruBackward<D>&, const Surroundings&)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
