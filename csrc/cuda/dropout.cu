// Dropout of a layer's input or output: a linear map that is its own gradient. Where vectors divide the rows, a thread
// takes neighbouring columns of a batch row, at most the eight that one Philox call serves; elsewhere a warp takes a
// span of spans.h of a step's rows. It goes over several steps with them, so that a mask that is drawn once per
// sequence is drawn once for all of those.
#include "cuda/kernels.h"
#include "cuda/spans.h"

namespace frd::cuda {
namespace {

constexpr int64_t STEPS_OF_A_THREAD = 8;  // of a mask per sequence

// Of warps that take spans: without a bound the compiler aims at ten or twelve, and spills the registers that are over.
inline constexpr unsigned SPAN_BLOCKS = 8;

// N: columns of a thread, or 1 where warps take spans.
template <int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, N > 1 ? 0 : SPAN_BLOCKS)
    drop_rows_kernel(DropRows p, Steps steps, int64_t together) {
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
  const D* const source = static_cast<const D*>(p.source);
  D* const target = static_cast<D*>(p.target);
  for (int64_t first = blockIdx.z * together; first < steps.count; first += gridDim.z * together) {
    const int64_t last = first + together < steps.count ? first + together : steps.count;
    const Step head = step_of(steps, first);
    const uint32_t step = p.per_step ? p.step_offset + static_cast<uint32_t>(head.t) : SEQ;
    const auto draw = [&](int64_t b, int64_t call) {
      const uint32_t example = p.batch_shared ? SEQ : example_of(p.example_ids, b);
      return dropped_of_call(static_cast<uint32_t>(call), example, step, p.stream, key[0], threshold[0]);
    };
    // Calls each(at) for an element of batch row b in every step that has it.
    const auto each_step = [&](int64_t b, int64_t column, auto&& each) {
      for (int64_t index = first; index < last; ++index) {
        const Step now = step_of(steps, index);
        if (b >= now.active) break;
        each((now.row + b) * p.width + column);
      }
    };
    if constexpr (N > 1) {
      const int64_t column = FRD_UNIT_GROUP * N;
      if (column >= p.width) return;
      FRD_EACH_ROW(b, 0, head.active) {
        const uint32_t drop = draw(b, column / FIELDS) >> column % FIELDS;
        each_step(b, column, [&](int64_t at) {
          Pack<S, N> values = load_as<N, S>(source + at);
          FRD_UNROLL
          for (int i = 0; i < N; ++i) values.at[i] = (drop >> i & 1) ? S(0) : scale[0] * values.at[i];
          store<N>(target + at, values);
        });
      }
    } else {
      FRD_EACH_ROW(span, 0, spans_of(head.active, p.width)) {
        each_of_span(span, head.active, p.width, draw, [&](int64_t b, int64_t column, bool drop) {
          each_step(b, column, [&](int64_t at) {
            const S value = widen<S>(source[at]);
            target[at] = narrow<D>(drop ? S(0) : scale[0] * value);
          });
        });
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
    const int64_t turns = (steps.count + together - 1) / together;
    if (whole)
      return FRD_LAUNCH((drop_rows_kernel<N, D>), grid_of_rows(p.width / N, sequence.batch, turns), block_of_rows(), 0,
                        stream, p, steps, together);
    return FRD_LAUNCH((drop_rows_kernel<1, D>), grid_of_spans(sequence.batch, p.width, turns), block_of_rows(), 0,
                      stream, p, steps, together);
  });
}

}  // namespace

cudaError_t drop_rows(const DropRows& p, const Sequence& sequence, cudaStream_t stream) {
  if (sequence.rows == 0 || p.width == 0) return cudaSuccess;
  return with_type(p.type, [&](auto number) { return run<decltype(number)>(p, sequence, stream); });
}

}  // namespace frd::cuda
