// Sums over rows, for the gradients of biases: no atomics, and an order that depends on the number of rows alone, so
// the same bits in every run and on every device. One pass sums blocks of rows, a second one the blocks.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

constexpr int64_t ROWS_OF_A_BLOCK = 256;
constexpr int64_t MOST_PARTS = 256;  // of the second pass, which one block does for its columns
constexpr unsigned THREADS_DOWN = 8;

template <class D, class S>
__global__ void __launch_bounds__(BLOCK_UNITS* THREADS_DOWN)
    column_sums_kernel(const D* source, int64_t rows, int64_t columns, int64_t stride, int64_t rows_of_a_block,
                       S* sums) {
  FRD_SHARED(S, partial, BLOCK_UNITS * THREADS_DOWN);
  const int64_t column = FRD_UNIT_GROUP, begin = blockIdx.y * rows_of_a_block;
  const int64_t end = begin + rows_of_a_block < rows ? begin + rows_of_a_block : rows;
  S sum = 0;
  if (column < columns)
    for (int64_t row = begin + threadIdx.y; row < end; row += THREADS_DOWN)
      sum += widen<S>(source[row * stride + column]);
  partial[threadIdx.y * BLOCK_UNITS + threadIdx.x] = sum;
  for (unsigned half = THREADS_DOWN / 2; half; half /= 2) {
    __syncthreads();  // the half that is read was written by other warps
    if (threadIdx.y < half)
      partial[threadIdx.y * BLOCK_UNITS + threadIdx.x] += partial[(threadIdx.y + half) * BLOCK_UNITS + threadIdx.x];
  }
  if (threadIdx.y == 0 && column < columns) sums[blockIdx.y * columns + column] = partial[threadIdx.x];
}

int64_t rows_of_a_block(int64_t rows) {
  const int64_t least = (rows + MOST_PARTS - 1) / MOST_PARTS;
  return least > ROWS_OF_A_BLOCK ? least : ROWS_OF_A_BLOCK;
}

}  // namespace

int64_t column_sum_blocks(int64_t rows) {
  const int64_t each = rows_of_a_block(rows);
  return rows > each ? (rows + each - 1) / each : 1;
}

template <class D>
cudaError_t column_sums(const ColumnSums<D>& p, cudaStream_t stream) {
  using S = State<D>;
  if (p.columns == 0) return cudaSuccess;
  const int64_t blocks = column_sum_blocks(p.rows);
  const unsigned across = static_cast<unsigned>((p.columns + BLOCK_UNITS - 1) / BLOCK_UNITS);
  const dim3 block(BLOCK_UNITS, THREADS_DOWN), grid(across, static_cast<unsigned>(blocks));
  S* const first = blocks > 1 ? p.partial : p.sums;
  const cudaError_t error = FRD_LAUNCH(column_sums_kernel<D, S>, grid, block, 0, stream, p.source, p.rows, p.columns,
                                       p.stride, rows_of_a_block(p.rows), first);
  if (error != cudaSuccess || blocks == 1) return error;
  return FRD_LAUNCH(column_sums_kernel<S, S>, dim3(across), block, 0, stream, first, blocks, p.columns, p.columns,
                    blocks, p.sums);
}

#define FRD_INSTANTIATE(D) template cudaError_t column_sums(const ColumnSums<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
