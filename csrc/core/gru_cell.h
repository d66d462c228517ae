// One step of a GRU (reset after the recurrent product, as torch.nn.GRU) with every state site, forward and backward.
// docs/semantics.md has the equations.
#pragma once

#include "core/sites.h"

namespace frd {

template <class Math>
struct GruGates {
  typename Math::Vec r, z, n, u;  // u = U_n h + b_hn, what the reset gate multiplies
};

// In: pre-activations of r and z, the input part of n, u, and the state before. Out: activated gates; returns the new h
// before zoneout, unscaled.
template <class Math>
FRD_INLINE Vec<Math> gru_forward(const StateSites<Math>& sites, const Drops<Math>& drops, GruGates<Math>& gates,
                                 Vec<Math> h_prev) {
  gates.r = Math::sigmoid(gates.r);
  gates.z = Math::sigmoid(gates.z);
  gates.n = Math::tanh(gates.n + gates.r * gates.u);
  const Vec<Math> update = Drop<Math>::apply(sites.update, drops.update, gates.n);
  return Drop<Math>::apply(sites.memory, drops.memory, gates.z * h_prev + (1 - gates.z) * update);
}

// In: activated gates, the state before, the gradient at the new h (before zoneout, unscaled). Out, in `gates`: the
// gradients at the pre-activations of r, z and n, and at u; returns the gradient at the state before along the leak.
template <class Math>
FRD_INLINE Vec<Math> gru_backward(const StateSites<Math>& sites, const Drops<Math>& drops, GruGates<Math>& gates,
                                  Vec<Math> h_prev, Vec<Math> dh_new) {
  const Vec<Math> r = gates.r, z = gates.z, n = gates.n, u = gates.u;
  const Vec<Math> e = Drop<Math>::apply(sites.memory, drops.memory, dh_new);
  const Vec<Math> update = Drop<Math>::apply(sites.update, drops.update, n);
  const Vec<Math> dn = Drop<Math>::apply(sites.update, drops.update, e * (1 - z)) * (1 - n * n);
  gates.u = dn * r;
  gates.r = dn * u * r * (1 - r);
  gates.z = e * (h_prev - update) * z * (1 - z);
  gates.n = dn;
  return e * z;
}

}  // namespace frd
