// What becomes of h in a step, forward and backward, of any cell, with and without a projection.
#pragma once

#include "core/cells.h"
#include "cuda/drawn.h"
#include "cuda/kernels.h"

namespace frd::cuda {

template <int N, class S>
FRD_INLINE void add(Pack<S, N>& to, const Pack<S, N>& more) {
  FRD_UNROLL
  for (int i = 0; i < N; ++i) to.at[i] += more.at[i];
}

// Zoneout of N units of h of batch row b, and everything that h goes to. Without a projection P is H. `memory`: h
// before the step, where that is the memory; elsewhere zoneout alone reads it.
template <bool SCALED, int N, bool TOGETHER, class D>
FRD_INLINE void finish_h(const LayerForwardStep<D>& p, const Factors<State<D>>& factors,
                         const Units<N, TOGETHER>& units, int64_t b, const Pack<uint8_t, N>& bits,
                         const Pack<bool, N>& keep, const Pack<State<D>, N>& memory, const Pack<State<D>, N>& h_new) {
  using S = State<D>;
  const int64_t at = b * p.projected + units.first;
  Pack<S, N> h = h_new, seen, read, out;
  if (p.h) {
    Pack<S, N> before = memory;
    if constexpr (!SCALED) before = load(units, (b < p.step.continued ? p.h : p.h0) + at);
    FRD_UNROLL
    for (int i = 0; i < N; ++i)
      h.at[i] = Zone<Math<S>>::mix(factors.state.zone_h, keep.at[i], before.at[i], h_new.at[i]);
    store(units, p.h + at, h);
  }
  const uint32_t written = written_bits(p.written, units, b, p.projected);
  FRD_UNROLL
  for (int i = 0; i < N; ++i) {
    seen.at[i] = seen_of(factors, SCALED, h.at[i]);
    read.at[i] = hidden_of(p.masks, factors, bits.at[i], seen.at[i]);
    // One at a time: a choice of packs would put both in memory.
    const S shown = factors.state.unzoned ? seen_of(factors, SCALED, h_new.at[i]) : seen.at[i];
    out.at[i] = written_of(p.written, factors, written >> i & 1, shown);
  }
  store(units, p.read + at, read);
  store(units, p.out + at, out);
  if (p.states) store(units, p.states + at, h);
  if (b >= p.step.continuing) store(units, p.h_n + at, seen);
}

// The gradients at N units of h_t, in parts: at the new h, before zoneout, returned; along zoneout to the step before,
// in to_old.
template <bool SCALED, int N, bool TOGETHER, class D>
FRD_INLINE Pack<State<D>, N> at_h(const LayerBackwardStep<D>& p, const Factors<State<D>>& factors,
                                  const Units<N, TOGETHER>& units, int64_t b, const Pack<uint8_t, N>& bits,
                                  const Pack<bool, N>& keep, Pack<State<D>, N>& to_old) {
  using S = State<D>;
  const int64_t at = b * p.projected + units.first;
  Pack<S, N> dh{}, dout{}, to_new;
  if (b < p.step.continuing) {
    if (p.dh) dh = load(units, p.dh + at);
    const Pack<S, N> through = load_as<S>(units, p.through + at);
    FRD_UNROLL
    for (int i = 0; i < N; ++i)
      dh.at[i] += seen_of(factors, SCALED, hidden_of(p.masks, factors, bits.at[i], through.at[i]));
  } else if (p.dh_n) {
    dh = load_as<S>(units, p.dh_n + at);
    FRD_UNROLL
    for (int i = 0; i < N; ++i) dh.at[i] = seen_of(factors, SCALED, dh.at[i]);
  }
  if (p.dout) dout = load_as<S>(units, p.dout + at);
  const uint32_t written = written_bits(p.written, units, b, p.projected);
  FRD_UNROLL
  for (int i = 0; i < N; ++i) {
    const S shown = written_of(p.written, factors, written >> i & 1, dout.at[i]);
    const S at_out = seen_of(factors, SCALED, shown), all = factors.state.unzoned ? dh.at[i] : dh.at[i] + at_out;
    to_new.at[i] = Zone<Math<S>>::to_new(factors.state.zone_h, keep.at[i], all);
    to_old.at[i] = Zone<Math<S>>::to_old(factors.state.zone_h, keep.at[i], all);
    if (factors.state.unzoned) to_new.at[i] += at_out;
  }
  return to_new;
}

}  // namespace frd::cuda
