// What the fused CPU schedule is given: plain structs of pointers, filled in by bind/, the same for every instruction
// set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/cells.h"
#include "core/counters.h"
#include "core/flags.h"
#include "core/outer_sites.h"
#include "core/philox.h"
#include "core/rows.h"
#include "cpu/numbers.h"

namespace frd::cpu {

// Runs body(context, begin, end) over chunks of [0, n), on as many threads as the caller may use. Chunks need not run
// at the same time.
struct Parallel {
  int threads;
  void (*run)(int64_t n, void* context, void (*body)(void* context, int64_t begin, int64_t end));

  template <class Body>
  void each(int64_t n, Body&& body) const {
    if (threads <= 1 || n <= 1) return body(int64_t{0}, n);
    run(n, &body, [](void* context, int64_t begin, int64_t end) {
      (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
    });
  }

  // The same, on this thread alone where waking others costs more than they would save. `work`: numbers an item
  // touches.
  template <class Body>
  void each(int64_t n, int64_t work, Body&& body) const {
    constexpr int64_t worth_sharing = 1 << 15;
    if (n * work < worth_sharing) return body(int64_t{0}, n);
    each(n, body);
  }
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
// How many pieces of `width` it takes to cover n.
inline int64_t tiles_of(int64_t n, int64_t width) { return (n + width - 1) / width; }

// The mask of a layer's input or output: of elements [first, first + width) of its rows.
struct RowMask {
  bool on = false, per_step = false, batch_shared = false;
  uint64_t threshold = 0;
  uint32_t stream = 0;
  Key key{};
  uint32_t step_offset = 0;
  const int64_t* example_ids = nullptr;  // (batch), or null for 0, 1, ...
  int64_t first = 0, width = 0;

  uint32_t example(int64_t b) const {
    if (batch_shared) return SEQ;
    return static_cast<uint32_t>(example_ids ? example_ids[b] : b);
  }
};

// The randomness of one layer and direction.
struct Masks {
  uint32_t flags;
  uint32_t layer, direction;
  uint32_t step_offset;
  const int64_t* example_ids;  // (batch), or null for 0, 1, ...
  Key keys[NUM_GROUPS];
  uint64_t thresholds[NUM_SITES];

  bool sampled(uint32_t flag) const { return (flags & FLAG_MASKS_ON) && (flags & flag); }
  uint32_t example(int64_t b) const { return static_cast<uint32_t>(example_ids ? example_ids[b] : b); }

  // Of the rows that the layer reads, or of those that it writes.
  RowMask of_rows(bool writes, int64_t first, int64_t width) const {
    RowMask found;
    found.first = first, found.width = width;
    const OuterSite* const site = outer_site(flags, writes);
    if (!site) return found;
    found.on = true;
    found.per_step = frd::per_step(*site, flags);
    found.batch_shared = flags & site->shared_flag;
    found.threshold = thresholds[site->threshold];
    found.stream = stream_of(site->kind, layer + writes, 0);
    found.key = keys[site->group];
    found.step_offset = step_offset;
    found.example_ids = example_ids;
    return found;
  }
};

// Dropout of rows that no layer here reads or writes.
template <class D>
struct DropRows {
  Parallel parallel;
  const D* source;  // [rows, width]
  D* target;        // [rows, width]
  Sequence sequence;
  RowMask mask;
};

// The numbers that masks are made of, for tests and for exporting masks.
struct ReadWords {
  Key key;
  uint32_t stream;
  const int64_t *row, *step;  // (rows), (steps)
  int64_t rows, steps, n;
  int64_t* target;  // [steps, rows, n]
};

// What a forward and its backward are both given: a layer in one direction. I inputs, H units, P of them in h: fewer
// than H with a projection. G gates. What a cell has not is null. D is the type in memory of what the products read and
// of what has T rows; states that enter or leave, biases, c and the gradients of weights are in that of arithmetic, S.
template <class D>
struct LayerInputs {
  using S = Arithmetic<D>;
  Parallel parallel{};
  Sequence sequence{};
  Masks masks{};
  int64_t inputs = 0, units = 0, projected = 0;  // I, H, P
  int64_t first = 0;                             // where its P columns begin in a row of the output
  const D* x = nullptr;                          // [rows, I]
  const D* w_ih = nullptr;                       // [GH, I], not masked yet, as the next two
  const D* w_hh = nullptr;                       // [GH, P]
  const D* w_hr = nullptr;                       // [P, H], or null
  const S* b_ih = nullptr;                       // [GH], or null
  const S* b_hh = nullptr;                       // [GH], or null
  const S* h0 = nullptr;                         // [batch, P]
  const S* c0 = nullptr;                         // [batch, H]
};

template <class D>
struct LayerForward : LayerInputs<D> {
  using S = Arithmetic<D>;
  Keep keep = KEEP_NOTHING;
  D* gates = nullptr;      // [rows, GH], activated, or null where they are not kept
  S* c = nullptr;          // [rows, H], after each step, or null where it is not kept
  D* apart = nullptr;      // [rows, H], what the last gate takes apart, or null where it is not kept
  D* states = nullptr;     // [rows, P], or null where `out` holds the same or nothing is kept
  D* out = nullptr;        // [rows, P], a row each out_stride: two directions may lie side by side
  int64_t out_stride = 0;  // at least P
  S* h_n = nullptr;        // [batch, P]
  S* c_n = nullptr;        // [batch, H]
};

template <class D>
struct LayerBackward : LayerInputs<D> {
  using S = Arithmetic<D>;
  const D* gates = nullptr;   // [rows, GH], activated, or null: they are computed again
  const S* c = nullptr;       // [rows, H], as forward keeps it, as the next one
  const D* apart = nullptr;   // [rows, H]
  const D* states = nullptr;  // [rows, P], unscaled, a row each states_stride
  const D* dout = nullptr;    // [rows, P], a row each dout_stride, or null
  int64_t states_stride = 0, dout_stride = 0;
  const S* dh_n = nullptr;  // [batch, P], or null
  const S* dc_n = nullptr;  // [batch, H], or null
  D* dx = nullptr;          // [rows, I], or null where nobody asks, as the gradients of weights and biases
  S* dw_ih = nullptr;       // [GH, I]
  S* dw_hh = nullptr;       // [GH, P]
  S* dw_hr = nullptr;       // [P, H]
  S* db_ih = nullptr;       // [GH]
  S* db_hh = nullptr;       // [GH]; null too where a cell has nothing apart, as it is db_ih then
  S* dh0 = nullptr;         // [batch, P]
  S* dc0 = nullptr;         // [batch, H]
};

// The entry points of one instruction set.
template <class D>
struct TypedKernels {
  void (*forward[NUM_CELLS])(const LayerForward<D>&);
  void (*backward[NUM_CELLS])(const LayerBackward<D>&);
  void (*drop_rows)(const DropRows<D>&);
  int64_t (*multiply_adds)(int64_t rounds, D* factors);  // cpu/peak.h; null for double
};

// Numbers that multiply_adds reads and writes.
inline constexpr int PEAK_NUMBERS = 128;

struct Kernels {
  const char* isa;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  void (*read_words)(const ReadWords&);
};

// Instruction sets, best last; those this build or this processor lacks are null.
inline constexpr int NUM_ISAS = 3;
const Kernels* baseline_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

const Kernels* kernels_of(int isa);  // null where it cannot run here
const Kernels& kernels();            // those in use: the best, or what use_isa chose
int isa_in_use();
bool use_isa(int isa);  // false where it cannot run here

// How layers of BFloat16 run: converted to float at the operator's door, as everywhere that nothing else can; with the
// processor's dot products; or with products of the same rounded numbers that any processor can do, which are slow and
// for tests.
enum class Bf16 { EXACT, NATIVE, EMULATED, UNKNOWN };
const TypedKernels<BFloat16>* avx512_bf16_kernels();  // null where this build has none
const TypedKernels<BFloat16>* emulated_bf16_kernels();
bool has_native_bf16();  // whether the processor has what the instruction set in use needs for them
// What FRD_CPU_BF16 asks for: NATIVE where it is not set and the instruction set in use has them, UNKNOWN where it
// names nothing that can run.
Bf16 bf16_in_use();

// Those in use for a type in memory; of BFloat16 there are none where it is converted.
template <class D>
const TypedKernels<D>& typed_kernels() {
  if constexpr (std::is_same_v<D, BFloat16>) {
    return *(bf16_in_use() == Bf16::NATIVE ? avx512_bf16_kernels() : emulated_bf16_kernels());
  } else if constexpr (std::is_same_v<D, double>) {
    return kernels().f64;
  } else {
    return kernels().f32;
  }
}

}  // namespace frd::cpu
