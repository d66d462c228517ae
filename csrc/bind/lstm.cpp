// The LSTM operators on the CPU.
#include "bind/tensors.h"

namespace frd::bind {
namespace {

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward forward(const Tensor& x_, const Tensor& h0_, const Tensor& c0_, const Tensor& w_ih_, const Tensor& w_hh_,
                const MaybeTensor& b_ih_, const MaybeTensor& b_hh_, const MaybeTensor& w_hr_, const LstmShapes& shapes,
                const Batch& batch, const cpu::Masks& masks, ScalarType dtype, int64_t save) {
  constexpr ScalarType compute = scalar_type<T>;
  const int64_t H = shapes.units, P = shapes.projected, B = batch.sequence.batch, N = batch.sequence.rows;
  const Tensor x = dense(x_, compute), h0 = dense(h0_, compute), c0 = dense(c0_, compute);
  const Tensor w_ih = dense(w_ih_, compute), w_hh = dense(w_hh_, compute);
  const MaybeTensor w_hr = dense(w_hr_, compute), b_ih = dense(b_ih_, compute), b_hh = dense(b_hh_, compute);
  Tensor out = empty(batch.shape(P), compute), h_n = empty({B, P}, compute), c_n = empty({B, H}, compute);
  const bool states_apart = save && (dtype != compute || (masks.flags & FLAG_UNZONED));
  const Tensor gates = room(save == SAVE_ALL, {N, 4 * H}, compute), cells = room(save, {N, H}, compute);
  const Tensor states = room(states_apart, {N, P}, compute);
  kernels().of<T>().lstm_forward({.parallel = parallel(),
                                  .sequence = batch.sequence,
                                  .masks = masks,
                                  .sparing = save == SAVE_STATES,
                                  .inputs = shapes.inputs,
                                  .units = H,
                                  .projected = P,
                                  .x = read<T>(x),
                                  .w_ih = read<T>(w_ih),
                                  .w_hh = read<T>(w_hh),
                                  .w_hr = read<T>(w_hr),
                                  .b_ih = read<T>(b_ih),
                                  .b_hh = read<T>(b_hh),
                                  .h0 = read<T>(h0),
                                  .c0 = read<T>(c0),
                                  .gates = where<T>(save == SAVE_ALL, gates),
                                  .cells = where<T>(save, cells),
                                  .states = where<T>(states_apart, states),
                                  .out = data<T>(out),
                                  .h_n = data<T>(h_n),
                                  .c_n = data<T>(c_n)});
  return {in_type(out, dtype), in_type(h_n, dtype), in_type(c_n, dtype), gates, cells, states};
}

Forward lstm_forward(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                     const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& w_hr,
                     const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                     const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight, const MaybeTensor& thresholds,
                     ScalarType dtype, int64_t flags, int64_t layer, bool reverse, int64_t step_offset, int64_t save) {
  const LstmShapes shapes(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
  check_floating("dtype", dtype);
  const Batch batch(x, batch_sizes, h0.size(0), reverse);
  const Random random(example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, reverse, step_offset,
                      batch.sequence.batch, batch.sequence.steps);
  const auto run = dtype == ScalarType::Double ? forward<double> : forward<float>;
  return run(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, shapes, batch, random.masks, dtype, save);
}

// Below autograd nothing is kept, whatever `recompute` says.
std::tuple<Tensor, Tensor, Tensor> lstm(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih,
                                        const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh,
                                        const MaybeTensor& w_hr, const MaybeTensor& batch_sizes,
                                        const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                                        const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight,
                                        const MaybeTensor& thresholds, ScalarType dtype, int64_t flags, int64_t layer,
                                        bool reverse, int64_t step_offset, bool /*recompute*/) {
  const Forward result =
      lstm_forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, example_ids, rng_state, rng_hidden, rng_weight,
                   thresholds, dtype, flags, layer, reverse, step_offset, SAVE_NOTHING);
  return {std::get<0>(result), std::get<1>(result), std::get<2>(result)};
}

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Backward backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                  const Tensor& x_, const Tensor& h0_, const Tensor& c0_, const Tensor& w_ih_, const Tensor& w_hh_,
                  const MaybeTensor& b_ih_, const MaybeTensor& b_hh_, const MaybeTensor& w_hr_, const Tensor& saved,
                  const Tensor& cells_, const Tensor& states, const LstmShapes& shapes, const Batch& batch,
                  const cpu::Masks& masks, int64_t needs) {
  constexpr ScalarType compute = scalar_type<T>;
  const int64_t H = shapes.units, P = shapes.projected, B = batch.sequence.batch, N = batch.sequence.rows;
  const Tensor cells = saved_as("cells", cells_, compute, {N, H}, x_);
  const bool kept = saved.dim() != 1;  // otherwise the forward kept no gates
  const Tensor gates = kept ? saved_as("gates", saved, compute, {N, 4 * H}, x_) : saved;
  const Tensor x = dense(x_, compute), h0 = dense(h0_, compute), c0 = dense(c0_, compute);
  const Tensor w_ih = dense(w_ih_, compute), w_hh = dense(w_hh_, compute);
  const MaybeTensor w_hr = dense(w_hr_, compute), b_ih = dense(b_ih_, compute), b_hh = dense(b_hh_, compute);
  check_floating("grad_out", grad_out);
  check_floating("grad_h_n", grad_h_n);
  check_floating("grad_c_n", grad_c_n);
  check_floating("states", states);
  const Tensor h = torch::stable::view(dense(states, compute), {N, P});
  const MaybeTensor dout = dense(grad_out, compute), dh_n = dense(grad_h_n, compute), dc_n = dense(grad_c_n, compute);
  check_shape("grad_out", dout, batch.shape(P));
  check_shape("grad_h_n", dh_n, {B, P});
  check_shape("grad_c_n", dc_n, {B, H});

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  const bool wants_hr = w_hr && wants(NEEDS_W_HR);
  Tensor dx = room(wants(NEEDS_X), batch.shape(shapes.inputs), compute);
  Tensor dw_ih = room(wants(NEEDS_W_IH), {4 * H, shapes.inputs}, compute);
  Tensor dw_hh = room(wants(NEEDS_W_HH), {4 * H, P}, compute), db = room(wants(NEEDS_BIAS), {4 * H}, compute);
  Tensor dw_hr = room(wants_hr, {P, H}, compute), dh0 = empty({B, P}, compute), dc0 = empty({B, H}, compute);
  kernels().of<T>().lstm_backward({.parallel = parallel(),
                                   .sequence = batch.sequence,
                                   .masks = masks,
                                   .inputs = shapes.inputs,
                                   .units = H,
                                   .projected = P,
                                   .x = read<T>(x),
                                   .w_ih = read<T>(w_ih),
                                   .w_hh = read<T>(w_hh),
                                   .w_hr = read<T>(w_hr),
                                   .b_ih = read<T>(b_ih),
                                   .b_hh = read<T>(b_hh),
                                   .h0 = read<T>(h0),
                                   .c0 = read<T>(c0),
                                   .gates = kept ? read<T>(gates) : nullptr,
                                   .cells = read<T>(cells),
                                   .states = read<T>(h),
                                   .dout = read<T>(dout),
                                   .dh_n = read<T>(dh_n),
                                   .dc_n = read<T>(dc_n),
                                   .dx = where<T>(wants(NEEDS_X), dx),
                                   .dw_ih = where<T>(wants(NEEDS_W_IH), dw_ih),
                                   .dw_hh = where<T>(wants(NEEDS_W_HH), dw_hh),
                                   .dw_hr = where<T>(wants_hr, dw_hr),
                                   .db = where<T>(wants(NEEDS_BIAS), db),
                                   .dh0 = data<T>(dh0),
                                   .dc0 = data<T>(dc0)});
  return {in_type(dx, x_.scalar_type()),
          in_type(dh0, h0_.scalar_type()),
          in_type(dc0, c0_.scalar_type()),
          in_type(dw_ih, w_ih_.scalar_type()),
          in_type(dw_hh, w_hh_.scalar_type()),
          in_type(db, b_ih_ ? b_ih_->scalar_type() : compute),
          in_type(dw_hr, w_hr_ ? w_hr_->scalar_type() : compute)};
}

Backward lstm_backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                       const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                       const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& w_hr,
                       const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                       const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight, const MaybeTensor& thresholds,
                       const Tensor& gates, const Tensor& cells, const Tensor& states, ScalarType dtype, int64_t flags,
                       int64_t layer, bool reverse, int64_t step_offset, int64_t needs) {
  const LstmShapes shapes(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
  check_floating("dtype", dtype);
  const Batch batch(x, batch_sizes, h0.size(0), reverse);
  const Random random(example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, reverse, step_offset,
                      batch.sequence.batch, batch.sequence.steps);
  const auto run = dtype == ScalarType::Double ? backward<double> : backward<float>;
  return run(grad_out, grad_h_n, grad_c_n, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, gates, cells, states, shapes, batch,
             random.masks, needs);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_dropout, CPU, m) {
  m.impl("lstm", TORCH_BOX(&lstm));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace frd::bind
