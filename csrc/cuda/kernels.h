// The launchers: plain structs of pointers to device memory and a stream, no torch. Each stands in a .cu of its own,
// which shows its kernel. All of them return at once; none reads device memory on the host or allocates.
//
// D is the type of values, what the matrix products read and write: float, double, __half or __nv_bfloat16. S is the
// type of the state that goes from step to step: State<D>.
#pragma once

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
  uint32_t flags, state_stream, hidden_stream;
  const int64_t* example_ids;  // [batch], or null
  int64_t batch, width;
  uint8_t* bits;  // [batch, width]
};
template <class S>
cudaError_t sequence_masks(const SequenceMasks<S>& p, cudaStream_t stream);

// A weight as weight dropout leaves it, or a weight's gradient: the mask is its own gradient. Rounded once, in place
// where source is target.
struct MaskedWeight {
  const void* source;  // [rows, columns], rows source_stride apart
  void* target;        // [rows, columns], rows target_stride apart
  Type source_type, target_type;
  int64_t rows, columns, source_stride, target_stride;
  int64_t rotation;  // row r of the source is row (r + rotation) % rows of the target; masks are those of the source
  bool on, by_row;
  uint32_t kind, stream;
  const Key* key;  // this and the next two in device memory; not read where `on` is false
  const double* scale;
  const uint64_t* threshold;
};
cudaError_t masked_weight(const MaskedWeight& p, cudaStream_t stream);

// --------------------------------------------------------------------------------------------------------------------
// A step
// --------------------------------------------------------------------------------------------------------------------

template <class D>
struct LstmForwardStep {
  using S = State<D>;
  StateMasks<S> masks;
  Step step;
  int64_t units, projected;  // H; P, or H where there is no projection
  const S* b_ih;             // [4H], or null
  const S* b_hh;             // [4H], or null
  D* gates;                  // [active, 4H]: in, W x; out, activated, where they are kept
  const D* recurrent;        // [active, 4H]: U h
  bool keep_gates;
  const S* c0;        // [B, H]
  const S* c_before;  // [continued, H], may be c_after
  S* c_after;         // [active, H]
  D* c_n;             // [B, H]
  // With a projection, what it reads; the rest is then lstm_projection's.
  D* outputs;   // [active, H], or null
  const S* h0;  // [B, P]
  S* h;         // [B, P], the running state, or null without zoneout_h, which alone reads it
  D* read;      // [B, P]: what the next recurrent product reads
  D* out;       // [active, P]
  D* states;    // [active, P], or null where `out` is the same or nothing is kept
  D* h_n;       // [B, P]
};
template <class D>
cudaError_t lstm_forward(const LstmForwardStep<D>& p, cudaStream_t stream);

// What follows the product with W_hr: zoneout of h, and everything that h goes to.
template <class D>
cudaError_t lstm_projection(const LstmForwardStep<D>& p, const D* projected, cudaStream_t stream);  // [active, P]

template <class D>
struct LstmBackwardStep {
  using S = State<D>;
  StateMasks<S> masks;
  Step step;
  int64_t units, projected;
  const D* through;   // [continuing, P]: the gradient at what the recurrent product of the step after read
  const D* dout;      // [active, P], or null
  const D* dh_n;      // [B, P], or null
  const D* dc_n;      // [B, H], or null
  S* dh;              // [B, P]: along zoneout_h, from the step after to the step before; null without zoneout_h
  S* dc;              // [B, H]: the same along c
  const D* gates;     // [active, 4H], activated
  const S* c0;        // [B, H]
  const S* c_before;  // [continued, H]
  D* dgates;          // [active, 4H]: gradients at the pre-activations
  // With a projection:
  D* dprojected;      // [active, P]: out of lstm_projection_backward
  const D* doutputs;  // [active, H]: the gradient at what the projection read, into lstm_backward
  D* outputs;         // [active, H]: what it read, where the gradient of W_hr is asked for, or null
};
template <class D>
cudaError_t lstm_backward(const LstmBackwardStep<D>& p, cudaStream_t stream);
template <class D>
cudaError_t lstm_projection_backward(const LstmBackwardStep<D>& p, cudaStream_t stream);

template <class D>
struct GruForwardStep {
  using S = State<D>;
  StateMasks<S> masks;
  Step step;
  int64_t units;
  const S* b_ih;       // [3H], or null
  const S* b_hh;       // [3H], or null
  D* gates;            // [active, 3H]: in, W x; out, activated r, z, n, where they are kept
  const D* recurrent;  // [active, 3H]: U h
  bool keep_gates;
  D* resets;    // [active, H]: u = U_n h + b_hn, or null where gates are not kept
  const S* h0;  // [B, H], a caller's
  S* h;         // [B, H], the running state, unscaled
  D* read;      // [B, H]: what the next recurrent product reads
  D* out;       // [active, H]
  D* states;    // [active, H], unscaled, or null where `out` is the same or nothing is kept
  D* h_n;       // [B, H]
};
template <class D>
cudaError_t gru_forward(const GruForwardStep<D>& p, cudaStream_t stream);

template <class D>
struct GruBackwardStep {
  using S = State<D>;
  StateMasks<S> masks;
  Step step;
  int64_t units;
  const D* through;        // [continuing, H]: the gradient at what the recurrent product of the step after read
  const D* dout;           // [active, H], or null
  const D* dh_n;           // [B, H], or null
  S* dh;                   // [B, H]: along the leak and zoneout, from the step after to the step before
  const D* gates;          // [active, 3H], activated
  const D* resets;         // [active, H]
  const S* h0;             // [B, H], a caller's
  const D* states_before;  // [continued, H], unscaled
  D* dgates;               // [active, 4H]: gradients at n (of W x), r, z, n (of U h); see gru_schedule.h
};
template <class D>
cudaError_t gru_backward(const GruBackwardStep<D>& p, cudaStream_t stream);

// The gradient of an initial state: of an LSTM's h, of its c, or of a GRU's h.
enum class Leaving { LSTM_H, LSTM_C, GRU_H };
template <class D>
struct Leave {
  using S = State<D>;
  StateMasks<S> masks;
  Leaving which;
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
  bool gru;  // its states are unscaled and its h0 is scaled; an LSTM's are what its product reads
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
  bool gru;  // G = 3 gates, else 4
  int64_t rows, units;
  const S* b_ih;       // [G H], or null
  const S* b_hh;       // [G H], or null
  D* gates;            // [rows, G H]: in, W x; out, activated
  const D* recurrent;  // [rows, G H]: U h
  D* resets;           // [rows, H]: a GRU's u = U_n h + b_hn
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

// Raw words, for tests and for exporting masks.
struct ReadWords {
  const int64_t* rng;  // [2]
  uint32_t stream;
  const int64_t *b, *c;  // [nb], [nc]
  int64_t nb, nc, units;
  int64_t* target;  // [nc, nb, units, 4] where a counter is a unit, else [nc, nb, units]
};
cudaError_t read_words(const ReadWords& p, cudaStream_t stream);

// Every launcher above for the four types of values.
#define FRD_FOR_EACH_TYPE(instantiate)                                                                                 \
  instantiate(float);                                                                                                  \
  instantiate(double);                                                                                                 \
  instantiate(__half);                                                                                                 \
  instantiate(__nv_bfloat16)

}  // namespace frd::cuda
