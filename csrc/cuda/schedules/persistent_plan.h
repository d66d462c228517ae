// How a persistent launch would divide a layer among the blocks of a GPU, or why it cannot. Arithmetic on the host.
//
// A block has 256 threads, 8 warps, and a multiprocessor to itself. Blocks form `directions` x `batch_groups` groups
// that never wait for each other; the blocks of a group share out the units. A block keeps its rows of U for all steps,
// and at each step multiplies them with the operand of its rows of the batch:
//
//   forward   rows: the gates of its units           columns K: H, the operand h of all units of the group
//   backward  rows: its units                        columns K: gates * H, the gradients of all gates
//
// The products are mma.sync, whose tiles are 16 rows by 8 batch rows by 16 columns; of float32 8, three products of
// tf32 each. Warps split K. What a warp keeps of U lies in its registers as fragments, as much as the compiled kernel
// has room for, and the rest in shared memory, read at each step. docs/persistent.md has the exchange of the operand.
//
// The plan is the first with the least `cost`, which ranks plans of one layer on one device. It is no time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "core/cells.h"
#include "core/flags.h"
#include "cuda/persistent_shape.h"

namespace frd::cuda {

// What the runtime says of a device: cudaDeviceGetAttribute.
struct DeviceLimits {
  int capability, revision;  // compute capability 9.0 is 9, 0
  int multiprocessors;
  int shared_memory;  // that a block may opt in to
};

struct PersistentLayer {
  Cell cell;
  Type type;
  int64_t batch, units, projected;
  int directions;
  uint32_t flags;
  bool given_h0, backward;
};

enum class WordKind { PHASED, TAGGED };

struct PersistentPlan {
  std::string obstacle;  // why there is none; the rest is then 0

  int kernel;                             // which of persistent_tiles()
  int batch_groups, unit_groups, blocks;  // blocks: of the launch, for all directions
  int rows, units;                        // of a block, at most
  int clusters, items, chunks;            // PersistentShape
  int row_tiles, batch_tiles, k_tiles;    // products of a step: row_tiles * batch_tiles * k_tiles, shared by the warps
  int tiles_in_registers;                 // of U, of each warp
  int registers;                          // of a thread, predicted
  int64_t u_in_registers, u_in_shared, shared;  // bytes of a block; shared: all of it
  WordKind words;
  int64_t words_read, bytes_read, bytes_written;  // a block's exchange of a step
  int64_t workspace;                              // bytes of the whole launch, zeroed before it
  int64_t cost;                                   // with an obstacle: bytes of a block that are lacking
};

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// What the kernels are told of a plan.
inline PersistentShape shape_of(const PersistentPlan& p, int64_t batch, int64_t hidden, int64_t steps) {
  return {.steps = steps,
          .batch = batch,
          .hidden = hidden,
          .batch_groups = p.batch_groups,
          .unit_groups = p.unit_groups,
          .rows = p.rows,
          .units = p.units,
          .clusters = p.clusters,
          .items = p.items,
          .chunks = p.chunks,
          .row_tiles = p.row_tiles,
          .batch_tiles = p.batch_tiles};
}

// Whether all that blocks exchange is at most 1 in magnitude, or NaN: known from what is configured, not from values.
inline bool at_most_one(const PersistentLayer& layer) {
  if (layer.backward || layer.projected != layer.units) return false;
  const bool carries_h0 = layer.given_h0 && (layer.flags & FLAG_ZONEOUT_H);
  // h is read over the rate at which c is kept, unless the scale is that of the paper.
  const bool scaled = (layer.flags & FLAG_CELL) && (layer.flags & FLAG_MASKS_ON) && !(layer.flags & FLAG_CELL_PAPER);
  if (layer.cell == LSTM) return !carries_h0 && !scaled;
  // A GRU's leak carries h_0 on in any case. Update dropout scales a candidate that is h at once.
  return layer.cell == RNN_TANH && !carries_h0 && !(layer.flags & FLAG_UPDATE);
}

namespace planning {

inline int64_t groups_of(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t rounded_up(int64_t n, int64_t size) { return groups_of(n, size) * size; }

// What a thread needs beside U, sums and the operand: addresses, the gates and state of its units, the next step's W x,
// masks.
inline constexpr int OTHER_REGISTERS = 80;

// What a chunk of the operand is for a lane: OperandWords.
struct Chunk {
  int values;     // of a word
  int registers;  // of a lane
  int tiles;      // of 16 columns, or of float32 8

  static Chunk of(const PersistentLayer& layer, WordKind words) {
    const int bytes = static_cast<int>(size_of(layer.type)), values = (words == WordKind::PHASED ? 4 : 6) / bytes;
    const int registers = 4 * values * (bytes == 2 ? 1 : 2) / 2;
    return {values, registers, registers / 2};
  }
};

// The plan for one division, whose `obstacle` says what does not fit.
inline PersistentPlan divide(const DeviceLimits& device, const PersistentLayer& layer, int batch_groups, int units) {
  const int gates = CELLS[layer.cell].gates;
  PersistentPlan p{};
  p.words = at_most_one(layer) ? WordKind::PHASED : WordKind::TAGGED;
  const bool narrow = p.words == WordKind::PHASED;
  const Chunk chunk = Chunk::of(layer, p.words);
  p.batch_groups = batch_groups;
  p.units = units;
  p.unit_groups = static_cast<int>(groups_of(layer.units, units));
  p.blocks = layer.directions * p.batch_groups * p.unit_groups;
  p.rows = static_cast<int>(groups_of(layer.batch, batch_groups));
  p.clusters = static_cast<int>(groups_of(units, chunk.values));
  p.items = layer.backward ? gates : 1;
  p.chunks = static_cast<int>(groups_of(int64_t{p.unit_groups} * p.clusters * p.items, CHUNK_WORDS));
  p.row_tiles = static_cast<int>(groups_of(layer.backward ? units : int64_t{units} * gates, 16));
  p.batch_tiles = static_cast<int>(groups_of(p.rows, TILE_ROWS));
  p.k_tiles = p.chunks * chunk.tiles;
  if (p.blocks > device.multiprocessors) {
    p.obstacle = std::to_string(p.blocks) + " blocks, and the device has " + std::to_string(device.multiprocessors) +
                 " multiprocessors";
    p.cost = int64_t{1} << 40;
    return p;
  }
  TileLimits tiles{};
  for (p.kernel = 0; p.kernel < NUM_PERSISTENT_KERNELS; ++p.kernel) {
    tiles = persistent_tiles(layer.backward, narrow, layer.type == Type::F32, p.kernel);
    if (p.row_tiles <= tiles.row_tiles && p.batch_tiles <= tiles.batch_tiles) break;
  }
  if (p.kernel == NUM_PERSISTENT_KERNELS) {
    p.obstacle = "a block would have " + std::to_string(p.row_tiles) + " x " + std::to_string(p.batch_tiles) +
                 " tiles, and the kernels are compiled for " + std::to_string(tiles.row_tiles) + " x " +
                 std::to_string(tiles.batch_tiles) + " at most";
    p.cost = (int64_t{1} << 38) + int64_t{p.row_tiles} * p.batch_tiles;
    return p;
  }

  const int of_warp = static_cast<int>(groups_of(p.chunks, PERSISTENT_WARPS));
  p.tiles_in_registers = (tiles.held < of_warp ? tiles.held : of_warp) * chunk.tiles * p.row_tiles;
  p.registers = OTHER_REGISTERS + tiles.row_tiles * tiles.batch_tiles * 4 +
                tiles.held * chunk.tiles * tiles.row_tiles * 4 + tiles.group * tiles.batch_tiles * chunk.registers;
  const PersistentShape shape = shape_of(p, layer.batch, layer.units, 0);
  const SharedLayout shared = SharedLayout::of(shape, tiles.held, chunk.tiles, tiles.buffers);
  p.u_in_registers = int64_t{512} * PERSISTENT_WARPS * p.tiles_in_registers;
  p.u_in_shared = shared.u;
  p.shared = SharedLayout::bytes(shared);

  const int64_t word_bytes = narrow ? 4 : 8, words = int64_t{p.chunks} * CHUNK_WORDS;
  p.words_read = words * p.rows;
  p.bytes_read = p.words_read * word_bytes;
  p.bytes_written = int64_t{p.clusters} * p.items * word_bytes * p.rows;
  p.workspace = PersistentSteps::SLOTS * slot_size(shape) * word_bytes * batch_groups * layer.directions;

  // Clocks of a multiprocessor, roughly: 64 bytes from L2, 128 from shared memory, a product in 2 on each of 4 cores.
  const int64_t products = int64_t{p.row_tiles} * p.batch_tiles * p.k_tiles * (layer.type == Type::F32 ? 3 : 1) / 2;
  p.cost = p.bytes_read / 64 + larger(products, p.u_in_shared / 128);
  if (p.shared > device.shared_memory) {
    p.cost = p.shared - device.shared_memory;
    p.obstacle = "a block's part of W_hh leaves " + std::to_string(groups_of(p.shared, 1024)) +
                 " KiB to shared memory, and a block has " + std::to_string(device.shared_memory / 1024);
  }
  return p;
}

}  // namespace planning

// The plan of a layer on a device. Where it has an obstacle the layer takes another schedule.
inline PersistentPlan persistent_plan(const DeviceLimits& device, const PersistentLayer& layer) {
  const auto refuse = [](std::string why) {
    PersistentPlan none{};
    none.obstacle = std::move(why);
    return none;
  };
  if (device.capability < 8)
    return refuse("compute capability " + std::to_string(device.capability) + "." + std::to_string(device.revision) +
                  ": its products need 8.0");
  if (layer.type == Type::F64) return refuse("float64: tensor cores have no products of it here");
  if (layer.projected != layer.units) return refuse("a projection: h has not the width of c");
  if (layer.batch < 1 || layer.units < 1) return refuse("a layer without units or rows");

  PersistentPlan best{};
  bool any = false;
  for (int batch_groups = 1; batch_groups <= 16; batch_groups *= 2) {
    if (batch_groups > 1 && (layer.batch + batch_groups - 1) / batch_groups < 8) break;  // a tile has 8 rows
    for (int units = 4; units <= 128; units += 4) {
      const PersistentPlan plan = planning::divide(device, layer, batch_groups, units);
      // Of those that do not fit the one is told of that lacks least.
      const auto rank = [](const PersistentPlan& p) { return std::pair(!p.obstacle.empty(), p.cost); };
      if (!any || rank(plan) < rank(best)) best = plan;
      any = true;
      if (static_cast<int64_t>(units) >= layer.units) break;
    }
  }
  if (!best.obstacle.empty()) return refuse(best.obstacle);
  return best;
}

// "name=value" of each number, with spaces between, or "obstacle=" and the sentence.
inline std::string text_of(const PersistentPlan& p) {
  if (!p.obstacle.empty()) return "obstacle=" + p.obstacle;
  std::string text;
  const auto add = [&text](const char* name, int64_t value) {
    text += (text.empty() ? "" : " ") + std::string(name) + "=" + std::to_string(value);
  };
  add("kernel", p.kernel);
  add("batch_groups", p.batch_groups);
  add("unit_groups", p.unit_groups);
  add("blocks", p.blocks);
  add("rows", p.rows);
  add("units", p.units);
  add("clusters", p.clusters);
  add("items", p.items);
  add("chunks", p.chunks);
  add("row_tiles", p.row_tiles);
  add("batch_tiles", p.batch_tiles);
  add("k_tiles", p.k_tiles);
  add("tiles_in_registers", p.tiles_in_registers);
  add("registers", p.registers);
  add("u_in_registers", p.u_in_registers);
  add("u_in_shared", p.u_in_shared);
  add("shared", p.shared);
  add("tagged", p.words == WordKind::TAGGED);
  add("words_read", p.words_read);
  add("bytes_read", p.bytes_read);
  add("bytes_written", p.bytes_written);
  add("workspace", p.workspace);
  add("cost", p.cost);
  return text;
}

// Of the current device: schedules/persistent.cpp.
DeviceLimits device_limits();

}  // namespace frd::cuda
