// A step of an LSTM, backward: the gradients at the pre-activations, and at the memory before. Without a projection the
// gradient at h is gathered here too. A thread takes N neighbouring units of a row.
#include "cuda/kernels.h"
#include "cuda/lstm_step.h"

namespace frd::cuda {
namespace {

template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, LEAST_BLOCKS) lstm_backward_kernel(LstmBackwardStep<D> p) {
  using S = State<D>;
  const int64_t H = p.units, u = FRD_UNIT_GROUP * N;
  if (u >= H) return;
  const StateSites<Math<S>> sites = sites_of(p.masks);
  FRD_EACH_ROW(b, 0, p.step.active) {
    const int64_t at = b * H + u;
    const Pack<uint8_t, N> bits = bits_of<N>(p.masks, b, u);
    Drops<Math<S>> drops[N];
    Pack<bool, N> keep_h;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      drops[i] = drops_of(p.masks, b, u + i, p.step.t, bits.at[i]);
      keep_h.at[i] = drops[i].zone_h;
    }
    const Pack<S, N> dh_new = p.doutputs ? load_as<N, S>(p.doutputs + at) : at_h<N>(p, sites, b, u, bits, keep_h);

    Pack<S, N> a[4];
    FRD_UNROLL
    for (int k = 0; k < 4; ++k) a[k] = load_as<N, S>(p.gates + (b * 4 + k) * H + u);
    const bool enters = b >= p.step.continued, ends = b >= p.step.continuing;
    Pack<S, N> c = load<N>((enters ? p.c0 : p.c_before) + at), dc{}, outputs;
    if (!ends) {
      dc = load<N>(p.dc + at);
    } else if (p.dc_n) {
      dc = load_as<N, S>(p.dc_n + at);
    }
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      if (enters) c.at[i] = enter_of(p.masks, bits.at[i], S(1), c.at[i]);
      LstmGates<Math<S>> g{a[0].at[i], a[1].at[i], a[2].at[i], a[3].at[i]};
      if (p.outputs) outputs.at[i] = lstm_output<Math<S>>(sites, drops[i], g, c.at[i]);
      lstm_backward<Math<S>>(sites, drops[i], g, c.at[i], dh_new.at[i], dc.at[i]);
      a[0].at[i] = g.i, a[1].at[i] = g.f, a[2].at[i] = g.g, a[3].at[i] = g.o;
    }
    store<N>(p.dc + at, dc);
    if (p.outputs) store<N>(p.outputs + at, outputs);
    FRD_UNROLL
    for (int k = 0; k < 4; ++k) store<N>(p.dgates + (b * 4 + k) * H + u, a[k]);
  }
}

}  // namespace

template <class D>
cudaError_t lstm_backward(const LstmBackwardStep<D>& p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.units + units - 1) / units, p.step.active), block_of_rows(), 0, stream,
                      p);
  };
  constexpr int N = WIDE<D>;
  const bool wide = wide_enough<N>(p.units, p.through, p.dout, p.dh_n, p.dc_n, p.dh, p.dc, p.gates, p.c0, p.c_before,
                                   p.dgates, p.doutputs, p.outputs, p.masks.bits);
  return wide ? run(lstm_backward_kernel<N, D>, N) : run(lstm_backward_kernel<1, D>, 1);
}

#define FRD_INSTANTIATE(D) template cudaError_t lstm_backward(const LstmBackwardStep<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
