// A step of a cell with a projection, forward, after its product with W_hr: zoneout of h, and everything that h goes
// to.
#include "cuda/drawn.h"
#include "cuda/kernels.h"
#include "cuda/step.h"

namespace frd::cuda {
namespace {

template <int N, bool TOGETHER, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS)
    project_step_kernel(LayerForwardStep<D> p, const D* projected) {
  using S = State<D>;
  const auto units = Units<N, TOGETHER>::of(p.projected);
  FRD_EACH_ROW(b, 0, p.step.active) {
    const Drawn drawn = drawn_at(p.masks, units, b);
    if (units.left <= 0) continue;
    const Pack<uint8_t, N> bits = bits_of(p.masks, units, b);
    const Factors<S> factors = factors_of(p.masks);
    Pack<bool, N> keep{};
    FRD_UNROLL
    for (int i = 0; i < N; ++i) keep.at[i] = drops_at(drawn, i, bits.at[i], STATE_ZONE_H);
    finish_h<false>(p, factors, units, b, bits, keep, Pack<S, N>{},
                    load_as<S>(units, projected + b * p.projected + units.first));
  }
}

}  // namespace

template <class D>
cudaError_t project_step(LayerForwardStep<D> p, const D* projected, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.projected + units - 1) / units, p.step.active), block_of_rows(), 0,
                      stream, p, projected);
  };
  constexpr int N = WIDE<D>;
  p.masks = p.masks.of_h_alone();
  // Masks lie in rows of H bytes.
  const bool wide = wide_enough<N>(p.projected, projected, p.h0, p.h, p.read, p.out, p.states, p.h_n) &&
                    wide_enough<N>(p.units, p.masks.bits);
  return wide ? run(project_step_kernel<N, true, D>, N) : run(project_step_kernel<APART, false, D>, APART);
}

#define FRD_INSTANTIATE(D) template cudaError_t project_step(LayerForwardStep<D>, const D*, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
