// Once per layer call: keys, rates and scales, from the caller's tensors to one struct in device memory. Everything
// that a caller may change between two replays of a graph is read here, on the device.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

__device__ Key key_of(const int64_t* rng) { return rng ? derive_key(rng[0], rng[1]) : Key{0, 0}; }

template <class S>
__global__ void prepare_kernel(Random random, SiteDraws draws, Prepared<S>* prepared) {
  Prepared<S> call{};
  call.state = key_of(random.rng_state);
  call.hidden = key_of(random.rng_hidden);
  call.weight = key_of(random.rng_weight);
  call.written = key_of(random.rng_written);
  // The host cannot look at them, so that what makes no sense is taken for the nearest rate that does.
  const int64_t most = int64_t{1} << 32;
  for (int i = 0; i < NUM_SITES; ++i) {
    const int64_t p = random.thresholds[i];
    call.thresholds[i] = static_cast<uint64_t>(p < 0 ? 0 : p > most ? most : p);
  }
  call.factors.state = state_sites<Math<S>>(random.flags, call.thresholds);
  call.factors.hidden = S(keep_scale(call.thresholds[SITE_HIDDEN_DROPOUT]));
  call.weight_scale = keep_scale(call.thresholds[SITE_WEIGHT_DROPOUT]);
  *prepared = call;
  // A row of a table that the compiler does not know lies in memory.
  if (random.written.on) prepared->factors.written = S(keep_scale(prepared->thresholds[random.written.threshold]));
  for (int i = 0; i < draws.count; ++i) {
    const SiteDraw draw = draws.at[i];
    const uint64_t threshold = prepared->thresholds[draw.threshold];
    prepared->draws[i] = {draw.stream, upper_of(threshold), lower_of(threshold), draw.site};
  }
}

}  // namespace

template <class S>
cudaError_t prepare(const Random& random, Prepared<S>* prepared, cudaStream_t stream) {
  return FRD_LAUNCH(prepare_kernel<S>, dim3(1), dim3(1), 0, stream, random, SiteDraws::of(random, false), prepared);
}

template cudaError_t prepare(const Random&, Prepared<float>*, cudaStream_t);
template cudaError_t prepare(const Random&, Prepared<double>*, cudaStream_t);

}  // namespace frd::cuda
