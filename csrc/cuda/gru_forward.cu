// A step of a GRU (reset after the recurrent product), forward. With cell dropout the state is kept unscaled, and all
// that reads it sees it times read_scale. A thread takes N neighbouring units of a row.
#include "core/cells/gru.h"
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) gru_forward_kernel(GruForwardStep<D> p) {
  using S = State<D>;
  const int64_t H = p.units, u = FRD_UNIT_GROUP * N;
  if (u >= H) return;
  const StateSites<Math<S>> sites = sites_of(p.masks);
  FRD_EACH_ROW(b, 0, p.step.active) {
    const int64_t at = b * H + u;
    D* const gates = p.gates + b * 3 * H + u;
    Pack<S, N> a[3], r[3];
    FRD_UNROLL
    for (int k = 0; k < 3; ++k) {
      a[k] = load_as<N, S>(gates + k * H);
      r[k] = load_as<N, S>(p.recurrent + (b * 3 + k) * H + u);
      if (!p.b_ih) continue;
      const Pack<S, N> of_input = load<N>(p.b_ih + k * H + u), of_state = load<N>(p.b_hh + k * H + u);
      FRD_UNROLL
      for (int i = 0; i < N; ++i) {
        a[k].at[i] += of_input.at[i];
        r[k].at[i] += of_state.at[i];
      }
    }
    const Pack<uint8_t, N> bits = bits_of<N>(p.masks, b, u);
    const bool enters = b >= p.step.continued, ends = b >= p.step.continuing;
    const Pack<S, N> before = load<N>((enters ? p.h0 : p.h) + at);
    Pack<S, N> h, seen, read, out;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      const S h_prev = enters ? enter_of(p.masks, bits.at[i], sites.entry_scale, before.at[i]) : before.at[i];
      const Drops<Math<S>> drops = drops_of(p.masks, b, u + i, p.step.t, bits.at[i]);
      GruGates<Math<S>> g{a[0].at[i] + r[0].at[i], a[1].at[i] + r[1].at[i], a[2].at[i], r[2].at[i]};
      const S h_new = gru_forward<Math<S>>(sites, drops, g, h_prev);
      h.at[i] = Zone<Math<S>>::mix(sites.zone_h, drops.zone_h, h_prev, h_new);
      seen.at[i] = sites.read_scale * h.at[i];
      read.at[i] = hidden_of(p.masks, bits.at[i], seen.at[i]);
      out.at[i] = sites.unzoned ? sites.read_scale * h_new : seen.at[i];
      a[0].at[i] = g.r, a[1].at[i] = g.z, a[2].at[i] = g.n;
    }
    store<N>(p.h + at, h);
    store<N>(p.read + at, read);
    store<N>(p.out + at, out);
    if (p.states) store<N>(p.states + at, h);
    if (ends) store<N>(p.h_n + at, seen);
    if (!p.keep_gates) continue;
    FRD_UNROLL
    for (int k = 0; k < 3; ++k) store<N>(gates + k * H, a[k]);
    store<N>(p.resets + at, r[2]);
  }
}

}  // namespace

template <class D>
cudaError_t gru_forward(const GruForwardStep<D>& p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.units + units - 1) / units, p.step.active), block_of_rows(), 0, stream,
                      p);
  };
  constexpr int N = WIDE<D>;
  const bool wide = wide_enough<N>(p.units, p.b_ih, p.b_hh, p.gates, p.recurrent, p.resets, p.h0, p.h, p.read, p.out,
                                   p.states, p.h_n, p.masks.bits);
  return wide ? run(gru_forward_kernel<N, D>, N) : run(gru_forward_kernel<1, D>, 1);
}

#define FRD_INSTANTIATE(D) template cudaError_t gru_forward(const GruForwardStep<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
