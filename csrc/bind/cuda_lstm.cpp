// The LSTM operators on a GPU.
#include "cuda/lstm_schedule.h"

#include "bind/cuda_tensors.h"

namespace frd::bind {
namespace {

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class D>
Forward forward(const Tensor& x_, const Tensor& h0_, const Tensor& c0_, const Tensor& w_ih_, const Tensor& w_hh_,
                const MaybeTensor& b_ih_, const MaybeTensor& b_hh_, const MaybeTensor& w_hr_, const LayerShapes& shapes,
                const Batch& batch, const cuda::Random& random, const Device& device, int64_t save) {
  using S = cuda::State<D>;
  constexpr ScalarType value = scalar_type<D>, state = scalar_type<S>;
  const int64_t H = shapes.units, P = shapes.projected, B = batch.sequence.batch, N = batch.sequence.rows;
  const Tensor x = dense(x_, value), h0 = dense(h0_, state), c0 = dense(c0_, state);
  const Tensor w_ih = dense(w_ih_, w_ih_.scalar_type()), w_hh = dense(w_hh_, w_hh_.scalar_type());
  const MaybeTensor w_hr = w_hr_ ? dense(w_hr_, w_hr_->scalar_type()) : w_hr_;
  const MaybeTensor b_ih = dense(b_ih_, state), b_hh = dense(b_hh_, state);
  const Tensor out = device.empty(batch.shape(P), value), h_n = device.empty({B, P}, value);
  const Tensor c_n = device.empty({B, H}, value);
  const bool states_apart = save && (random.flags & FLAG_UNZONED), all = save == SAVE_ALL;
  const Tensor gates = device.room(all, {N, 4 * H}, value), cells = device.room(save, {N, H}, state);
  const Tensor states = device.room(states_apart, {N, P}, value);
  cuda::run(cuda::LstmForward<D>{.sequence = batch.sequence,
                                 .random = random,
                                 .inputs = shapes.inputs,
                                 .units = H,
                                 .projected = P,
                                 .x = read<D>(x),
                                 .w_ih = weight_of(w_ih, FLAG_WEIGHT_IH, KIND_WEIGHT_IH),
                                 .w_hh = weight_of(w_hh, FLAG_WEIGHT_HH, KIND_WEIGHT_HH),
                                 .w_hr = weight_of(w_hr, FLAG_WEIGHT_HR, KIND_WEIGHT_HR),
                                 .b_ih = read<S>(b_ih),
                                 .b_hh = read<S>(b_hh),
                                 .h0 = read<S>(h0),
                                 .c0 = read<S>(c0),
                                 .gates = where<D>(all, gates),
                                 .cells = where<S>(save, cells),
                                 .states = where<D>(states_apart, states),
                                 .out = data<D>(out),
                                 .h_n = data<D>(h_n),
                                 .c_n = data<D>(c_n)},
            device.around());
  return {out, h_n, c_n, gates, cells, states};
}

Forward lstm_forward(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                     const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& w_hr,
                     const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                     const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight, const MaybeTensor& thresholds,
                     ScalarType dtype, int64_t flags, int64_t layer, bool reverse, int64_t step_offset, int64_t save) {
  const LayerShapes shapes(CELLS[LSTM], x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
  check_floating("dtype", dtype);
  check_devices(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
  const Batch batch(x, batch_sizes, h0.size(0), reverse);
  const Device device(x);
  const Random random(x, example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, reverse, step_offset,
                      batch.sequence);
  return cuda::with_type(type_of(dtype), [&](auto value) {
    return forward<decltype(value)>(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, shapes, batch, random.random, device,
                                    save);
  });
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

template <class D>
Backward backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                  const Tensor& x_, const Tensor& h0_, const Tensor& c0_, const Tensor& w_ih_, const Tensor& w_hh_,
                  const MaybeTensor& b_ih_, const MaybeTensor& b_hh_, const MaybeTensor& w_hr_, const Tensor& saved,
                  const Tensor& cells_, const Tensor& states, const LayerShapes& shapes, const Batch& batch,
                  const cuda::Random& random, const Device& device, int64_t needs) {
  using S = cuda::State<D>;
  constexpr ScalarType value = scalar_type<D>, state = scalar_type<S>;
  const int64_t H = shapes.units, P = shapes.projected, B = batch.sequence.batch, N = batch.sequence.rows;
  const Tensor cells = saved_as("cells", cells_, state, {N, H}, x_);
  const bool kept = saved.dim() != 1;  // otherwise the forward kept no gates
  const Tensor gates = kept ? saved_as("gates", saved, value, {N, 4 * H}, x_) : saved;
  const Tensor x = dense(x_, value), h0 = dense(h0_, state), c0 = dense(c0_, state);
  const Tensor w_ih = dense(w_ih_, w_ih_.scalar_type()), w_hh = dense(w_hh_, w_hh_.scalar_type());
  const MaybeTensor w_hr = w_hr_ ? dense(w_hr_, w_hr_->scalar_type()) : w_hr_;
  const MaybeTensor b_ih = dense(b_ih_, state), b_hh = dense(b_hh_, state);
  check_floating("grad_out", grad_out);
  check_floating("grad_h_n", grad_h_n);
  check_floating("grad_c_n", grad_c_n);
  check_floating("states", states);
  const Tensor h = torch::stable::view(dense(states, value), {N, P});
  const MaybeTensor dout = dense(grad_out, value), dh_n = dense(grad_h_n, value), dc_n = dense(grad_c_n, value);
  check_shape("grad_out", dout, batch.shape(P));
  check_shape("grad_h_n", dh_n, {B, P});
  check_shape("grad_c_n", dc_n, {B, H});

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  const bool wants_hr = w_hr && wants(NEEDS_W_HR);
  const Tensor dx = device.room(wants(NEEDS_X), batch.shape(shapes.inputs), value);
  const Tensor dw_ih = device.room(wants(NEEDS_W_IH), {4 * H, shapes.inputs}, w_ih.scalar_type());
  const Tensor dw_hh = device.room(wants(NEEDS_W_HH), {4 * H, P}, w_hh.scalar_type());
  const Tensor dw_hr = device.room(wants_hr, {P, H}, w_hr ? w_hr->scalar_type() : state);
  const Tensor db = device.room(wants(NEEDS_BIAS), {4 * H}, state);
  const Tensor dh0 = device.empty({B, P}, state), dc0 = device.empty({B, H}, state);
  cuda::run(cuda::LstmBackward<D>{.sequence = batch.sequence,
                                  .random = random,
                                  .inputs = shapes.inputs,
                                  .units = H,
                                  .projected = P,
                                  .x = read<D>(x),
                                  .w_ih = weight_of(w_ih, FLAG_WEIGHT_IH, KIND_WEIGHT_IH),
                                  .w_hh = weight_of(w_hh, FLAG_WEIGHT_HH, KIND_WEIGHT_HH),
                                  .w_hr = weight_of(w_hr, FLAG_WEIGHT_HR, KIND_WEIGHT_HR),
                                  .b_ih = read<S>(b_ih),
                                  .b_hh = read<S>(b_hh),
                                  .h0 = read<S>(h0),
                                  .c0 = read<S>(c0),
                                  .gates = kept ? read<D>(gates) : nullptr,
                                  .cells = read<S>(cells),
                                  .states = read<D>(h),
                                  .dout = read<D>(dout),
                                  .dh_n = read<D>(dh_n),
                                  .dc_n = read<D>(dc_n),
                                  .dx = where<D>(wants(NEEDS_X), dx),
                                  .dw_ih = where<void>(wants(NEEDS_W_IH), dw_ih),
                                  .dw_hh = where<void>(wants(NEEDS_W_HH), dw_hh),
                                  .dw_hr = where<void>(wants_hr, dw_hr),
                                  .db = where<S>(wants(NEEDS_BIAS), db),
                                  .dh0 = data<S>(dh0),
                                  .dc0 = data<S>(dc0)},
            device.around());
  return {in_type(dx, x_.scalar_type()),
          in_type(dh0, h0_.scalar_type()),
          in_type(dc0, c0_.scalar_type()),
          dw_ih,
          dw_hh,
          in_type(db, b_ih_ ? b_ih_->scalar_type() : state),
          dw_hr};
}

Backward lstm_backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                       const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                       const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& w_hr,
                       const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                       const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight, const MaybeTensor& thresholds,
                       const Tensor& gates, const Tensor& cells, const Tensor& states, ScalarType dtype, int64_t flags,
                       int64_t layer, bool reverse, int64_t step_offset, int64_t needs) {
  const LayerShapes shapes(CELLS[LSTM], x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
  check_floating("dtype", dtype);
  check_devices(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, gates, cells, states, grad_out, grad_h_n, grad_c_n);
  const Batch batch(x, batch_sizes, h0.size(0), reverse);
  const Device device(x);
  const Random random(x, example_ids, rng_state, rng_hidden, rng_weight, thresholds, flags, layer, reverse, step_offset,
                      batch.sequence);
  return cuda::with_type(type_of(dtype), [&](auto value) {
    return backward<decltype(value)>(grad_out, grad_h_n, grad_c_n, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, gates,
                                     cells, states, shapes, batch, random.random, device, needs);
  });
}

}  // namespace

FRD_CUDA_LIBRARY_IMPL(m) {
  m.impl("lstm", TORCH_BOX(&lstm));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace frd::bind
