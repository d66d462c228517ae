// The layer operators on the CPU, of any cell: one layer in one direction, its arguments checked, its tensors as the
// kernels take them, its results. The operators at the end of the file are the only part that knows their schemas.
#include <optional>
#include <tuple>
#include <vector>

#include "bind/tensors.h"
#include "core/cells.h"
#include "cpu/layer.h"

namespace frd::bind {
namespace {

// The tensors that a layer is made of; none where a cell has not got them.
struct Tensors {
  Tensor x, h0;
  MaybeTensor c0;
  Tensor w_ih, w_hh;
  MaybeTensor b_ih, b_hh, w_hr;
};

// The rest of what an operator is given.
struct Settings {
  MaybeTensor batch_sizes, example_ids, rng_state, rng_hidden, rng_weight, thresholds;
  ScalarType dtype;  // of the results
  int64_t flags, layer;
  bool reverse;
  int64_t step_offset;
};

// The arguments of one call, checked.
class Layer {
 public:
  Layer(Cell cell, const Tensors& given, const Settings& s)
      : cell(cell),
        given(given),
        shapes(info(), given.x, given.h0, given.c0, given.w_ih, given.w_hh, given.b_ih, given.b_hh, given.w_hr),
        dtype(checked(s.dtype)),
        compute(dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
        batch(given.x, s.batch_sizes, given.h0.size(0), s.reverse),
        random(s.example_ids, s.rng_state, s.rng_hidden, s.rng_weight, s.thresholds, s.flags, s.layer, s.reverse,
               s.step_offset, batch.sequence.batch, batch.sequence.steps),
        dense{in_compute(given.x),    in_compute(given.h0),   in_compute(given.c0),   in_compute(given.w_ih),
              in_compute(given.w_hh), in_compute(given.b_ih), in_compute(given.b_hh), in_compute(given.w_hr)} {}

  const CellInfo& info() const { return CELLS[cell]; }
  int64_t rows() const { return batch.sequence.rows; }
  int64_t gate_rows() const { return info().gates * shapes.units; }
  std::vector<int64_t> of_h() const { return {batch.sequence.batch, shapes.projected}; }
  std::vector<int64_t> of_c() const { return {batch.sequence.batch, shapes.units}; }
  Tensor empty(const std::vector<int64_t>& shape) const { return bind::empty(shape, compute); }
  Tensor room(bool wanted, const std::vector<int64_t>& shape) const { return bind::room(wanted, shape, compute); }

  // The numbers as the kernels take them, which live as long as this does.
  template <class T>
  cpu::LayerInputs<T> inputs() const {
    cpu::LayerInputs<T> p;
    p.parallel = parallel();
    p.sequence = batch.sequence;
    p.masks = random.masks;
    p.inputs = shapes.inputs;
    p.units = shapes.units;
    p.projected = shapes.projected;
    p.x = read<T>(dense.x);
    p.w_ih = read<T>(dense.w_ih);
    p.w_hh = read<T>(dense.w_hh);
    p.w_hr = read<T>(dense.w_hr);
    p.b_ih = read<T>(dense.b_ih);
    p.b_hh = read<T>(dense.b_hh);
    p.h0 = read<T>(dense.h0);
    p.c0 = read<T>(dense.c0);
    return p;
  }

  const Cell cell;
  const Tensors given;
  const LayerShapes shapes;
  const ScalarType dtype, compute;
  const Batch batch;
  const Random random;
  const Tensors dense;  // in `compute`

 private:
  static ScalarType checked(ScalarType dtype) {
    check_floating("dtype", dtype);
    return dtype;
  }
  template <class Maybe>
  Maybe in_compute(const Maybe& t) const {
    return bind::dense(t, compute);
  }
};

struct Forward {
  Tensor out, h_n;
  MaybeTensor c_n;
  Tensor gates, beside, states;  // what is kept
};

template <class T>
Forward forward_in(const Layer& l, int64_t save) {
  const bool all = save == KEEP_ALL, beside = save && l.info().keeps_beside(all);
  const bool states = save && (l.dtype != l.compute || l.info().output_differs(l.random.masks.flags));
  Forward found{.out = l.empty(l.batch.shape(l.shapes.projected)),
                .h_n = l.empty(l.of_h()),
                .c_n = l.info().has_c ? MaybeTensor(l.empty(l.of_c())) : std::nullopt,
                .gates = l.room(all, {l.rows(), l.gate_rows()}),
                .beside = l.room(beside, {l.rows(), l.shapes.units}),
                .states = l.room(states, {l.rows(), l.shapes.projected})};
  cpu::LayerForward<T> p{l.inputs<T>()};
  p.sparing = save == KEEP_STATES;
  p.gates = where<T>(all, found.gates);
  p.beside = where<T>(beside, found.beside);
  p.states = where<T>(states, found.states);
  p.out = data<T>(found.out);
  p.h_n = data<T>(found.h_n);
  p.c_n = found.c_n ? data<T>(*found.c_n) : nullptr;
  kernels().of<T>().forward[l.cell](p);
  found.out = in_type(found.out, l.dtype);
  found.h_n = in_type(found.h_n, l.dtype);
  if (found.c_n) found.c_n = in_type(*found.c_n, l.dtype);
  return found;
}

Forward forward(const Layer& l, int64_t save) {
  return l.compute == ScalarType::Double ? forward_in<double>(l, save) : forward_in<float>(l, save);
}

// What a backward is given beside the layer: gradients, and what the forward kept. `beside` is called by its name in
// the operator.
struct Kept {
  MaybeTensor grad_out, grad_h_n, grad_c_n;
  Tensor gates, beside, states;
  const char* name_of_beside;
};

struct Gradients {
  Tensor x, h0;
  MaybeTensor c0;
  Tensor w_ih, w_hh, b_ih;
  MaybeTensor b_hh;  // none where it is the gradient of b_ih
  Tensor w_hr;
};

template <class T>
Gradients backward_in(const Layer& l, const Kept& k, int64_t needs) {
  const int64_t H = l.shapes.units, P = l.shapes.projected, N = l.rows(), GH = l.gate_rows();
  const bool all = k.gates.dim() != 1;  // otherwise the forward kept no gates
  const bool has_beside = l.info().keeps_beside(all);
  const Tensor beside = has_beside ? saved_as(k.name_of_beside, k.beside, l.compute, {N, H}, l.given.x) : k.beside;
  const Tensor gates = all ? saved_as("gates", k.gates, l.compute, {N, GH}, l.given.x) : k.gates;
  check_floating("grad_out", k.grad_out);
  check_floating("grad_h_n", k.grad_h_n);
  check_floating("grad_c_n", k.grad_c_n);
  check_floating("states", k.states);
  const Tensor states = torch::stable::view(dense(k.states, l.compute), {N, P});
  const MaybeTensor dout = dense(k.grad_out, l.compute), dh_n = dense(k.grad_h_n, l.compute);
  const MaybeTensor dc_n = dense(k.grad_c_n, l.compute);
  check_shape("grad_out", dout, l.batch.shape(P));
  check_shape("grad_h_n", dh_n, l.of_h());
  check_shape("grad_c_n", dc_n, l.of_c());

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  const bool wants_hr = l.given.w_hr && wants(NEEDS_W_HR), wants_bias = wants(NEEDS_BIAS);
  const Tensor dx = l.room(wants(NEEDS_X), l.batch.shape(l.shapes.inputs)), dh0 = l.empty(l.of_h());
  const MaybeTensor dc0 = l.info().has_c ? MaybeTensor(l.empty(l.of_c())) : std::nullopt;
  const Tensor dw_ih = l.room(wants(NEEDS_W_IH), {GH, l.shapes.inputs}), dw_hh = l.room(wants(NEEDS_W_HH), {GH, P});
  const Tensor dw_hr = l.room(wants_hr, {P, H}), db_ih = l.room(wants_bias, {GH});
  const MaybeTensor db_hh = l.info().apart ? MaybeTensor(l.room(wants_bias, {GH})) : std::nullopt;
  cpu::LayerBackward<T> p{l.inputs<T>()};
  p.gates = all ? read<T>(gates) : nullptr;
  p.beside = has_beside ? read<T>(beside) : nullptr;
  p.states = read<T>(states);
  p.dout = read<T>(dout);
  p.dh_n = read<T>(dh_n);
  p.dc_n = read<T>(dc_n);
  p.dx = where<T>(wants(NEEDS_X), dx);
  p.dw_ih = where<T>(wants(NEEDS_W_IH), dw_ih);
  p.dw_hh = where<T>(wants(NEEDS_W_HH), dw_hh);
  p.dw_hr = where<T>(wants_hr, dw_hr);
  p.db_ih = where<T>(wants_bias, db_ih);
  p.db_hh = db_hh ? where<T>(wants_bias, *db_hh) : nullptr;
  p.dh0 = data<T>(dh0);
  p.dc0 = dc0 ? data<T>(*dc0) : nullptr;
  kernels().of<T>().backward[l.cell](p);

  // Each in the type of what it is the gradient of.
  const auto as = [&l](const Tensor& gradient, const MaybeTensor& given) {
    return given ? in_type(gradient, given->scalar_type()) : gradient;
  };
  return {.x = as(dx, l.given.x),
          .h0 = as(dh0, l.given.h0),
          .c0 = dc0 ? MaybeTensor(as(*dc0, l.given.c0)) : std::nullopt,
          .w_ih = as(dw_ih, l.given.w_ih),
          .w_hh = as(dw_hh, l.given.w_hh),
          .b_ih = as(db_ih, l.given.b_ih),
          .b_hh = db_hh ? MaybeTensor(as(*db_hh, l.given.b_hh)) : std::nullopt,
          .w_hr = as(dw_hr, l.given.w_hr)};
}

Gradients backward(const Layer& l, const Kept& k, int64_t needs) {
  return l.compute == ScalarType::Double ? backward_in<double>(l, k, needs) : backward_in<float>(l, k, needs);
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

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_dropout, CPU, m) {
  m.impl("lstm", TORCH_BOX(&lstm));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
  m.impl("gru", TORCH_BOX(&gru));
  m.impl("gru_forward", TORCH_BOX(&gru_forward));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}

}  // namespace frd::bind
