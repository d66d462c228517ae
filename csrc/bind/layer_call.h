// The layer operators, of any cell and device: their arguments, what these mean for one direction, and the operators
// themselves. What a device adds is how it runs one direction; `LayerOperators` says in which form.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "bind/arguments.h"
#include "core/cells.h"

namespace frd::bind {

using TensorList = std::vector<Tensor>;
using MaybeTensorList = std::vector<MaybeTensor>;

// The tensors that one direction is made of; none where a cell has not got them.
struct Tensors {
  Tensor x, h0;
  MaybeTensor c0;
  Tensor w_ih, w_hh;
  MaybeTensor b_ih, b_hh, w_hr;
};

// The rest of what it is given.
struct Settings {
  MaybeTensor batch_sizes, example_ids, rng, thresholds;
  ScalarType dtype;  // of the results
  int64_t flags, layer;
  bool reverse;
  int64_t step_offset;
};

// One direction of a call. `index` of `count` says which columns of y are its own: P of them, from index * P on.
struct Direction {
  Cell cell;
  Tensors tensors;
  Settings settings;
  int64_t index, count;
};

inline constexpr int64_t FORWARD = 1, REVERSE = 2;  // bits of `directions`

inline Keep check_keep(int64_t keep) {
  STD_TORCH_CHECK(keep >= KEEP_NOTHING && keep <= KEEP_STATES, "keep must be 0, 1 or 2, got ", keep);
  return static_cast<Keep>(keep);
}

// The arguments that the operators share, in the order of their schemas.
struct LayerCall {
  int64_t cell;
  Tensor x;
  TensorList states, weights;
  MaybeTensor batch_sizes, example_ids, rng, thresholds;
  ScalarType dtype;
  int64_t flags, layer, directions, step_offset, schedule, keep;

  std::vector<Direction> each() const {
    STD_TORCH_CHECK(cell >= 0 && cell < NUM_CELLS, "cell must be in [0, ", static_cast<int>(NUM_CELLS), "), got ",
                    cell);
    STD_TORCH_CHECK(directions > 0 && directions <= (FORWARD | REVERSE), "directions must be 1, 2 or 3, got ",
                    directions);
    STD_TORCH_CHECK(schedule == 0, "schedule must be 0, which runs every layer, got ", schedule);
    const CellInfo& info = CELLS[cell];
    const size_t count = directions == (FORWARD | REVERSE) ? 2 : 1, of_states = info.has_c ? 2 : 1;
    STD_TORCH_CHECK(states.size() == count * of_states, "states must hold ", info.has_c ? "h0 and c0" : "h0",
                    " of each direction, ", count * of_states, " tensors, got ", states.size());
    const size_t of_weights = weights.size() / count;
    const bool projects = of_weights % 2, whole = weights.size() % count == 0;
    STD_TORCH_CHECK(whole && of_weights >= 2 && of_weights <= 5 && (!projects || info.projects),
                    "weights must hold w_ih and w_hh, then b_ih and b_hh where there are biases",
                    info.projects ? ", then w_hr where there is a projection," : ",", " of each direction, got ",
                    weights.size(), " tensors for ", count);
    std::vector<Direction> found;
    for (size_t i = 0; i < count; ++i) {
      const Tensor *s = &states[i * of_states], *w = &weights[i * of_weights];
      const auto maybe = [](bool there, const Tensor* t) { return there ? MaybeTensor(*t) : std::nullopt; };
      found.push_back({.cell = static_cast<Cell>(cell),
                       .tensors = {.x = x,
                                   .h0 = s[0],
                                   .c0 = maybe(info.has_c, s + 1),
                                   .w_ih = w[0],
                                   .w_hh = w[1],
                                   .b_ih = maybe(of_weights >= 4, w + 2),
                                   .b_hh = maybe(of_weights >= 4, w + 3),
                                   .w_hr = maybe(projects, w + of_weights - 1)},
                       .settings = {.batch_sizes = batch_sizes,
                                    .example_ids = example_ids,
                                    .rng = rng,
                                    .thresholds = thresholds,
                                    .dtype = dtype,
                                    .flags = flags,
                                    .layer = layer,
                                    .reverse = directions == REVERSE || i == 1,
                                    .step_offset = step_offset},
                       .index = static_cast<int64_t>(i),
                       .count = static_cast<int64_t>(count)});
    }
    return found;
  }
};

// What one direction leaves beside its columns of y.
struct Forward {
  Tensor h_n;
  MaybeTensor c_n;
  Tensor gates, beside, states;  // what is kept; each is empty where it is not
};

// What the backward of one direction is given beside the layer. The first two are of all directions.
struct Kept {
  MaybeTensor grad_y, y;  // y where the h that backward reads is not kept apart from it
  MaybeTensor grad_h_n, grad_c_n;
  Tensor gates, beside, states;
};

struct Gradients {
  Tensor x, h0;
  MaybeTensor c0;
  Tensor w_ih, w_hh, b_ih, b_hh, w_hr;  // each is empty where nobody asks; b_hh too where it is that of b_ih
};

// The `needs` of one direction: the bits of its own weights, in the place where those of the first one are.
inline int64_t needs_of(int64_t needs, int64_t index) {
  constexpr int64_t bits = 4;  // a direction
  return (needs & NEEDS_X) | ((needs >> bits * index) & (NEEDS_W_IH | NEEDS_W_HH | NEEDS_BIAS | NEEDS_W_HR));
}

// The operators of a device.
//
//     static Forward Device::forward(const Direction&, Keep, MaybeTensor& y)
//         fills its columns of y, which it makes where there is none
//     static Gradients Device::backward(const Direction&, Keep, const Kept&, int64_t needs)
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
  static Results run(const LayerCall& call) {
    const Keep keep = check_keep(call.keep);
    check_floating("dtype", call.dtype);
    MaybeTensor y;
    TensorList last, kept;
    for (const Direction& direction : call.each()) {
      const Forward found = Device::forward(direction, keep, y);
      last.push_back(found.h_n);
      if (found.c_n) last.push_back(*found.c_n);
      kept.insert(kept.end(), {found.gates, found.beside, found.states});
    }
    return {in_type(*y, call.dtype), last, kept};
  }

  static Results run_backward(const LayerCall& call, const MaybeTensor& grad_y, const MaybeTensorList& grad_last,
                              const MaybeTensor& y, const TensorList& kept, int64_t needs) {
    const Keep keep = check_keep(call.keep);
    STD_TORCH_CHECK(keep != KEEP_NOTHING, "keep must be 1 or 2 in a backward, which reads what its forward kept");
    check_floating("dtype", call.dtype);
    check_floating("grad_y", grad_y);
    const std::vector<Direction> directions = call.each();
    STD_TORCH_CHECK(grad_last.size() == call.states.size(), "grad_last must have an element for each of states, ",
                    call.states.size(), ", got ", grad_last.size());
    STD_TORCH_CHECK(kept.size() == 3 * directions.size(), "kept must hold gates, beside and states of each direction, ",
                    3 * directions.size(), " tensors, got ", kept.size());
    MaybeTensor dx;
    TensorList dstates, dweights;
    for (const Direction& d : directions) {
      const MaybeTensor* grads = &grad_last[d.index * (grad_last.size() / d.count)];
      const Tensor* of = &kept[3 * d.index];
      const Gradients found = Device::backward(d, keep,
                                               {.grad_y = grad_y,
                                                .y = y,
                                                .grad_h_n = grads[0],
                                                .grad_c_n = d.tensors.c0 ? grads[1] : std::nullopt,
                                                .gates = of[0],
                                                .beside = of[1],
                                                .states = of[2]},
                                               needs_of(needs, d.index));
      dx = dx ? torch::stable::subtract(*dx, found.x, -1.0) : found.x;  // their sum: the stable ABI has no other
      dstates.push_back(found.h0);
      if (found.c0) dstates.push_back(*found.c0);
      dweights.insert(dweights.end(), {found.w_ih, found.w_hh});
      if (d.tensors.b_ih) dweights.insert(dweights.end(), {found.b_ih, found.b_hh});
      if (d.tensors.w_hr) dweights.push_back(found.w_hr);
    }
    return {*dx, dstates, dweights};
  }
};

}  // namespace frd::bind
