// The GRU operators on a GPU.
#include "cuda/gru_schedule.h"

#include "bind/cuda_tensors.h"

namespace frd::bind {
namespace {

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class D>
Forward forward(const Tensor& x_, const Tensor& h0_, const Tensor& w_ih_, const Tensor& w_hh_, const MaybeTensor& b_ih_,
                const MaybeTensor& b_hh_, const LayerShapes& shapes, const Batch& batch, const cuda::Random& random,
                const Device& device, int64_t save) {
  using S = cuda::State<D>;
  constexpr ScalarType value = scalar_type<D>, state = scalar_type<S>;
  const int64_t H = shapes.units, B = batch.sequence.batch, N = batch.sequence.rows;
  const Tensor x = dense(x_, value), h0 = dense(h0_, state);
  const Tensor w_ih = dense(w_ih_, w_ih_.scalar_type()), w_hh = dense(w_hh_, w_hh_.scalar_type());
  const MaybeTensor b_ih = dense(b_ih_, state), b_hh = dense(b_hh_, state);
  const Tensor out = device.empty(batch.shape(H), value), h_n = device.empty({B, H}, value);
  // With cell dropout the output is the state times a scale.
  const bool states_apart = save && (random.flags & (FLAG_UNZONED | FLAG_CELL)), all = save == SAVE_ALL;
  const Tensor gates = device.room(all, {N, 3 * H}, value), resets = device.room(all, {N, H}, value);
  const Tensor states = device.room(states_apart, {N, H}, value);
  cuda::run(cuda::GruForward<D>{.sequence = batch.sequence,
                                .random = random,
                                .inputs = shapes.inputs,
                                .units = H,
                                .x = read<D>(x),
                                .w_ih = weight_of(w_ih, FLAG_WEIGHT_IH, KIND_WEIGHT_IH),
                                .w_hh = weight_of(w_hh, FLAG_WEIGHT_HH, KIND_WEIGHT_HH),
                                .b_ih = read<S>(b_ih),
                                .b_hh = read<S>(b_hh),
                                .h0 = read<S>(h0),
                                .gates = where<D>(all, gates),
                                .resets = where<D>(all, resets),
                                .states = where<D>(states_apart, states),
                                .out = data<D>(out),
                                .h_n = data<D>(h_n)},
            device.around());
  return {out, h_n, gates, resets, states};
}

Forward gru_forward(const Tensor& x, const Tensor& h0, const Tensor& w_ih, const Tensor& w_hh, const MaybeTensor& b_ih,
                    const MaybeTensor& b_hh, const MaybeTensor& batch_sizes, const MaybeTensor& example_ids,
                    const MaybeTensor& rng_state, const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight,
                    const MaybeTensor& thresholds, ScalarType dtype, int64_t flags, int64_t layer, bool reverse,
                    int64_t step_offset, int64_t save) {
  const LayerShapes shapes(CELLS[GRU], x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, std::nullopt);
  check_floating("dtype", dtype);
  check_devices(x, h0, w_ih, w_hh, b_ih, b_hh);
  const Batch batch(x, batch_sizes, h0.size(0), reverse);
  const Device device(x);
  const Random random(x, example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, reverse, step_offset,
                      batch.sequence);
  return cuda::with_type(type_of(dtype), [&](auto value) {
    return forward<decltype(value)>(x, h0, w_ih, w_hh, b_ih, b_hh, shapes, batch, random.random, device, save);
  });
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

template <class D>
Backward backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const Tensor& x_, const Tensor& h0_,
                  const Tensor& w_ih_, const Tensor& w_hh_, const MaybeTensor& b_ih_, const MaybeTensor& b_hh_,
                  const Tensor& saved, const Tensor& saved_resets, const Tensor& states, const LayerShapes& shapes,
                  const Batch& batch, const cuda::Random& random, const Device& device, int64_t needs) {
  using S = cuda::State<D>;
  constexpr ScalarType value = scalar_type<D>, state = scalar_type<S>;
  const int64_t H = shapes.units, B = batch.sequence.batch, N = batch.sequence.rows;
  const bool kept = saved.dim() != 1;  // otherwise the forward kept no gates
  const Tensor gates = kept ? saved_as("gates", saved, value, {N, 3 * H}, x_) : saved;
  const Tensor resets = kept ? saved_as("resets", saved_resets, value, {N, H}, x_) : saved_resets;
  const Tensor x = dense(x_, value), h0 = dense(h0_, state);
  const Tensor w_ih = dense(w_ih_, w_ih_.scalar_type()), w_hh = dense(w_hh_, w_hh_.scalar_type());
  const MaybeTensor b_ih = dense(b_ih_, state), b_hh = dense(b_hh_, state);
  check_floating("grad_out", grad_out);
  check_floating("grad_h_n", grad_h_n);
  check_floating("states", states);
  const Tensor h = torch::stable::view(dense(states, value), {N, H});
  const MaybeTensor dout = dense(grad_out, value), dh_n = dense(grad_h_n, value);
  check_shape("grad_out", dout, batch.shape(H));
  check_shape("grad_h_n", dh_n, {B, H});

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  const Tensor dx = device.room(wants(NEEDS_X), batch.shape(shapes.inputs), value);
  const Tensor dw_ih = device.room(wants(NEEDS_W_IH), {3 * H, shapes.inputs}, w_ih.scalar_type());
  const Tensor dw_hh = device.room(wants(NEEDS_W_HH), {3 * H, H}, w_hh.scalar_type());
  const Tensor db_ih = device.room(wants(NEEDS_BIAS), {3 * H}, state);
  const Tensor db_hh = device.room(wants(NEEDS_BIAS), {3 * H}, state), dh0 = device.empty({B, H}, state);
  cuda::run(cuda::GruBackward<D>{.sequence = batch.sequence,
                                 .random = random,
                                 .inputs = shapes.inputs,
                                 .units = H,
                                 .x = read<D>(x),
                                 .w_ih = weight_of(w_ih, FLAG_WEIGHT_IH, KIND_WEIGHT_IH),
                                 .w_hh = weight_of(w_hh, FLAG_WEIGHT_HH, KIND_WEIGHT_HH),
                                 .b_ih = read<S>(b_ih),
                                 .b_hh = read<S>(b_hh),
                                 .h0 = read<S>(h0),
                                 .gates = kept ? read<D>(gates) : nullptr,
                                 .resets = kept ? read<D>(resets) : nullptr,
                                 .states = read<D>(h),
                                 .dout = read<D>(dout),
                                 .dh_n = read<D>(dh_n),
                                 .dx = where<D>(wants(NEEDS_X), dx),
                                 .dw_ih = where<void>(wants(NEEDS_W_IH), dw_ih),
                                 .dw_hh = where<void>(wants(NEEDS_W_HH), dw_hh),
                                 .db_ih = where<S>(wants(NEEDS_BIAS), db_ih),
                                 .db_hh = where<S>(wants(NEEDS_BIAS), db_hh),
                                 .dh0 = data<S>(dh0)},
            device.around());
  const ScalarType bias_type = b_ih_ ? b_ih_->scalar_type() : state;
  return {in_type(dx, x_.scalar_type()), in_type(dh0, h0_.scalar_type()), dw_ih, dw_hh,
          in_type(db_ih, bias_type),     in_type(db_hh, bias_type)};
}

Backward gru_backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const Tensor& x, const Tensor& h0,
                      const Tensor& w_ih, const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh,
                      const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                      const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight, const MaybeTensor& thresholds,
                      const Tensor& gates, const Tensor& resets, const Tensor& states, ScalarType dtype, int64_t flags,
                      int64_t layer, bool reverse, int64_t step_offset, int64_t needs) {
  const LayerShapes shapes(CELLS[GRU], x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, std::nullopt);
  check_floating("dtype", dtype);
  check_devices(x, h0, w_ih, w_hh, b_ih, b_hh, gates, resets, states, grad_out, grad_h_n);
  const Batch batch(x, batch_sizes, h0.size(0), reverse);
  const Device device(x);
  const Random random(x, example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, reverse, step_offset,
                      batch.sequence);
  return cuda::with_type(type_of(dtype), [&](auto value) {
    return backward<decltype(value)>(grad_out, grad_h_n, x, h0, w_ih, w_hh, b_ih, b_hh, gates, resets, states, shapes,
                                     batch, random.random, device, needs);
  });
}

}  // namespace

FRD_CUDA_LIBRARY_IMPL(m) {
  m.impl("gru", TORCH_BOX(&gru));
  m.impl("gru_forward", TORCH_BOX(&gru_forward));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}

}  // namespace frd::bind
