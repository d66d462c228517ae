// Gates of all steps at once, for a backward whose forward kept only the states.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

// Of r and z of a GRU, and of every gate of an LSTM.
template <class D, class S>
FRD_INLINE S preactivation(const Activate<D>& p, const D* gates, const D* recurrent, int64_t at) {
  const S value = widen<S>(gates[at]) + widen<S>(recurrent[at]);
  return p.b_ih ? value + (p.b_ih[at] + p.b_hh[at]) : value;
}

template <class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) activate_lstm_kernel(Activate<D> p) {
  using S = State<D>;
  const int64_t H = p.units, u = FRD_UNIT_GROUP;
  if (u >= H) return;
  FRD_EACH_ROW(row, 0, p.rows) {
    D* const gates = p.gates + row * 4 * H;
    for (int k = 0; k < 4; ++k) {
      const S a = preactivation<D, S>(p, gates, p.recurrent + row * 4 * H, k * H + u);
      gates[k * H + u] = narrow<D>(k == 2 ? Math<S>::tanh(a) : Math<S>::sigmoid(a));
    }
  }
}

template <class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) activate_gru_kernel(Activate<D> p) {
  using S = State<D>;
  const int64_t H = p.units, u = FRD_UNIT_GROUP;
  if (u >= H) return;
  FRD_EACH_ROW(row, 0, p.rows) {
    D* const gates = p.gates + row * 3 * H;
    const D* const recurrent = p.recurrent + row * 3 * H;
    S rz[2];
    for (int k = 0; k < 2; ++k) {
      const int64_t at = k * H + u;
      rz[k] = Math<S>::sigmoid(preactivation<D, S>(p, gates, recurrent, at));
      gates[at] = narrow<D>(rz[k]);
    }
    const int64_t at = 2 * H + u;
    const S reset = widen<S>(recurrent[at]) + (p.b_hh ? p.b_hh[at] : S(0));
    const S input = widen<S>(gates[at]) + (p.b_ih ? p.b_ih[at] : S(0));
    gates[at] = narrow<D>(Math<S>::tanh(input + rz[0] * reset));
    p.resets[row * H + u] = narrow<D>(reset);
  }
}

}  // namespace

template <class D>
cudaError_t activate(const Activate<D>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  const auto kernel = p.gru ? activate_gru_kernel<D> : activate_lstm_kernel<D>;
  return FRD_LAUNCH(kernel, grid_of_rows(p.units, p.rows), block_of_rows(), 0, stream, p);
}

#define FRD_INSTANTIATE(D) template cudaError_t activate(const Activate<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
