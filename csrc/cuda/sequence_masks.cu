// Once per layer call: the masks of the state and of h that hold for a whole sequence, as bits.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <class S>
__global__ void sequence_masks_kernel(SequenceMasks<S> p) {
  const Prepared<S>& call = *p.call;
  const int64_t unit = FRD_UNIT_GROUP;
  if (unit >= p.width) return;
  const bool state = p.flags & (FLAG_ZONEOUT_C | FLAG_ZONEOUT_H | FLAG_UPDATE | FLAG_CELL);
  FRD_EACH_ROW(b, 0, p.batch) {
    const uint32_t example = example_of(p.example_ids, b);
    uint8_t bits = 0;
    if (state) {
      const Words words = philox(static_cast<uint32_t>(unit), example, SEQ, p.state_stream, call.state);
      const uint32_t word_h = (p.flags & FLAG_ZONEOUT_H_SHARED) ? words.w[WORD_ZONEOUT_C] : words.w[WORD_ZONEOUT_H];
      if (dropped(words.w[WORD_ZONEOUT_C], call.thresholds[SITE_ZONEOUT_C])) bits |= BIT_ZONE_C;
      if (dropped(word_h, call.thresholds[SITE_ZONEOUT_H])) bits |= BIT_ZONE_H;
      if (dropped(words.w[WORD_UPDATE], call.thresholds[SITE_UPDATE_DROPOUT])) bits |= BIT_UPDATE;
      if (dropped(words.w[WORD_CELL], call.thresholds[SITE_CELL_DROPOUT])) bits |= BIT_MEMORY;
    }
    if (p.flags & FLAG_HIDDEN) {
      const uint32_t of = (p.flags & FLAG_HIDDEN_BATCH_SHARED) ? SEQ : example;
      const Words words = philox(static_cast<uint32_t>(unit), of, SEQ, p.hidden_stream, call.hidden);
      if (dropped(words.w[0], call.thresholds[SITE_HIDDEN_DROPOUT])) bits |= BIT_HIDDEN;
    }
    p.bits[b * p.width + unit] = bits;
  }
}

}  // namespace

template <class S>
cudaError_t sequence_masks(const SequenceMasks<S>& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  return FRD_LAUNCH(sequence_masks_kernel<S>, grid_of_rows(p.width, p.batch), block_of_rows(), 0, stream, p);
}

template cudaError_t sequence_masks(const SequenceMasks<float>&, cudaStream_t);
template cudaError_t sequence_masks(const SequenceMasks<double>&, cudaStream_t);

}  // namespace frd::cuda
