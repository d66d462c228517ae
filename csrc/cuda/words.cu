// Raw words, for tests and for exporting masks: the counters of core/counters.h as they are.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

__global__ void read_words_kernel(ReadWords p, bool by_unit) {
  const int64_t unit = FRD_UNIT_GROUP;
  if (unit >= p.units) return;
  const Key key = derive_key(p.rng[0], p.rng[1]);
  FRD_EACH_ROW(pair, 0, p.nb * p.nc) {
    const uint32_t b = static_cast<uint32_t>(p.b[pair % p.nb]), c = static_cast<uint32_t>(p.c[pair / p.nb]);
    const Words words = philox(static_cast<uint32_t>(by_unit ? unit : unit / 4), b, c, p.stream, key);
    const int64_t at = pair * p.units + unit;
    for (int i = 0; i < 4; ++i) {
      if (by_unit) p.target[4 * at + i] = words.w[i];
      if (!by_unit && unit % 4 == i) p.target[at] = words.w[i];
    }
  }
}

}  // namespace

cudaError_t read_words(const ReadWords& p, cudaStream_t stream) {
  if (p.nb * p.nc == 0 || p.units == 0) return cudaSuccess;
  const uint32_t kind = p.stream & 0xFF;
  const bool by_unit = kind <= KIND_HIDDEN || kind == KIND_INPUT_UNTIED;
  return FRD_LAUNCH(read_words_kernel, grid_of_rows(p.units, p.nb * p.nc), block_of_rows(), 0, stream, p, by_unit);
}

}  // namespace frd::cuda
