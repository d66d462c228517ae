// The launchers: plain structs of pointers to device memory and a stream, no torch. Each stands in a .cu of its own,
// which shows its kernel. All of them return at once; none reads device memory on the host or allocates.
//
// D is the type of values, what the matrix products read and write: float, double, __half or __nv_bfloat16. S is the
// type of the state that goes from step to step: State<D>.
#pragma once

#include "core/cells.h"
#include "cuda/masks.h"
#include "cuda/rows.h"

namespace frd::cuda {

// --------------------------------------------------------------------------------------------------------------------
// Once per call
// --------------------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t prepare(const Random& random, Prepared<S>* prepared, cudaStream_t stream);

template <class S>
struct SequenceMasks {
  const Prepared<S>* call;
  SiteDraws state;
  bool hidden, hidden_shared;
  uint32_t hidden_stream;
  const int64_t* example_ids;  // [batch], or null
  int64_t batch, width;
  uint8_t* bits;  // [batch, width]

  static SequenceMasks of(const Random& random, const Prepared<S>* call, int64_t batch, int64_t width, uint8_t* bits) {
    return {.call = call,
            .state = SiteDraws::of(random, true),
            .hidden = random.sampled(FLAG_HIDDEN),
            .hidden_shared = (random.flags & FLAG_HIDDEN_BATCH_SHARED) != 0,
            .hidden_stream = stream_of(KIND_HIDDEN, random.layer, random.direction),
            .example_ids = random.example_ids,
            .batch = batch,
            .width = width,
            .bits = bits};
  }
};
template <class S>
cudaError_t sequence_masks(const SequenceMasks<S>& p, cudaStream_t stream);

// The masks of what a layer writes, a bit for each unit of a row, so that a step masks what it writes and reads, where
// a kernel of its own would read and write all of it again: bit u % 8 of byte u / 8 of a row. A mask per step has a row
// for each row of the sequence, one per sequence for each of the batch.
template <class S>
struct WrittenMasks {
  const Prepared<S>* call;
  WriteSite site;
  uint32_t step_offset;
  const int64_t* example_ids;  // [batch], or null
  int64_t width;               // P
  uint8_t* masks;              // [rows, bytes_of_bits(P)] or [batch, bytes_of_bits(P)]
};
template <class S>
cudaError_t written_masks(const WrittenMasks<S>& p, const Sequence& sequence, cudaStream_t stream);

// A weight as weight dropout leaves it, or a weight's gradient: the mask is its own gradient. Rounded once, in place
// where source is target.
struct MaskedWeight {
  const void* source;  // [rows, columns], rows source_stride apart
  void* target;        // [rows, columns], rows target_stride apart
  Type source_type, target_type;
  int64_t rows, columns, source_stride, target_stride;
  int64_t rotation;  // row r of the source is row (r + rotation) % rows of the target; masks are those of the source
  bool on, by_row;
  uint32_t stream;
  const Key* key;  // this and the next two in device memory; not read where `on` is false
  const double* scale;
  const uint64_t* threshold;
};
cudaError_t masked_weight(const MaskedWeight& p, cudaStream_t stream);

// The biases of W x and of U h as one, for the gates whose halves are added: rows [0, together). The rest keeps the
// first, since the second has another place.
template <class S>
struct SumBiases {
  const S* b_ih;  // [rows]
  const S* b_hh;  // [rows]
  int64_t rows, together;
  S* bias;  // [rows]
};
template <class S>
cudaError_t sum_biases(const SumBiases<S>& p, cudaStream_t stream);

// --------------------------------------------------------------------------------------------------------------------
// A step
// --------------------------------------------------------------------------------------------------------------------

// Of any cell. G gates; what a cell has not got is null.
template <class D>
struct LayerForwardStep {
  using S = State<D>;
  Cell cell;            // whose kernel the launcher takes
  StateMasks<S> masks;  // of the step, as below
  Step step;
  int64_t units, projected;  // H; P, or H where there is no projection
  const S* bias;             // [GH]: of sum_biases, or null
  const S* bias_apart;       // [H]: of what the last gate takes apart, or null
  D* gates;                  // [active, GH]: in, W x; out, activated, where they are kept
  const D* recurrent;        // [active, GH]: U h
  bool keep_gates;
  D* apart;           // [active, H]: what the last gate takes apart, where gates are kept
  const S* c0;        // [B, H]
  const S* c_before;  // [continued, H], may be c_after
  S* c_after;         // [active, H]
  D* c_n;             // [B, H]
  // With a projection, what it reads; the rest is then project_step's.
  D* outputs;              // [active, H], or null
  const S* h0;             // [B, P], a caller's
  S* h;                    // [B, P], the running state, or null where nothing but the next product reads it
  D* read;                 // [B, P]: what the next recurrent product reads
  D* out;                  // [active, P], with the mask of `written`
  const uint8_t* written;  // [active, bytes_of_bits(P)], or null
  D* states;               // [active, P], as h is carried, or null where `out` is the same or nothing is kept
  D* h_n;                  // [B, P]
};
template <class D>
cudaError_t forward_step(LayerForwardStep<D> p, cudaStream_t stream);

// What follows the product with W_hr: zoneout of h, and everything that h goes to.
template <class D>
cudaError_t project_step(LayerForwardStep<D> p, const D* projected, cudaStream_t stream);  // [active, P]

template <class D>
struct LayerBackwardStep {
  using S = State<D>;
  Cell cell;
  StateMasks<S> masks;
  Step step;
  int64_t units, projected;
  const D* through;        // [continuing, P]: the gradient at what the recurrent product of the step after read
  const D* dout;           // [active, P], or null
  const uint8_t* written;  // [active, bytes_of_bits(P)], or null: the mask of what dout is the gradient at
  const D* dh_n;           // [B, P], or null
  const D* dc_n;           // [B, H], or null
  S* dh;                   // [B, P]: what the step after sends to h of the step before, or null where it sends nothing
  S* dc;                   // [B, H]: the same of c
  const D* gates;          // [active, GH], activated
  const D* apart;          // [active, H]: what the last gate took apart
  const S* c0;             // [B, H]
  const S* c_before;       // [continued, H]
  const S* h0;             // [B, H], a caller's; this and the next where h is the memory
  const D* states_before;  // [continued, H], unscaled
  D* dgates;               // [active, gradients() H], at the pre-activations, in the order of layer.h
  // With a projection:
  D* dprojected;      // [active, P]: out of unproject_step
  const D* doutputs;  // [active, H]: the gradient at what the projection read, into backward_step
  D* outputs;         // [active, H]: what it read, where the gradient of W_hr is asked for, or null
};
template <class D>
cudaError_t backward_step(LayerBackwardStep<D> p, cudaStream_t stream);
template <class D>
cudaError_t unproject_step(LayerBackwardStep<D> p, cudaStream_t stream);

// The gradient of an initial state, h or c.
template <class D>
struct Leave {
  using S = State<D>;
  StateMasks<S> masks;
  bool memory;                // whether the state is the cell's memory, on which cell dropout acts
  bool scaled;                // whether it is h and the memory: CellInfo::scaled
  int64_t begin, end, width;  // rows [begin, end) of the batch
  const S* carried;           // [B, width], or null
  const D* through;           // [B, width], or null: the gradient at what the first recurrent product read
  S* gradient;                // [B, width]
};
template <class D>
cudaError_t leave(const Leave<D>& p, cudaStream_t stream);

// --------------------------------------------------------------------------------------------------------------------
// All steps at once
// --------------------------------------------------------------------------------------------------------------------

// What the recurrent products read: h before each step, masked and scaled, as one matrix.
template <class D>
struct Operand {
  using S = State<D>;
  StateMasks<S> masks;
  bool scaled;  // CellInfo::scaled: states are unscaled then, h0 is scaled; elsewhere both are what a product reads
  int64_t width;
  const D* states;  // [rows, width]: after each step
  const S* h0;      // [B, width], a caller's
  D* operand;       // [rows, width]
};
template <class D>
cudaError_t operand(const Operand<D>& p, const Sequence& sequence, cudaStream_t stream);
// Only what rows read at their first step: [B, width]. `states` is not read.
template <class D>
cudaError_t first_operand(const Operand<D>& p, int64_t batch, cudaStream_t stream);

// Activates gates that backward computes again.
template <class D>
struct Activate {
  using S = State<D>;
  Cell cell;
  int64_t rows, units;
  const S* bias;        // [GH], or null, as in a step
  const S* bias_apart;  // [H], or null
  D* gates;             // [rows, GH]: in, W x; out, activated
  const D* recurrent;   // [rows, GH]: U h
  D* apart;             // [rows, H]: what the last gate takes apart
};
template <class D>
cudaError_t activate(const Activate<D>& p, cudaStream_t stream);

// Sums over rows in an order that depends on their number alone: first over blocks of rows, then over the blocks.
template <class D>
struct ColumnSums {
  using S = State<D>;
  const D* source;  // [rows, columns], rows `stride` apart
  int64_t rows, columns, stride;
  S* partial;  // [column_sum_blocks(rows), columns]
  S* sums;     // [columns]
};
int64_t column_sum_blocks(int64_t rows);
template <class D>
cudaError_t column_sums(const ColumnSums<D>& p, cudaStream_t stream);

// Dropout of a layer's input or output, which is its own gradient; in place where source is target.
struct DropRows {
  Type type;
  const void* source;  // [rows, width]
  void* target;        // [rows, width]
  int64_t width;
  bool per_step, batch_shared;
  uint32_t stream, step_offset;
  const int64_t* rng;          // [2], on the device, as the next two
  const int64_t* threshold;    // one
  const int64_t* example_ids;  // [batch], or null
};
cudaError_t drop_rows(const DropRows& p, const Sequence& sequence, cudaStream_t stream);

// The numbers that masks are made of, for tests and for exporting masks.
struct ReadWords {
  const int64_t* rng;  // [2]
  uint32_t stream;
  const int64_t *row, *step;  // [rows], [steps]
  int64_t rows, steps, n;
  int64_t* target;  // [steps, rows, n]
};
cudaError_t read_words(const ReadWords& p, cudaStream_t stream);

// Every launcher above for the four types of values.
#define FRD_FOR_EACH_TYPE(instantiate)                                                                                 \
  instantiate(float);                                                                                                  \
  instantiate(double);                                                                                                 \
  instantiate(__half);                                                                                                 \
  instantiate(__nv_bfloat16)

}  // namespace frd::cuda
