// One step of a GRU (reset after the recurrent product, as torch.nn.GRU) with every state site, forward and backward,
// for one unit or a vector of them. Its gates are r, z, n; its memory is h. What n takes apart is u = U_n h + b_hn,
// which the reset gate multiplies. docs/semantics.md has the equations.
#pragma once

#include "core/cells.h"
#include "core/sites.h"

namespace frd {

template <class Math>
struct Gru {
  using V = Vec<Math>;
  static constexpr Cell CELL = GRU;

  // Pre-activations of r and z, and the input part of n, to activated gates.
  FRD_INLINE void activate(V* gates, V u) {
    gates[0] = Math::sigmoid(gates[0]);
    gates[1] = Math::sigmoid(gates[1]);
    gates[2] = Math::tanh(gates[2] + gates[0] * u);
  }

  // In: what activate(...) takes, and the state before. Out: activated gates. Returns the new h before zoneout,
  // unscaled. The state after is the caller's to make: zoneout of h comes between.
  FRD_INLINE V forward(const StateSites<Math>& sites, const Drops<Math>& drops, V* gates, V u, const V& h_prev) {
    activate(gates, u);
    const V z = gates[1], update = Drop<Math>::apply(sites.update, drops.of[STATE_UPDATE], gates[2]);
    return Drop<Math>::apply(sites.memory, drops.of[STATE_MEMORY], z * h_prev + (1 - z) * update);
  }

  // In: activated gates, u, the state before, the gradient at the new h (before zoneout, unscaled). Out: the gradients
  // at the pre-activations of r and z and at the input part of n, in `gates`, and at u. Returns the gradient at the
  // state before that z lets pass. What zoneout lets pass is the caller's to add, and what comes through U.
  FRD_INLINE V backward(const StateSites<Math>& sites, const Drops<Math>& drops, V* gates, V& u, V h_prev, V dh_new,
                        V /*dc*/) {
    const V r = gates[0], z = gates[1], n = gates[2];
    const V e = Drop<Math>::apply(sites.memory, drops.of[STATE_MEMORY], dh_new);
    const V update = Drop<Math>::apply(sites.update, drops.of[STATE_UPDATE], n);
    const V dn = Drop<Math>::apply(sites.update, drops.of[STATE_UPDATE], e * (1 - z)) * (1 - n * n);
    gates[0] = dn * u * r * (1 - r);
    gates[1] = e * (h_prev - update) * z * (1 - z);
    gates[2] = dn;
    u = dn * r;
    return e * z;
  }
};

}  // namespace frd
