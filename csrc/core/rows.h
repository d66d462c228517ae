// How the rows of a batch of sequences lie in memory, for host code.
#pragma once

#include <cstdint>

namespace frd {

// Padded: row t * batch + b. Packed: the rows of step t are offsets[t] .. offsets[t] + batch_sizes[t], batch_sizes does
// not grow. `reverse` runs each sequence from its end.
struct Sequence {
  int64_t steps, batch, rows;
  const int64_t* batch_sizes;  // (steps), or null
  const int64_t* offsets;      // (steps), or null
  bool reverse;

  int64_t time(int64_t s) const { return reverse ? steps - 1 - s : s; }
  int64_t active(int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  int64_t row(int64_t t) const { return offsets ? offsets[t] : t * batch; }
  // The step that comes before or after t in the order of the recurrence; -1 or steps where there is none.
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }
  bool exists(int64_t t) const { return t >= 0 && t < steps; }
  // Rows [0, n) of step t that have a step before, or after; batch sizes do not grow, so these are the first rows.
  int64_t continued_from(int64_t t) const { return exists(before(t)) ? least(active(t), active(before(t))) : 0; }
  int64_t continued_by(int64_t t) const { return exists(after(t)) ? least(active(t), active(after(t))) : 0; }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

}  // namespace frd
