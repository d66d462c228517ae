// The schema of every operator: one layer, one direction. fused_rnn_dropout/ops.py says what the arguments mean.
#pragma once

namespace frd::bind {

// Those that every device implements.
inline constexpr const char* SCHEMAS[] = {
    "words(Tensor rng, Tensor row, Tensor step, int n, int stream) -> Tensor",

    "dropout(Tensor x, Tensor rng, Tensor thresholds, Tensor? batch_sizes, Tensor? example_ids, int site, int stream, "
    "bool per_step, bool batch_shared, SymInt step_offset) -> Tensor",

    "lstm(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
    "Tensor? batch_sizes, Tensor? example_ids, Tensor? rng_state, Tensor? rng_hidden, Tensor? rng_weight, "
    "Tensor? thresholds, ScalarType dtype, int flags, int layer, bool reverse, SymInt step_offset, bool recompute) "
    "-> (Tensor out, Tensor h_n, Tensor c_n)",
    "lstm_forward(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
    "Tensor? w_hr, Tensor? batch_sizes, Tensor? example_ids, Tensor? rng_state, Tensor? rng_hidden, "
    "Tensor? rng_weight, Tensor? thresholds, ScalarType dtype, int flags, int layer, bool reverse, "
    "SymInt step_offset, int save) "
    "-> (Tensor out, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells, Tensor states)",
    "lstm_backward(Tensor? grad_out, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, Tensor h0, Tensor c0, "
    "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, Tensor? batch_sizes, Tensor? example_ids, "
    "Tensor? rng_state, Tensor? rng_hidden, Tensor? rng_weight, Tensor? thresholds, Tensor gates, Tensor cells, "
    "Tensor states, ScalarType dtype, int flags, int layer, bool reverse, SymInt step_offset, int needs) "
    "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, Tensor db, Tensor dw_hr)",

    "gru(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? batch_sizes, "
    "Tensor? example_ids, Tensor? rng_state, Tensor? rng_hidden, Tensor? rng_weight, Tensor? thresholds, "
    "ScalarType dtype, int flags, int layer, bool reverse, SymInt step_offset, bool recompute) "
    "-> (Tensor out, Tensor h_n)",
    "gru_forward(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? batch_sizes, "
    "Tensor? example_ids, Tensor? rng_state, Tensor? rng_hidden, Tensor? rng_weight, Tensor? thresholds, "
    "ScalarType dtype, int flags, int layer, bool reverse, SymInt step_offset, int save) "
    "-> (Tensor out, Tensor h_n, Tensor gates, Tensor resets, Tensor states)",
    "gru_backward(Tensor? grad_out, Tensor? grad_h_n, Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
    "Tensor? b_hh, Tensor? batch_sizes, Tensor? example_ids, Tensor? rng_state, Tensor? rng_hidden, "
    "Tensor? rng_weight, Tensor? thresholds, Tensor gates, Tensor resets, Tensor states, ScalarType dtype, int flags, "
    "int layer, bool reverse, SymInt step_offset, int needs) "
    "-> (Tensor dx, Tensor dh0, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh)",
};

// Those that a GPU alone implements: fused_rnn_dropout/cudnn.py.
inline constexpr const char* GPU_SCHEMAS[] = {
    "masked_weights(Tensor[] weights, int[] streams, int[] offsets, int size, Tensor? rng, Tensor? thresholds, "
    "ScalarType dtype, int flags) -> Tensor",
    "masked_weights_backward(Tensor grad, Tensor[] weights, int[] streams, int[] offsets, Tensor? rng, "
    "Tensor? thresholds, int flags) -> Tensor[]",
};

}  // namespace frd::bind
