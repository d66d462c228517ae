// Tensors of the stable ABI for the CUDA launchers: memory, matrix products, streams, and the randomness of a call.
//
// With FRD_CUDA_ON_HOST defined the same bindings take CPU tensors, in a library of the tests: the host shim runs the
// kernels, torch's CPU the products.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "bind/arguments.h"
#include "core/rows.h"
#include "cuda/schedule.h"

#if defined(FRD_CUDA_ON_HOST)
#define FRD_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(frd_on_host, CPU, m)
#else
#define FRD_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(fused_rnn_dropout, CUDA, m)
#endif

namespace frd::bind {

inline cuda::Type type_of(ScalarType dtype) {
  switch (dtype) {
  case ScalarType::Double:
    return cuda::Type::F64;
  case ScalarType::Half:
    return cuda::Type::F16;
  case ScalarType::BFloat16:
    return cuda::Type::BF16;
  default:
    return cuda::Type::F32;
  }
}

// What a dispatcher checks on other devices by itself: kernels follow pointers wherever they lead.
inline void check_device(const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.device() == x.device(),
                  "Expected all tensors to be on the same device as the input, but found one that is not");
}
inline void check_device(const MaybeTensor& t, const Tensor& x) {
  if (t) check_device(*t, x);
}
template <class... T>
void check_devices(const Tensor& x, const T&... tensors) {
  (check_device(tensors, x), ...);
}

// The surroundings of one operator call: its device, the caller's stream, and the memory that it takes.
class Device {
 public:
  explicit Device(const Tensor& x)
      : like_(x)
#if !defined(FRD_CUDA_ON_HOST)
        ,
        guard_(x.get_device_index())
#endif
  {
    cudaStream_t stream = nullptr;
#if !defined(FRD_CUDA_ON_HOST)
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
#endif
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &index_));
    around_ = {stream, this, allocate, multiply};
  }
  Device(const Device&) = delete;  // `around_` points here

  const cuda::Surroundings& around() const { return around_; }
  cudaStream_t stream() const { return around_.stream; }

  // Nobody has written to it: who asks for it writes all of it, or hands it to no one who reads what is not written.
  Tensor empty(std::vector<int64_t> shape, ScalarType dtype) const {
    return torch::stable::empty(shape, dtype, std::nullopt, like_.device());
  }
  // Room for a result, or nothing where nobody asks for it; where(...) is null then.
  Tensor room(bool wanted, std::vector<int64_t> shape, ScalarType dtype) const {
    return empty(wanted ? shape : std::vector<int64_t>{0}, dtype);
  }

 private:
  static void* allocate(void* context, int64_t bytes) {
    const Device& device = *static_cast<const Device*>(context);
    device.taken_.push_back(device.empty({bytes}, ScalarType::Byte));
    return device.taken_.back().mutable_data_ptr();
  }

  Tensor view(cuda::Type type, const cuda::Matrix& m, bool turned) const {
    const int64_t sizes[] = {turned ? m.columns : m.rows, turned ? m.rows : m.columns};
    const int64_t stride = m.stride > 0 ? m.stride : 1;  // a layer may have no units
    const int64_t strides[] = {turned ? 1 : stride, turned ? stride : 1};
    const int32_t dtypes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_float16(),
                              aoti_torch_dtype_bfloat16()};
    AtenTensorHandle made = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(m.data, 2, sizes, strides, 0,
                                                              dtypes[static_cast<int>(type)], type_, index_, &made));
    return Tensor(made);
  }

  // By torch itself, so that what its user allows matrix products to do, such as TF32, holds here too.
  static void multiply(void* context, cuda::Type type, const cuda::Matrix& a, bool turn_a, const cuda::Matrix& b,
                       bool turn_b, const cuda::Matrix& c) {
    const Device& device = *static_cast<Device*>(context);
    if (c.rows * c.columns == 0) return;
    if ((turn_a ? a.rows : a.columns) == 0) {  // an empty batch has no memory that a tensor could be a view of
      torch::stable::Tensor nothing = device.view(type, c, false);
      torch::stable::zero_(nothing);
      return;
    }
    using torch::stable::detail::from;
    std::array<StableIValue, 3> stack{from(device.view(type, a, turn_a)), from(device.view(type, b, turn_b)),
                                      from(device.view(type, c, false))};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // the result, which is c
  }

  const Tensor like_;
#if !defined(FRD_CUDA_ON_HOST)
  const torch::stable::accelerator::DeviceGuard guard_;
#endif
  int32_t type_ = 0, index_ = 0;
  cuda::Surroundings around_{};
  mutable std::vector<Tensor> taken_;  // grows while a call runs, in a Device that is const to it
};

template <class T>
T* where(bool wanted, const Tensor& t) {
  return wanted ? data<T>(t) : nullptr;
}

// An integer argument that a kernel reads: never on the host, which would have to wait for the device.
inline Tensor device_integers(const char* name, const Tensor& t, int64_t n, const Tensor& x) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, name, " must be an int64 tensor");
  STD_TORCH_CHECK(n < 0 || t.numel() == n, name, " must have ", n, " elements, got ", t.numel());
  check_device(t, x);
  return dense(t, ScalarType::Long);
}

// The randomness arguments of a layer, as the launchers take them. What is out of range is not found here, since it is
// on the device; kernels take such a rate for 0 or 1.
struct Random {
  cuda::Random random{};

  // `rng`: a pair for each group of sites. `column`: of the output, where a direction's part of it begins.
  Random(const Tensor& x, const MaybeTensor& ids, const MaybeTensor& rng, const MaybeTensor& thresholds, int64_t flags,
         int64_t layer, bool reverse, int64_t step_offset, const Sequence& sequence, int64_t column) {
    check_flags(flags);
    random.flags = static_cast<uint32_t>(flags);
    check_layer(layer, random.flags);
    random.layer = static_cast<uint32_t>(layer);
    random.direction = reverse;
    random.step_offset = check_steps(step_offset, sequence.steps);
    if (ids) random.example_ids = keep(device_integers("example_ids", *ids, sequence.batch, x));
    STD_TORCH_CHECK(!flags || thresholds.has_value(), "thresholds are needed where a site is configured");
    if (flags) random.thresholds = keep(device_integers("thresholds", *thresholds, NUM_SITES, x));
    STD_TORCH_CHECK(rng || !random.sampled(DRAWING_FLAGS), "rng is needed where sites draw masks");
    const OuterSite* const written = outer_site(random.flags, true);
    if (written)
      random.written = {.on = true,
                        .per_step = per_step(*written, random.flags),
                        .shared = (random.flags & written->shared_flag) != 0,
                        .stream = stream_of(written->kind, random.layer + 1, 0),
                        .threshold = written->threshold,
                        .column = static_cast<uint32_t>(column)};
    random.flags = inner_flags(random.flags);  // what is read is no business of a step
    if (!rng) return;
    check_groups(*rng);
    check_device(*rng, x);
    // Kernels read a pair as two neighbours; the rows themselves may all be the same memory.
    const Tensor pairs = rng->stride(1) == 1 ? *rng : dense(*rng, ScalarType::Long);
    const int64_t* first = keep(pairs);
    random.rng_state = first + GROUP_STATE * pairs.stride(0);
    random.rng_hidden = first + GROUP_HIDDEN * pairs.stride(0);
    random.rng_weight = first + GROUP_WEIGHT * pairs.stride(0);
    if (written) random.rng_written = first + written->group * pairs.stride(0);
  }

  // Of weights alone, whose sites draw from one pair.
  Random(const Tensor& x, const MaybeTensor& pair, const MaybeTensor& thresholds, int64_t flags)
      : Random(x, std::nullopt, pair ? MaybeTensor(of_each(device_integers("rng", *pair, 2, x))) : std::nullopt,
               thresholds, flags, 0, false, 0, Sequence{}, 0) {}

 private:
  // The same pair for every group.
  static Tensor of_each(const Tensor& pair) {
    const int64_t sizes[] = {NUM_GROUPS, 2}, strides[] = {0, 1};
    AtenTensorHandle made = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(pair.get(), 2, sizes, strides, 0, &made));
    return Tensor(made);
  }
  const int64_t* keep(const Tensor& t) {
    kept_.push_back(t);
    return read<int64_t>(t);
  }
  std::vector<Tensor> kept_;
};

// Rows with the mask that `p` says, in their own type.
inline Tensor masked_rows(const Device& device, const Batch& batch, const Tensor& rows, cuda::DropRows p) {
  const ScalarType dtype = rows.scalar_type();
  const Tensor source = dense(rows, dtype), target = device.empty(batch.shape(rows.size(-1)), dtype);
  p.type = type_of(dtype);
  p.source = source.const_data_ptr();
  p.target = target.mutable_data_ptr();
  p.width = rows.size(-1);
  cuda::check(cuda::drop_rows(p, batch.sequence, device.stream()));
  return target;
}

inline cuda::Weight weight_of(const Tensor& dense, uint32_t flag, uint32_t kind) {
  return {dense.const_data_ptr(), type_of(dense.scalar_type()), dense.size(0), dense.size(1), flag, kind};
}
inline cuda::Weight weight_of(const MaybeTensor& dense, uint32_t flag, uint32_t kind) {
  return dense ? weight_of(*dense, flag, kind) : cuda::Weight{};
}

}  // namespace frd::bind
