// What the recurrent products of a chunk of steps read: h before each step, masked and scaled, as one matrix.
#pragma once

#include <cstdint>

#include "core/rows.h"
#include "cpu/chunks.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

// operand [chunk.rows, P].
template <class Cell, class D>
void read_operand(const LayerBackward<D>& p, const Cell& cell, const Chunk& chunk, D* operand) {
  const Sequence& sequence = p.sequence;
  const int64_t P = p.projected;
  p.parallel.each(chunk.end - chunk.begin, sequence.batch * P, [&](int64_t begin, int64_t end) {
    for (int64_t s = chunk.begin + begin; s < chunk.begin + end; ++s) {
      const int64_t t = sequence.time(s), continued = sequence.continued_from(t);
      for (int64_t b = 0; b < sequence.active(t); ++b) {
        D* to = operand + (sequence.row(t) + b - chunk.row) * P;
        for (int64_t u = 0; u < P; u += LANES) {
          const int64_t n = P - u;
          const Vec<D> h = b < continued
                               ? load(p.states + (sequence.row(sequence.before(t)) + b) * p.states_stride + u, n)
                               : cell.enter_h(b, u, load(p.h0 + b * P + u, n));
          store(to + u, cell.read(b, u, h), n);
        }
      }
    }
  });
}

}  // namespace frd::cpu::FRD_ISA
