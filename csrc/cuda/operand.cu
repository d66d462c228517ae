// What the recurrent products of all steps read: h before each step, masked and scaled, as one matrix.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <int N, class D>
FRD_INLINE void write_operand(const Operand<D>& p, const Factors<State<D>>& factors, int64_t b, int64_t u,
                              const D* state, D* to) {
  using S = State<D>;
  const Pack<uint8_t, N> bits = bits_of<N>(p.masks, b, u);
  Pack<S, N> h = state ? load_as<N, S>(state) : load<N>(p.h0 + b * p.width + u);
  FRD_UNROLL
  for (int i = 0; i < N; ++i) {
    if (p.scaled && !state) h.at[i] = enter_of(p.masks, factors, true, bits.at[i], h.at[i]);
    h.at[i] = hidden_of(p.masks, factors, bits.at[i], seen_of(factors, p.scaled, h.at[i]));
  }
  store<N>(to, h);
}

template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, LEAST_BLOCKS) operand_kernel(Operand<D> p, Steps steps) {
  const int64_t u = FRD_UNIT_GROUP * N, width = p.width;
  if (u >= width) return;
  const Factors<State<D>> factors = factors_of(p.masks);
  for (int64_t index = blockIdx.z; index < steps.count; index += gridDim.z) {
    const Step step = step_of(steps, index);
    FRD_EACH_ROW(b, 0, step.active) {
      const D* const state = b < step.continued ? p.states + (step.row_before + b) * width + u : nullptr;
      write_operand<N>(p, factors, b, u, state, p.operand + (step.row + b) * width + u);
    }
  }
}

template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, LEAST_BLOCKS)
    first_operand_kernel(Operand<D> p, int64_t batch) {
  const int64_t u = FRD_UNIT_GROUP * N;
  if (u >= p.width) return;
  const Factors<State<D>> factors = factors_of(p.masks);
  FRD_EACH_ROW(b, 0, batch) write_operand<N, D>(p, factors, b, u, nullptr, p.operand + b * p.width + u);
}

template <class D>
bool wide(const Operand<D>& p) {
  constexpr int N = WIDE<D>;
  return wide_enough<N>(p.width, p.states, p.h0, p.operand) && wide_enough<N>(p.masks.width, p.masks.bits);
}

}  // namespace

template <class D>
cudaError_t operand(const Operand<D>& p, const Sequence& sequence, cudaStream_t stream) {
  if (sequence.rows == 0) return cudaSuccess;
  constexpr int N = WIDE<D>;
  return Steps::each(sequence, [&](const Steps& steps) {
    const auto run = [&](auto kernel, int64_t units) {
      const int64_t groups = (p.width + units - 1) / units;
      return FRD_LAUNCH(kernel, grid_of_rows(groups, sequence.batch, steps.count), block_of_rows(), 0, stream, p,
                        steps);
    };
    return wide(p) ? run(operand_kernel<N, D>, N) : run(operand_kernel<1, D>, 1);
  });
}

template <class D>
cudaError_t first_operand(const Operand<D>& p, int64_t batch, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  const auto run = [&](auto kernel, int64_t units) {
    return FRD_LAUNCH(kernel, grid_of_rows((p.width + units - 1) / units, batch), block_of_rows(), 0, stream, p, batch);
  };
  constexpr int N = WIDE<D>;
  return wide(p) ? run(first_operand_kernel<N, D>, N) : run(first_operand_kernel<1, D>, 1);
}

#define FRD_INSTANTIATE(D)                                                                                             \
  template cudaError_t operand(const Operand<D>&, const Sequence&, cudaStream_t);                                      \
  template cudaError_t first_operand(const Operand<D>&, int64_t, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
