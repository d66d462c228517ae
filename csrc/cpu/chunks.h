// Chunks: the steps of a recurrence that go through the caches together, and the sizes of them.
#pragma once

#include <cstdint>

#include "core/rows.h"
#include "cpu/layer.h"

namespace frd::cpu {

// Steps [begin, end) in the order of the recurrence, and the rows they cover, which lie together.
struct Chunk {
  int64_t begin, end, row, rows;

  // The chunks of a sequence from its begin, or from its end: as many steps as fit into `most` rows, but at least one.
  static Chunk from(const Sequence& sequence, int64_t begin, int64_t most) {
    int64_t end = begin, rows = 0;
    while (end < sequence.steps && (end == begin || rows + sequence.active(sequence.time(end)) <= most))
      rows += sequence.active(sequence.time(end++));
    return of(sequence, begin, end, rows);
  }
  static Chunk upto(const Sequence& sequence, int64_t end, int64_t most) {
    int64_t begin = end, rows = 0;
    while (begin > 0 && (end == begin || rows + sequence.active(sequence.time(begin - 1)) <= most))
      rows += sequence.active(sequence.time(--begin));
    return of(sequence, begin, end, rows);
  }
  bool contains(int64_t step) const { return begin <= step && step < end; }

 private:
  static Chunk of(const Sequence& sequence, int64_t begin, int64_t end, int64_t rows) {
    if (begin == end) return {begin, end, 0, 0};
    return {begin, end, sequence.row(sequence.time(sequence.reverse ? end - 1 : begin)), rows};
  }
};

// Rows of `width` numbers that a chunk may have: enough for the products to run at speed, few enough for the caches.
// Fewer where a backward computes gates again, whose caller asked for little memory. Chunks are of like size, as far as
// whole steps allow, so that none takes more room than it must.
template <class T>
int64_t chunk_rows(const Sequence& sequence, int64_t width, bool again = false) {
  const int64_t bytes = again ? 1 << 20 : 4 << 20, fewest = again ? 192 : 512;
  const int64_t fit = bytes / ((width + 1) * static_cast<int64_t>(sizeof(T)));  // a layer may have no units
  const int64_t most = fit < fewest ? fewest : fit, chunks = tiles_of(sequence.rows, most);
  // A chunk ends with a whole step: what is left over of an even share may be a row less than one.
  return chunks <= 1 ? most : least(most, tiles_of(sequence.rows, chunks) + sequence.batch - 1);
}
// The most rows that a chunk of a sequence can come to have.
inline int64_t largest_chunk(const Sequence& sequence, int64_t most) {
  return least(sequence.rows, most > sequence.batch ? most : sequence.batch);
}

}  // namespace frd::cpu
