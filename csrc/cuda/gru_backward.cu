// A step of a GRU (reset after the recurrent product), backward: the gradients at the pre-activations, and at the state
// before along the leak and zoneout. A thread takes N neighbouring units of a row.
#include "core/cells/gru.h"
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, LEAST_BLOCKS) gru_backward_kernel(GruBackwardStep<D> p) {
  using S = State<D>;
  const int64_t H = p.units, u = FRD_UNIT_GROUP * N;
  if (u >= H) return;
  const StateSites<Math<S>> sites = sites_of(p.masks);
  FRD_EACH_ROW(b, 0, p.step.active) {
    const int64_t at = b * H + u;
    const Pack<uint8_t, N> bits = bits_of<N>(p.masks, b, u);
    const bool enters = b >= p.step.continued, ends = b >= p.step.continuing;
    Pack<S, N> dh{}, dout{}, a[3];
    if (!ends) {
      dh = load<N>(p.dh + at);
      const Pack<S, N> through = load_as<N, S>(p.through + at);
      FRD_UNROLL
      for (int i = 0; i < N; ++i) dh.at[i] += sites.read_scale * hidden_of(p.masks, bits.at[i], through.at[i]);
    } else if (p.dh_n) {  // a caller's h_n is the state times read_scale, as is the output
      dh = load_as<N, S>(p.dh_n + at);
      FRD_UNROLL
      for (int i = 0; i < N; ++i) dh.at[i] *= sites.read_scale;
    }
    if (p.dout) dout = load_as<N, S>(p.dout + at);
    FRD_UNROLL
    for (int k = 0; k < 3; ++k) a[k] = load_as<N, S>(p.gates + (b * 3 + k) * H + u);
    Pack<S, N> reset = load_as<N, S>(p.resets + at);
    Pack<S, N> before = enters ? load<N>(p.h0 + at) : load_as<N, S>(p.states_before + at);
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      const Drops<Math<S>> drops = drops_of(p.masks, b, u + i, p.step.t, bits.at[i]);
      const S h_prev = enters ? enter_of(p.masks, bits.at[i], sites.entry_scale, before.at[i]) : before.at[i];
      const S at_out = sites.read_scale * dout.at[i], all = sites.unzoned ? dh.at[i] : dh.at[i] + at_out;
      S dh_new = Zone<Math<S>>::to_new(sites.zone_h, drops.zone_h, all);
      if (sites.unzoned) dh_new += at_out;
      GruGates<Math<S>> g{a[0].at[i], a[1].at[i], a[2].at[i], reset.at[i]};
      const S leak = gru_backward<Math<S>>(sites, drops, g, h_prev, dh_new);
      dh.at[i] = Zone<Math<S>>::to_old(sites.zone_h, drops.zone_h, all) + leak;
      a[0].at[i] = g.r, a[1].at[i] = g.z, a[2].at[i] = g.n, reset.at[i] = g.u;
    }
    store<N>(p.dh + at, dh);
    D* const to = p.dgates + b * 4 * H + u;
    store<N>(to, a[2]);
    store<N>(to + H, a[0]);
    store<N>(to + 2 * H, a[1]);
    store<N>(to + 3 * H, reset);
  }
}

}  // namespace

template <class D>
cudaError_t gru_backward(const GruBackwardStep<D>& p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.units + units - 1) / units, p.step.active), block_of_rows(), 0, stream,
                      p);
  };
  constexpr int N = WIDE<D>;
  const bool wide = wide_enough<N>(p.units, p.through, p.dout, p.dh_n, p.dh, p.gates, p.resets, p.h0, p.states_before,
                                   p.dgates, p.masks.bits);
  return wide ? run(gru_backward_kernel<N, D>, N) : run(gru_backward_kernel<1, D>, 1);
}

#define FRD_INSTANTIATE(D) template cudaError_t gru_backward(const GruBackwardStep<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
