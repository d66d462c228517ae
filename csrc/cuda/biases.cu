// Once per layer call: the two biases as one, so that no step reads both. Where a cell takes U h apart in its last
// gate, they stay two there.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) sum_biases_kernel(SumBiases<S> p) {
  const int64_t i = (int64_t{blockIdx.x} * BLOCK_ROWS + threadIdx.y) * BLOCK_UNITS + threadIdx.x;
  if (i < p.rows) p.bias[i] = i < p.together ? p.b_ih[i] + p.b_hh[i] : p.b_ih[i];
}

}  // namespace

template <class S>
cudaError_t sum_biases(const SumBiases<S>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  const int64_t groups = (p.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
  return FRD_LAUNCH(sum_biases_kernel<S>, grid_of_rows(groups, BLOCK_ROWS), block_of_rows(), 0, stream, p);
}

template cudaError_t sum_biases(const SumBiases<float>&, cudaStream_t);
template cudaError_t sum_biases(const SumBiases<double>&, cudaStream_t);

}  // namespace frd::cuda
