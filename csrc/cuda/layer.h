// What a schedule is given: a layer of any cell in one direction, in plain structs that bind/ fills in; and the
// schedules.
#pragma once

#include <vector>

#include "core/cells.h"
#include "cuda/schedule.h"

namespace frd::cuda {

// What a forward and its backward are both given. I inputs, H units, P of them in h: fewer than H with a projection.
// G gates. What a cell has not got is null.
template <class D>
struct LayerInputs {
  using S = State<D>;
  Cell cell{};
  Sequence sequence{};
  Random random{};
  int64_t inputs = 0, units = 0, projected = 0;  // I, H, P
  const D* x = nullptr;                          // [rows, I]
  Weight w_ih{}, w_hh{}, w_hr{};                 // [GH, I], [GH, P], [P, H] or none
  const S* b_ih = nullptr;                       // [GH], or null
  const S* b_hh = nullptr;                       // [GH], or null
  const S* h0 = nullptr;                         // [batch, P]
  const S* c0 = nullptr;                         // [batch, H]
};

template <class D>
struct LayerForward : LayerInputs<D> {
  using S = State<D>;
  D* gates = nullptr;   // [rows, GH], activated, or null where they are not kept
  S* cells = nullptr;   // [rows, H], c after each step, or null where nothing is kept
  D* apart = nullptr;   // [rows, H], what the last gate takes apart, or null where gates is
  D* states = nullptr;  // [rows, P], or null where `out` holds the same or nothing is kept
  D* out = nullptr;     // [rows, P]
  D* h_n = nullptr;     // [batch, P]
  D* c_n = nullptr;     // [batch, H]
};

// A row of gradients at the pre-activations has H numbers for each gate. Where the last gate takes U h apart it has two
// gradients: W x gave the first, U h the second. They stand first and last in the row, the gates that W and U have in
// common between them, so that G in a row go back through W, whose rows are read from the last gate's on, and G through
// U.
template <class D>
struct LayerBackward : LayerInputs<D> {
  using S = State<D>;
  const D* gates = nullptr;   // [rows, GH], activated, or null: they are computed again
  const S* cells = nullptr;   // [rows, H]
  const D* apart = nullptr;   // [rows, H], or null where gates is
  const D* states = nullptr;  // [rows, P], as h is carried
  const D* dout = nullptr;    // [rows, P], or null
  const D* dh_n = nullptr;    // [batch, P], or null
  const D* dc_n = nullptr;    // [batch, H], or null
  D* dx = nullptr;            // [rows, I], or null where nobody asks, as the gradients of weights and biases
  Gradient dw_ih = nullptr, dw_hh = nullptr, dw_hr = nullptr;
  S* db_ih = nullptr;  // [GH]
  S* db_hh = nullptr;  // [GH]; null too where a cell has nothing apart, as it is db_ih then
  S* dh0 = nullptr;    // [batch, P]
  S* dc0 = nullptr;    // [batch, H]
};

// schedules/<name>.cpp.
template <class D>
void alternating(const LayerForward<D>& p, const Surroundings& around);
template <class D>
void alternating(const LayerBackward<D>& p, const Surroundings& around);
// All directions of a layer at once, one for each. Throws std::runtime_error where there is no plan for them on the
// device, or their blocks do not fit on it now.
template <class D>
void persistent(const std::vector<LayerForward<D>>& layers, const Surroundings& around);
template <class D>
void persistent(const std::vector<LayerBackward<D>>& layers, const Surroundings& around);

}  // namespace frd::cuda
