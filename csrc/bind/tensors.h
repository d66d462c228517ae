// Tensors of the stable ABI for the CPU kernels.
#pragma once

#include <cstdlib>

#include "bind/arguments.h"
#include "cpu/layer.h"
#include "cpu/memory.h"
#include "cpu/numbers.h"

namespace frd::bind {

template <class T>
inline constexpr ScalarType scalar_type = std::is_same_v<T, double>          ? ScalarType::Double
                                          : std::is_same_v<T, cpu::BFloat16> ? ScalarType::BFloat16
                                                                             : ScalarType::Float;

inline cpu::Parallel parallel() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t n, void* context, void (*body)(void*, int64_t, int64_t)) {
            torch::stable::parallel_for(0, n, 1, [=](int64_t begin, int64_t end) { body(context, begin, end); });
          }};
}

inline const cpu::Kernels& kernels() {
  STD_TORCH_CHECK(cpu::isa_in_use() >= 0,
                  "the environment variable FRD_CPU_ISA names no instruction set that this build and processor have; "
                  "allowed are baseline, avx2 and avx512, as far as they are there");
  return cpu::kernels();
}

template <class D>
const cpu::TypedKernels<D>& typed_kernels() {
  kernels();  // raises where FRD_CPU_ISA names none
  return cpu::typed_kernels<D>();
}

// How layers with results in bfloat16 run.
inline cpu::Bf16 bf16() {
  kernels();
  const cpu::Bf16 found = cpu::bf16_in_use();
  STD_TORCH_CHECK(found != cpu::Bf16::UNKNOWN,
                  "the environment variable FRD_CPU_BF16 must be exact, emulated or, with AVX-512 and its dot products "
                  "of bfloat16, native; got ",
                  std::getenv("FRD_CPU_BF16"),
                  cpu::has_native_bf16() ? "" : ", and this processor or FRD_CPU_ISA has not got those");
  return found;
}

// torch::stable::empty finds its operator by name, which takes longer than the memory does.
inline Tensor empty(const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  for (int64_t i = static_cast<int64_t>(shape.size()) - 1, stride = 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= shape[i] > 1 ? shape[i] : 1;
  }
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));  // as that torch has it
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                         strides.data(), type, aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  const Tensor made(handle);
  cpu::prefer_large_pages(made.mutable_data_ptr(), static_cast<size_t>(made.numel()) * made.element_size());
  return made;
}

// The randomness arguments of a layer, as the kernels take them.
struct Random {
  cpu::Masks masks{};
  std::vector<int64_t> example_ids;

  Random(const MaybeTensor& ids, const MaybeTensor& rng, const MaybeTensor& thresholds, int64_t flags, int64_t layer,
         bool reverse, int64_t step_offset, int64_t batch, int64_t steps) {
    check_flags(flags);
    masks.flags = static_cast<uint32_t>(flags);
    masks.layer = static_cast<uint32_t>(layer);
    masks.direction = reverse;
    check_layer(layer, masks.flags);
    masks.step_offset = check_steps(step_offset, steps);
    if (ids) {
      example_ids = check_examples(*ids, batch);
      masks.example_ids = example_ids.data();
    }
    if (flags) {
      STD_TORCH_CHECK(thresholds.has_value(), "thresholds are needed where a site is configured");
      read_thresholds(*thresholds, masks.thresholds);
    }
    STD_TORCH_CHECK(rng || !masks.sampled(DRAWING_FLAGS), "rng is needed where sites draw masks");
    if (rng) {
      check_groups(*rng);
      STD_TORCH_CHECK(rng->is_cpu(), "rng must be an int64 tensor on the CPU");
      for (int group = 0; group < NUM_GROUPS; ++group) masks.keys[group] = key(*rng, group);
    }
  }
  Random(const Random&) = delete;  // `masks` points into the vector

  // Of a tensor of one pair.
  static Key key(const Tensor& pair) {
    const std::vector<int64_t> words = integers("rng", pair, 2);
    return derive_key(words[0], words[1]);
  }
  static void read_thresholds(const Tensor& tensor, uint64_t* to) {
    const std::vector<int64_t> values = integers("thresholds", tensor, NUM_SITES);
    for (int i = 0; i < NUM_SITES; ++i) {
      STD_TORCH_CHECK(values[i] >= 0 && values[i] <= (int64_t{1} << 32), "thresholds must be in [0, 2^32], got ",
                      values[i], " for ", SITE_NAMES[i], ", whose rate must be in [0, 1]");
      to[i] = static_cast<uint64_t>(values[i]);
    }
  }
  static std::vector<int64_t> check_examples(const Tensor& ids, int64_t batch) {
    std::vector<int64_t> values = integers("example_ids", ids, batch);
    for (const int64_t id : values)
      STD_TORCH_CHECK(id >= 0 && id < int64_t{SEQ}, "example_ids must be in [0, 2^32 - 1), got ", id);
    return values;
  }

 private:
  // Of one group's row of a tensor of pairs, whose rows may all be the same memory.
  static Key key(const Tensor& rng, int group) {
    const int64_t* row = read<int64_t>(rng) + group * rng.stride(0);
    return derive_key(row[0], row[rng.stride(1)]);
  }
};

inline Tensor nothing(ScalarType dtype) { return empty({0}, dtype); }
// Room for a result, or nothing where nobody asks for it; where(...) is null then.
inline Tensor room(bool wanted, std::vector<int64_t> shape, ScalarType dtype) {
  return wanted ? empty(shape, dtype) : nothing(dtype);
}
template <class T>
T* where(bool wanted, const Tensor& t) {
  return wanted ? data<T>(t) : nullptr;
}

}  // namespace frd::bind
