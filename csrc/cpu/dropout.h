// Dropout of inputs and outputs, and raw words.
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
// for all examples, and kept as bytes meanwhile.
template <class T>
class DropRowsPass {
 public:
  explicit DropRowsPass(const DropRows<T>& p)
      : p_(p), keys_(p.key), scale_(T(keep_scale(p.threshold))), padded_(tiles_of(p.width, QUAD) * QUAD) {}

  void run() const {
    const Sequence& sequence = p_.sequence;
    p_.parallel.each(sequence.steps, sequence.batch * p_.width, [&](int64_t begin, int64_t end) {
      const int64_t drawn = p_.per_step ? 1 : sequence.active(begin);  // later steps have no more rows
      const Buffer<int8_t> masks = scratch<int8_t>(drawn * padded_);
      if (!p_.per_step)
        for (int64_t b = 0; b < drawn; ++b) draw(b, SEQ, &masks[b * padded_]);
      for (int64_t t = begin; t < end; ++t)
        for (int64_t b = 0; b < sequence.active(t); ++b) {
          if (p_.per_step) draw(b, p_.step_offset + static_cast<uint32_t>(t), masks.get());
          apply(sequence.row(t) + b, &masks[p_.per_step ? 0 : b * padded_]);
        }
    });
  }

 private:
  // -1 where an element of example b is dropped, else 0.
  FRD_MEMBER void draw(int64_t b, uint32_t step, int8_t* mask) const {
    const uint32_t example = p_.batch_shared ? SEQ : static_cast<uint32_t>(p_.example_ids ? p_.example_ids[b] : b);
    for (int64_t first = 0; first < p_.width; first += QUAD) {
      const VecWords words = quad_words(static_cast<uint32_t>(first), example, step, p_.stream, keys_);
      for (int v = 0; v < 4; ++v) store(&mask[first + v * LANES], narrow(below(words.w[v], p_.threshold)));
    }
  }

  FRD_MEMBER void apply(int64_t row, const int8_t* mask) const {
    const int64_t width = p_.width;
    const T *from = p_.source + row * width, scale = scale_;
    T* to = p_.target + row * width;
    const auto one = [&](int64_t u, int64_t n) {
      VecB drop;
      __builtin_memcpy(&drop, mask + u, sizeof drop);
      const Mask<T> dropped = Simd<T>::mask_of(widen(drop));
      store(to + u, select(dropped, Vec<T>{}, scale * load(from + u, n)), n);
    };
    int64_t u = 0;
    for (; u + LANES <= width; u += LANES) one(u, LANES);
    if (u < width) one(u, width - u);
  }

  const DropRows<T>& p_;
  const RoundKeys keys_;
  const T scale_;
  const int64_t padded_;
};

template <class T>
void drop_rows(const DropRows<T>& p) {
  Stopwatch watch;
  DropRowsPass<T>(p).run();
  watch.lap(DROP_ROWS);
}

inline void read_words(const ReadWords& p) {
  const uint32_t kind = p.stream & 0xFF;
  const RoundKeys keys(p.key);
  const bool by_unit = kind <= KIND_HIDDEN || kind == KIND_INPUT_UNTIED;
  for (int64_t ic = 0; ic < p.nc; ++ic)
    for (int64_t ib = 0; ib < p.nb; ++ib) {
      const uint32_t b = static_cast<uint32_t>(p.b[ib]), c = static_cast<uint32_t>(p.c[ic]);
      int64_t* target = p.target + (ic * p.nb + ib) * p.units * (by_unit ? 4 : 1);
      const int64_t step = by_unit ? LANES : QUAD;
      for (int64_t unit = 0; unit < p.units; unit += step) {
        const int64_t n = p.units - unit < step ? p.units - unit : step;
        if (by_unit) {
          const VecWords drawn = unit_words(static_cast<uint32_t>(unit), b, c, p.stream, keys);
          for (int64_t lane = 0; lane < n; ++lane)
            for (int w = 0; w < 4; ++w) target[(unit + lane) * 4 + w] = drawn.w[w][lane];
        } else {
          const VecWords drawn = quad_words(static_cast<uint32_t>(unit), b, c, p.stream, keys);
          for (int64_t j = 0; j < n; ++j) target[unit + j] = drawn.w[j / LANES][j % LANES];
        }
      }
    }
}

}  // namespace frd::cpu::FRD_ISA
