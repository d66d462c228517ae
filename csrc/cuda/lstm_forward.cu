// A step of an LSTM, forward: gates, memory, and, without a projection, all that becomes of h. A thread takes N
// neighbouring units of a row.
#include "cuda/kernels.h"
#include "cuda/lstm_step.h"

namespace frd::cuda {
namespace {

template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, LEAST_BLOCKS) lstm_forward_kernel(LstmForwardStep<D> p) {
  using S = State<D>;
  const int64_t H = p.units, u = FRD_UNIT_GROUP * N;
  if (u >= H) return;
  const StateSites<Math<S>> sites = sites_of(p.masks);
  FRD_EACH_ROW(b, 0, p.step.active) {
    D* const gates = p.gates + b * 4 * H + u;
    Pack<S, N> a[4];
    FRD_UNROLL
    for (int k = 0; k < 4; ++k) {
      a[k] = load_as<N, S>(gates + k * H);
      add<N>(a[k], load_as<N, S>(p.recurrent + (b * 4 + k) * H + u));
      if (!p.b_ih) continue;
      add<N>(a[k], load<N>(p.b_ih + k * H + u));
      add<N>(a[k], load<N>(p.b_hh + k * H + u));
    }
    const Pack<uint8_t, N> bits = bits_of<N>(p.masks, b, u);
    const bool enters = b >= p.step.continued, ends = b >= p.step.continuing;
    Pack<S, N> c = load<N>(enters ? p.c0 + b * H + u : p.c_before + b * H + u), h_new;
    Pack<bool, N> keep_h;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      if (enters) c.at[i] = enter_of(p.masks, bits.at[i], S(1), c.at[i]);
      const Drops<Math<S>> drops = drops_of(p.masks, b, u + i, p.step.t, bits.at[i]);
      LstmGates<Math<S>> g{a[0].at[i], a[1].at[i], a[2].at[i], a[3].at[i]};
      lstm_forward<Math<S>>(sites, drops, g, c.at[i], h_new.at[i]);
      a[0].at[i] = g.i, a[1].at[i] = g.f, a[2].at[i] = g.g, a[3].at[i] = g.o;
      keep_h.at[i] = drops.zone_h;
    }
    store<N>(p.c_after + b * H + u, c);
    if (ends) store<N>(p.c_n + b * H + u, c);
    FRD_UNROLL
    for (int k = 0; k < 4; ++k)
      if (p.keep_gates) store<N>(gates + k * H, a[k]);
    if (p.outputs) {
      store<N>(p.outputs + b * H + u, h_new);
    } else {
      finish_h<N>(p, sites, b, u, bits, keep_h, h_new);
    }
  }
}

}  // namespace

template <class D>
cudaError_t lstm_forward(const LstmForwardStep<D>& p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.units + units - 1) / units, p.step.active), block_of_rows(), 0, stream,
                      p);
  };
  constexpr int N = WIDE<D>;
  const bool wide = wide_enough<N>(p.units, p.b_ih, p.b_hh, p.gates, p.recurrent, p.c0, p.c_before, p.c_after, p.c_n,
                                   p.outputs, p.h0, p.h, p.read, p.out, p.states, p.h_n, p.masks.bits);
  return wide ? run(lstm_forward_kernel<N, D>, N) : run(lstm_forward_kernel<1, D>, 1);
}

#define FRD_INSTANTIATE(D) template cudaError_t lstm_forward(const LstmForwardStep<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
