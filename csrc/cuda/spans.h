// Rows of any width, as kernels take them that draw a mask for each element. A warp takes 32 neighbouring calls of
// Philox, a lane draws one of them, and then all lanes go together over what these calls serve: elements that lie side
// by side, from one row into the next. So a row whose width no vector divides is still read and written in whole
// sectors, and rows of few columns fill a warp.
#pragma once

#include "core/counters.h"
#include "cuda/rows.h"

namespace frd::cuda {

inline constexpr int64_t SPAN = BLOCK_UNITS;  // calls: one for each lane

FRD_INLINE int64_t calls_of(int64_t width) { return (width + FIELDS - 1) / FIELDS; }
FRD_INLINE int64_t spans_of(int64_t rows, int64_t width) { return (rows * calls_of(width) + SPAN - 1) / SPAN; }
// A warp for each span, whose number FRD_EACH_ROW then counts.
inline dim3 grid_of_spans(int64_t rows, int64_t width, int64_t steps = 1) {
  return grid_of_rows(SPAN, spans_of(rows, width), steps);
}

// Span number `span`, by all lanes of a warp. draw(row, call) gives the bits of a call of a row; each(row, column,
// dropped) is called once for every element, for neighbouring ones by neighbouring lanes.
template <class Draw, class Each>
__device__ __forceinline__ void each_of_span(int64_t span, int64_t rows, int64_t width, Draw&& draw, Each&& each) {
  constexpr unsigned ALL = 0xFFFFFFFFu;
  const int64_t calls = calls_of(width), first = span * SPAN;
  const int64_t last = first + SPAN < rows * calls ? first + SPAN : rows * calls;
  const int64_t head = first / calls, begin = first % calls;  // the row and the call in it that the span begins with
  const int count = static_cast<int>((last / calls - head) * width + (last % calls - begin) * FIELDS);
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t mine = first + lane;
  const uint32_t bits = mine < last ? draw(mine / calls, mine % calls) : 0;
  const int64_t column_of_lane = begin * FIELDS + lane;
  const int64_t rows_on = SPAN / width, columns_on = SPAN % width;
  int64_t row = column_of_lane / width, column = column_of_lane % width;  // rows from `head` on
  for (int i = 0; i < count; i += SPAN) {
    const int owner = static_cast<int>(row * calls + column / FIELDS - begin);  // beyond the end, any lane
    const uint32_t drop = __shfl_sync(ALL, bits, owner % static_cast<int>(SPAN));
    if (i + lane < count) each(head + row, column, (drop >> column % FIELDS & 1) != 0);
    row += rows_on;
    column += columns_on;
    if (column >= width) {
      column -= width;
      ++row;
    }
  }
}

}  // namespace frd::cuda
