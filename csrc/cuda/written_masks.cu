// Once per layer call: the masks of what the layer writes, as bits. A thread takes the eight units of a byte, which are
// those of one call, or of two where a second direction begins within a call.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) written_masks_kernel(WrittenMasks<S> p, Steps steps) {
  const int64_t byte = FRD_UNIT_GROUP, bytes = bytes_of_bits(p.width);
  if (byte >= bytes) return;
  const uint32_t column = p.site.column + static_cast<uint32_t>(byte) * FIELDS, before = column % FIELDS;
  const uint64_t threshold = p.call->thresholds[p.site.threshold];
  const Key key = p.call->written;
  for (int64_t index = blockIdx.z; index < steps.count; index += gridDim.z) {
    const Step now = step_of(steps, index);
    const uint32_t step = p.site.per_step ? p.step_offset + static_cast<uint32_t>(now.t) : SEQ;
    FRD_EACH_ROW(b, 0, now.active) {
      const uint32_t row = p.site.shared ? SEQ : example_of(p.example_ids, b);
      uint32_t drop = dropped_of_call(column / FIELDS, row, step, p.site.stream, key, threshold);
      if (before) drop |= dropped_of_call(column / FIELDS + 1, row, step, p.site.stream, key, threshold) << FIELDS;
      p.masks[(now.row + b) * bytes + byte] = static_cast<uint8_t>(drop >> before);
    }
  }
}

}  // namespace

template <class S>
cudaError_t written_masks(const WrittenMasks<S>& p, const Sequence& sequence, cudaStream_t stream) {
  if (sequence.rows == 0) return cudaSuccess;
  // A mask per sequence is that of one step in which every row is there.
  const int64_t batch = sequence.batch;
  const Sequence drawn = p.site.per_step ? sequence : Sequence{1, batch, batch, nullptr, nullptr, false};
  return Steps::each(drawn, [&](const Steps& steps) {
    return FRD_LAUNCH(written_masks_kernel<S>, grid_of_rows(bytes_of_bits(p.width), batch, steps.count),
                      block_of_rows(), 0, stream, p, steps);
  });
}

template cudaError_t written_masks(const WrittenMasks<float>&, const Sequence&, cudaStream_t);
template cudaError_t written_masks(const WrittenMasks<double>&, const Sequence&, cudaStream_t);

}  // namespace frd::cuda
