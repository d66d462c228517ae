// The kernels of csrc/cuda for ThreadSanitizer: whole layers, forward and backward with every site, and those kernels
// whose threads meet at a barrier, with it and without. See races.h.
#include "races.h"

#include "float32_kernels.h"
#include "plain_layers.h"

// The same kernel once more, its barrier left out.
#define ROWS_OF_A_BLOCK ROWS_OF_A_BLOCK_WITHOUT
#define MOST_PARTS MOST_PARTS_WITHOUT
#define THREADS_DOWN THREADS_DOWN_WITHOUT
#define rows_of_a_block rows_of_a_block_without
#define column_sum_blocks column_sum_blocks_without
#define column_sums_kernel column_sums_kernel_without
#define column_sums column_sums_without
#define __syncthreads() static_cast<void>(0)
#include "../../csrc/cuda/column_sums.cu"
#undef __syncthreads
#undef column_sums

using namespace frd;
using namespace frd::cuda;

namespace {

constexpr int64_t T = 2, B = 3;
using plain::Numbers;

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void layer(Cell cell, bool projected, bool again) {
  plain::Layer layer(cell, {T, B, 5, 37, 6}, plain::sites_of(cell, projected), projected, again);
  alternating(layer.forward, layer.around());
  alternating(layer.backward, layer.around());
}

void persistent_layer(Cell cell) {
  plain::Layer layer(cell, {3, B, 5, 21, 6}, plain::sites_of(cell, false), false, false);
  persistent(std::vector{layer.forward}, layer.around());
  persistent(std::vector{layer.backward}, layer.around());
}

void dropout(bool per_step) {
  Numbers n;
  constexpr int64_t width = 24;
  DropRows p{};
  p.type = Type::F32;
  p.source = n.floats(T * B * width), p.target = n.floats(T * B * width);
  p.width = width;
  p.per_step = per_step;
  p.rng = n.take<int64_t>(2, 7), p.threshold = n.take<int64_t>(1, int64_t{1} << 31);
  p.stream = stream_of(KIND_INPUT, 0, 0);
  require(drop_rows(p, Sequence{T, B, T * B, nullptr, nullptr, false}, nullptr));
}

template <class Sum>
void columns(Sum&& sum) {
  Numbers n;
  constexpr int64_t rows = 520, width = 5;
  require(sum(ColumnSums<float>{n.floats(rows * width), rows, width, width, n.floats(rows * width), n.floats(width)}));
}

}  // namespace

int main(int count, char** arguments) {
  return races::main(count, arguments,
                     {
                         {"LSTM", false, [] { layer(LSTM, false, false); }},
                         {"LSTM with a projection", false, [] { layer(LSTM, true, false); }},
                         {"LSTM, gates again", false, [] { layer(LSTM, false, true); }},
                         {"GRU", false, [] { layer(GRU, false, false); }},
                         {"GRU, gates again", false, [] { layer(GRU, false, true); }},
                         {"RNN", false, [] { layer(RNN_TANH, false, false); }},
                         {"RNN, gates again", false, [] { layer(RNN_RELU, false, true); }},
                         {"LSTM, persistent", false, [] { persistent_layer(LSTM); }},
                         {"GRU, persistent", false, [] { persistent_layer(GRU); }},
                         {"dropout per sequence", false, [] { dropout(false); }},
                         {"dropout per step", false, [] { dropout(true); }},
                         {"sums of columns", false, [] { columns([](auto p) { return column_sums(p, nullptr); }); }},
                         {"sums of columns without a barrier", true,
                          [] { columns([](auto p) { return column_sums_without(p, nullptr); }); }},
                     });
}
