// Dropout of inputs and outputs, and the numbers that masks are made of.
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "core/rows.h"
#include "cpu/layer.h"
#include "cpu/masks.h"
#include "cpu/pack.h"
#include "cpu/profile.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

// Rows are taken in the order in which they lie. A mask that is drawn once per sequence is drawn once by each thread,
// for all examples, and kept as bits meanwhile.
template <class T>
class DropRowsPass {
 public:
  explicit DropRowsPass(const DropRows<T>& p)
      : p_(p), keys_(p.key), scale_(T(keep_scale(p.threshold))), bytes_(bytes_of(p.width)) {}

  void run() const {
    const Sequence& sequence = p_.sequence;
    p_.parallel.each(sequence.steps, sequence.batch * p_.width, [&](int64_t begin, int64_t end) {
      const int64_t drawn = p_.per_step ? 1 : sequence.active(begin);  // later steps have no more rows
      const Buffer<uint8_t> masks = scratch<uint8_t>(drawn * bytes_);
      if (!p_.per_step)
        for (int64_t b = 0; b < drawn; ++b) draw(b, SEQ, &masks[b * bytes_]);
      for (int64_t t = begin; t < end; ++t)
        for (int64_t b = 0; b < sequence.active(t); ++b) {
          if (p_.per_step) draw(b, p_.step_offset + static_cast<uint32_t>(t), masks.get());
          apply(sequence.row(t) + b, &masks[p_.per_step ? 0 : b * bytes_]);
        }
    });
  }

 private:
  FRD_MEMBER void draw(int64_t b, uint32_t step, uint8_t* mask) const {
    const uint32_t example = p_.batch_shared ? SEQ : static_cast<uint32_t>(p_.example_ids ? p_.example_ids[b] : b);
    Row{p_.stream, example, step, p_.threshold, mask}.draw(keys_, p_.width);
  }

  FRD_MEMBER void apply(int64_t row, const uint8_t* mask) const {
    const int64_t width = p_.width;
    const T *from = p_.source + row * width, scale = scale_;
    T* to = p_.target + row * width;
    const auto one = [&](int64_t u, int64_t n) {
      store(to + u, select(Simd<T>::mask_of(spread(mask, u)), Vec<T>{}, scale * load(from + u, n)), n);
    };
    int64_t u = 0;
    for (; u + LANES <= width; u += LANES) one(u, LANES);
    if (u < width) one(u, width - u);
  }

  const DropRows<T>& p_;
  const RoundKeys keys_;
  const T scale_;
  const int64_t bytes_;
};

template <class T>
void drop_rows(const DropRows<T>& p) {
  Stopwatch watch;
  DropRowsPass<T>(p).run();
  watch.lap(DROP_ROWS);
}

inline void read_words(const ReadWords& p) {
  const RoundKeys keys(p.key);
  int64_t* target = p.target;
  for (int64_t s = 0; s < p.steps; ++s)
    for (int64_t r = 0; r < p.rows; ++r, target += p.n)
      for (int64_t first = 0; first < p.n; first += BLOCK) {
        const VecU calls = lane_numbers() + static_cast<uint32_t>(first / FIELDS);
        const uint32_t row = static_cast<uint32_t>(p.row[r]), step = static_cast<uint32_t>(p.step[s]);
        const VecWords upper = philox(calls, row, step, p.stream, keys);
        const VecWords lower = philox(calls, row, step, p.stream | STREAM_LOW, keys);
        for (int64_t i = 0; i < least(BLOCK, p.n - first); ++i) {
          const int lane = static_cast<int>(i / FIELDS), word = static_cast<int>(i % FIELDS / 2), shift = i % 2 * 16;
          const uint32_t field = upper.w[word][lane] >> shift & 0xFFFF, g = lower.w[word][lane] >> shift & 0xFFFF;
          target[first + i] = int64_t{field} << 16 | g;
        }
      }
}

}  // namespace frd::cpu::FRD_ISA
