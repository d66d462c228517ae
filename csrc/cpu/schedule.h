// What the fused CPU schedule is given: plain structs of pointers, filled in by bind/, the same for every instruction
// set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/counters.h"
#include "core/flags.h"
#include "core/sequence.h"

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

// The randomness of one layer and direction.
struct Masks {
  uint32_t flags;
  uint32_t layer, direction;
  uint32_t step_offset;
  const int64_t* example_ids;  // (batch), or null for 0, 1, ...
  Key state, hidden, weight;
  uint64_t thresholds[NUM_SITES];

  bool sampled(uint32_t flag) const { return (flags & FLAG_MASKS_ON) && (flags & flag); }
  uint32_t example(int64_t b) const { return static_cast<uint32_t>(example_ids ? example_ids[b] : b); }
};

// Dropout of a layer's input or output. T is the type in memory.
template <class T>
struct DropRows {
  Parallel parallel;
  const T* source;  // [rows, width]
  T* target;        // [rows, width]
  int64_t width;
  Sequence sequence;
  bool per_step, batch_shared;
  uint64_t threshold;
  uint32_t stream;
  Key key;
  uint32_t step_offset;
  const int64_t* example_ids;  // (batch), or null
};

// Raw words, for tests and for exporting masks.
struct ReadWords {
  Key key;
  uint32_t stream;
  const int64_t *b, *c;  // (nb), (nc)
  int64_t nb, nc, units;
  int64_t* target;  // [nc, nb, units, 4] where a counter is a unit, else [nc, nb, units]
};

template <class T>
struct LstmForward {
  Parallel parallel;
  Sequence sequence;
  Masks masks;
  bool sparing;                      // the caller asked for little memory: recompute=True
  int64_t inputs, units, projected;  // I; H; P, or H where there is no projection
  const T* x;                        // [rows, I]
  const T* w_ih;                     // [4H, I], not masked yet
  const T* w_hh;                     // [4H, P], not masked yet
  const T* w_hr;                     // [P, H], not masked yet, or null
  const T* b_ih;                     // [4H], or null
  const T* b_hh;                     // [4H], or null
  const T* h0;                       // [batch, P]
  const T* c0;                       // [batch, H]
  T* gates;                          // [rows, 4H], activated, or null where they are not kept
  T* cells;                          // [rows, H], or null where nothing is kept
  T* states;                         // [rows, P], or null where `out` holds the same or nothing is kept
  T* out;                            // [rows, P]
  T* h_n;                            // [batch, P]
  T* c_n;                            // [batch, H]
};

template <class T>
struct LstmBackward {
  Parallel parallel;
  Sequence sequence;
  Masks masks;
  int64_t inputs, units, projected;
  const T* x;       // [rows, I]
  const T* w_ih;    // [4H, I], not masked yet
  const T* w_hh;    // [4H, P], not masked yet
  const T* w_hr;    // [P, H], not masked yet, or null
  const T* b_ih;    // [4H], or null
  const T* b_hh;    // [4H], or null
  const T* h0;      // [batch, P]
  const T* c0;      // [batch, H]
  const T* gates;   // [rows, 4H], activated, or null: they are computed again
  const T* cells;   // [rows, H]
  const T* states;  // [rows, P]
  const T* dout;    // [rows, P], or null
  const T* dh_n;    // [batch, P], or null
  const T* dc_n;    // [batch, H], or null
  T* dx;            // [rows, I], or null where nobody asks, as each of the next four
  T* dw_ih;         // [4H, I]
  T* dw_hh;         // [4H, P]
  T* dw_hr;         // [P, H]
  T* db;            // [4H], of each bias
  T* dh0;           // [batch, P]
  T* dc0;           // [batch, H]
};

template <class T>
struct GruForward {
  Parallel parallel;
  Sequence sequence;
  Masks masks;
  bool sparing;  // the caller asked for little memory: recompute=True
  int64_t inputs, units;
  const T* x;     // [rows, I]
  const T* w_ih;  // [3H, I], not masked yet
  const T* w_hh;  // [3H, H], not masked yet
  const T* b_ih;  // [3H], or null
  const T* b_hh;  // [3H], or null
  const T* h0;    // [batch, H]
  T* gates;       // [rows, 3H], activated r, z, n, or null where they are not kept
  T* resets;      // [rows, H], u of each step, or null where gates is
  T* states;      // [rows, H], or null where `out` holds the same or nothing is kept
  T* out;         // [rows, H]
  T* h_n;         // [batch, H]
};

template <class T>
struct GruBackward {
  Parallel parallel;
  Sequence sequence;
  Masks masks;
  int64_t inputs, units;
  const T* x;       // [rows, I]
  const T* w_ih;    // [3H, I], not masked yet
  const T* w_hh;    // [3H, H], not masked yet
  const T* b_ih;    // [3H], or null
  const T* b_hh;    // [3H], or null
  const T* h0;      // [batch, H]
  const T* gates;   // [rows, 3H], activated, or null: they are computed again
  const T* resets;  // [rows, H], or null where gates is
  const T* states;  // [rows, H], unscaled
  const T* dout;    // [rows, H], or null
  const T* dh_n;    // [batch, H], or null
  T* dx;            // [rows, I], or null where nobody asks, as each of the next four
  T* dw_ih;         // [3H, I]
  T* dw_hh;         // [3H, H]
  T* db_ih;         // [3H]
  T* db_hh;         // [3H]
  T* dh0;           // [batch, H]
};

// The entry points of one instruction set.
template <class T>
struct TypedKernels {
  void (*lstm_forward)(const LstmForward<T>&);
  void (*lstm_backward)(const LstmBackward<T>&);
  void (*gru_forward)(const GruForward<T>&);
  void (*gru_backward)(const GruBackward<T>&);
  void (*drop_rows)(const DropRows<T>&);
};

struct Kernels {
  const char* isa;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  void (*read_words)(const ReadWords&);

  template <class T>
  const TypedKernels<T>& of() const;
};

template <>
inline const TypedKernels<float>& Kernels::of<float>() const {
  return f32;
}
template <>
inline const TypedKernels<double>& Kernels::of<double>() const {
  return f64;
}

// Instruction sets, best last; those this build or this processor lacks are null.
inline constexpr int NUM_ISAS = 3;
const Kernels* baseline_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

const Kernels* kernels_of(int isa);  // null where it cannot run here
const Kernels& kernels();            // those in use: the best, or what use_isa chose
int isa_in_use();
bool use_isa(int isa);  // false where it cannot run here

}  // namespace frd::cpu
