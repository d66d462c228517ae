// The arguments of the layer operators, and what they mean for each direction: fused_rnn_dropout/layer_call.py in C++.
#pragma once

#include <optional>
#include <string>
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
  int64_t step_offset, schedule;
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

// The kernels of a cell pass over the bits of a site that it does not have.
inline void check_sites(int64_t cell, bool projects, int64_t flags) {
  const auto listed = [](auto is_one) {
    std::string names;
    for (int site = 0; site < NUM_SITES; ++site)
      if (is_one(site)) names.append(names.empty() ? "" : ", ").append(SITE_NAMES[site]);
    return names;
  };
  const auto has = [cell](int site) { return CELLS[cell].has_site(site); };
  const auto absent = [has, flags](int site) { return !has(site) && (flags & SITE_FLAGS[site]); };
  for (int site = 0; site < NUM_SITES; ++site)
    STD_TORCH_CHECK(!absent(site), "flags must be of sites that cell ", cell, " has: ", listed(has), "; got that of ",
                    listed(absent));
  STD_TORCH_CHECK(projects || !(flags & FLAG_WEIGHT_HR),
                  "flags must not have WEIGHT_HR where weights hold no w_hr, got ", flags);
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
    check_sites(cell, projects, flags);
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
                                    .step_offset = step_offset,
                                    .schedule = schedule},
                       .index = static_cast<int64_t>(i),
                       .count = static_cast<int64_t>(count)});
    }
    return found;
  }
};

}  // namespace frd::bind
