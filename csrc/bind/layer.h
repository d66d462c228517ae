// The layer operators of every device, of any cell: one direction of a layer, its arguments checked, its results; and
// the operators themselves. What a device adds is how it runs one direction: `LayerOperators` says in which form.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "bind/arguments.h"
#include "bind/layer_call.h"
#include "core/cells.h"

namespace frd::bind {

// The arguments of one direction, checked.
struct LayerArguments {
  explicit LayerArguments(const Direction& d) : LayerArguments(d, d.tensors, d.settings) {}

  const CellInfo& info() const { return CELLS[cell]; }
  int64_t rows() const { return batch.sequence.rows; }
  int64_t gate_rows() const { return info().gates * shapes.units; }
  int64_t width() const { return count * shapes.projected; }  // of y
  int64_t first() const { return index * shapes.projected; }  // of its columns in y
  std::vector<int64_t> of_h() const { return {batch.sequence.batch, shapes.projected}; }
  std::vector<int64_t> of_c() const { return {batch.sequence.batch, shapes.units}; }
  // Whether the h that backward reads is kept apart from y. `value`: the type in which a forward keeps values.
  bool h_apart(ScalarType value) const { return value != dtype || info().output_differs(flags); }

  const Cell cell;
  const int64_t index, count;
  const Tensors& given;
  const LayerShapes shapes;
  const ScalarType dtype, compute;  // of the results; of what goes from step to step
  const Batch batch;
  const uint32_t flags;

 private:
  LayerArguments(const Direction& d, const Tensors& given, const Settings& s)
      : cell(d.cell),
        index(d.index),
        count(d.count),
        given(given),
        shapes(CELLS[d.cell], given.x, given.h0, given.c0, given.w_ih, given.w_hh, given.b_ih, given.b_hh, given.w_hr),
        dtype(s.dtype),
        compute(dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
        batch(given.x, s.batch_sizes, given.h0.size(0), s.reverse),
        flags(static_cast<uint32_t>(s.flags)) {}
};

// What one direction leaves beside its columns of y.
struct Forward {
  Tensor h_n;
  MaybeTensor c_n;
  Tensor gates, beside, states;  // what is kept; each is empty where it is not
};

// One direction's columns of y or of its gradient: rows of P that lie `stride` apart, in a dense copy where the columns
// do not lie so in the right type, or must be alone.
struct Columns {
  Tensor held;
  int64_t first, stride;

  Columns(const LayerArguments& l, const Tensor& all, ScalarType dtype, bool alone)
      : held(all), first(l.first()), stride(l.width()) {
    check_storage(all);
    if (all.scalar_type() == dtype && all.is_contiguous() && (!alone || l.count == 1)) return;
    held = dense(torch::stable::narrow(held, -1, first, l.shapes.projected), dtype);
    first = 0, stride = l.shapes.projected;
  }
  template <class T>
  const T* rows() const {
    return read<T>(held) + first;
  }
};

// What the backward of one direction is given beside the layer. The first two are of all directions.
struct Kept {
  MaybeTensor grad_y, y;  // y where the h that backward reads is not kept apart from it
  MaybeTensor grad_h_n, grad_c_n;
  Tensor gates, beside, states;

  // The same, checked and dense. `value`: the type in which a forward keeps values; c is kept in that of compute.
  // `last`: that of the gradients at the last states.
  Kept dense(const LayerArguments& l, Keep keep, ScalarType value, ScalarType last) const {
    const int64_t units = l.shapes.units, projected = l.shapes.projected;
    const std::vector<int64_t> of_y = l.batch.shape(l.width());
    Kept found = *this;
    if (l.info().keeps_beside(keep))
      found.beside = saved_as("beside", beside, l.info().has_c ? l.compute : value, {l.rows(), units}, l.given.x);
    if (keep == KEEP_ALL) found.gates = saved_as("gates", gates, value, {l.rows(), l.gate_rows()}, l.given.x);
    if (l.h_apart(value)) {
      found.states = saved_as("states", states, value, {l.rows(), projected}, l.given.x);
    } else {
      STD_TORCH_CHECK(y.has_value(), "y is needed where its h are not kept apart");
      found.y = saved_as("y", *y, value, of_y, l.given.x);
    }
    check_floating("grad_h_n", grad_h_n);
    check_floating("grad_c_n", grad_c_n);
    check_shape("grad_y", grad_y, of_y);
    check_shape("grad_h_n", grad_h_n, l.of_h());
    check_shape("grad_c_n", grad_c_n, l.of_c());
    found.grad_h_n = bind::dense(grad_h_n, last);
    found.grad_c_n = bind::dense(grad_c_n, last);
    return found;
  }

  // Of what dense() returns: h after each step, and the gradient at each output, which may be missing.
  Columns h(const LayerArguments& l, ScalarType value, bool alone) const {
    if (!l.h_apart(value)) return Columns(l, *y, value, alone);
    Columns found(l, states, value, false);
    found.first = 0, found.stride = l.shapes.projected;
    return found;
  }
  std::optional<Columns> dout(const LayerArguments& l, ScalarType value, bool alone) const {
    return grad_y ? std::optional<Columns>(std::in_place, l, *grad_y, value, alone) : std::nullopt;
  }
};

struct Gradients {
  Tensor x, h0;
  MaybeTensor c0;
  Tensor w_ih, w_hh, b_ih, b_hh, w_hr;  // each is empty where nobody asks; b_hh too where it is that of b_ih

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
            .b_hh = as(b_hh, given.b_hh),
            .w_hr = as(w_hr, given.w_hr)};
  }
};

// The `needs` of one direction: the bits of its own weights, in the place where those of the first one are.
inline int64_t needs_of(int64_t needs, int64_t index) {
  constexpr int64_t bits = 4;  // a direction
  return (needs & NEEDS_X) | ((needs >> bits * index) & (NEEDS_W_IH | NEEDS_W_HH | NEEDS_BIAS | NEEDS_W_HR));
}

// What the backward of one direction is asked for.
struct BackwardOf {
  const Direction& direction;
  Kept kept;
  int64_t needs;
};

// The schedule that runs every layer, which each device has.
inline constexpr int64_t EVERY_LAYER = 0;

// The operators of a device.
//
//     static void Device::check_schedule(int64_t)
//         throws where it has none of that number
//     static std::vector<Forward> Device::forward(const std::vector<Direction>&, Keep, MaybeTensor& y)
//         fills the columns of each in y, which it makes
//     static std::vector<Gradients> Device::backward(const std::vector<BackwardOf>&, Keep)
//     static Tensor Device::masked(const LayerCall&, const char* name, const Tensor& rows)
//         what a layer reads, for all directions, or its gradient, where the two above do not mask it
template <class Device>
struct LayerOperators {
  using Results = std::tuple<Tensor, TensorList, TensorList>;

  // Below autograd nothing is kept, whatever `keep` says.
  static std::tuple<Tensor, TensorList> layer(int64_t cell, const Tensor& x, const TensorList& states,
                                              const TensorList& weights, const MaybeTensor& batch_sizes,
                                              const MaybeTensor& example_ids, const MaybeTensor& rng,
                                              const MaybeTensor& thresholds, ScalarType dtype, int64_t flags,
                                              int64_t layer, int64_t directions, int64_t step_offset, int64_t schedule,
                                              int64_t keep) {
    check_keep(keep);
    const Results found = run({cell, x, states, weights, batch_sizes, example_ids, rng, thresholds, dtype, flags, layer,
                               directions, step_offset, schedule, KEEP_NOTHING});
    return {std::get<0>(found), std::get<1>(found)};
  }

  static Results layer_forward(int64_t cell, const Tensor& x, const TensorList& states, const TensorList& weights,
                               const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng,
                               const MaybeTensor& thresholds, ScalarType dtype, int64_t flags, int64_t layer,
                               int64_t directions, int64_t step_offset, int64_t schedule, int64_t keep) {
    return run({cell, x, states, weights, batch_sizes, example_ids, rng, thresholds, dtype, flags, layer, directions,
                step_offset, schedule, keep});
  }

  static Results layer_backward(const MaybeTensor& grad_y, const MaybeTensorList& grad_last, int64_t cell,
                                const Tensor& x, const TensorList& states, const TensorList& weights,
                                const MaybeTensor& batch_sizes, const MaybeTensor& example_ids, const MaybeTensor& rng,
                                const MaybeTensor& thresholds, ScalarType dtype, int64_t flags, int64_t layer,
                                int64_t directions, int64_t step_offset, int64_t schedule, int64_t keep,
                                const MaybeTensor& y, const TensorList& kept, int64_t needs) {
    return run_backward({cell, x, states, weights, batch_sizes, example_ids, rng, thresholds, dtype, flags, layer,
                         directions, step_offset, schedule, keep},
                        grad_y, grad_last, y, kept, needs);
  }

 private:
  static Results run(LayerCall call) {
    const Keep keep = check_keep(call.keep);
    check_floating("dtype", call.dtype);
    call.x = Device::masked(call, "x", call.x);
    MaybeTensor y;
    TensorList last, kept;
    Device::check_schedule(call.schedule);
    for (const Forward& found : Device::forward(call.each(), keep, y)) {
      last.push_back(found.h_n);
      if (found.c_n) last.push_back(*found.c_n);
      kept.insert(kept.end(), {found.gates, found.beside, found.states});
    }
    return {in_type(*y, call.dtype), last, kept};
  }

  static Results run_backward(LayerCall call, MaybeTensor grad_y, const MaybeTensorList& grad_last,
                              const MaybeTensor& y, const TensorList& kept, int64_t needs) {
    const Keep keep = check_keep(call.keep);
    STD_TORCH_CHECK(keep != KEEP_NOTHING, "keep must be 1 or 2 in a backward, which reads what its forward kept");
    check_floating("dtype", call.dtype);
    check_floating("grad_y", grad_y);
    Device::check_schedule(call.schedule);
    std::vector<Direction> directions = call.each();
    STD_TORCH_CHECK(grad_last.size() == call.states.size(), "grad_last must have an element for each of states, ",
                    call.states.size(), ", got ", grad_last.size());
    STD_TORCH_CHECK(kept.size() == 3 * directions.size(), "kept must hold gates, beside and states of each direction, ",
                    3 * directions.size(), " tensors, got ", kept.size());
    bool reads_x = keep == KEEP_STATES;
    for (const Direction& d : directions) reads_x = reads_x || (needs_of(needs, d.index) & NEEDS_W_IH);
    const Tensor x = reads_x ? Tensor(Device::masked(call, "x", call.x)) : call.x;
    std::vector<BackwardOf> passes;
    for (Direction& d : directions) {
      d.tensors.x = x;
      const MaybeTensor* grads = &grad_last[d.index * (grad_last.size() / d.count)];
      const Tensor* of = &kept[3 * d.index];
      passes.push_back({.direction = d,
                        .kept = {.grad_y = grad_y,
                                 .y = y,
                                 .grad_h_n = grads[0],
                                 .grad_c_n = d.tensors.c0 ? grads[1] : std::nullopt,
                                 .gates = of[0],
                                 .beside = of[1],
                                 .states = of[2]},
                        .needs = needs_of(needs, d.index)});
    }
    MaybeTensor dx;
    TensorList dstates, dweights;
    for (const Gradients& found : Device::backward(passes, keep)) {
      dx = dx ? torch::stable::subtract(*dx, found.x, -1.0) : found.x;  // their sum: the stable ABI has no other
      dstates.push_back(found.h0);
      if (found.c0) dstates.push_back(*found.c0);
      dweights.insert(dweights.end(), {found.w_ih, found.w_hh});
      if (directions[0].tensors.b_ih) dweights.insert(dweights.end(), {found.b_ih, found.b_hh});
      if (directions[0].tensors.w_hr) dweights.push_back(found.w_hr);
    }
    if (needs & NEEDS_X) dx = Device::masked(call, "dx", *dx);
    return {*dx, dstates, dweights};
  }
};

}  // namespace frd::bind
