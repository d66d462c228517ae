// Once per layer call: the masks of the state and of h that hold for a whole sequence, as bits.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

// A thread takes the units of one call.
template <class S>
__global__ void sequence_masks_kernel(SequenceMasks<S> p) {
  const Prepared<S>& call = *p.call;
  const int64_t unit = FRD_UNIT_GROUP * FIELDS;
  if (unit >= p.width) return;
  FRD_EACH_ROW(b, 0, p.batch) {
    const uint32_t number = static_cast<uint32_t>(unit / FIELDS), example = example_of(p.example_ids, b);
    uint8_t bits[FIELDS] = {};
    const auto take = [&](uint32_t drawn, int bit) {
      FRD_UNROLL
      for (int i = 0; i < FIELDS; ++i) bits[i] |= static_cast<uint8_t>((drawn >> i & 1) << bit);
    };
    for (int s = 0; s < NUM_STATE_SITES; ++s) {
      const SiteDraw site = p.state[s];
      if (site.threshold < 0) continue;
      take(dropped_of_call(number, example, SEQ, site.stream, call.state, call.thresholds[site.threshold]), s);
    }
    if (p.hidden) {
      const uint32_t row = p.hidden_shared ? SEQ : example;
      take(dropped_of_call(number, row, SEQ, p.hidden_stream, call.hidden, call.thresholds[SITE_HIDDEN_DROPOUT]),
           NUM_STATE_SITES);
    }
    FRD_UNROLL
    for (int i = 0; i < FIELDS; ++i)
      if (unit + i < p.width) p.bits[b * p.width + unit + i] = bits[i];
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
