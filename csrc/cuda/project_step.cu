// A step of a cell with a projection, forward, after its product with W_hr: zoneout of h, and everything that h goes
// to.
#include "cuda/kernels.h"
#include "cuda/step.h"

namespace frd::cuda {
namespace {

template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS)
    project_step_kernel(LayerForwardStep<D> p, const D* projected) {
  using S = State<D>;
  const int64_t u = FRD_UNIT_GROUP * N;
  if (u >= p.projected) return;
  FRD_EACH_ROW(b, 0, p.step.active) {
    const Pack<uint8_t, N> bits = bits_of<N>(p.masks, b, u);
    Pack<bool, N> keep{};
    const Drawn drawn = drawn_at(p.masks, b, u, p.step.t, STATE_ZONE_H, STATE_ZONE_H + 1);
    const StateSites<Math<S>> sites = sites_of(p.masks);
    FRD_UNROLL
    for (int i = 0; i < N; ++i) keep.at[i] = drops_at(drawn, i, bits.at[i], STATE_ZONE_H);
    finish_h<false>(p, sites, b, u, bits, keep, Pack<S, N>{}, load_as<N, S>(projected + b * p.projected + u));
  }
}

}  // namespace

template <class D>
cudaError_t project_step(const LayerForwardStep<D>& p, const D* projected, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.projected + units - 1) / units, p.step.active), block_of_rows(), 0,
                      stream, p, projected);
  };
  constexpr int N = WIDE<D>;
  // Masks lie in rows of H bytes.
  const bool wide = wide_enough<N>(p.projected, projected, p.h0, p.h, p.read, p.out, p.states, p.h_n) &&
                    wide_enough<N>(p.units, p.masks.bits);
  return wide ? run(project_step_kernel<N, D>, N) : run(project_step_kernel<1, D>, 1);
}

#define FRD_INSTANTIATE(D) template cudaError_t project_step(const LayerForwardStep<D>&, const D*, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
