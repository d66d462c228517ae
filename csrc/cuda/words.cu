// The numbers that masks are made of, for tests and for exporting masks.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

__global__ void read_words_kernel(ReadWords p) {
  const int64_t i = FRD_UNIT_GROUP;
  if (i >= p.n) return;
  const Key key = derive_key(p.rng[0], p.rng[1]);
  FRD_EACH_ROW(pair, 0, p.rows * p.steps) {
    const uint32_t row = static_cast<uint32_t>(p.row[pair % p.rows]);
    const uint32_t step = static_cast<uint32_t>(p.step[pair / p.rows]);
    p.target[pair * p.n + i] = number_of(static_cast<uint32_t>(i), row, step, p.stream, key);
  }
}

}  // namespace

cudaError_t read_words(const ReadWords& p, cudaStream_t stream) {
  if (p.rows * p.steps == 0 || p.n == 0) return cudaSuccess;
  return FRD_LAUNCH(read_words_kernel, grid_of_rows(p.n, p.rows * p.steps), block_of_rows(), 0, stream, p);
}

}  // namespace frd::cuda
