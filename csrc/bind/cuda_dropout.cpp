// Operators without a recurrence on a GPU: dropout of inputs and outputs, and the numbers of masks.
#include "bind/cuda_tensors.h"

namespace frd::bind {
namespace {

Tensor dropout(const Tensor& x, const Tensor& rng, const Tensor& thresholds, const MaybeTensor& batch_sizes,
               const MaybeTensor& example_ids, int64_t site, int64_t stream, bool per_step, bool batch_shared,
               int64_t step_offset) {
  check_floating("x", x);
  check_stream(stream);
  check_site(site);
  const Batch batch(x, batch_sizes, -1, false);
  const Device device(x);
  const Tensor pair = device_integers("rng", rng, 2, x);
  const Tensor rates = device_integers("thresholds", thresholds, NUM_SITES, x);
  MaybeTensor ids;
  if (example_ids) ids = device_integers("example_ids", *example_ids, batch.sequence.batch, x);
  cuda::DropRows p{};
  p.per_step = per_step;
  p.batch_shared = batch_shared;
  p.stream = static_cast<uint32_t>(stream);
  p.step_offset = check_steps(step_offset, batch.sequence.steps);
  p.rng = read<int64_t>(pair);
  p.threshold = read<int64_t>(rates) + site;
  p.example_ids = read<int64_t>(ids);
  return masked_rows(device, batch, x, p);
}

Tensor words(const Tensor& rng, const Tensor& row, const Tensor& step, int64_t n, int64_t stream) {
  check_stream(stream);
  check_elements(n);
  const Device device(rng);
  const Tensor pair = device_integers("rng", rng, 2, rng);
  const Tensor rows = device_integers("row", row, -1, rng), steps = device_integers("step", step, -1, rng);
  const Tensor target = device.empty(words_shape(steps, rows, n), ScalarType::Long);
  cuda::check(cuda::read_words({.rng = read<int64_t>(pair),
                                .stream = static_cast<uint32_t>(stream),
                                .row = read<int64_t>(rows),
                                .step = read<int64_t>(steps),
                                .rows = rows.numel(),
                                .steps = steps.numel(),
                                .n = n,
                                .target = data<int64_t>(target)},
                               device.stream()));
  return target;
}

}  // namespace

FRD_CUDA_LIBRARY_IMPL(m) {
  m.impl("dropout", TORCH_BOX(&dropout));
  m.impl("words", TORCH_BOX(&words));
}

}  // namespace frd::bind
