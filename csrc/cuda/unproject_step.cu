// A step of a cell with a projection, backward: the gradient at the projected h, before the product with W_hr.
#include "cuda/kernels.h"
#include "cuda/step.h"

namespace frd::cuda {
namespace {

template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) unproject_step_kernel(LayerBackwardStep<D> p) {
  using S = State<D>;
  const int64_t u = FRD_UNIT_GROUP * N;
  if (u >= p.projected) return;
  FRD_EACH_ROW(b, 0, p.step.active) {
    const Pack<uint8_t, N> bits = bits_of<N>(p.masks, b, u);
    Pack<bool, N> keep{};
    Pack<S, N> to_old;
    const Drawn drawn = drawn_at(p.masks, b, u, p.step.t, STATE_ZONE_H, STATE_ZONE_H + 1);
    const StateSites<Math<S>> sites = sites_of(p.masks);
    FRD_UNROLL
    for (int i = 0; i < N; ++i) keep.at[i] = drops_at(drawn, i, bits.at[i], STATE_ZONE_H);
    store<N>(p.dprojected + b * p.projected + u, at_h<false>(p, sites, b, u, bits, keep, to_old));
    if (p.dh) store<N>(p.dh + b * p.projected + u, to_old);
  }
}

}  // namespace

template <class D>
cudaError_t unproject_step(const LayerBackwardStep<D>& p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.projected + units - 1) / units, p.step.active), block_of_rows(), 0,
                      stream, p);
  };
  constexpr int N = WIDE<D>;
  const bool wide = wide_enough<N>(p.projected, p.through, p.dout, p.dh_n, p.dh, p.dprojected) &&
                    wide_enough<N>(p.units, p.masks.bits);
  return wide ? run(unproject_step_kernel<N, D>, N) : run(unproject_step_kernel<1, D>, 1);
}

#define FRD_INSTANTIATE(D) template cudaError_t unproject_step(const LayerBackwardStep<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
