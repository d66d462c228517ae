// How a persistent launch would divide a layer among the blocks of a GPU, or why it cannot. Arithmetic on the host.
//
// A block has 256 threads, 8 warps, and a multiprocessor to itself. Blocks form `directions` x `batch_groups` groups
// that never wait for each other; the blocks of a group share out the units. A block keeps its rows of U for all steps,
// and at each step multiplies them with the operand of its rows of the batch:
//
//   forward   rows: the gates of its units           columns K: H, the operand h of all units of the group
//   backward  rows: its units                        columns K: gates * H, the gradients of all gates
//
// The products are mma.sync, whose tiles are 16 rows by 8 batch rows by 16 columns (8 of tf32). Warps split K. What a
// warp keeps of U lies in its registers as fragments, and what does not fit there in shared memory, read at each step.
// docs/persistent.md has the exchange of the operand.
//
// The plan is the first with the least `cost`, which ranks plans of one layer on one device. It is no time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "core/cells.h"
#include "core/flags.h"
#include "cuda/exchange.h"

namespace frd::cuda {

// What the runtime says of a device: cudaDeviceGetAttribute.
struct DeviceLimits {
  int capability, revision;  // compute capability 9.0 is 9, 0
  int multiprocessors;
  int registers;      // of a multiprocessor
  int shared_memory;  // that a block may opt in to
};

struct PersistentLayer {
  Cell cell;
  Type type;
  bool tf32x3;  // float32 in three products of tf32, which are as good as float32; one otherwise
  int64_t batch, units, projected;
  int directions;
  uint32_t flags;
  bool given_h0, backward;
};

enum class WordKind { PHASED, TAGGED };

struct PersistentPlan {
  std::string obstacle;  // why there is none; the rest is then 0

  int batch_groups, unit_groups, blocks;  // blocks: of the launch, for all directions
  int rows, units;                        // of a block, at most
  int row_tiles, batch_tiles, k_tiles;    // products of a step: row_tiles * batch_tiles * k_tiles, shared by the warps
  int tiles_in_registers;                 // of U, of each warp
  int registers;                          // of a thread, predicted
  int64_t u_in_registers, u_in_shared, shared;  // bytes of a block; shared: all of it
  WordKind words;
  int64_t words_read, bytes_read, bytes_written;  // a block's exchange of a step
  int64_t workspace;                              // bytes of the whole launch, zeroed before it
  int64_t cost;                                   // with an obstacle: bytes of a block that are lacking
};

// The plan's form of exchange.
using PersistentForm = Ring<8, true>;

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline constexpr int PERSISTENT_THREADS = 256, PERSISTENT_WARPS = 8;

// Whether all that blocks exchange is at most 1 in magnitude, or NaN: known from what is configured, not from values.
inline bool at_most_one(const PersistentLayer& layer) {
  if (layer.backward || layer.projected != layer.units) return false;
  const bool carries_h0 = layer.given_h0 && (layer.flags & FLAG_ZONEOUT_H);
  if (layer.cell == LSTM) return !carries_h0;
  // A GRU's leak carries h_0 on in any case. Update dropout scales a candidate that is h at once.
  return layer.cell == RNN_TANH && !carries_h0 && !(layer.flags & FLAG_UPDATE);
}

namespace persistent {

inline int64_t groups_of(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t rounded_up(int64_t n, int64_t size) { return groups_of(n, size) * size; }

// What a thread needs beside U, sums and fragments of the operand: addresses, the gates and state of its units, the
// next steps' W x, masks.
inline constexpr int OTHER_REGISTERS = 64;
inline constexpr int MOST_REGISTERS = 255;  // of a thread, on every architecture
inline constexpr int OPERAND_TILES = 4;     // of which a warp has the operand in registers at once
inline constexpr int64_t OTHER_SHARED = 4 << 10;

// Bits that a value of the product takes, and how many numbers of U a lane holds of a tile of 16 rows.
struct Product {
  int k;            // columns of a tile
  int u_registers;  // of a lane, of a tile of U
  int b_registers;  // of a lane, of a tile of the operand

  static Product of(const PersistentLayer& layer) {
    if (layer.type != Type::F32) return {16, 4, 2};
    return layer.tf32x3 ? Product{8, 8, 4} : Product{8, 4, 2};
  }
};

// Values that one word carries.
inline int values_of_word(const PersistentLayer& layer, WordKind words) {
  const int bytes = static_cast<int>(size_of(layer.type));
  return words == WordKind::PHASED ? 4 / bytes : 6 / bytes;  // a tag leaves 6 bytes
}

// The plan for one division, whose `obstacle` says what does not fit.
inline PersistentPlan divide(const DeviceLimits& device, const PersistentLayer& layer, int batch_groups, int units) {
  const Product product = Product::of(layer);
  const int gates = CELLS[layer.cell].gates;
  PersistentPlan p{};
  p.batch_groups = batch_groups;
  p.units = units;
  p.unit_groups = static_cast<int>(groups_of(layer.units, units));
  p.blocks = layer.directions * p.batch_groups * p.unit_groups;
  p.rows = static_cast<int>(groups_of(layer.batch, batch_groups));
  p.row_tiles = static_cast<int>(groups_of(layer.backward ? units : int64_t{units} * gates, 16));
  p.batch_tiles = static_cast<int>(groups_of(p.rows, 8));
  const int64_t k = layer.backward ? layer.units * gates : layer.units;
  p.k_tiles = static_cast<int>(groups_of(k, product.k));
  if (p.blocks > device.multiprocessors) {
    p.obstacle = std::to_string(p.blocks) + " blocks, and the device has " + std::to_string(device.multiprocessors) +
                 " multiprocessors";
    p.cost = int64_t{1} << 40;
    return p;
  }

  const int most = std::clamp(device.registers / PERSISTENT_THREADS, 0, MOST_REGISTERS);
  const int sums = p.row_tiles * p.batch_tiles * 4;
  const int besides = OTHER_REGISTERS + sums + OPERAND_TILES * p.batch_tiles * product.b_registers;
  const int tiles = p.row_tiles * static_cast<int>(groups_of(p.k_tiles, PERSISTENT_WARPS));  // of U, of a warp
  p.tiles_in_registers = std::clamp((most - besides) / product.u_registers, 0, tiles);
  p.registers = besides + p.tiles_in_registers * product.u_registers;
  const int64_t tile_bytes = int64_t{4} * 32 * product.u_registers;
  p.u_in_registers = tile_bytes * PERSISTENT_WARPS * p.tiles_in_registers;
  p.u_in_shared = tile_bytes * PERSISTENT_WARPS * (tiles - p.tiles_in_registers);
  // Sums of the warps, of two steps in turn.
  p.shared =
      p.u_in_shared + int64_t{2} * 4 * PERSISTENT_WARPS * (p.row_tiles * 16) * (p.batch_tiles * 8) + OTHER_SHARED;

  p.words = at_most_one(layer) ? WordKind::PHASED : WordKind::TAGGED;
  const int64_t word_bytes = p.words == WordKind::PHASED ? 4 : 8, values = values_of_word(layer, p.words);
  // A lane reads 16 bytes at a time, so the columns are filled up to whole loads of 4 lanes.
  const int64_t of_load = 4 * values * 16 / word_bytes, columns = rounded_up(rounded_up(k, product.k), of_load);
  p.words_read = columns / values * p.rows;
  p.bytes_read = p.words_read * word_bytes;
  p.bytes_written = groups_of(int64_t{units} * (layer.backward ? gates : 1), values) * word_bytes * p.rows;
  p.workspace =
      PersistentForm::SLOTS * columns / values * word_bytes * p.batch_tiles * 8 * batch_groups * layer.directions;

  // Clocks of a multiprocessor, roughly: 64 bytes from L2, 128 from shared memory, a product in 2 on each of 4 cores.
  const int64_t products = int64_t{p.row_tiles} * p.batch_tiles * p.k_tiles * (layer.tf32x3 ? 3 : 1) / 2;
  p.cost = p.bytes_read / 64 + larger(products, p.u_in_shared / 128);
  const int64_t no_registers = larger(besides - most, 0) * 4 * PERSISTENT_THREADS,
                no_shared = larger(p.shared - device.shared_memory, 0);
  if (no_registers || no_shared) p.cost = no_registers + no_shared;
  if (no_registers) {
    p.obstacle = "the sums of a step need " + std::to_string(besides) + " registers of a thread, and there are " +
                 std::to_string(most);
  } else if (no_shared) {
    p.obstacle = "a block's part of W_hh leaves " + std::to_string(groups_of(p.shared, 1024)) +
                 " KiB to shared memory, and a block has " + std::to_string(device.shared_memory / 1024);
  }
  return p;
}

}  // namespace persistent

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
      const PersistentPlan plan = persistent::divide(device, layer, batch_groups, units);
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

}  // namespace frd::cuda
