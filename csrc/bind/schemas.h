// The schema of every operator. fused_rnn_dropout/ops.py says what the arguments mean.
#pragma once

namespace frd::bind {

// What the operators of a layer are given, of any cell.
#define FRD_LAYER                                                                                                      \
  "int cell, Tensor x, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, Tensor? example_ids, Tensor? rng, "     \
  "Tensor? thresholds, ScalarType dtype, int flags, int layer, int directions, SymInt step_offset, int schedule, "     \
  "int keep"

// Those that every device implements.
inline constexpr const char* SCHEMAS[] = {
    "words(Tensor rng, Tensor row, Tensor step, int n, int stream) -> Tensor",

    "dropout(Tensor x, Tensor rng, Tensor thresholds, Tensor? batch_sizes, Tensor? example_ids, int site, int stream, "
    "bool per_step, bool batch_shared, SymInt step_offset) -> Tensor",

    "layer(" FRD_LAYER ") -> (Tensor y, Tensor[] last)",
    "layer_forward(" FRD_LAYER ") -> (Tensor y, Tensor[] last, Tensor[] kept)",
    "layer_backward(Tensor? grad_y, Tensor?[] grad_last, " FRD_LAYER
    ", Tensor? y, Tensor[] kept, int needs) "
    "-> (Tensor dx, Tensor[] dstates, Tensor[] dweights)",
};

// Those that a GPU alone implements: fused_rnn_dropout/cudnn.py, persistent.py.
inline constexpr const char* GPU_SCHEMAS[] = {
    "masked_weights(Tensor[] weights, int[] streams, int[] offsets, int size, Tensor? rng, Tensor? thresholds, "
    "ScalarType dtype, int flags) -> Tensor",
    "persistent_plan(Tensor x, int cell, int batch, int units, int projected, ScalarType dtype, int directions, "
    "int flags, bool backward) -> Tensor",
    "masked_weights_backward(Tensor grad, Tensor[] weights, int[] streams, int[] offsets, Tensor? rng, "
    "Tensor? thresholds, int flags) -> Tensor[]",
};

#undef FRD_LAYER

}  // namespace frd::bind
