// The GRU operators on the CPU.
#include "bind/tensors.h"

namespace frd::bind {
namespace {

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward forward(const Tensor& x_, const Tensor& h0_, const Tensor& w_ih_, const Tensor& w_hh_, const MaybeTensor& b_ih_,
                const MaybeTensor& b_hh_, const GruShapes& shapes, const Batch& batch, const cpu::Masks& masks,
                ScalarType dtype, int64_t save) {
  constexpr ScalarType compute = scalar_type<T>;
  const int64_t H = shapes.units, B = batch.sequence.batch, N = batch.sequence.rows;
  const Tensor x = dense(x_, compute), h0 = dense(h0_, compute);
  const Tensor w_ih = dense(w_ih_, compute), w_hh = dense(w_hh_, compute);
  const MaybeTensor b_ih = dense(b_ih_, compute), b_hh = dense(b_hh_, compute);
  Tensor out = empty(batch.shape(H), compute), h_n = empty({B, H}, compute);
  // With cell dropout the output is the state times a scale.
  const bool states_apart = save && (dtype != compute || (masks.flags & (FLAG_UNZONED | FLAG_CELL)));
  const bool all = save == SAVE_ALL;
  const Tensor gates = room(all, {N, 3 * H}, compute), resets = room(all, {N, H}, compute);
  const Tensor states = room(states_apart, {N, H}, compute);
  kernels().of<T>().gru_forward({.parallel = parallel(),
                                 .sequence = batch.sequence,
                                 .masks = masks,
                                 .sparing = save == SAVE_STATES,
                                 .inputs = shapes.inputs,
                                 .units = H,
                                 .x = read<T>(x),
                                 .w_ih = read<T>(w_ih),
                                 .w_hh = read<T>(w_hh),
                                 .b_ih = read<T>(b_ih),
                                 .b_hh = read<T>(b_hh),
                                 .h0 = read<T>(h0),
                                 .gates = where<T>(all, gates),
                                 .resets = where<T>(all, resets),
                                 .states = where<T>(states_apart, states),
                                 .out = data<T>(out),
                                 .h_n = data<T>(h_n)});
  return {in_type(out, dtype), in_type(h_n, dtype), gates, resets, states};
}

Forward gru_forward(const Tensor& x, const Tensor& h0, const Tensor& w_ih, const Tensor& w_hh, const MaybeTensor& b_ih,
                    const MaybeTensor& b_hh, const MaybeTensor& batch_sizes, const MaybeTensor& example_ids,
                    const MaybeTensor& rng_state, const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight,
                    const MaybeTensor& thresholds, ScalarType dtype, int64_t flags, int64_t layer, bool reverse,
                    int64_t step_offset, int64_t save) {
  const GruShapes shapes(x, h0, w_ih, w_hh, b_ih, b_hh);
  check_floating("dtype", dtype);
  const Batch batch(x, batch_sizes, h0.size(0), reverse);
  const Random random(example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, reverse, step_offset,
                      batch.sequence.batch, batch.sequence.steps);
  const auto run = dtype == ScalarType::Double ? forward<double> : forward<float>;
  return run(x, h0, w_ih, w_hh, b_ih, b_hh, shapes, batch, random.masks, dtype, save);
}

// Below autograd nothing is kept, whatever `recompute` says.
std::tuple<Tensor, Tensor> gru(const Tensor& x, const Tensor& h0, const Tensor& w_ih, const Tensor& w_hh,
                               const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& batch_sizes,
                               const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                               const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight,
                               const MaybeTensor& thresholds, ScalarType dtype, int64_t flags, int64_t layer,
                               bool reverse, int64_t step_offset, bool /*recompute*/) {
  const Forward result = gru_forward(x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, example_ids, rng_state, rng_hidden,
                                     rng_weight, thresholds, dtype, flags, layer, reverse, step_offset, SAVE_NOTHING);
  return {std::get<0>(result), std::get<1>(result)};
}

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Backward backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const Tensor& x_, const Tensor& h0_,
                  const Tensor& w_ih_, const Tensor& w_hh_, const MaybeTensor& b_ih_, const MaybeTensor& b_hh_,
                  const Tensor& saved, const Tensor& saved_resets, const Tensor& states, const GruShapes& shapes,
                  const Batch& batch, const cpu::Masks& masks, int64_t needs) {
  constexpr ScalarType compute = scalar_type<T>;
  const int64_t H = shapes.units, B = batch.sequence.batch, N = batch.sequence.rows;
  const bool kept = saved.dim() != 1;  // otherwise the forward kept no gates
  const Tensor gates = kept ? saved_as("gates", saved, compute, {N, 3 * H}, x_) : saved;
  const Tensor resets = kept ? saved_as("resets", saved_resets, compute, {N, H}, x_) : saved_resets;
  const Tensor x = dense(x_, compute), h0 = dense(h0_, compute);
  const Tensor w_ih = dense(w_ih_, compute), w_hh = dense(w_hh_, compute);
  const MaybeTensor b_ih = dense(b_ih_, compute), b_hh = dense(b_hh_, compute);
  check_floating("grad_out", grad_out);
  check_floating("grad_h_n", grad_h_n);
  check_floating("states", states);
  const Tensor h = torch::stable::view(dense(states, compute), {N, H});
  const MaybeTensor dout = dense(grad_out, compute), dh_n = dense(grad_h_n, compute);
  check_shape("grad_out", dout, batch.shape(H));
  check_shape("grad_h_n", dh_n, {B, H});

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  Tensor dx = room(wants(NEEDS_X), batch.shape(shapes.inputs), compute), dh0 = empty({B, H}, compute);
  Tensor dw_ih = room(wants(NEEDS_W_IH), {3 * H, shapes.inputs}, compute);
  Tensor dw_hh = room(wants(NEEDS_W_HH), {3 * H, H}, compute);
  Tensor db_ih = room(wants(NEEDS_BIAS), {3 * H}, compute), db_hh = room(wants(NEEDS_BIAS), {3 * H}, compute);
  kernels().of<T>().gru_backward({.parallel = parallel(),
                                  .sequence = batch.sequence,
                                  .masks = masks,
                                  .inputs = shapes.inputs,
                                  .units = H,
                                  .x = read<T>(x),
                                  .w_ih = read<T>(w_ih),
                                  .w_hh = read<T>(w_hh),
                                  .b_ih = read<T>(b_ih),
                                  .b_hh = read<T>(b_hh),
                                  .h0 = read<T>(h0),
                                  .gates = kept ? read<T>(gates) : nullptr,
                                  .resets = kept ? read<T>(resets) : nullptr,
                                  .states = read<T>(h),
                                  .dout = read<T>(dout),
                                  .dh_n = read<T>(dh_n),
                                  .dx = where<T>(wants(NEEDS_X), dx),
                                  .dw_ih = where<T>(wants(NEEDS_W_IH), dw_ih),
                                  .dw_hh = where<T>(wants(NEEDS_W_HH), dw_hh),
                                  .db_ih = where<T>(wants(NEEDS_BIAS), db_ih),
                                  .db_hh = where<T>(wants(NEEDS_BIAS), db_hh),
                                  .dh0 = data<T>(dh0)});
  const ScalarType bias_type = b_ih_ ? b_ih_->scalar_type() : compute;
  return {in_type(dx, x_.scalar_type()),       in_type(dh0, h0_.scalar_type()), in_type(dw_ih, w_ih_.scalar_type()),
          in_type(dw_hh, w_hh_.scalar_type()), in_type(db_ih, bias_type),       in_type(db_hh, bias_type)};
}

Backward gru_backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const Tensor& x, const Tensor& h0,
                      const Tensor& w_ih, const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh,
                      const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                      const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight, const MaybeTensor& thresholds,
                      const Tensor& gates, const Tensor& resets, const Tensor& states, ScalarType dtype, int64_t flags,
                      int64_t layer, bool reverse, int64_t step_offset, int64_t needs) {
  const GruShapes shapes(x, h0, w_ih, w_hh, b_ih, b_hh);
  check_floating("dtype", dtype);
  const Batch batch(x, batch_sizes, h0.size(0), reverse);
  const Random random(example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, reverse, step_offset,
                      batch.sequence.batch, batch.sequence.steps);
  const auto run = dtype == ScalarType::Double ? backward<double> : backward<float>;
  return run(grad_out, grad_h_n, x, h0, w_ih, w_hh, b_ih, b_hh, gates, resets, states, shapes, batch, random.masks,
             needs);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_dropout, CPU, m) {
  m.impl("gru", TORCH_BOX(&gru));
  m.impl("gru_forward", TORCH_BOX(&gru_forward));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}

}  // namespace frd::bind
