// Once per layer call: the masks of the state and of h that hold for a whole sequence, as bits.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

// Bit f at bit 0 of byte f.
FRD_INLINE uint64_t spread(uint32_t bits) {
  uint64_t found = 0;
  FRD_UNROLL
  for (int f = 0; f < FIELDS; ++f) found |= static_cast<uint64_t>(bits >> f & 1) << 8 * f;
  return found;
}

// A thread takes the units of one call.
template <class S>
__global__ void sequence_masks_kernel(SequenceMasks<S> p) {
  const Prepared<S>& call = *p.call;
  const int64_t unit = FRD_UNIT_GROUP * FIELDS;
  if (unit >= p.width) return;
  FRD_EACH_ROW(b, 0, p.batch) {
    const uint32_t number = static_cast<uint32_t>(unit / FIELDS), example = example_of(p.example_ids, b);
    uint64_t bits = 0;  // byte i of unit + i
    FRD_UNROLL
    for (int s = 0; s < NUM_STATE_SITES; ++s) {
      if (s >= p.state.count) break;
      const SiteDraw draw = p.state.at[s];
      bits |= spread(dropped_of_call(number, example, SEQ, draw.stream, call.state, call.thresholds[draw.threshold]))
              << draw.site;
    }
    if (p.hidden) {
      const uint32_t row = p.hidden_shared ? SEQ : example;
      const uint64_t threshold = call.thresholds[SITE_HIDDEN_DROPOUT];
      bits |= spread(dropped_of_call(number, row, SEQ, p.hidden_stream, call.hidden, threshold)) << NUM_STATE_SITES;
    }
    FRD_UNROLL
    for (int i = 0; i < FIELDS; ++i)
      if (unit + i < p.width) p.bits[b * p.width + unit + i] = static_cast<uint8_t>(bits >> 8 * i);
  }
}

}  // namespace

template <class S>
cudaError_t sequence_masks(const SequenceMasks<S>& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  return FRD_LAUNCH(sequence_masks_kernel<S>, grid_of_rows((p.width + FIELDS - 1) / FIELDS, p.batch), block_of_rows(),
                    0, stream, p);
}

template cudaError_t sequence_masks(const SequenceMasks<float>&, cudaStream_t);
template cudaError_t sequence_masks(const SequenceMasks<double>&, cudaStream_t);

}  // namespace frd::cuda
