// Where the rows of a step lie, by value in a kernel's parameters: nothing is copied to the device for them.
#pragma once

#include "core/philox.h"
#include "core/rows.h"
#include "cuda/platform.h"

namespace frd::cuda {

// The rows of step t and of the step before it in the order of the recurrence. Batch row b of step t is row + b.
struct Step {
  int64_t t;
  int64_t row, active;
  int64_t row_before, continued;  // rows [0, continued) have a step before
  int64_t continuing;             // rows [0, continuing) have a step after

  static Step of(const Sequence& sequence, int64_t t) {
    const int64_t before = sequence.before(t);
    return {t,
            sequence.row(t),
            sequence.active(t),
            sequence.exists(before) ? sequence.row(before) : 0,
            sequence.continued_from(t),
            sequence.continued_by(t)};
  }
};

// Neighbouring steps for kernels that take many at once. A padded batch has all of its own in one; those of a packed
// one lie in a table, as many as fit into the parameters.
struct Steps {
  static constexpr int64_t MOST = 64;
  int64_t first, count;
  Sequence sequence;  // its pointers are of the host: a kernel reads only numbers
  bool packed;
  Step table[MOST];

  // Calls launch(steps) for as many pieces as it takes, until one fails.
  template <class Launch>
  static cudaError_t each(const Sequence& sequence, Launch&& launch) {
    Steps steps{};
    steps.sequence = sequence;
    steps.packed = sequence.batch_sizes != nullptr;
    const int64_t most = steps.packed ? MOST : sequence.steps;
    for (int64_t first = 0; first < sequence.steps; first += most) {
      steps.first = first;
      steps.count = sequence.steps - first < most ? sequence.steps - first : most;
      for (int64_t i = 0; steps.packed && i < steps.count; ++i) steps.table[i] = Step::of(sequence, first + i);
      const cudaError_t error = launch(const_cast<const Steps&>(steps));
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
};

// Step number `index` of a piece, in a kernel.
FRD_INLINE Step step_of(const Steps& steps, int64_t index) {
  if (steps.packed) return steps.table[index];
  const int64_t t = steps.first + index, batch = steps.sequence.batch, last = steps.sequence.steps - 1;
  const bool reverse = steps.sequence.reverse, begins = t == (reverse ? last : 0), ends = t == (reverse ? 0 : last);
  return {t, t * batch, batch, begins ? 0 : (reverse ? t + 1 : t - 1) * batch, begins ? 0 : batch, ends ? 0 : batch};
}

// --------------------------------------------------------------------------------------------------------------------
// Grids
// --------------------------------------------------------------------------------------------------------------------

// Blocks of 32 x 4 threads over (units, rows): a warp reads neighbouring units of one row.
inline constexpr unsigned BLOCK_UNITS = 32, BLOCK_ROWS = 4;
// Of some kernels, blocks that must fit on a multiprocessor: 128 registers a thread. Without a bound the compiler aims
// at a round number of blocks and spills the few registers that are over.
inline constexpr unsigned LEAST_BLOCKS = 4;
inline constexpr int64_t MOST_BLOCKS = 65535;  // in y and z

inline dim3 block_of_rows() { return dim3(BLOCK_UNITS, BLOCK_ROWS); }
// As many threads in one line, where there are no rows; and the blocks of them that `count` threads take.
inline dim3 block_in_line() { return dim3(BLOCK_UNITS * BLOCK_ROWS); }
inline unsigned blocks_in_line(int64_t count) {
  constexpr int64_t THREADS = BLOCK_UNITS * BLOCK_ROWS;
  return static_cast<unsigned>((count + THREADS - 1) / THREADS);
}
// `groups`: units over how many of them a thread takes. Rows and steps beyond the grid are reached by strides.
inline dim3 grid_of_rows(int64_t groups, int64_t rows, int64_t steps = 1) {
  const auto blocks = [](int64_t n, int64_t size) { return n < 1 ? 1 : (n + size - 1) / size; };
  const auto least = [](int64_t a, int64_t b) { return static_cast<unsigned>(a < b ? a : b); };
  return dim3(static_cast<unsigned>(blocks(groups, BLOCK_UNITS)), least(blocks(rows, BLOCK_ROWS), MOST_BLOCKS),
              least(blocks(steps, 1), MOST_BLOCKS));
}

#define FRD_UNIT_GROUP (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x)
#define FRD_EACH_ROW(b, begin, end)                                                                                    \
  for (int64_t b = (begin) + static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; b < (end);                   \
       b += static_cast<int64_t>(gridDim.y) * blockDim.y)

}  // namespace frd::cuda
