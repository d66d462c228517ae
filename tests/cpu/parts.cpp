// The parts that the CPU's passes over time are made of, each against plain loops, for one instruction set:
//
//     parts [NAME]
//
// runs the test called NAME, or says what there is. tests/kernels/test_cpu_standalone.py builds and runs it, with
// FRD_ISA and FRD_LANES of each instruction set that this processor has. Sizes are around those of a register and of a
// tile.
#include "parts.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "core/counters.h"
#include "core/flags.h"
#include "core/rows.h"
#include "cpu/chunks.h"
#include "cpu/dropout.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/masks.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"
#include "cpu/products.h"
#include "cpu/simd.h"
#include "cpu/tiles.h"

namespace frd::cpu::FRD_ISA {
namespace {

template <int NV, class T>
void pack_gates_of(uint32_t flags) {
  const int64_t units = size(), k = size();
  const Weight<T> w(NV * units, k, flags);
  const Buffer<Term<T>> packed = pack_gates<NV>(PARALLEL, w.weight());
  for (int64_t tile = 0; tile < tiles_of(units, LANES); ++tile)
    for (int64_t kk = 0; kk < terms<T>(k) * TERM<T>; ++kk)
      for (int64_t v = 0; v < NV; ++v)
        for (int64_t lane = 0; lane < LANES; ++lane) {
          const int64_t unit = tile * LANES + lane;
          const T want = unit < units && kk < k ? w.at(v * units + unit, kk) : T(0);
          const Term<T> term = packed[((tile * terms<T>(k) + kk / TERM<T>)*NV + v) * LANES + lane];
          const T got = in_term<T>(term, kk % TERM<T>);
          EXPECT(got == want, "%d gates of %ld units, k %ld, unit %ld: %g, not %g", NV, units, k, unit, double(got),
                 double(want));
        }
}

// Tiles of columns, packed at once and in turn, of a weight whose rows begin at `turned`; every element of it in one of
// them, zeros beyond it.
template <class T>
void pack_columns_of(uint32_t flags) {
  const int64_t rows = size(), columns = size(), turned = between(0, rows - 1);
  const Weight<T> w(rows, columns, flags);
  const MaskedWeight<T> weight = w.weight();
  const ColumnTiles<T> at_once(PARALLEL, weight, turned, Packing::AT_ONCE);
  const ColumnTiles<T> in_turn(PARALLEL, weight, turned, Packing::IN_TURN);
  std::vector<Term<T>> room(static_cast<size_t>(in_turn.room()));
  const Columns& layout = at_once.layout();
  for (int64_t tile = 0; tile < layout.tiles; ++tile) {
    const int64_t width = layout.width(tile);
    const Term<T>*once = at_once.at(tile).packed, *turn = in_turn.at(tile, room.data()).packed;
    for (int64_t kk = 0; kk < terms<T>(rows) * TERM<T>; ++kk)
      for (int64_t i = 0; i < width * LANES; ++i) {
        const int64_t column = layout.first(tile) * LANES + i, at = kk / TERM<T> * width * LANES + i;
        const T want = column < columns && kk < rows ? w.at((kk + turned) % rows, column) : T(0);
        const T first = in_term<T>(once[at], kk % TERM<T>), second = in_term<T>(turn[at], kk % TERM<T>);
        EXPECT(first == want && second == want, "[%ld, %ld] turned by %ld, row %ld, column %ld: %g and %g, not %g",
               rows, columns, turned, kk, column, double(first), double(second), double(want));
      }
  }
}

template <class T>
void pack_typed() {
  for (int i = 0; i < 20; ++i)
    for (const uint32_t flags : WEIGHT_FLAGS) {
      pack_gates_of<1, T>(flags);
      pack_gates_of<3, T>(flags);
      pack_gates_of<4, T>(flags);
      pack_columns_of<T>(flags);
    }
  for (int i = 0; i < 50; ++i) {
    const int64_t rows = size(), width = size(), stride = width + between(0, 9);
    const std::vector<T> from = numbers<T>(rows * stride);
    std::vector<T> to(static_cast<size_t>(width * rows + 1), T(-77));
    turn(from.data(), rows, width, stride, to.data());
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < width; ++column)
        EXPECT(to[column * rows + row] == from[row * stride + column], "[%ld, %ld] turned", rows, width);
    EXPECT(to.back() == T(-77), "[%ld, %ld] turned wrote beyond its end", rows, width);
  }
}
void pack() { pack_typed<float>(), pack_typed<double>(), pack_typed<BFloat16>(); }

// Rows [begin, end) times the columns of a packed matrix: the right sums, each row asked for once, and the same bits
// whatever rows are taken together.
template <int NV, class T>
void product_of() {
  const int64_t k = between(0, 40), rows = between(1, 30), begin = between(0, rows - 1);
  using S = Arithmetic<T>;
  // What lies between two rows is none of the product's business.
  std::vector<T> a = numbers<T>(rows * (k + 1));
  for (int64_t b = 0; b < rows; ++b) a[b * (k + 1) + k] = T(std::numeric_limits<S>::quiet_NaN());
  std::vector<Term<T>> tile(static_cast<size_t>(terms<T>(k) * NV * LANES));
  const auto weight = [&](int64_t kk, int64_t column) {
    return double(in_term<T>(tile[kk / TERM<T> * NV * LANES + column], kk % TERM<T>));
  };
  for (int64_t kk = 0; kk < k; ++kk)
    for (int64_t column = 0; column < NV * LANES; ++column)
      std::memcpy(reinterpret_cast<char*>(&tile[kk / TERM<T> * NV * LANES + column]) + kk % TERM<T> * sizeof(T),
                  numbers<T>(1).data(), sizeof(T));
  std::vector<S> found(static_cast<size_t>(rows * NV * LANES));
  std::vector<int> fetched(static_cast<size_t>(rows)), calls(static_cast<size_t>(rows));
  const auto row = [&](int64_t b) { return a.data() + b * (k + 1); };
  const PackedTile<NV, T> packed{tile.data(), k};
  product<NV>(
      begin, rows, row, packed, [&](int64_t b) { ++fetched[b]; },
      [&](int64_t b, const Vec<T>* sums) {
        EXPECT(fetched[b] == 1, "row %ld is computed before it is fetched", b);
        ++calls[b];
        for (int v = 0; v < NV; ++v) store(&found[(b * NV + v) * LANES], sums[v]);
      });
  for (int64_t b = 0; b < rows; ++b) EXPECT(calls[b] == (b >= begin), "row %ld: %d calls", b, calls[b]);
  for (int64_t b = begin; b < rows; ++b) {
    product<NV>(b, b + 1, row, packed, [&](int64_t, const Vec<T>* sums) {
      EXPECT(std::memcmp(sums, &found[b * NV * LANES], NV * sizeof(Vec<T>)) == 0, "row %ld alone is another sum", b);
    });
    for (int64_t i = 0; i < NV * LANES; ++i) {
      double want = 0, size = 1;
      for (int64_t kk = 0; kk < k; ++kk) {
        const double term = double(row(b)[kk]) * weight(kk, i);
        want += term, size += std::fabs(term);
      }
      const S got = found[b * NV * LANES + i];
      EXPECT(close(got, want, size), "row %ld, column %ld: %g, not %g", b, i, double(got), want);
    }
  }
}

void gemm() {
  for (int i = 0; i < 60; ++i) {
    product_of<1, float>(), product_of<2, float>(), product_of<3, float>(), product_of<4, float>();
    product_of<1, double>(), product_of<2, double>(), product_of<3, double>(), product_of<4, double>();
    product_of<1, BFloat16>(), product_of<2, BFloat16>(), product_of<3, BFloat16>(), product_of<4, BFloat16>();
  }
  for (int64_t n = 0; n < 70 * LANES; n += 5)
    for (int64_t groups = 1; groups < 5; ++groups) {
      const Columns columns(n, groups);
      int64_t covered = 0, least = 4, most = 0;
      for (int64_t tile = 0; tile < columns.tiles; ++tile) {
        const int64_t width = columns.width(tile);
        EXPECT(columns.first(tile) == covered && width >= 1 && width <= 4, "tile %ld of %ld columns", tile, n);
        covered += width;
        least = width < least ? width : least;
        most = width > most ? width : most;
      }
      EXPECT(covered == columns.vectors && covered * LANES >= n, "%ld columns are not covered", n);
      EXPECT(n == 0 || most - least <= 1, "tiles of %ld columns are of unlike size", n);
      EXPECT(columns.tiles % groups == 0 || columns.tiles == columns.vectors, "%ld columns, %ld groups", n, groups);
    }
}

// The mask of an input of width k, of each step, at a threshold that is the number of some element; or none.
RowMask input_mask(int64_t k) {
  Masks masks = masks_of(generator() % 2 ? FLAG_MASKS_ON | FLAG_INPUT : FLAG_INPUT, 0);
  const uint32_t stream = stream_of(KIND_INPUT, masks.layer, 0);
  masks.thresholds[SITE_INPUT_DROPOUT] =
      number_of(static_cast<uint32_t>(between(0, k - 1)), 0, masks.step_offset, stream, masks.keys[GROUP_INPUT]);
  return masks.of_rows(false, 0, k);
}

// What an element of the first step is multiplied with.
double factor(const RowMask& mask, int64_t row, int64_t column) {
  if (!mask.on) return 1;
  const uint64_t number =
      number_of(static_cast<uint32_t>(column), static_cast<uint32_t>(row), mask.step_offset, mask.stream, mask.key);
  return number < mask.threshold ? 0 : keep_scale(mask.threshold);
}

template <class T>
void input_products(Packing packing, uint32_t flags) {
  using S = Arithmetic<T>;
  constexpr int NV = 3;
  const int64_t units = size(), k = size(), rows = between(1, 40);
  const Weight<T> w(NV * units, k, flags);
  const std::vector<T> x = numbers<T>(rows * k);
  const std::vector<S> bias = numbers<S>(NV * units);
  const bool with_bias = generator() % 2;
  std::vector<S> gates(static_cast<size_t>(rows * NV * units));
  const MaskedWeight<T> weight = w.weight();
  input_product<NV>(PARALLEL, x.data(), rows, GateTiles<NV, T>(PARALLEL, weight, packing),
                    with_bias ? bias.data() : nullptr, gates.data());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < NV * units; ++i) {
      double want = with_bias ? double(bias[i]) : 0, size = 1;
      for (int64_t kk = 0; kk < k; ++kk) {
        const double term = double(w.at(i, kk)) * double(x[row * k + kk]);
        want += term, size += std::fabs(term);
      }
      const S got = gates[row * NV * units + i];
      EXPECT(close(got, want, size), "W x of row %ld, gate row %ld: %g, not %g", row, i, double(got), want);
    }

  // Gradients of x, which some site may mask: rows of `stride` numbers, whose first are those of W's rows from `turned`
  // on.
  const int64_t turned = between(0, w.rows - 1), stride = w.rows + between(0, 5);
  const std::vector<T> dgates = numbers<T>(rows * stride);
  std::vector<T> dx(static_cast<size_t>(rows * k));
  const Sequence sequence{1, rows, rows, nullptr, nullptr, false};
  const RowMask mask = input_mask(k);
  RowMasks<T> masks(PARALLEL, sequence, mask, rows);
  masks.draw(Chunk::from(sequence, 0, rows));
  input_gradient(PARALLEL, dgates.data(), rows, stride, ColumnTiles<T>(PARALLEL, weight, turned, packing), masks,
                 dx.data());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < k; ++column) {
      double want = 0, size = 1;
      for (int64_t i = 0; i < w.rows; ++i) {
        const double term = double(dgates[row * stride + i]) * double(w.at((i + turned) % w.rows, column));
        want += term, size += std::fabs(term);
      }
      const double scale = factor(mask, row, column);
      want *= scale, size *= std::fmax(1, scale);
      const T got = dx[row * k + column];
      EXPECT(close(got, want, size), "dx of row %ld, column %ld: %g, not %g", row, column, double(got), want);
    }
}

// A weight as it lies gives the same bits as its copy, whatever rows there are.
template <int NV, class T>
void as_it_lies(uint32_t flags) {
  const int64_t units = size(), k = size(), rows = between(1, 20), turned = between(0, NV * units - 1);
  const Weight<T> w(NV * units, k, flags);
  const MaskedWeight<T> weight = w.weight();
  const std::vector<T> x = numbers<T>(rows * k), dgates = numbers<T>(rows * NV * units);
  const RowMasks<T> none(PARALLEL, Sequence{1, rows, rows, nullptr, nullptr, false}, RowMask{}, rows);
  std::vector<Arithmetic<T>> gates[2];
  std::vector<T> dx[2];
  for (const Packing packing : {Packing::AT_ONCE, Packing::NEVER}) {
    std::vector<Arithmetic<T>>& of_gates = gates[packing == Packing::NEVER];
    std::vector<T>& of_x = dx[packing == Packing::NEVER];
    of_gates.resize(static_cast<size_t>(rows * NV * units)), of_x.resize(static_cast<size_t>(rows * k));
    const GateTiles<NV, T> tiles(PARALLEL, weight, packing);
    input_product<NV>(PARALLEL, x.data(), rows, tiles, static_cast<const Arithmetic<T>*>(nullptr), of_gates.data());
    const ColumnTiles<T> columns(PARALLEL, weight, turned, packing);
    input_gradient(PARALLEL, dgates.data(), rows, NV * units, columns, none, of_x.data());
  }
  for (size_t i = 0; i < gates[0].size(); ++i)
    EXPECT(gates[0][i] == gates[1][i], "%ld rows, [%ld, %ld]: W x at %zu is %g, not %g", rows, NV * units, k, i,
           double(gates[1][i]), double(gates[0][i]));
  for (size_t i = 0; i < dx[0].size(); ++i)
    EXPECT(dx[0][i] == dx[1][i], "%ld rows, [%ld, %ld]: dx at %zu is %g, not %g", rows, NV * units, k, i,
           double(dx[1][i]), double(dx[0][i]));
}

void few_rows() {
  for (int i = 0; i < 30; ++i)
    for (const uint32_t flags : WEIGHT_FLAGS) {
      as_it_lies<1, float>(flags), as_it_lies<1, double>(flags), as_it_lies<1, BFloat16>(flags);
      as_it_lies<3, float>(flags), as_it_lies<3, double>(flags), as_it_lies<3, BFloat16>(flags);
      as_it_lies<4, float>(flags), as_it_lies<4, double>(flags), as_it_lies<4, BFloat16>(flags);
    }
}

// Gradients of two weights and their biases over three chunks, as a cell has them that takes a gate apart: the first
// `unit` columns of a row of gradients belong to the end of the first weight, the next to its begin, all but the first
// to the second weight. Weights may be masked, and so their gradients.
template <class T>
void weight_gradients(uint32_t flags) {
  const int64_t unit = size(), gates = 3, width = (gates + 1) * unit, stride = width + between(0, 3);
  const int64_t most = 40, inputs = between(0, 1) ? size() : between(1, 9) * 4 * LANES, outputs = size();
  using S = Arithmetic<T>;
  std::vector<S> dw(static_cast<size_t>(gates * unit * inputs)), du(static_cast<size_t>(gates * unit * outputs));
  std::vector<S> db_w(static_cast<size_t>(gates * unit)), db_u = db_w;
  std::vector<double> want_w(dw.size()), want_u(du.size()), want_bw(db_w.size()), want_bu(db_u.size());
  const bool wants_w = generator() % 4, wants_u = generator() % 4;
  double largest = 1;  // scale
  const Weight<T> w(gates * unit, inputs, flags), u(gates * unit, outputs, flags);
  const MaskedWeight<T> masked_w = w.weight(), masked_u = u.weight();
  WeightGradient<T> of_w(PARALLEL, wants_w ? dw.data() : nullptr, masked_w, most);
  WeightGradient<T> of_u(PARALLEL, wants_u ? du.data() : nullptr, masked_u, most);
  for (int chunk = 0; chunk < 3; ++chunk) {
    const int64_t rows = between(1, most);
    const std::vector<T> x = numbers<T>(rows * inputs), h = numbers<T>(rows * outputs),
                         gradients = numbers<T>(rows * stride);
    const Sequence sequence{1, rows, rows, nullptr, nullptr, false};
    const RowMask mask = input_mask(inputs);
    RowMasks<T> masks(PARALLEL, sequence, mask, rows);
    masks.draw(Chunk::from(sequence, 0, rows));
    of_w.chunk(x.data(), rows, masks);
    of_u.chunk(h.data(), rows);
    add_weight_gradients<T>(PARALLEL, gradients.data(), rows, stride, width, unit, {chunk == 0, chunk == 2},
                            {{&of_w, db_w.data(), 0, unit, (gates - 1) * unit},
                             {&of_w, db_w.data(), unit, gates * unit, 0},
                             {&of_u, db_u.data(), unit, width, 0}});
    for (int64_t i = 0; i < gates * unit; ++i)
      for (int64_t row = 0; row < rows; ++row) {
        const double of_input = double(gradients[row * stride + (i + unit) % (gates * unit)]);
        const double of_state = double(gradients[row * stride + i + unit]);
        want_bw[i] += of_input, want_bu[i] += of_state;
        for (int64_t c = 0; c < inputs; ++c) {
          const double scale = factor(mask, row, c);
          want_w[i * inputs + c] += of_input * double(T(static_cast<S>(scale) * x[row * inputs + c]));
          largest = std::fmax(largest, scale);
        }
        for (int64_t c = 0; c < outputs; ++c) want_u[i * outputs + c] += of_state * double(h[row * outputs + c]);
      }
  }
  const double size = 3 * most * 4;
  const auto check = [&](const char* name, const Weight<T>& weight, const std::vector<S>& got,
                         const std::vector<double>& want, double size) {
    for (size_t i = 0; i < got.size(); ++i) {
      const double factor = double(weight.factors[i]);
      EXPECT(close(got[i], factor * want[i], size * std::fmax(1, factor)), "%s at %zu, flags %x", name, i, flags);
    }
  };
  if (wants_w) check("dW", w, dw, want_w, size * largest);
  if (wants_u) check("dU", u, du, want_u, size);
  for (size_t i = 0; i < db_w.size(); ++i) EXPECT(close(db_w[i], want_bw[i], size), "W's bias at %zu", i);
  for (size_t i = 0; i < db_u.size(); ++i) EXPECT(close(db_u[i], want_bu[i], size), "U's bias at %zu", i);
}

void products() {
  for (int i = 0; i < 15; ++i) {
    for (const Packing packing : {Packing::AT_ONCE, Packing::IN_TURN, Packing::NEVER, Packing::ALONG})
      for (const uint32_t flags : WEIGHT_FLAGS) {
        input_products<float>(packing, flags);
        input_products<double>(packing, flags);
        input_products<BFloat16>(packing, flags);
      }
    for (const uint32_t flags : WEIGHT_FLAGS) {
      weight_gradients<float>(flags);
      weight_gradients<double>(flags);
      weight_gradients<BFloat16>(flags);
    }
  }
}

// Masks of state sites and of hidden dropout of a chunk of steps, a unit at a time, from core's own Philox. Each
// threshold is the number of some element, or the next, so that fields meet its upper half.
template <class T>
void state_masks(uint32_t flags, int64_t width, bool reverse) {
  const int64_t steps = between(2, 5), batch = between(2, 7), examples[] = {7, 0, 1 << 20, 5, 3, 9, 2};
  std::vector<int64_t> sizes, offsets;
  for (int64_t t = 0, rows = 0; t < steps; rows += sizes[t++]) {
    sizes.push_back(t == 0 ? batch : between(1, sizes.back()));
    offsets.push_back(rows);
  }
  const Sequence sequence{steps, batch, offsets.back() + sizes.back(), sizes.data(), offsets.data(), reverse};
  Masks masks = masks_of(flags, 0);
  masks.example_ids = examples;
  const uint32_t of_tie = static_cast<uint32_t>(between(0, width - 1)), example = static_cast<uint32_t>(examples[1]);
  const auto limit_of = [&](uint32_t kind, uint32_t step, Key key) {
    return number_of(of_tie, example, step, stream_of(kind, 3, 1), key) + uint64_t{generator() % 2};
  };
  for (const StateSite& site : STATE_SITES) {
    const uint32_t step = flags & site.sequence_flag ? SEQ : masks.step_offset;
    masks.thresholds[site.threshold] = limit_of(kind_of(site, flags), step, masks.keys[GROUP_STATE]);
  }
  masks.thresholds[SITE_HIDDEN_DROPOUT] = limit_of(KIND_HIDDEN, SEQ, masks.keys[GROUP_HIDDEN]);
  StateMasks<T> drawn(PARALLEL, masks, sequence, width, largest_chunk(sequence, batch + 2));
  const bool sampled = flags & FLAG_MASKS_ON;
  for (Chunk chunk{}; chunk.end < steps;) {
    chunk = Chunk::from(sequence, chunk.end, batch + 2);
    drawn.draw(chunk);
    for (int64_t s = chunk.begin; s < chunk.end; ++s)
      for (int64_t t = sequence.time(s), b = 0; b < sequence.active(t); ++b)
        for (int64_t unit = 0; unit < width; unit += LANES) {
          const Drops<SimdMath<T>> drops = drawn.drops(t, b, unit);
          const Vec<T> hidden = drawn.hidden(b, unit, Vec<T>{} + T(1));
          const Mask<T> dead = drawn.dead(b, unit);
          for (int64_t lane = 0; lane < LANES && unit + lane < width; ++lane) {
            const uint32_t u = static_cast<uint32_t>(unit + lane), of = static_cast<uint32_t>(examples[b]);
            for (int site = 0; site < NUM_STATE_SITES; ++site) {
              const StateSite& row = STATE_SITES[site];
              const bool once = flags & row.sequence_flag;
              const uint32_t step = once ? SEQ : masks.step_offset + static_cast<uint32_t>(t);
              const uint32_t number =
                  number_of(u, of, step, stream_of(kind_of(row, flags), 3, 1), masks.keys[GROUP_STATE]);
              const bool drop = sampled && (flags & row.flag) && number < masks.thresholds[row.threshold];
              EXPECT((drops.of[site][lane] != 0) == drop, "state site %d, flags %x, unit %u", site, flags, u);
              if (site == STATE_MEMORY) EXPECT((dead[lane] != 0) == (once && drop), "dead units, flags %x", flags);
            }
            T want = 1;
            if (sampled && (flags & FLAG_HIDDEN)) {
              const uint64_t p = masks.thresholds[SITE_HIDDEN_DROPOUT];
              const uint32_t row = flags & FLAG_HIDDEN_BATCH_SHARED ? SEQ : of;
              const bool drop = number_of(u, row, SEQ, stream_of(KIND_HIDDEN, 3, 1), masks.keys[GROUP_HIDDEN]) < p;
              want = drop ? T(0) : T(keep_scale(p));
            }
            EXPECT(hidden[lane] == want, "hidden dropout, flags %x, unit %u", flags, u);
          }
        }
  }
}

// Blocks of masks at thresholds that elements of the block meet, and at the ends.
void blocks(uint32_t first, uint32_t row, uint32_t step, uint32_t stream, Key key) {
  const RoundKeys keys(key);
  uint32_t numbers[BLOCK];
  for (uint32_t i = 0; i < BLOCK; ++i) numbers[i] = number_of(first + i, row, step, stream, key);
  std::vector<uint64_t> limits{0,
                               1,
                               65535,
                               65536,
                               65537,
                               uint64_t{1} << 31,
                               (uint64_t{1} << 32) - 65536,
                               (uint64_t{1} << 32) - 1,
                               uint64_t{1} << 32};
  for (int i = 0; i < 4; ++i) {
    const uint64_t met = numbers[between(0, BLOCK - 1)], upper = met & ~uint64_t{0xFFFF};
    for (const uint64_t limit : {met, met + 1, upper, upper + 0xFFFF, upper + 0x10000}) limits.push_back(limit);
  }
  for (const uint64_t limit : limits) {
    uint8_t bits[LANES];
    store(bits, draw(lane_numbers() + first / static_cast<uint32_t>(FIELDS), row, step, stream, keys, limit));
    for (uint32_t i = 0; i < BLOCK; ++i) {
      const bool want = numbers[i] < limit;
      EXPECT((bits[i / 8] >> i % 8 & 1) == want, "element %u below %llu", first + i, (unsigned long long)limit);
      EXPECT(dropped(first + i, row, step, stream, key, limit) == want, "element %u by itself", first + i);
      EXPECT((spread(bits, i / LANES * LANES)[i % LANES] != 0) == want, "element %u as a mask", first + i);
    }
  }
}

void masks() {
  const Key key{0x12345678u, 0xFFFFFFFFu};
  const RoundKeys keys(key);
  for (int i = 0; i < 200; ++i) {
    const uint32_t b = static_cast<uint32_t>(generator()), c = static_cast<uint32_t>(generator());
    const uint32_t stream = static_cast<uint32_t>(generator()), call = static_cast<uint32_t>(generator());
    const VecWords calls = philox(lane_numbers() + call, b, c, stream, keys);
    for (uint32_t lane = 0; lane < LANES; ++lane) {
      const Words want = frd::philox(call + lane, b, c, stream, key);
      for (int w = 0; w < 4; ++w) EXPECT(calls.w[w][lane] == want.w[w], "word %d of call %u", w, call + lane);
    }
    blocks(static_cast<uint32_t>(between(0, 500) * BLOCK), b, c, stream & ~STREAM_LOW, key);
  }
  VecI small{};
  for (int lane = 0; lane < LANES; ++lane) small[lane] = lane % 2 ? -lane - 100 : lane + 100;
  const VecI again = widen(narrow(small));
  EXPECT(std::memcmp(&again, &small, sizeof small) == 0, "numbers of one byte do not come back");
  for (int lane = 0; lane < LANES; ++lane) {
    VecI one{};
    EXPECT(!any(one), "none is any");
    one[lane] = 1 << lane;
    EXPECT(any(one), "lane %d is not seen", lane);
  }
  for (int i = 0; i < 300; ++i) {
    const uint32_t flags = static_cast<uint32_t>(generator()) & (2 * FLAG_MASKS_ON - 1);
    state_masks<float>(flags, size(), i % 2);
    state_masks<double>(flags, size(), i % 2);
  }
}

// Every BFloat16 through a register and back, and floats around the middle between two of them.
void bfloat16() {
  const auto flushed = [](float x) {  // which the processor's own conversions do to numbers that are not normal
#if defined(FRD_BF16_DOT)
    return std::fabs(x) < std::numeric_limits<float>::min() ? 0 * x : x;
#else
    return x;
#endif
  };
  const auto same = [](BFloat16 a, BFloat16 b) { return a.bits == b.bits; };
  for (uint32_t first = 0; first < 1u << 16; first += 1) {
    BFloat16 from[LANES], to[LANES + 1];
    for (uint32_t lane = 0; lane < LANES; ++lane) from[lane].bits = static_cast<uint16_t>(first + 977 * lane);
    const int64_t n = between(0, LANES);
    for (BFloat16& x : to) x.bits = 0xFFFE;
    store(to, load(from, n), n);
    for (int64_t lane = 0; lane <= LANES; ++lane) {
      BFloat16 want = lane < n ? BFloat16(flushed(from[lane])) : to[LANES];
      EXPECT(same(to[lane], want), "%x of %ld came back as %x", from[lane % LANES].bits, long(n), to[lane].bits);
    }
    EXPECT(to[LANES].bits == 0xFFFE, "stored beyond the end");

    VecF x{};
    for (uint32_t lane = 0; lane < LANES; ++lane) {
      static constexpr uint32_t LOWER[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
      const uint32_t bits = (first + 977 * lane) << 16 | LOWER[generator() % 6];
      const float at = std::bit_cast<float>(bits);
      x[lane] = std::isnan(at) ? std::numeric_limits<float>::quiet_NaN() : at;
    }
    store(to, x);
    const VecU words = rounded(x);
    for (int lane = 0; lane < LANES; ++lane) {
      const BFloat16 want(flushed(x[lane]));
      EXPECT(same(to[lane], want) && words[lane] == want.bits, "%a is %x, not %x", x[lane], to[lane].bits, want.bits);
    }
  }
}

// |got - want| in ulps of what `want` rounds to. Below the normal numbers an ulp is that of the smallest of them.
template <class T>
double ulps(T got, long double want) {
  constexpr int digits = std::numeric_limits<T>::digits, least = std::numeric_limits<T>::min_exponent;
  int exponent = 0;
  std::frexp(static_cast<T>(want), &exponent);
  const long double ulp = std::ldexp(1.0L, (exponent < least ? least : exponent) - digits);
  return static_cast<double>(std::fabs(static_cast<long double>(got) - want) / ulp);
}

// sigmoid and tanh of LANES numbers: within `most` ulps, never beyond their ends, tanh odd, a NaN a NaN, a shut gate 0.
template <class T>
void check_functions(const Vec<T>& x, T shut, T smallest, double most) {
  const Vec<T> s = sigmoid(x), t = tanh(x), opposite = tanh(-x);
  for (int lane = 0; lane < LANES; ++lane) {
    const T at = x[lane];
    if (std::isnan(at)) {
      EXPECT(std::isnan(s[lane]) && std::isnan(t[lane]), "a NaN became %g and %g", double(s[lane]), double(t[lane]));
      continue;
    }
    const long double given = at;
    EXPECT(s[lane] >= 0 && s[lane] <= 1 && std::fabs(t[lane]) <= 1, "at %g: %g, %g", at, s[lane], t[lane]);
    EXPECT(ulps(t[lane], std::tanh(given)) <= most, "tanh(%.9g) = %.9g", double(at), double(t[lane]));
    const T back = opposite[lane];
    EXPECT(back == -t[lane] && std::signbit(back) != std::signbit(t[lane]), "tanh(-%g) = %g", double(at), double(back));
    EXPECT(std::signbit(t[lane]) == std::signbit(at), "the sign of tanh(%g)", double(at));
    if (at >= smallest)
      EXPECT(ulps(s[lane], 1 / (1 + std::exp(-given))) <= most, "sigmoid(%.9g) = %.9g", double(at), double(s[lane]));
    if (at < shut) EXPECT(s[lane] == 0, "sigmoid(%g) = %g", double(at), double(s[lane]));
  }
}

void functions() {
  constexpr uint64_t stride = 4099;  // of the bits of all floats
  for (uint64_t first = 0; first < uint64_t{1} << 32; first += stride * LANES) {
    VecF x{};
    for (int lane = 0; lane < LANES; ++lane) {
      const uint32_t bits = static_cast<uint32_t>(first + stride * static_cast<uint64_t>(lane));
      float at;
      std::memcpy(&at, &bits, sizeof at);
      x[lane] = at;
    }
    check_functions<float>(x, -88, -87, 2.5);
  }
  for (int i = 0; i < 40000; ++i) {
    VecF near{};
    VecD x{};
    for (int lane = 0; lane < LANES; ++lane) {
      const double size = static_cast<double>(between(0, 1 << 30)) / (1 << 30);
      near[lane] =
          static_cast<float>((lane % 2 ? -1 : 1) * size * (i % 4 ? 20 : 100));  // where most of a gate's sums lie
      x[lane] = (lane % 2 ? -1 : 1) * size * (i % 4 ? 20 : 800);
    }
    check_functions<float>(near, -88, -87, 2.5);
    check_functions<double>(x, -709, -708, 2.5);
  }
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (const double at : {0.0, -0.0, infinity, -infinity, nan, 1e-300, -1e-300, 1e300, -1e300}) {
    check_functions<double>(VecD{} + at, -709, -708, 2.5);
    check_functions<float>(VecF{} + static_cast<float>(at), -88, -87, 2.5);
  }
}

struct Test {
  const char* name;
  void (*run)();
};
constexpr Test TESTS[] = {{"pack", pack},   {"gemm", gemm},         {"products", products},  {"few_rows", few_rows},
                          {"masks", masks}, {"bfloat16", bfloat16}, {"functions", functions}};

}  // namespace
}  // namespace frd::cpu::FRD_ISA

int main(int count, char** arguments) {
  using namespace frd::cpu::FRD_ISA;
  for (const Test& test : TESTS) {
    if (count < 2) {
      std::puts(test.name);
    } else if (std::strcmp(arguments[1], test.name) == 0) {
      test.run();
      if (failures) std::printf("%d failures\n", failures);
      return failures != 0;
    }
  }
  return count < 2 ? 0 : 2;
}
