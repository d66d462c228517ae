// Tensors of the stable ABI for the CPU kernels: checks, conversions, and what a layer's arguments mean.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "cpu/memory.h"
#include "cpu/schedule.h"

namespace frd::bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// What a forward keeps for its backward.
inline constexpr int64_t SAVE_NOTHING = 0, SAVE_ALL = 1, SAVE_STATES = 2;
// Which gradients a backward computes; those of the initial states always.
inline constexpr int64_t NEEDS_X = 1, NEEDS_W_IH = 2, NEEDS_W_HH = 4, NEEDS_BIAS = 8, NEEDS_W_HR = 16;

template <class T>
inline constexpr ScalarType scalar_type = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

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

inline Tensor empty(std::vector<int64_t> shape, ScalarType dtype) {
  const Tensor made = torch::stable::empty(shape, dtype);
  cpu::prefer_large_pages(made.mutable_data_ptr(), static_cast<size_t>(made.numel()) * made.element_size());
  return made;
}

// A tensor may have lost its storage (sharding resizes it to nothing), which no shape shows.
inline void check_storage(const Tensor& t) {
  STD_TORCH_CHECK(t.numel() == 0 || t.const_data_ptr() != nullptr, "a tensor has elements but no storage");
}

inline void check_floating(const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16,
                  name, " must be float32, float64, float16 or bfloat16");
}
inline void check_floating(const char* name, const Tensor& t) { check_floating(name, t.scalar_type()); }
inline void check_floating(const char* name, const MaybeTensor& t) {
  if (t) check_floating(name, *t);
}

// The same numbers in the given type, dense.
inline Tensor dense(const Tensor& t, ScalarType dtype) {
  check_storage(t);
  return torch::stable::contiguous(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
}
inline MaybeTensor dense(const MaybeTensor& t, ScalarType dtype) {
  return t ? MaybeTensor(dense(*t, dtype)) : std::nullopt;
}
inline Tensor in_type(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

inline void check_shape(const char* name, const Tensor& t, const std::vector<int64_t>& shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = t.size(static_cast<int64_t>(i)) == shape[i];
  STD_TORCH_CHECK(same, name, " has a shape that does not fit the other arguments");
}
inline void check_shape(const char* name, const MaybeTensor& t, const std::vector<int64_t>& shape) {
  if (t) check_shape(name, *t, shape);
}

// What a forward kept, dense. Nothing is converted: another type would not be what it kept.
inline Tensor saved_as(const char* name, const Tensor& t, ScalarType dtype, const std::vector<int64_t>& shape) {
  check_shape(name, t, shape);
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_cpu(), name, " must be what the forward returned");
  return dense(t, dtype);
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
const T* read(const MaybeTensor& t) {
  return t ? read<T>(*t) : nullptr;
}

// Integer arguments, kept alive and read on the host: the CPU kernels' only index data.
inline std::vector<int64_t> integers(const char* name, const Tensor& t, int64_t n) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.is_cpu(), name, " must be an int64 tensor on the CPU");
  STD_TORCH_CHECK(n < 0 || t.numel() == n, name, " must have ", n, " elements, got ", t.numel());
  check_storage(t);
  const Tensor d = torch::stable::contiguous(t);
  const int64_t* p = static_cast<const int64_t*>(d.const_data_ptr());
  return std::vector<int64_t>(p, p + d.numel());
}

// A batch of sequences: padded [T, B, width] or packed [N, width].
struct Batch {
  cpu::Sequence sequence{};
  std::vector<int64_t> batch_sizes, offsets;

  Batch(const Tensor& x, const MaybeTensor& sizes, int64_t batch, bool reverse) {
    STD_TORCH_CHECK(x.dim() == (sizes ? 2 : 3), "x must be (T, B, width), or (N, width) with batch_sizes");
    sequence.reverse = reverse;
    if (!sizes) {
      sequence.steps = x.size(0);
      sequence.batch = x.size(1);
      sequence.rows = sequence.steps * sequence.batch;
    } else {
      batch_sizes = integers("batch_sizes", *sizes, -1);
      sequence.steps = static_cast<int64_t>(batch_sizes.size());
      int64_t rows = 0;
      for (int64_t t = 0; t < sequence.steps; ++t) {
        const int64_t most = t == 0 ? x.size(0) : batch_sizes[t - 1];  // also keeps the sum from overflowing
        STD_TORCH_CHECK(batch_sizes[t] > 0 && batch_sizes[t] <= most,
                        "batch_sizes must be positive, must not grow and "
                        "must sum to the rows of x");
        offsets.push_back(rows);
        rows += batch_sizes[t];
      }
      sequence.batch = sequence.steps ? batch_sizes[0] : 0;
      sequence.rows = rows;
      sequence.batch_sizes = batch_sizes.data();
      sequence.offsets = offsets.data();
      STD_TORCH_CHECK(x.size(0) == rows, "x has ", x.size(0), " rows, batch_sizes sum to ", rows);
    }
    STD_TORCH_CHECK(sequence.steps > 0, "Expected sequence length to be larger than 0 in RNN");
    STD_TORCH_CHECK(batch < 0 || batch == sequence.batch, "the initial state is for a batch of ", batch, ", x has ",
                    sequence.batch);
  }
  Batch(const Batch&) = delete;  // `sequence` points into the vectors

  // A tensor of x's leading shape with another width.
  std::vector<int64_t> shape(int64_t width) const {
    if (sequence.batch_sizes) return {sequence.rows, width};
    return {sequence.steps, sequence.batch, width};
  }
};

// The randomness arguments of a layer, as the kernels take them.
struct Random {
  cpu::Masks masks{};
  std::vector<int64_t> example_ids;

  Random(const MaybeTensor& ids, const MaybeTensor& state, const MaybeTensor& hidden, const MaybeTensor& weight,
         const MaybeTensor& thresholds, int64_t flags, int64_t layer, bool reverse, int64_t step_offset, int64_t batch,
         int64_t steps) {
    STD_TORCH_CHECK(flags >= 0 && flags < 2 * int64_t{FLAG_MASKS_ON}, "flags has bits that mean nothing: ", flags);
    masks.flags = static_cast<uint32_t>(flags);
    masks.layer = static_cast<uint32_t>(layer);
    masks.direction = reverse;
    STD_TORCH_CHECK(layer >= 0 && layer < (1 << 16), "layer must be in [0, 65536), got ", layer);
    masks.step_offset = check_steps(step_offset, steps);
    if (ids) {
      example_ids = check_examples(*ids, batch);
      masks.example_ids = example_ids.data();
    }
    if (flags) {
      STD_TORCH_CHECK(thresholds.has_value(), "thresholds are needed where a site is configured");
      read_thresholds(*thresholds, masks.thresholds);
    }
    const auto on = [this](uint32_t flag) { return masks.sampled(flag); };
    masks.state = key("rng_state", state, on(FLAG_UPDATE | FLAG_CELL | FLAG_ZONEOUT_C | FLAG_ZONEOUT_H));
    masks.hidden = key("rng_hidden", hidden, on(FLAG_HIDDEN));
    masks.weight = key("rng_weight", weight, on(FLAG_WEIGHT_HH | FLAG_WEIGHT_IH | FLAG_WEIGHT_HR));
  }
  Random(const Random&) = delete;  // `masks` points into the vector

  static Key key(const char* name, const MaybeTensor& rng, bool needed) {
    STD_TORCH_CHECK(rng || !needed, name, " is needed where its sites draw masks");
    if (!rng) return {};
    const std::vector<int64_t> pair = integers(name, *rng, 2);
    return derive_key(pair[0], pair[1]);
  }
  static void read_thresholds(const Tensor& tensor, uint64_t* to) {
    const std::vector<int64_t> values = integers("thresholds", tensor, NUM_SITES);
    for (int i = 0; i < NUM_SITES; ++i) {
      STD_TORCH_CHECK(values[i] >= 0 && values[i] <= (int64_t{1} << 32), "thresholds must be in [0, 2^32]");
      to[i] = static_cast<uint64_t>(values[i]);
    }
  }
  static uint32_t check_steps(int64_t step_offset, int64_t steps) {
    STD_TORCH_CHECK(step_offset >= 0 && step_offset <= int64_t{SEQ} - steps,
                    "step_offset and the number of steps must keep every step in [0, 2^32 - 1), got step_offset ",
                    step_offset);
    return static_cast<uint32_t>(step_offset);
  }
  static std::vector<int64_t> check_examples(const Tensor& ids, int64_t batch) {
    std::vector<int64_t> values = integers("example_ids", ids, batch);
    for (const int64_t id : values)
      STD_TORCH_CHECK(id >= 0 && id < int64_t{SEQ}, "example_ids must be in [0, 2^32 - 1), got ", id);
    return values;
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
