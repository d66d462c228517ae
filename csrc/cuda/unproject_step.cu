// A step of a cell with a projection, backward: the gradient at the projected h, before the product with W_hr.
#include "cuda/drawn.h"
#include "cuda/kernels.h"
#include "cuda/step.h"

namespace frd::cuda {
namespace {

template <int N, bool TOGETHER, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) unproject_step_kernel(LayerBackwardStep<D> p) {
  using S = State<D>;
  const auto units = Units<N, TOGETHER>::of(p.projected);
  FRD_EACH_ROW(b, 0, p.step.active) {
    const Drawn drawn = drawn_at(p.masks, units, b);
    if (units.left <= 0) continue;
    const Pack<uint8_t, N> bits = bits_of(p.masks, units, b);
    const Factors<S> factors = factors_of(p.masks);
    const int64_t at = b * p.projected + units.first;
    Pack<bool, N> keep{};
    Pack<S, N> to_old;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) keep.at[i] = drops_at(drawn, i, bits.at[i], STATE_ZONE_H);
    store(units, p.dprojected + at, at_h<false>(p, factors, units, b, bits, keep, to_old));
    if (p.dh) store(units, p.dh + at, to_old);
  }
}

}  // namespace

template <class D>
cudaError_t unproject_step(LayerBackwardStep<D> p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.projected + units - 1) / units, p.step.active), block_of_rows(), 0,
                      stream, p);
  };
  constexpr int N = WIDE<D>;
  p.masks = p.masks.of_h_alone();
  const bool wide = wide_enough<N>(p.projected, p.through, p.dout, p.dh_n, p.dh, p.dprojected) &&
                    wide_enough<N>(p.units, p.masks.bits);
  return wide ? run(unproject_step_kernel<N, true, D>, N) : run(unproject_step_kernel<APART, false, D>, APART);
}

#define FRD_INSTANTIATE(D) template cudaError_t unproject_step(LayerBackwardStep<D>, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
