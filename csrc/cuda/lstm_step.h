// What the kernels of an LSTM's steps share, with and without a projection.
#pragma once

#include "core/cells/lstm.h"
#include "cuda/kernels.h"

namespace frd::cuda {

template <int N, class S>
FRD_INLINE void add(Pack<S, N>& to, const Pack<S, N>& more) {
  FRD_UNROLL
  for (int i = 0; i < N; ++i) to.at[i] += more.at[i];
}

// Zoneout of N units of h of batch row b, and everything that h goes to. Without a projection P is H.
template <int N, class D>
FRD_INLINE void finish_h(const LstmForwardStep<D>& p, const StateSites<Math<State<D>>>& sites, int64_t b, int64_t u,
                         const Pack<uint8_t, N>& bits, const Pack<bool, N>& keep, const Pack<State<D>, N>& h_new) {
  using S = State<D>;
  const int64_t at = b * p.projected + u;
  Pack<S, N> h = h_new, read, out;
  if (p.h) {
    const Pack<S, N> before = load<N>((b < p.step.continued ? p.h : p.h0) + at);
    FRD_UNROLL
    for (int i = 0; i < N; ++i) h.at[i] = Zone<Math<S>>::mix(sites.zone_h, keep.at[i], before.at[i], h_new.at[i]);
    store<N>(p.h + at, h);
  }
  FRD_UNROLL
  for (int i = 0; i < N; ++i) {
    read.at[i] = hidden_of(p.masks, bits.at[i], h.at[i]);
    out.at[i] = sites.unzoned ? h_new.at[i] : h.at[i];  // one at a time: a choice of packs would put both in memory
  }
  store<N>(p.read + at, read);
  store<N>(p.out + at, out);
  if (p.states) store<N>(p.states + at, h);
  if (b >= p.step.continuing) store<N>(p.h_n + at, h);
}

// What the gradient at N units of h_t becomes: returned, the gradient at the new h, before zoneout; along zoneout to
// the step before, in p.dh.
template <int N, class D>
FRD_INLINE Pack<State<D>, N> at_h(const LstmBackwardStep<D>& p, const StateSites<Math<State<D>>>& sites, int64_t b,
                                  int64_t u, const Pack<uint8_t, N>& bits, const Pack<bool, N>& keep) {
  using S = State<D>;
  const int64_t at = b * p.projected + u;
  const bool ends = b >= p.step.continuing;
  Pack<S, N> dh{}, dout{};
  if (ends) {
    if (p.dh_n) dh = load_as<N, S>(p.dh_n + at);
  } else {
    if (p.dh) dh = load<N>(p.dh + at);
    const Pack<S, N> through = load_as<N, S>(p.through + at);
    FRD_UNROLL
    for (int i = 0; i < N; ++i) dh.at[i] += hidden_of(p.masks, bits.at[i], through.at[i]);
  }
  if (p.dout) dout = load_as<N, S>(p.dout + at);
  Pack<S, N> to_old, to_new;
  FRD_UNROLL
  for (int i = 0; i < N; ++i) {
    const S all = sites.unzoned ? dh.at[i] : dh.at[i] + dout.at[i];
    to_new.at[i] = Zone<Math<S>>::to_new(sites.zone_h, keep.at[i], all);
    to_old.at[i] = Zone<Math<S>>::to_old(sites.zone_h, keep.at[i], all);
    if (sites.unzoned) to_new.at[i] += dout.at[i];
  }
  if (p.dh) store<N>(p.dh + at, to_old);
  return to_new;
}

}  // namespace frd::cuda
