// The layer operators of every device, of any cell: one layer in one direction, its arguments checked, its results.
#pragma once

#include <optional>
#include <vector>

#include "bind/arguments.h"
#include "core/cells.h"

namespace frd::bind {

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
struct LayerArguments {
  LayerArguments(Cell cell, const Tensors& given, const Settings& s)
      : cell(cell),
        given(given),
        shapes(info(), given.x, given.h0, given.c0, given.w_ih, given.w_hh, given.b_ih, given.b_hh, given.w_hr),
        dtype(checked(s.dtype)),
        compute(dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
        batch(given.x, s.batch_sizes, given.h0.size(0), s.reverse) {}

  const CellInfo& info() const { return CELLS[cell]; }
  int64_t rows() const { return batch.sequence.rows; }
  int64_t gate_rows() const { return info().gates * shapes.units; }
  std::vector<int64_t> of_h() const { return {batch.sequence.batch, shapes.projected}; }
  std::vector<int64_t> of_c() const { return {batch.sequence.batch, shapes.units}; }

  const Cell cell;
  const Tensors given;
  const LayerShapes shapes;
  const ScalarType dtype, compute;  // of the results; of what goes from step to step
  const Batch batch;

 private:
  static ScalarType checked(ScalarType dtype) {
    check_floating("dtype", dtype);
    return dtype;
  }
};

struct Forward {
  Tensor out, h_n;
  MaybeTensor c_n;
  Tensor gates, beside, states;  // what is kept
};

// What a backward is given beside the layer: gradients, and what the forward kept. `beside` is called by its name in
// the operator.
struct Kept {
  MaybeTensor grad_out, grad_h_n, grad_c_n;
  Tensor gates, beside, states;
  const char* name_of_beside;

  bool has_gates() const { return gates.dim() != 1; }

  // The same, checked and dense. `value`: the type in which a forward keeps values; c is kept in that of compute.
  Kept dense(const LayerArguments& l, ScalarType value) const {
    const int64_t units = l.shapes.units, projected = l.shapes.projected;
    Kept found = *this;
    if (l.info().keeps_beside(has_gates()))
      found.beside = saved_as(name_of_beside, beside, l.info().has_c ? l.compute : value, {l.rows(), units}, l.given.x);
    if (has_gates()) found.gates = saved_as("gates", gates, value, {l.rows(), l.gate_rows()}, l.given.x);
    check_floating("grad_out", grad_out);
    check_floating("grad_h_n", grad_h_n);
    check_floating("grad_c_n", grad_c_n);
    check_floating("states", states);
    found.states = torch::stable::view(bind::dense(states, value), {l.rows(), projected});
    found.grad_out = bind::dense(grad_out, value);
    found.grad_h_n = bind::dense(grad_h_n, value);
    found.grad_c_n = bind::dense(grad_c_n, value);
    check_shape("grad_out", grad_out, l.batch.shape(projected));
    check_shape("grad_h_n", grad_h_n, l.of_h());
    check_shape("grad_c_n", grad_c_n, l.of_c());
    return found;
  }
};

struct Gradients {
  Tensor x, h0;
  MaybeTensor c0;
  Tensor w_ih, w_hh, b_ih;
  MaybeTensor b_hh;  // none where it is the gradient of b_ih
  Tensor w_hr;

  // Each in the type of what it is the gradient of.
  Gradients in_types_of(const Tensors& given) const {
    const auto as = [](const Tensor& gradient, const MaybeTensor& of) {
      return of ? in_type(gradient, of->scalar_type()) : gradient;
    };
    return {.x = as(x, given.x),
            .h0 = as(h0, given.h0),
            .c0 = c0 ? MaybeTensor(as(*c0, given.c0)) : std::nullopt,
            .w_ih = as(w_ih, given.w_ih),
            .w_hh = as(w_hh, given.w_hh),
            .b_ih = as(b_ih, given.b_ih),
            .b_hh = b_hh ? MaybeTensor(as(*b_hh, given.b_hh)) : std::nullopt,
            .w_hr = as(w_hr, given.w_hr)};
  }
};

}  // namespace frd::bind
