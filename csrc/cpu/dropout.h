// Dropout of the rows that a layer reads or writes, and the numbers that masks are made of.
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "core/rows.h"
#include "cpu/buffer.h"
#include "cpu/chunks.h"
#include "cpu/layer.h"
#include "cpu/masks.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"
#include "cpu/profile.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

// The mask of a layer's input or output, as bits: of the rows of a chunk at a time, numbered from its first one on. A
// mask that is drawn once per sequence is drawn when this is made.
template <class D>
class RowMasks {
 public:
  // most: rows of the largest chunk.
  RowMasks(const Parallel& parallel, const Sequence& sequence, const RowMask& mask, int64_t most)
      : parallel_(parallel),
        sequence_(sequence),
        mask_(mask),
        keys_(mask.key),
        scale_(Arithmetic<D>(keep_scale(mask.threshold))),
        skipped_(mask.first % FIELDS),
        bytes_(bytes_of(skipped_ + mask.width)),
        bits_(scratch<uint8_t>(mask.on ? (mask.per_step ? most : sequence.batch) * bytes_ : 0)),
        of_row_(scratch<const uint8_t*>(mask.on ? most : 0)) {
    if (!mask.on || mask.per_step) return;
    parallel.each(sequence.batch, mask.width,
                  [&](int64_t begin, int64_t end) { draw_rows(SEQ, begin, end, bits_.get()); });
  }

  bool on() const { return mask_.on; }

  // The masks of a chunk, which take the place of those of the chunk before.
  void draw(const Chunk& chunk) {
    if (on()) draw(chunk, [](int64_t) {});
  }

  // The same, and the chunk's rows [chunk.rows, width] as others shall see them: a masked copy in `target`, or `source`
  // itself where the mask is off.
  const D* masked(const Chunk& chunk, const D* source, D* target) {
    if (!on()) return source;
    const int64_t width = mask_.width;
    draw(chunk, [&](int64_t row) {
      for (int64_t i = 0; i < width; i += LANES) {
        const int64_t at = row * width + i, n = width - i;
        store(target + at, apply(row, i, load(source + at, n)), n);
      }
    });
    return target;
  }

  // Elements i .. i + LANES of a row, or their gradient. i % LANES == 0.
  FRD_MEMBER Vec<D> apply(int64_t row, int64_t i, Vec<D> value) const {
    if (!on()) return value;
    return select(Simd<D>::mask_of(spread(of_row_[row], i)), Vec<D>{}, scale_ * value);
  }

 private:
  template <class Then>
  void draw(const Chunk& chunk, Then&& then) {
    each_step(parallel_, sequence_, chunk, mask_.width, [&](int64_t t, int64_t begin, int64_t end, int64_t row) {
      // Of batch row 0 at this step, or in all.
      uint8_t* const bits = bits_.get() + (mask_.per_step ? row - begin : 0) * bytes_;
      if (mask_.per_step) draw_rows(mask_.step_offset + static_cast<uint32_t>(t), begin, end, bits);
      for (int64_t b = begin; b < end; ++b, ++row) {
        of_row_[row] = bits + b * bytes_;
        then(row);
      }
    });
  }

  // Rows begin .. end of the batch, whose bits are at `bits`. A call serves fixed elements: what it says of those
  // before the first one is pushed out.
  void draw_rows(uint32_t step, int64_t begin, int64_t end, uint8_t* bits) const {
    SiteMasks{mask_.stream, step, mask_.threshold, skipped_ + mask_.width, mask_.first - skipped_}.draw(
        keys_, begin, end, [&](int64_t b) { return mask_.example(b); }, [&](int64_t b) { return bits + b * bytes_; });
    for (int64_t b = begin; skipped_ && b < end; ++b) {
      uint8_t* const row = bits + b * bytes_;
      for (int64_t i = 0; i < bytes_; ++i)
        row[i] = static_cast<uint8_t>((row[i] | (i + 1 < bytes_ ? row[i + 1] : 0) << 8) >> skipped_);
    }
  }

  const Parallel& parallel_;
  const Sequence& sequence_;
  const RowMask mask_;
  const RoundKeys keys_;
  const Arithmetic<D> scale_;
  const int64_t skipped_, bytes_;  // of a row: elements of its first call before the first one; bytes
  Buffer<uint8_t> bits_;           // [rows of a chunk], or [batch]
  Buffer<const uint8_t*> of_row_;  // [rows of a chunk]
};

// The rows of a chunk with their mask, as packing reads them.
template <class D>
struct MaskedRows {
  const Plain<D> rows;
  const RowMasks<D>& masks;

  FRD_MEMBER void read(int64_t row, int64_t first, int64_t width, Vec<D>* out) const {
    rows.read(row, first, width, out);
    for (int64_t v = 0; masks.on() && v < width; ++v) out[v] = masks.apply(row, first + v * LANES, out[v]);
  }
};

template <class D>
void drop_rows(const DropRows<D>& p) {
  Stopwatch watch;
  const int64_t width = p.mask.width, most = chunk_rows<D>(p.sequence, width);
  RowMasks<D> masks(p.parallel, p.sequence, p.mask, largest_chunk(p.sequence, most));
  for (int64_t begin = 0; begin < p.sequence.steps;) {
    const Chunk chunk = Chunk::from(p.sequence, begin, most);
    masks.masked(chunk, p.source + chunk.row * width, p.target + chunk.row * width);
    begin = chunk.end;
  }
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
