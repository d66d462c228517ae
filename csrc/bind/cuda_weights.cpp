// The weights of layers as weight dropout leaves them, in one flat buffer that cuDNN takes as it is; and the way back.
#include <utility>

#include "bind/cuda_tensors.h"

namespace frd::bind {
namespace {

using Integers = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;

// One call of prepare() and one launch a weight, in either direction. `streams`: kind | direction << 8 | layer << 16 of
// each weight, -1 for what is only copied.
class Weights {
 public:
  Weights(const Device& device, const Tensor& x, const MaybeTensor& rng, const MaybeTensor& thresholds, int64_t flags)
      : device_(device), random_(x, rng, thresholds, flags) {
    if (!flags) return;
    prepared_ = device.around().buffer<cuda::Prepared<float>>(1);
    cuda::check(cuda::prepare(random_.random, prepared_, device.stream()));
  }

  void mask(const void* source, cuda::Type source_type, void* target, cuda::Type target_type, const Integers& shape,
            int64_t stream) const {
    const uint32_t kind = stream & 0xFF, flag = kind == KIND_WEIGHT_HH   ? FLAG_WEIGHT_HH
                                                : kind == KIND_WEIGHT_IH ? FLAG_WEIGHT_IH
                                                                         : FLAG_WEIGHT_HR;
    const bool on = stream >= 0 && random_.random.sampled(flag), by_row = random_.random.flags & FLAG_WEIGHT_ROW;
    const int64_t columns = shape.back(), rows = shape.size() == 2 ? shape[0] : 1;
    const uint32_t where = static_cast<uint32_t>(stream);
    cuda::check(cuda::masked_weight({.source = source,
                                     .target = target,
                                     .source_type = source_type,
                                     .target_type = target_type,
                                     .rows = rows,
                                     .columns = columns,
                                     .source_stride = columns,
                                     .target_stride = columns,
                                     .rotation = 0,
                                     .on = on,
                                     .by_row = by_row,
                                     .stream = by_row ? (where & ~0xFFu) | by_rows(kind) : where,
                                     .key = on ? &prepared_->weight : nullptr,
                                     .scale = on ? &prepared_->weight_scale : nullptr,
                                     .threshold = on ? &prepared_->thresholds[SITE_WEIGHT_DROPOUT] : nullptr},
                                    device_.stream()));
  }

 private:
  const Device& device_;
  const Random random_;
  cuda::Prepared<float>* prepared_ = nullptr;
};

Integers shape_of(const Tensor& t) {
  Integers shape;
  for (int64_t i = 0; i < t.dim(); ++i) shape.push_back(t.size(i));
  return shape;
}

// The stretches of a buffer that no weight fills, first and last + 1.
std::vector<std::pair<int64_t, int64_t>> gaps(const Tensors& weights, const Integers& offsets, int64_t size) {
  std::vector<std::pair<int64_t, int64_t>> filled, found;
  for (size_t i = 0; i < weights.size(); ++i)
    if (weights[i].numel()) filled.emplace_back(offsets[i], offsets[i] + weights[i].numel());
  std::sort(filled.begin(), filled.end());
  int64_t end = 0;
  for (const auto& [first, last] : filled) {
    STD_TORCH_CHECK(first >= end, "offsets must keep weights apart");
    if (first > end) found.emplace_back(end, first);
    end = last;
  }
  if (size > end) found.emplace_back(end, size);
  return found;
}

void check_weights(const Tensors& weights, const Integers& streams, const Integers& offsets, int64_t size) {
  STD_TORCH_CHECK(!weights.empty() && weights.size() == streams.size() && weights.size() == offsets.size(),
                  "weights, streams and offsets must be of one length, and not empty");
  for (size_t i = 0; i < weights.size(); ++i) {
    check_floating("weights", weights[i]);
    check_device(weights[i], weights[0]);
    STD_TORCH_CHECK(weights[i].dim() == 1 || weights[i].dim() == 2, "weights must have 1 or 2 dimensions");
    STD_TORCH_CHECK(offsets[i] >= 0 && offsets[i] <= size - weights[i].numel(),
                    "offsets must keep weights in the buffer");
  }
}

Tensor masked_weights(Tensors weights, Integers streams, Integers offsets, int64_t size, const MaybeTensor& rng,
                      const MaybeTensor& thresholds, ScalarType dtype, int64_t flags) {
  check_weights(weights, streams, offsets, size);
  check_floating("dtype", dtype);
  const Device device(weights[0]);
  const auto unfilled = gaps(weights, offsets, size);
  const Tensor flat = device.empty({size}, dtype);
  const Weights masks(device, weights[0], rng, thresholds, flags);
  char* const to = static_cast<char*>(flat.mutable_data_ptr());
  const int64_t each = cuda::size_of(type_of(dtype));
  // cuDNN reads there what a module does not have: it always adds two biases.
  for (const auto& [first, last] : unfilled)
    cuda::check(cudaMemsetAsync(to + first * each, 0, static_cast<size_t>((last - first) * each), device.stream()));
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor source = dense(weights[i], weights[i].scalar_type());
    masks.mask(source.const_data_ptr(), type_of(source.scalar_type()), to + offsets[i] * each, type_of(dtype),
               shape_of(source), streams[i]);
  }
  return flat;
}

Tensors masked_weights_backward(const Tensor& grad, Tensors weights, Integers streams, Integers offsets,
                                const MaybeTensor& rng, const MaybeTensor& thresholds, int64_t flags) {
  check_weights(weights, streams, offsets, grad.numel());
  check_floating("grad", grad);
  check_device(grad, weights[0]);
  const Device device(grad);
  const Tensor flat = dense(grad, grad.scalar_type());
  const Weights masks(device, grad, rng, thresholds, flags);
  const cuda::Type type = type_of(flat.scalar_type());
  const char* const from = static_cast<const char*>(flat.const_data_ptr());
  Tensors gradients;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Integers shape = shape_of(weights[i]);
    gradients.push_back(device.empty(shape, weights[i].scalar_type()));
    masks.mask(from + offsets[i] * cuda::size_of(type), type, gradients[i].mutable_data_ptr(),
               type_of(weights[i].scalar_type()), shape, streams[i]);
  }
  return gradients;
}

}  // namespace

FRD_CUDA_LIBRARY_IMPL(m) {
  m.impl("masked_weights", TORCH_BOX(&masked_weights));
  m.impl("masked_weights_backward", TORCH_BOX(&masked_weights_backward));
}

}  // namespace frd::bind
