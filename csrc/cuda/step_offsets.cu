// Where the rows of each step of a packed batch lie, from the host to device memory without a copy: by value.
#include "cuda/persistent_kernels.h"

namespace frd::cuda {
namespace {

struct Offsets {
  static constexpr int64_t MOST = 448;  // what a kernel's parameters have room for
  int64_t at[MOST];
};

__global__ void step_offsets_kernel(Offsets some, int64_t count, int64_t* target) {
  const int64_t i = FRD_UNIT_GROUP;
  if (i < count) target[i] = some.at[i];
}

}  // namespace

cudaError_t step_offsets(const Sequence& sequence, int64_t* offsets, cudaStream_t stream) {
  for (int64_t first = 0; first <= sequence.steps; first += Offsets::MOST) {
    Offsets some{};
    const int64_t rest = sequence.steps + 1 - first, count = rest < Offsets::MOST ? rest : Offsets::MOST;
    for (int64_t i = 0; i < count; ++i)
      some.at[i] = first + i < sequence.steps ? sequence.row(first + i) : sequence.rows;
    const cudaError_t error = FRD_LAUNCH(step_offsets_kernel, dim3(blocks_in_line(count)), block_in_line(), 0, stream,
                                         some, count, offsets + first);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace frd::cuda
