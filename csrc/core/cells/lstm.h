// One step of an LSTM with every state site, forward and backward, for one unit or a vector of them. Its gates are
// i, f, g, o; its memory is c. docs/semantics.md has the equations.
#pragma once

#include "core/cells.h"
#include "core/sites.h"

namespace frd {

template <class Math>
struct Lstm {
  using V = Vec<Math>;
  static constexpr Cell CELL = LSTM;

  // Pre-activations to activated gates.
  FRD_INLINE void activate(V* gates, V /*apart*/) {
    gates[0] = Math::sigmoid(gates[0]);
    gates[1] = Math::sigmoid(gates[1]);
    gates[2] = Math::tanh(gates[2]);
    gates[3] = Math::sigmoid(gates[3]);
  }

  // In: pre-activations, and the memory before. Out: activated gates, the memory after. Returns the new h before
  // zoneout.
  FRD_INLINE V forward(const StateSites<Math>& sites, const Drops<Math>& drops, V* gates, V apart, V& c) {
    activate(gates, apart);
    const V c_new = new_c(sites, drops, gates, c);
    c = Zone<Math>::mix(sites.zone_c, drops.of[STATE_ZONE_C], c, c_new);
    return read(sites, gates[3], c_new);
  }

  // The new h before zoneout, from activated gates: what a projection reads.
  FRD_INLINE V output(const StateSites<Math>& sites, const Drops<Math>& drops, const V* gates, V c_prev) {
    return read(sites, gates[3], new_c(sites, drops, gates, c_prev));
  }

  // In: activated gates, the memory before, the gradients at the new h and at the memory after. Out: the gradients at
  // the pre-activations. Returns the gradient at the memory before.
  FRD_INLINE V backward(const StateSites<Math>& sites, const Drops<Math>& drops, V* gates, V& /*apart*/, V c_prev,
                        V dh_new, V dc) {
    const V i = gates[0], f = gates[1], g = gates[2], o = gates[3];
    const V update = Drop<Math>::apply(sites.update, drops.of[STATE_UPDATE], g);
    const V th = Math::tanh(new_c(sites, drops, gates, c_prev));
    const V dh = dh_new * sites.read_scale;
    const V dc_new = Zone<Math>::to_new(sites.zone_c, drops.of[STATE_ZONE_C], dc) + dh * o * (1 - th * th);
    const V dz = Drop<Math>::apply(sites.memory, drops.of[STATE_MEMORY], dc_new);
    gates[0] = dz * update * i * (1 - i);
    gates[1] = dz * c_prev * f * (1 - f);
    gates[2] = Drop<Math>::apply(sites.update, drops.of[STATE_UPDATE], dz * i) * (1 - g * g);
    gates[3] = dh * th * o * (1 - o);
    return Zone<Math>::to_old(sites.zone_c, drops.of[STATE_ZONE_C], dc) + dz * f;
  }

 private:
  FRD_INLINE V new_c(const StateSites<Math>& sites, const Drops<Math>& drops, const V* gates, V c) {
    const V update = Drop<Math>::apply(sites.update, drops.of[STATE_UPDATE], gates[2]);
    return Drop<Math>::apply(sites.memory, drops.of[STATE_MEMORY], gates[1] * c + gates[0] * update);
  }
  FRD_INLINE V read(const StateSites<Math>& sites, V o, V c_new) { return o * Math::tanh(c_new) * sites.read_scale; }
};

}  // namespace frd
