// One step of a plain RNN with every site that it has, forward and backward, for one unit or a vector of them. Its one
// gate is its candidate, act(W x + U h + b), and its memory is h, of which a step takes over nothing but through U.
// docs/semantics.md has the equations.
#pragma once

#include "core/cells.h"
#include "core/sites.h"

namespace frd {

template <class Math>
struct Tanh {
  using V = Vec<Math>;
  FRD_INLINE V apply(V a) { return Math::tanh(a); }
  // The gradient at `a`, from y = apply(a) and the gradient there.
  FRD_INLINE V gradient(V y, V dy) { return dy * (1 - y * y); }
};

// 0 up to 0 and NaN where `a` is NaN, as torch.relu and its gradient.
template <class Math>
struct Relu {
  using V = Vec<Math>;
  FRD_INLINE V apply(V a) { return Math::select(a <= 0, V{}, a); }
  FRD_INLINE V gradient(V y, V dy) { return Math::select(y <= 0, V{}, dy); }
};

template <class Math, class Activation>
struct Rnn {
  using V = Vec<Math>;

  // The pre-activation to the candidate.
  FRD_INLINE void activate(V* gates, V /*apart*/) { gates[0] = Activation::apply(gates[0]); }

  // In: the pre-activation. Out: the candidate. Returns the new h before zoneout.
  FRD_INLINE V forward(const StateSites<Math>& sites, const Drops<Math>& drops, V* gates, V apart,
                       const V& /*h_prev*/) {
    activate(gates, apart);
    return Drop<Math>::apply(sites.update, drops.of[STATE_UPDATE], gates[0]);
  }

  // In: the candidate, and the gradient at the new h before zoneout. Out: the gradient at the pre-activation. Returns
  // that at the state before but for what comes through U and what zoneout lets pass, which are the caller's to add: 0.
  FRD_INLINE V backward(const StateSites<Math>& sites, const Drops<Math>& drops, V* gates, V& /*apart*/, V /*h_prev*/,
                        V dh_new, V /*dc*/) {
    gates[0] = Activation::gradient(gates[0], Drop<Math>::apply(sites.update, drops.of[STATE_UPDATE], dh_new));
    return V{};
  }
};

template <class Math>
struct RnnTanh : Rnn<Math, Tanh<Math>> {
  static constexpr Cell CELL = RNN_TANH;
};

template <class Math>
struct RnnRelu : Rnn<Math, Relu<Math>> {
  static constexpr Cell CELL = RNN_RELU;
};

}  // namespace frd
