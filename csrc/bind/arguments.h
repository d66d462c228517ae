// What the bindings of every device share: checks of arguments, conversions, and what a layer's arguments mean.
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

#include "core/cells.h"
#include "core/counters.h"
#include "core/flags.h"
#include "core/rows.h"
#include "core/sites.h"

namespace frd::bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Which gradients a backward computes; those of the initial states always.
inline constexpr int64_t NEEDS_X = 1, NEEDS_W_IH = 2, NEEDS_W_HH = 4, NEEDS_BIAS = 8, NEEDS_W_HR = 16;

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

// The same numbers, dense. The stable ABI finds an operator by its name, which takes longer than a small step's
// arithmetic: it is asked only where there is something to do.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
// In the given type too.
inline Tensor dense(const Tensor& t, ScalarType dtype) {
  check_storage(t);
  return dense(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
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

// What a forward kept, dense, on the device of x. Nothing is converted: another type would not be what it kept.
inline Tensor saved_as(const char* name, const Tensor& t, ScalarType dtype, const std::vector<int64_t>& shape,
                       const Tensor& x) {
  check_shape(name, t, shape);
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.device() == x.device(), name, " must be what the forward returned");
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

// Integer arguments that are read on the host.
inline std::vector<int64_t> integers(const char* name, const Tensor& t, int64_t n) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.is_cpu(), name, " must be an int64 tensor on the CPU");
  STD_TORCH_CHECK(n < 0 || t.numel() == n, name, " must have ", n, " elements, got ", t.numel());
  check_storage(t);
  const Tensor d = dense(t);
  const int64_t* p = static_cast<const int64_t*>(d.const_data_ptr());
  return std::vector<int64_t>(p, p + d.numel());
}

// A batch of sequences: padded [T, B, width] or packed [N, width].
struct Batch {
  Sequence sequence{};
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

inline void check_flags(int64_t flags) {
  STD_TORCH_CHECK(flags >= 0 && flags < 2 * int64_t{FLAG_MASKS_ON}, "flags has bits that mean nothing: ", flags);
  for (const bool writes : {false, true}) {
    const uint32_t found = outer_flags(static_cast<uint32_t>(flags), writes);
    STD_TORCH_CHECK((found & (found - 1)) == 0, "flags has more than one site on what a layer ",
                    writes ? "writes: " : "reads: ", flags);
  }
}
// Those of the sites that draw masks.
inline constexpr uint32_t DRAWING_FLAGS =
    FLAG_HIDDEN | FLAG_WEIGHT_HH | FLAG_WEIGHT_IH | FLAG_WEIGHT_HR | STATE_FLAGS | OUTER_FLAGS;
// A pair for each group of sites.
inline void check_groups(const Tensor& rng) {
  STD_TORCH_CHECK(rng.scalar_type() == ScalarType::Long, "rng must be an int64 tensor");
  STD_TORCH_CHECK(rng.dim() == 2 && rng.size(0) == NUM_GROUPS && rng.size(1) == 2, "rng must have ", NUM_GROUPS,
                  " rows of 2 elements, a pair for each group of sites");
  check_storage(rng);
}
// What a layer writes draws in the name of the layer that would read it.
inline void check_layer(int64_t layer, uint32_t flags) {
  const int64_t most = outer_flags(flags, true) ? (1 << 16) - 1 : 1 << 16;
  STD_TORCH_CHECK(layer >= 0 && layer < most, "layer must be in [0, ", most, "), got ", layer);
}
inline uint32_t check_steps(int64_t step_offset, int64_t steps) {
  STD_TORCH_CHECK(step_offset >= 0 && step_offset <= int64_t{SEQ} - steps,
                  "step_offset and the number of steps must keep every step in [0, 2^32 - 1), got step_offset ",
                  step_offset);
  return static_cast<uint32_t>(step_offset);
}
inline void check_stream(int64_t stream) {
  STD_TORCH_CHECK(stream >= 0 && stream <= int64_t{0xFFFFFFFF}, "stream must be in [0, 2^32), got ", stream);
  STD_TORCH_CHECK(!(stream & STREAM_LOW),
                  "stream must have bit 15 clear, which the second call of an element has, got ", stream);
}
inline void check_site(int64_t site) {
  STD_TORCH_CHECK(site >= 0 && site < NUM_SITES, "site must be in [0, ", NUM_SITES, "), got ", site);
}
inline void check_elements(int64_t n) {
  STD_TORCH_CHECK(n >= 0 && n <= int64_t{SEQ}, "n must be in [0, 2^32), got ", n);
}

// The shape of the numbers that `words` returns.
inline std::vector<int64_t> words_shape(const Tensor& step, const Tensor& row, int64_t n) {
  return {step.numel(), row.numel(), n};
}

// The sizes of a layer: I, H and P, which is H without a projection. What a cell has not got is none.
struct LayerShapes {
  int64_t inputs, units, projected;

  LayerShapes(const CellInfo& cell, const Tensor& x, const Tensor& h0, const MaybeTensor& c0, const Tensor& w_ih,
              const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh, const MaybeTensor& w_hr) {
    STD_TORCH_CHECK(x.dim() >= 2 && h0.dim() == 2 && (!c0 || c0->dim() == 2), "x must have 2 or 3 dimensions, ",
                    cell.has_c ? "h0 and c0 2" : "h0 2");
    check_floating("x", x);
    check_floating("h0", h0);
    check_floating("c0", c0);
    check_floating("w_ih", w_ih);
    check_floating("w_hh", w_hh);
    check_floating("b_ih", b_ih);
    check_floating("b_hh", b_hh);
    check_floating("w_hr", w_hr);
    inputs = x.size(-1);
    projected = h0.size(1);
    units = c0 ? c0->size(1) : projected;
    STD_TORCH_CHECK(w_hr ? projected <= units : projected == units,
                    "h0 must have as many units as c0, or with a projection no more");
    if (c0) check_shape("h0", h0, {c0->size(0), projected});
    check_shape("w_ih", w_ih, {cell.gates * units, inputs});
    check_shape("w_hh", w_hh, {cell.gates * units, projected});
    check_shape("b_ih", b_ih, {cell.gates * units});
    check_shape("b_hh", b_hh, {cell.gates * units});
    check_shape("w_hr", w_hr, {projected, units});
  }
};

}  // namespace frd::bind
