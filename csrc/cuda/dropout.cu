// Dropout of a layer's input or output: a linear map that is its own gradient. A thread takes neighbouring columns of a
// batch row, at most the eight that one Philox call serves, and goes over several steps with them, so that a mask that
// is drawn once per sequence is drawn once for all of those.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

constexpr int64_t STEPS_OF_A_THREAD = 8;  // of a mask per sequence

template <int N, bool WHOLE, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) drop_rows_kernel(DropRows p, Steps steps, int64_t together) {
  using S = State<D>;
  FRD_SHARED(Key, key, 1);
  FRD_SHARED(uint64_t, threshold, 1);
  FRD_SHARED(S, scale, 1);
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    const int64_t rate = *p.threshold, most = int64_t{1} << 32;
    key[0] = derive_key(p.rng[0], p.rng[1]);
    threshold[0] = static_cast<uint64_t>(rate < 0 ? 0 : rate > most ? most : rate);
    scale[0] = S(keep_scale(threshold[0]));
  }
  __syncthreads();
  const int64_t column = FRD_UNIT_GROUP * N;
  if (column >= p.width) return;
  const int64_t columns = p.width - column;
  const D* const source = static_cast<const D*>(p.source) + column;
  D* const target = static_cast<D*>(p.target) + column;
  for (int64_t first = blockIdx.z * together; first < steps.count; first += gridDim.z * together) {
    const int64_t last = first + together < steps.count ? first + together : steps.count;
    const Step head = step_of(steps, first);
    const uint32_t step = p.per_step ? p.step_offset + static_cast<uint32_t>(head.t) : SEQ;
    FRD_EACH_ROW(b, 0, head.active) {
      const uint32_t example = p.batch_shared ? SEQ : example_of(p.example_ids, b);
      const uint32_t call = static_cast<uint32_t>(column / FIELDS);
      const uint32_t drop = dropped_of_call(call, example, step, p.stream, key[0], threshold[0]) >> column % FIELDS;
      for (int64_t index = first; index < last; ++index) {
        const Step now = step_of(steps, index);
        if (b >= now.active) break;
        const int64_t at = (now.row + b) * p.width;
        if constexpr (WHOLE) {
          Pack<S, N> values = load_as<N, S>(source + at);
          FRD_UNROLL
          for (int i = 0; i < N; ++i) values.at[i] = (drop >> i & 1) ? S(0) : scale[0] * values.at[i];
          store<N>(target + at, values);
        } else {
          FRD_UNROLL
          for (int i = 0; i < N; ++i)
            if (i < columns) target[at + i] = narrow<D>((drop >> i & 1) ? S(0) : scale[0] * widen<S>(source[at + i]));
        }
      }
    }
  }
}

template <class D>
cudaError_t run(const DropRows& p, const Sequence& sequence, cudaStream_t stream) {
  // A mask per sequence never needs to know which step a row belongs to, only which batch row.
  constexpr int N = sizeof(D) == 2 ? 8 : 4;
  const int64_t together = p.per_step ? 1 : STEPS_OF_A_THREAD;
  const bool whole = wide_enough<N>(p.width, static_cast<const D*>(p.source), static_cast<const D*>(p.target));
  return Steps::each(sequence, [&](const Steps& steps) {
    const auto start = [&](auto kernel, int64_t columns) {
      const dim3 grid =
          grid_of_rows((p.width + columns - 1) / columns, sequence.batch, (steps.count + together - 1) / together);
      return FRD_LAUNCH(kernel, grid, block_of_rows(), 0, stream, p, steps, together);
    };
    return whole ? start(drop_rows_kernel<N, true, D>, N) : start(drop_rows_kernel<4, false, D>, 4);
  });
}

}  // namespace

cudaError_t drop_rows(const DropRows& p, const Sequence& sequence, cudaStream_t stream) {
  if (sequence.rows == 0 || p.width == 0) return cudaSuccess;
  return with_type(p.type, [&](auto number) { return run<decltype(number)>(p, sequence, stream); });
}

}  // namespace frd::cuda
