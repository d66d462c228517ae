// How a persistent launch divides a layer among blocks, in numbers that host and kernels share.
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "cuda/masks.h"
#include "cuda/ring.h"

namespace frd::cuda {

inline constexpr int PERSISTENT_THREADS = 256, PERSISTENT_WARPS = 8;
inline constexpr int CHUNK_WORDS = 16, TILE_ROWS = 8;  // of a batch row of the operand; batch rows of a product

// The exchange of the schedule is a strict ring. Of its steps:
using PersistentSteps = RingSteps<8>;

// The tiles that a compiled kernel can hold: of U's rows, 16 each, and of the batch, 8 rows each. HELD: chunks of U
// that a warp keeps in registers. GROUP: chunks of the operand that are on their way at once. BUFFERS: of the sums of
// warps: 2, used in turn, save a barrier a step, 1 saves the memory.
template <int ROW_TILES, int BATCH_TILES, int HELD_CHUNKS, int CHUNKS_AT_ONCE, int SUM_BUFFERS>
struct PersistentTiles {
  static constexpr int M = ROW_TILES, N = BATCH_TILES, HELD = HELD_CHUNKS, GROUP = CHUNKS_AT_ONCE,
                       BUFFERS = SUM_BUFFERS;
  static_assert(HELD <= GROUP);
};

struct TileLimits {
  int row_tiles, batch_tiles, held, group, buffers;
};

// The compiled kernels of each cell, smaller ones first. `narrow`: with words of 32 bits. `float32`: of that dtype.
inline constexpr int NUM_PERSISTENT_KERNELS = 2;
inline constexpr TileLimits persistent_tiles(bool backward, bool narrow, bool float32, int number) {
  if (backward) return number == 0 ? TileLimits{1, 1, 4, 4, 2} : TileLimits{4, 2, 0, 2, 1};
  // Three products of tf32 take registers for the parts of their operands.
  if (number == 0) return narrow ? TileLimits{4, 1, float32 ? 1 : 3, float32 ? 4 : 3, 2} : TileLimits{4, 1, 1, 2, 2};
  return {6, 2, 0, 2, 1};
}
template <bool BACKWARD, bool NARROW, bool FLOAT32, int NUMBER,
          TileLimits T = persistent_tiles(BACKWARD, NARROW, FLOAT32, NUMBER)>
using TilesOf = PersistentTiles<T.row_tiles, T.batch_tiles, T.held, T.group, T.buffers>;

// Blocks are directions x batch groups x unit groups; the blocks of a batch group and direction exchange words.
struct PersistentShape {
  int64_t steps, batch, hidden;  // T, B, H
  int batch_groups, unit_groups;
  int rows, units;  // of a block, at most
  int clusters;     // of a block and row: neighbouring units whose values share words
  int items;        // words of a cluster: 1 forward; backward, one for each gate
  int chunks;       // of a row of the operand
  int row_tiles, batch_tiles;
};

FRD_INLINE int words_of_block(const PersistentShape& s) { return s.clusters * s.items; }  // of a row
FRD_INLINE int chunks_of_warp(const PersistentShape& s) { return (s.chunks + PERSISTENT_WARPS - 1) / PERSISTENT_WARPS; }
// Words of a step, of a group.
FRD_INLINE int64_t slot_size(const PersistentShape& s) {
  return int64_t{s.batch_tiles} * s.chunks * CHUNK_WORDS * TILE_ROWS;
}
// Sums of all warps of a step.
FRD_INLINE int64_t sums_size(const PersistentShape& s) {
  return int64_t{PERSISTENT_WARPS} * s.row_tiles * s.batch_tiles * 128;
}
// Calls of Philox of a row, site and step, at most.
FRD_INLINE int calls_of_row(const PersistentShape& s) { return s.units / FIELDS + 2; }
FRD_INLINE int drawn_size(const PersistentShape& s) { return s.batch_tiles * TILE_ROWS * calls_of_row(s); }

// Dynamic shared memory in bytes: U, sums, drawn masks of two steps in turn, the steps of each row. `tiles`: products
// of a chunk.
struct SharedLayout {
  int64_t u, sums, drawn, steps;

  FRD_INLINE SharedLayout of(const PersistentShape& s, int held, int tiles, int buffers) {
    const int rest = chunks_of_warp(s) - held;
    return {rest > 0 ? int64_t{PERSISTENT_WARPS} * rest * tiles * s.row_tiles * 512 : 0, buffers * sums_size(s) * 4,
            int64_t{2} * drawn_size(s) * static_cast<int64_t>(sizeof(Drawn)),
            int64_t{2} * s.batch_tiles * TILE_ROWS * 4};
  }
  FRD_INLINE int64_t bytes(const SharedLayout& l) { return l.u + l.sums + l.drawn + l.steps; }
};

}  // namespace frd::cuda
