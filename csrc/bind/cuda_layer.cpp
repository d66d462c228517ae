// The layer operators on a GPU, of any cell: a layer's tensors as the schedules take them, its results. The operators
// at the end of the file are the only part that knows their schemas.
#include <tuple>
#include <vector>

#include "bind/cuda_tensors.h"
#include "bind/layer.h"
#include "cuda/layer.h"

namespace frd::bind {
namespace {

// The arguments of one call, on the device.
class Layer : public LayerArguments {
 public:
  Layer(Cell cell, const Tensors& given, const Settings& s)
      : LayerArguments(cell, given, s),
        device(on_one_device(given)),
        random(given.x, s.example_ids, s.rng_state, s.rng_hidden, s.rng_weight, s.thresholds, s.flags, s.layer,
               s.reverse, s.step_offset, batch.sequence),
        dense{bind::dense(given.x, dtype),      bind::dense(given.h0, compute),
              bind::dense(given.c0, compute),   in_own_type(given.w_ih),
              in_own_type(given.w_hh),          bind::dense(given.b_ih, compute),
              bind::dense(given.b_hh, compute), given.w_hr ? MaybeTensor(in_own_type(*given.w_hr)) : std::nullopt} {}

  // Their memory lives as long as this does.
  template <class D>
  cuda::LayerInputs<D> inputs() const {
    using S = cuda::State<D>;
    cuda::LayerInputs<D> p;
    p.cell = cell;
    p.sequence = batch.sequence;
    p.random = random.random;
    p.inputs = shapes.inputs;
    p.units = shapes.units;
    p.projected = shapes.projected;
    p.x = read<D>(dense.x);
    p.w_ih = weight_of(dense.w_ih, FLAG_WEIGHT_IH, KIND_WEIGHT_IH);
    p.w_hh = weight_of(dense.w_hh, FLAG_WEIGHT_HH, KIND_WEIGHT_HH);
    p.w_hr = weight_of(dense.w_hr, FLAG_WEIGHT_HR, KIND_WEIGHT_HR);
    p.b_ih = read<S>(dense.b_ih);
    p.b_hh = read<S>(dense.b_hh);
    p.h0 = read<S>(dense.h0);
    p.c0 = read<S>(dense.c0);
    return p;
  }

  const Device device;
  const Random random;
  const Tensors dense;  // x in `dtype`, states and biases in `compute`, weights in their own types

 private:
  static const Tensor& on_one_device(const Tensors& t) {
    check_devices(t.x, t.h0, t.c0, t.w_ih, t.w_hh, t.b_ih, t.b_hh, t.w_hr);
    return t.x;
  }
  static Tensor in_own_type(const Tensor& t) { return bind::dense(t, t.scalar_type()); }
};

template <class D>
Forward forward_in(const Layer& l, int64_t save) {
  using S = cuda::State<D>;
  const Device& device = l.device;
  const bool has_c = l.info().has_c, all = save == KEEP_ALL, beside = save && l.info().keeps_beside(all);
  const bool states = save && l.info().output_differs(l.random.random.flags);
  const Forward found{.out = device.empty(l.batch.shape(l.shapes.projected), l.dtype),
                      .h_n = device.empty(l.of_h(), l.dtype),
                      .c_n = has_c ? MaybeTensor(device.empty(l.of_c(), l.dtype)) : std::nullopt,
                      .gates = device.room(all, {l.rows(), l.gate_rows()}, l.dtype),
                      .beside = device.room(beside, {l.rows(), l.shapes.units}, has_c ? l.compute : l.dtype),
                      .states = device.room(states, {l.rows(), l.shapes.projected}, l.dtype)};
  cuda::LayerForward<D> p{l.inputs<D>()};
  p.gates = where<D>(all, found.gates);
  p.cells = where<S>(beside && has_c, found.beside);
  p.apart = where<D>(beside && !has_c, found.beside);
  p.states = where<D>(states, found.states);
  p.out = data<D>(found.out);
  p.h_n = data<D>(found.h_n);
  p.c_n = found.c_n ? data<D>(*found.c_n) : nullptr;
  cuda::alternating(p, device.around());
  return found;
}

Forward forward(const Layer& l, int64_t save) {
  return cuda::with_type(type_of(l.dtype), [&](auto value) { return forward_in<decltype(value)>(l, save); });
}

template <class D>
Gradients backward_in(const Layer& l, const Kept& kept, int64_t needs) {
  using S = cuda::State<D>;
  const Device& device = l.device;
  const int64_t H = l.shapes.units, P = l.shapes.projected, GH = l.gate_rows();
  check_devices(l.given.x, kept.gates, kept.beside, kept.states, kept.grad_out, kept.grad_h_n, kept.grad_c_n);
  const Kept k = kept.dense(l, l.dtype);
  const bool beside = l.info().keeps_beside(k.has_gates()), has_c = l.info().has_c;

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  const bool wants_hr = l.given.w_hr && wants(NEEDS_W_HR), wants_bias = wants(NEEDS_BIAS);
  const auto of_weight = [&](bool wanted, const MaybeTensor& weight, int64_t rows, int64_t columns) {
    return device.room(wanted, {rows, columns}, weight ? weight->scalar_type() : l.compute);
  };
  const Tensor dx = device.room(wants(NEEDS_X), l.batch.shape(l.shapes.inputs), l.dtype);
  const Tensor dh0 = device.empty(l.of_h(), l.compute);
  const MaybeTensor dc0 = has_c ? MaybeTensor(device.empty(l.of_c(), l.compute)) : std::nullopt;
  const Tensor dw_ih = of_weight(wants(NEEDS_W_IH), l.given.w_ih, GH, l.shapes.inputs);
  const Tensor dw_hh = of_weight(wants(NEEDS_W_HH), l.given.w_hh, GH, P);
  const Tensor dw_hr = of_weight(wants_hr, l.given.w_hr, P, H);
  const Tensor db_ih = device.room(wants_bias, {GH}, l.compute);
  const MaybeTensor db_hh = l.info().apart ? MaybeTensor(device.room(wants_bias, {GH}, l.compute)) : std::nullopt;
  cuda::LayerBackward<D> p{l.inputs<D>()};
  p.gates = k.has_gates() ? read<D>(k.gates) : nullptr;
  p.cells = beside && has_c ? read<S>(k.beside) : nullptr;
  p.apart = beside && !has_c ? read<D>(k.beside) : nullptr;
  p.states = read<D>(k.states);
  p.dout = read<D>(k.grad_out);
  p.dh_n = read<D>(k.grad_h_n);
  p.dc_n = read<D>(k.grad_c_n);
  p.dx = where<D>(wants(NEEDS_X), dx);
  p.dw_ih = where<void>(wants(NEEDS_W_IH), dw_ih);
  p.dw_hh = where<void>(wants(NEEDS_W_HH), dw_hh);
  p.dw_hr = where<void>(wants_hr, dw_hr);
  p.db_ih = where<S>(wants_bias, db_ih);
  p.db_hh = db_hh ? where<S>(wants_bias, *db_hh) : nullptr;
  p.dh0 = data<S>(dh0);
  p.dc0 = dc0 ? data<S>(*dc0) : nullptr;
  cuda::alternating(p, device.around());
  return Gradients{dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr}.in_types_of(l.given);
}

Gradients backward(const Layer& l, const Kept& k, int64_t needs) {
  return cuda::with_type(type_of(l.dtype), [&](auto value) { return backward_in<decltype(value)>(l, k, needs); });
}

// The operators. Those without a suffix keep nothing, whatever `recompute` says: they are below autograd.

using Results2 = std::tuple<Tensor, Tensor>;
using Results3 = std::tuple<Tensor, Tensor, Tensor>;
using Results5 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Results6 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Results7 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// What every operator is given between the tensors of its cell and its last argument: parameters, and the same names as
// arguments.
#define FRD_SETTINGS_OF_TENSORS                                                                                        \
  const MaybeTensor &batch_sizes, const MaybeTensor &example_ids, const MaybeTensor &rng_state,                        \
      const MaybeTensor &rng_hidden, const MaybeTensor &rng_weight, const MaybeTensor &thresholds
#define FRD_SETTINGS_OF_NUMBERS ScalarType dtype, int64_t flags, int64_t layer, bool reverse, int64_t step_offset
#define FRD_SETTINGS                                                                                                   \
  {batch_sizes, example_ids, rng_state, rng_hidden, rng_weight, thresholds, dtype, flags, layer, reverse, step_offset}
#define FRD_LSTM_TENSORS                                                                                               \
  const Tensor &x, const Tensor &h0, const Tensor &c0, const Tensor &w_ih, const Tensor &w_hh,                         \
      const MaybeTensor &b_ih, const MaybeTensor &b_hh, const MaybeTensor &w_hr
#define FRD_LSTM_LAYER {LSTM, {x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr}, FRD_SETTINGS}
#define FRD_GRU_TENSORS                                                                                                \
  const Tensor &x, const Tensor &h0, const Tensor &w_ih, const Tensor &w_hh, const MaybeTensor &b_ih,                  \
      const MaybeTensor &b_hh
#define FRD_GRU_LAYER {GRU, {x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, std::nullopt}, FRD_SETTINGS}

Results6 lstm_forward(FRD_LSTM_TENSORS, FRD_SETTINGS_OF_TENSORS, FRD_SETTINGS_OF_NUMBERS, int64_t save) {
  const Forward f = forward(FRD_LSTM_LAYER, save);
  return {f.out, f.h_n, *f.c_n, f.gates, f.beside, f.states};
}
Results3 lstm(FRD_LSTM_TENSORS, FRD_SETTINGS_OF_TENSORS, FRD_SETTINGS_OF_NUMBERS, bool /*recompute*/) {
  const Forward f = forward(FRD_LSTM_LAYER, KEEP_NOTHING);
  return {f.out, f.h_n, *f.c_n};
}
Results7 lstm_backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                       FRD_LSTM_TENSORS, FRD_SETTINGS_OF_TENSORS, const Tensor& gates, const Tensor& cells,
                       const Tensor& states, FRD_SETTINGS_OF_NUMBERS, int64_t needs) {
  const Gradients g = backward(FRD_LSTM_LAYER, {grad_out, grad_h_n, grad_c_n, gates, cells, states, "cells"}, needs);
  return {g.x, g.h0, *g.c0, g.w_ih, g.w_hh, g.b_ih, g.w_hr};
}

Results5 gru_forward(FRD_GRU_TENSORS, FRD_SETTINGS_OF_TENSORS, FRD_SETTINGS_OF_NUMBERS, int64_t save) {
  const Forward f = forward(FRD_GRU_LAYER, save);
  return {f.out, f.h_n, f.gates, f.beside, f.states};
}
Results2 gru(FRD_GRU_TENSORS, FRD_SETTINGS_OF_TENSORS, FRD_SETTINGS_OF_NUMBERS, bool /*recompute*/) {
  const Forward f = forward(FRD_GRU_LAYER, KEEP_NOTHING);
  return {f.out, f.h_n};
}
Results6 gru_backward(const MaybeTensor& grad_out, const MaybeTensor& grad_h_n, FRD_GRU_TENSORS,
                      FRD_SETTINGS_OF_TENSORS, const Tensor& gates, const Tensor& resets, const Tensor& states,
                      FRD_SETTINGS_OF_NUMBERS, int64_t needs) {
  const Gradients g =
      backward(FRD_GRU_LAYER, {grad_out, grad_h_n, std::nullopt, gates, resets, states, "resets"}, needs);
  return {g.x, g.h0, g.w_ih, g.w_hh, g.b_ih, *g.b_hh};
}

}  // namespace

FRD_CUDA_LIBRARY_IMPL(m) {
  m.impl("lstm", TORCH_BOX(&lstm));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
  m.impl("gru", TORCH_BOX(&gru));
  m.impl("gru_forward", TORCH_BOX(&gru_forward));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}

}  // namespace frd::bind
