// One step of an LSTM with every state site, forward and backward, for one unit or a vector of them.
// docs/semantics.md has the equations.
#pragma once

#include "core/sites.h"

namespace frd {

template <class Math>
struct LstmGates {
  typename Math::Vec i, f, g, o;
};

// In: pre-activations, and the memory before. Out: activated gates, the memory after, and the new h before zoneout.
template <class Math>
FRD_INLINE void lstm_forward(const StateSites<Math>& sites, const Drops<Math>& drops, LstmGates<Math>& gates,
                             Vec<Math>& c, Vec<Math>& h_new) {
  gates.i = Math::sigmoid(gates.i);
  gates.f = Math::sigmoid(gates.f);
  gates.g = Math::tanh(gates.g);
  gates.o = Math::sigmoid(gates.o);
  const Vec<Math> update = Drop<Math>::apply(sites.update, drops.update, gates.g);
  const Vec<Math> c_new = Drop<Math>::apply(sites.memory, drops.memory, gates.f * c + gates.i * update);
  h_new = gates.o * Math::tanh(c_new) * sites.read_scale;
  c = Zone<Math>::mix(sites.zone_c, drops.zone_c, c, c_new);
}

// The new h before zoneout, from saved gates: what a projection reads.
template <class Math>
FRD_INLINE Vec<Math> lstm_output(const StateSites<Math>& sites, const Drops<Math>& drops, const LstmGates<Math>& gates,
                                 Vec<Math> c_prev) {
  const Vec<Math> update = Drop<Math>::apply(sites.update, drops.update, gates.g);
  const Vec<Math> c_new = Drop<Math>::apply(sites.memory, drops.memory, gates.f * c_prev + gates.i * update);
  return gates.o * Math::tanh(c_new) * sites.read_scale;
}

// In: activated gates, the memory before, the gradient at the new h, and dc, the gradient at the memory after.
// Out: the gradients at the pre-activations, in `gates`, and in dc the gradient at the memory before.
template <class Math>
FRD_INLINE void lstm_backward(const StateSites<Math>& sites, const Drops<Math>& drops, LstmGates<Math>& gates,
                              Vec<Math> c_prev, Vec<Math> dh_new, Vec<Math>& dc) {
  const Vec<Math> i = gates.i, f = gates.f, g = gates.g, o = gates.o;
  const Vec<Math> update = Drop<Math>::apply(sites.update, drops.update, g);
  const Vec<Math> th = Math::tanh(Drop<Math>::apply(sites.memory, drops.memory, f * c_prev + i * update));
  const Vec<Math> dh = dh_new * sites.read_scale;
  const Vec<Math> dc_new = Zone<Math>::to_new(sites.zone_c, drops.zone_c, dc) + dh * o * (1 - th * th);
  const Vec<Math> dz = Drop<Math>::apply(sites.memory, drops.memory, dc_new);
  gates.i = dz * update * i * (1 - i);
  gates.f = dz * c_prev * f * (1 - f);
  gates.g = Drop<Math>::apply(sites.update, drops.update, dz * i) * (1 - g * g);
  gates.o = dh * th * o * (1 - o);
  dc = Zone<Math>::to_old(sites.zone_c, drops.zone_c, dc) + dz * f;
}

}  // namespace frd
