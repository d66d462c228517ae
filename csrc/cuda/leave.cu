// The gradient of an initial state: what backward carried to the first step, on the way on which the state came in.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) leave_kernel(Leave<D> p) {
  using S = State<D>;
  const int64_t u = FRD_UNIT_GROUP;
  if (u >= p.width) return;
  const Factors<S> factors = factors_of(p.masks);
  FRD_EACH_ROW(b, p.begin, p.end) {
    const int64_t at = b * p.width + u;
    const uint8_t bits = bits_of<1>(p.masks, b, u).at[0];
    S value = p.carried ? p.carried[at] : S(0);
    if (p.through) value += seen_of(factors, p.scaled, hidden_of(p.masks, factors, bits, widen<S>(p.through[at])));
    if (p.memory) value = enter_of(p.masks, factors, p.scaled, bits, value);
    p.gradient[at] = value;
  }
}

}  // namespace

template <class D>
cudaError_t leave(const Leave<D>& p, cudaStream_t stream) {
  if (p.begin >= p.end) return cudaSuccess;
  return FRD_LAUNCH(leave_kernel<D>, grid_of_rows(p.width, p.end - p.begin), block_of_rows(), 0, stream, p);
}

#define FRD_INSTANTIATE(D) template cudaError_t leave(const Leave<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
