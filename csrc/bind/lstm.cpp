// The LSTM operators on the CPU.
#include "bind/tensors.h"

namespace frd::bind {
namespace {

struct Shapes {
  int64_t inputs, units, projected;

  Shapes(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
         const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& w_hr) {
    STD_TORCH_CHECK(x.dim() >= 2 && h0.dim() == 2 && c0.dim() == 2, "x must have 2 or 3 dimensions, h0 and c0 2");
    check_floating("x", x);
    check_floating("h0", h0);
    check_floating("c0", c0);
    check_floating("w_ih", w_ih);
    check_floating("w_hh", w_hh);
    check_floating("b_ih", b_ih);
    check_floating("b_hh", b_hh);
    check_floating("w_hr", w_hr);
    inputs = x.size(-1);
    units = c0.size(1);
    projected = h0.size(1);
    STD_TORCH_CHECK(w_hr ? projected <= units : projected == units,
                    "h0 must have as many units as c0, or with a projection no more");
    check_shape("h0", h0, {c0.size(0), projected});
    check_shape("w_ih", w_ih, {4 * units, inputs});
    check_shape("w_hh", w_hh, {4 * units, projected});
    check_shape("b_ih", b_ih, {4 * units});
    check_shape("b_hh", b_hh, {4 * units});
    check_shape("w_hr", w_hr, {projected, units});
    STD_TORCH_CHECK(b_ih.has_value() == b_hh.has_value(), "b_ih and b_hh must be given together");
  }
};

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward forward(const Tensor& x_, const Tensor& h0_, const Tensor& c0_, const Tensor& w_ih_, const Tensor& w_hh_,
                const MaybeTensor& b_ih_, const MaybeTensor& b_hh_, const MaybeTensor& w_hr_, const Shapes& shapes,
                const Batch& batch, const cpu::Masks& masks, ScalarType dtype, int64_t save) {
  constexpr ScalarType compute = scalar_type<T>;
  const int64_t H = shapes.units, P = shapes.projected, B = batch.sequence.batch, N = batch.sequence.rows;
  const Tensor x = dense(x_, compute), h0 = dense(h0_, compute), c0 = dense(c0_, compute);
  const Tensor w_ih = read_weight<T>(w_ih_, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, masks);
  const Tensor w_hh = read_weight<T>(w_hh_, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, masks);
  const MaybeTensor w_hr =
      w_hr_ ? MaybeTensor(read_weight<T>(*w_hr_, FLAG_WEIGHT_HR, KIND_WEIGHT_HR, masks)) : std::nullopt;
  const MaybeTensor b_ih = dense(b_ih_, compute), b_hh = dense(b_hh_, compute);
  std::vector<T> bias(b_ih ? 4 * H : 0);
  for (int64_t i = 0; i < static_cast<int64_t>(bias.size()); ++i) bias[i] = data<T>(b_ih)[i] + data<T>(b_hh)[i];

  Tensor gates = product(torch::stable::view(x, {N, shapes.inputs}), t(w_ih));
  Tensor out = empty(batch.shape(P), compute), h_n = empty({B, P}, compute), c_n = empty({B, H}, compute);
  const bool states_apart = save && (dtype != compute || (masks.flags & FLAG_UNZONED));
  Tensor cells = save ? empty({N, H}, compute) : nothing(compute);
  Tensor states = states_apart ? empty({N, P}, compute) : nothing(compute);
  kernels().of<T>().lstm_forward({parallel(), batch.sequence, masks, H, P, data<T>(w_hh), data<T>(w_hr),
                                  b_ih ? bias.data() : nullptr, data<T>(h0), data<T>(c0), data<T>(gates),
                                  save ? data<T>(cells) : nullptr, states_apart ? data<T>(states) : nullptr,
                                  data<T>(out), data<T>(h_n), data<T>(c_n)});
  if (save != SAVE_ALL) gates = nothing(compute);
  return {in_type(out, dtype), in_type(h_n, dtype), in_type(c_n, dtype), gates, cells, states};
}

Forward lstm_forward(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                     const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& w_hr,
                     const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng_state,
                     const MaybeTensor& rng_hidden, const MaybeTensor& rng_weight, const MaybeTensor& thresholds,
                     ScalarType dtype, int64_t flags, int64_t layer, bool reverse, int64_t step_offset, int64_t save) {
  const Shapes shapes(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
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
                  const Tensor& cells_, const Tensor& states, const Shapes& shapes, const Batch& batch,
                  const cpu::Masks& masks, int64_t needs) {
  constexpr ScalarType compute = scalar_type<T>;
  const cpu::TypedKernels<T>& run = kernels().of<T>();
  const int64_t H = shapes.units, P = shapes.projected, B = batch.sequence.batch, N = batch.sequence.rows;
  const Tensor cells = saved_as("cells", cells_, compute, {N, H});
  const Tensor x = torch::stable::view(dense(x_, compute), {N, shapes.inputs});
  const Tensor h0 = dense(h0_, compute), c0 = dense(c0_, compute);
  const Tensor h = torch::stable::view(dense(states, compute), {N, P});
  const Tensor w_ih = read_weight<T>(w_ih_, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, masks);
  const Tensor w_hh = read_weight<T>(w_hh_, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, masks);
  const MaybeTensor w_hr =
      w_hr_ ? MaybeTensor(read_weight<T>(*w_hr_, FLAG_WEIGHT_HR, KIND_WEIGHT_HR, masks)) : std::nullopt;
  check_floating("grad_out", grad_out);
  check_floating("grad_h_n", grad_h_n);
  check_floating("grad_c_n", grad_c_n);
  check_floating("states", states);
  const MaybeTensor dout = dense(grad_out, compute), dh_n = dense(grad_h_n, compute), dc_n = dense(grad_c_n, compute);
  check_shape("grad_out", dout, batch.shape(P));
  check_shape("grad_h_n", dh_n, {B, P});
  check_shape("grad_c_n", dc_n, {B, H});

  const bool recompute = saved.dim() == 1;  // the forward kept no gates
  MaybeTensor operand;
  if (recompute || (needs & NEEDS_W_HH)) {
    operand = empty({N, P}, compute);
    run.read_operand({parallel(), batch.sequence, masks, P, data<T>(h), data<T>(h0), data<T>(*operand), /*gru=*/false});
  }
  Tensor gates = saved;
  if (recompute) {
    const MaybeTensor b_ih = dense(b_ih_, compute), b_hh = dense(b_hh_, compute);
    gates = product(x, t(w_ih));
    const Tensor recurrent = product(*operand, t(w_hh));
    run.lstm_activate({parallel(), N, H, data<T>(recurrent), data<T>(b_ih), data<T>(b_hh), data<T>(gates), nullptr});
  }
  gates = saved_as("gates", gates, compute, {N, 4 * H});
  Tensor dgates = empty({N, 4 * H}, compute), dh0 = empty({B, P}, compute), dc0 = empty({B, H}, compute);
  const Tensor dprojected = w_hr ? empty({N, P}, compute) : nothing(compute);
  const Tensor outputs = w_hr ? empty({N, H}, compute) : nothing(compute);
  run.lstm_backward({parallel(), batch.sequence, masks, H, P, data<T>(w_hh), data<T>(w_hr), data<T>(c0), data<T>(cells),
                     data<T>(dout), data<T>(dh_n), data<T>(dc_n), data<T>(gates), data<T>(dgates), data<T>(dprojected),
                     data<T>(outputs), data<T>(dh0), data<T>(dc0)});

  Tensor dx = nothing(compute), dw_ih = nothing(compute), dw_hh = nothing(compute), db = nothing(compute);
  Tensor dw_hr = nothing(compute);
  if (needs & NEEDS_X) dx = torch::stable::view(product(dgates, w_ih), batch.shape(shapes.inputs));
  if (needs & NEEDS_W_IH) {
    dw_ih = product(t(dgates), x);
    mask_gradient<T>(dw_ih, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, masks);
  }
  if (needs & NEEDS_W_HH) {
    dw_hh = product(t(dgates), *operand);
    mask_gradient<T>(dw_hh, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, masks);
  }
  if (needs & NEEDS_BIAS) db = column_sums<T>(dgates);
  if (w_hr && (needs & NEEDS_W_HR)) {
    dw_hr = product(t(dprojected), outputs);
    mask_gradient<T>(dw_hr, FLAG_WEIGHT_HR, KIND_WEIGHT_HR, masks);
  }
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
  const Shapes shapes(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
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
