// The launches of the persistent schedule, in plain structs: what goes before it, and all steps of a layer at once.
#pragma once

#include "core/cells.h"
#include "cuda/kernels.h"
#include "cuda/schedules/persistent_plan.h"

namespace frd::cuda {

// Where the rows of each step lie, [T + 1] in device memory: a packed batch's batch sizes come from the host, and go
// along by value, some hundred with each launch, so that a captured graph has them.
cudaError_t step_offsets(const Sequence& sequence, int64_t* offsets, cudaStream_t stream);

// What rows multiply with in their first step: the given h, masked, in the order of exchanged words.
template <class D>
struct FirstWords {
  PersistentShape shape;
  bool narrow;  // words of 32 bits
  void* words;
  struct Direction {
    StateMasks<State<D>> masks;
    bool scaled;  // CellInfo::scaled
    const State<D>* h0;
  } direction[2];
};
template <class D>
cudaError_t first_words(const FirstWords<D>& p, int directions, cudaStream_t stream);

// All steps forward. Of one direction, as LayerForward has it.
template <class D>
struct PersistentForwardDirection {
  StateMasks<float> masks;
  const D* w_hh;      // [GH, H], masked
  const float* b_ih;  // [GH], or null
  const float* b_hh;  // [GH], or null
  D* gates;           // [rows, GH]: in, W x; out, activated, where they are kept
  bool keep_gates;
  D* apart;                // [rows, H], where gates are kept
  float* cells;            // [rows, H], or null
  const float* h0;         // [B, H]
  const float* c0;         // [B, H]
  D *h_n, *c_n;            // [B, H]
  D *out, *states;         // [rows, H]; states may be null
  const uint8_t* written;  // the masks on out, or null: of each row, or of each row of the batch
  bool written_per_step;
  bool reverse;
};
template <class D>
struct PersistentForward {
  PersistentShape shape;
  const int64_t* offsets;   // [T + 1] of a packed batch, or null
  void* ring;               // words of all slots and groups, zeroed before
  uint32_t* signals;        // of all groups, zeroed before
  const void* first_words;  // of all groups
  uint32_t zero;
  PersistentForwardDirection<D> direction[2];
};
template <class D>
cudaError_t persistent_forward(Cell cell, const PersistentPlan& plan, const PersistentForward<D>& p,
                               cudaStream_t stream);

// All steps backward, and the gradients of the initial states. Of one direction, as LayerBackward has it.
template <class D>
struct PersistentBackwardDirection {
  StateMasks<float> masks;
  const D* w_hh;           // [GH, H], masked
  const D* gates;          // [rows, GH], activated
  const D* apart;          // [rows, H], or null
  const float* cells;      // [rows, H], or null; so is the next
  const D* states;         // [rows, H], as h is carried
  const float* h0;         // [B, H]
  const float* c0;         // [B, H]
  const D* dout;           // [rows, H], or null
  const uint8_t* written;  // as forward
  bool written_per_step;
  const D *dh_n, *dc_n;  // [B, H], or null
  D* dgates;             // [rows, gradients() H]
  float *dh0, *dc0;      // [B, H]
  bool reverse;
};
template <class D>
struct PersistentBackward {
  PersistentShape shape;
  const int64_t* offsets;  // [T + 1] of a packed batch, or null
  void* ring;              // as forward
  uint32_t* signals;
  uint32_t zero;
  PersistentBackwardDirection<D> direction[2];
};
template <class D>
cudaError_t persistent_backward(Cell cell, const PersistentPlan& plan, const PersistentBackward<D>& p,
                                cudaStream_t stream);

}  // namespace frd::cuda
