// What the schedules share: the surroundings they run in, a layer's weights, and the launches before and after the
// steps. Torch-free: memory and matrix products come from the caller.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/kernels.h"

namespace frd::cuda {

// Row-major, rows `stride` numbers apart.
struct Matrix {
  void* data;
  int64_t rows, columns, stride;
};

struct Surroundings {
  cudaStream_t stream;
  void* context;
  // Device memory, aligned to 16 bytes, that lives until the work of this call is done.
  void* (*allocate)(void* context, int64_t bytes);
  // c = op(a) op(b), where op turns a matrix or not. All three have one type. May throw.
  void (*multiply)(void* context, Type type, const Matrix& a, bool turn_a, const Matrix& b, bool turn_b,
                   const Matrix& c);

  template <class T>
  T* buffer(int64_t n) const {
    return static_cast<T*>(allocate(context, n * static_cast<int64_t>(sizeof(T))));
  }
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// A parameter as the module holds it, not masked yet, dense. No data where there is none.
struct Weight {
  const void* data;
  Type type;
  int64_t rows, columns;
  uint32_t flag, kind;  // of its mask
};

// Where the gradient of a parameter goes, dense, in the parameter's type. Null where nobody asks for it.
using Gradient = void*;

// One call of a layer: its randomness on the device, its weights as the products read them.
template <class D>
class Call {
 public:
  using S = State<D>;

  Call(const Surroundings& around, const Random& random, int64_t batch, int64_t width)
      : around_(around), random_(random) {
    uint8_t* bits = nullptr;
    if (random.configured()) {
      prepared_ = around.buffer<Prepared<S>>(1);
      check(prepare(random, prepared_, around.stream));
      if (random.per_sequence() && batch) {
        bits = around.buffer<uint8_t>(batch * width);
        check(sequence_masks(SequenceMasks<S>::of(random, prepared_, batch, width, bits), around.stream));
      }
    }
    masks_ = StateMasks<S>::of(random, prepared_, bits, width);
  }

  const StateMasks<S>& masks() const { return masks_; }

  // The masks of what the layer writes, rows of `sequence` that are `width` wide; null where no site is on it.
  const uint8_t* written(const Sequence& sequence, int64_t width) const {
    const WriteSite& site = random_.written;
    if (!site.on) return nullptr;
    const int64_t rows = site.per_step ? sequence.rows : sequence.batch;
    uint8_t* const masks = around_.buffer<uint8_t>(rows * bytes_of_bits(width));
    const WrittenMasks<S> p{prepared_, site, random_.step_offset, random_.example_ids, width, masks};
    check(written_masks(p, sequence, around_.stream));
    return masks;
  }
  // Of them, those of the rows of a step, which begin with `row`.
  const uint8_t* written_at(const uint8_t* masks, int64_t row, int64_t width) const {
    return masks && random_.written.per_step ? masks + row * bytes_of_bits(width) : masks;
  }

  void multiply(const Matrix& a, bool turn_a, const Matrix& b, bool turn_b, const Matrix& c) const {
    around_.multiply(around_.context, type_of<D>, a, turn_a, b, turn_b, c);
  }

  // A weight as the products read it. `rotation`: how many rows down each row goes, around the end.
  Matrix weight(const Weight& w, int64_t rotation = 0) const {
    if (!w.data) return {};
    if (!random_.sampled(w.flag) && w.type == type_of<D> && rotation == 0)
      return {const_cast<void*>(w.data), w.rows, w.columns, w.columns};
    const Matrix made = matrix(around_.buffer<D>(w.rows * w.columns), w.rows, w.columns);
    mask(w, w.data, w.type, made.data, type_of<D>, rotation);
    return made;
  }

  // What the steps add to W x + U h: of sum_biases; null without biases.
  const S* bias(const S* b_ih, const S* b_hh, int64_t rows, int64_t apart) const {
    if (!b_ih) return nullptr;
    S* const sum = around_.buffer<S>(rows);
    check(sum_biases(SumBiases<S>{b_ih, b_hh, rows, rows - apart, sum}, around_.stream));
    return sum;
  }

  // Where the products leave the gradient of a weight, for finish() to turn into `target`.
  Matrix gradient(const Weight& w, Gradient target) const {
    D* const data = w.type == type_of<D> ? static_cast<D*>(target) : around_.buffer<D>(w.rows * w.columns);
    return matrix(data, w.rows, w.columns);
  }
  void finish(const Weight& w, const Matrix& gradient, Gradient target) const {
    if (gradient.data != target || random_.sampled(w.flag)) mask(w, gradient.data, type_of<D>, target, w.type, 0);
  }

  // A dense matrix of values.
  static Matrix matrix(const D* data, int64_t rows, int64_t columns) {
    return {const_cast<D*>(data), rows, columns, columns};
  }
  // Columns [first, first + columns) of rows of `stride`.
  static Matrix part(const D* data, int64_t rows, int64_t first, int64_t columns, int64_t stride) {
    return {const_cast<D*>(data) + first, rows, columns, stride};
  }

  // sums[column] = the sum of all rows of a matrix.
  void sum_columns(const Matrix& of, S* sums) const {
    S* const partial = around_.buffer<S>(column_sum_blocks(of.rows) * of.columns);
    check(column_sums(ColumnSums<D>{static_cast<const D*>(of.data), of.rows, of.columns, of.stride, partial, sums},
                      around_.stream));
  }

 private:
  void mask(const Weight& w, const void* source, Type source_type, void* target, Type target_type,
            int64_t rotation) const {
    const bool on = random_.sampled(w.flag), by_row = random_.flags & FLAG_WEIGHT_ROW;
    check(masked_weight({.source = source,
                         .target = target,
                         .source_type = source_type,
                         .target_type = target_type,
                         .rows = w.rows,
                         .columns = w.columns,
                         .source_stride = w.columns,
                         .target_stride = w.columns,
                         .rotation = rotation,
                         .on = on,
                         .by_row = by_row,
                         .stream = stream_of(by_row ? by_rows(w.kind) : w.kind, random_.layer, random_.direction),
                         .key = on ? &prepared_->weight : nullptr,
                         .scale = on ? &prepared_->weight_scale : nullptr,
                         .threshold = on ? &prepared_->thresholds[SITE_WEIGHT_DROPOUT] : nullptr},
                        around_.stream));
  }

  const Surroundings& around_;
  const Random& random_;
  Prepared<S>* prepared_ = nullptr;  // on the device: only its members' addresses are taken here
  StateMasks<S> masks_;
};

}  // namespace frd::cuda
