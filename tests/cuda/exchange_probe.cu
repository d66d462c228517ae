// One exchange in each form, alone in a kernel, for tools/check_polls.py to look at its machine code: no loop but
// polls.
#include "cuda/exchange.h"

namespace frd::cuda::probe {

template <class Form, class Word>
__global__ void probe(typename Word::Bits* words, Group group, int64_t step) {
  using Bits = typename Word::Bits;
  constexpr int N = 16 / sizeof(Bits);
  const Form x(group);
  Bits read[2][N], all = 0;
  uint32_t seen = 0;
  x.begin_read(step);
  x.template read<Word>(words + threadIdx.x * N, 1024, step, read, seen);
  for (int n = 0; n < N; ++n) all += read[0][n] ^ read[1][n];
  x.begin_write(step + 1);
  __syncthreads();
  x.end_read(step);
  x.template write<Word>(words + 4096 + threadIdx.x, step + 1, all & ~Word::MASK, seen);
  x.end_write(step + 1);
}

template __global__ void probe<Ring<8, true>, PhasedPair>(uint32_t*, Group, int64_t);
template __global__ void probe<Ring<8, true>, Tagged>(uint64_t*, Group, int64_t);
template __global__ void probe<Ring<2, false>, PhasedPair>(uint32_t*, Group, int64_t);
template __global__ void probe<Ring<2, false>, Tagged>(uint64_t*, Group, int64_t);
template __global__ void probe<Flags, Plain>(uint32_t*, Group, int64_t);

}  // namespace frd::cuda::probe
