// The kernels of csrc/cuda for ThreadSanitizer: whole layers, forward and backward with every site, and those kernels
// whose threads meet at a barrier, with it and without. See races.h.
#include "races.h"

#include <memory>
#include <vector>

#include "../../csrc/cuda/activate.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/backward_step.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/biases.cu"
#include "../../csrc/cuda/column_sums.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/dropout.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/forward_step.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/leave.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/weights.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/operand.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/prepare.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/project_step.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/schedules/alternating.cpp"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/sequence_masks.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/unproject_step.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/written_masks.cu"

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

constexpr int64_t T = 2, B = 3, I = 5, H = 37, P = 6;

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Numbers that live until the case ends.
class Numbers {
 public:
  float* floats(int64_t n) { return take<float>(n, 0.125f); }
  template <class T>
  T* take(int64_t n, T value) {
    auto memory = std::make_shared<std::vector<T>>(static_cast<size_t>(n > 0 ? n : 1), value);
    kept_.push_back(memory);
    return memory->data();
  }

 private:
  std::vector<std::shared_ptr<void>> kept_;
};

void* allocate(void* numbers, int64_t bytes) {
  return static_cast<Numbers*>(numbers)->take<double>((bytes + 7) / 8, 0.0);
}

void multiply(void*, Type, const Matrix& a, bool turn_a, const Matrix& b, bool turn_b, const Matrix& c) {
  const auto at = [](const Matrix& m, bool turned, int64_t row, int64_t column) {
    return static_cast<const float*>(m.data)[turned ? column * m.stride + row : row * m.stride + column];
  };
  const int64_t depth = turn_a ? a.rows : a.columns;
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t column = 0; column < c.columns; ++column) {
      float sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += at(a, turn_a, row, k) * at(b, turn_b, k, column);
      static_cast<float*>(c.data)[row * c.stride + column] = sum;
    }
}

constexpr uint32_t SITES = FLAG_MASKS_ON | FLAG_HIDDEN | FLAG_WEIGHT_HH | FLAG_WEIGHT_IH | FLAG_UPDATE | FLAG_CELL |
                           FLAG_CELL_SEQUENCE | FLAG_ZONEOUT_H;

Random random_of(Numbers& numbers, uint32_t flags) {
  int64_t* rng = numbers.take<int64_t>(2, 7);
  const WriteSite written{true, true, false, stream_of(KIND_OUTPUT, 2, 0), SITE_OUTPUT_DROPOUT, 3};
  return {flags, 1, 0, 0, nullptr, rng, rng, rng, rng, numbers.take<int64_t>(NUM_SITES, int64_t{1} << 30), written};
}

Weight weight_of(Numbers& numbers, int64_t rows, int64_t columns, uint32_t flag, uint32_t kind) {
  return {numbers.floats(rows * columns), Type::F32, rows, columns, flag, kind};
}

void layer(Cell cell, bool projected, bool again) {
  Numbers n;
  const Surroundings around{nullptr, &n, allocate, multiply};
  const CellInfo& info = CELLS[cell];
  const int64_t N = T * B, p = projected ? P : H, GH = info.gates * H;
  const uint32_t flags = (info.carries ? SITES : SITES & ~FLAG_CELL) | (info.has_c ? FLAG_ZONEOUT_C : 0) |
                         (projected ? FLAG_WEIGHT_HR : 0);
  LayerInputs<float> inputs;
  inputs.cell = cell;
  inputs.sequence = {T, B, N, nullptr, nullptr, !info.has_c}, inputs.random = random_of(n, flags);
  inputs.inputs = I, inputs.units = H, inputs.projected = p;
  inputs.x = n.floats(N * I);
  inputs.w_ih = weight_of(n, GH, I, FLAG_WEIGHT_IH, KIND_WEIGHT_IH);
  inputs.w_hh = weight_of(n, GH, p, FLAG_WEIGHT_HH, KIND_WEIGHT_HH);
  if (projected) inputs.w_hr = weight_of(n, P, H, FLAG_WEIGHT_HR, KIND_WEIGHT_HR);
  inputs.b_ih = n.floats(GH), inputs.b_hh = n.floats(GH), inputs.h0 = n.floats(B * p);
  if (info.has_c) inputs.c0 = n.floats(B * H);

  LayerForward<float> forward{inputs};
  if (!again) forward.gates = n.floats(N * GH);
  if (info.has_c) forward.cells = n.floats(N * H), forward.c_n = n.floats(B * H);
  if (info.apart && !again) forward.apart = n.floats(N * H);
  forward.states = n.floats(N * p);
  forward.out = n.floats(N * p), forward.h_n = n.floats(B * p);
  alternating(forward, around);

  LayerBackward<float> backward{inputs};
  backward.gates = forward.gates, backward.cells = forward.cells, backward.apart = forward.apart;
  backward.states = forward.states;
  backward.dout = n.floats(N * p), backward.dh_n = n.floats(B * p);
  backward.dx = n.floats(N * I), backward.dw_ih = n.floats(GH * I), backward.dw_hh = n.floats(GH * p);
  if (projected) backward.dw_hr = n.floats(P * H);
  backward.db_ih = n.floats(GH), backward.dh0 = n.floats(B * p);
  if (info.apart) backward.db_hh = n.floats(GH);
  if (info.has_c) backward.dc_n = n.floats(B * H), backward.dc0 = n.floats(B * H);
  alternating(backward, around);
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
                         {"dropout per sequence", false, [] { dropout(false); }},
                         {"dropout per step", false, [] { dropout(true); }},
                         {"sums of columns", false, [] { columns([](auto p) { return column_sums(p, nullptr); }); }},
                         {"sums of columns without a barrier", true,
                          [] { columns([](auto p) { return column_sums_without(p, nullptr); }); }},
                     });
}
