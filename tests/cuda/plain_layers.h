// A layer in float32 with every site, forward and backward, for programs without Python: plain memory, plain products.
#pragma once

#include "cuda/layer.h"

#include <memory>
#include <stdexcept>
#include <vector>

namespace frd::cuda::plain {

struct Sizes {
  int64_t T, B, I, H, P;
};

// Numbers that live as long as this does.
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

inline void* allocate(void* numbers, int64_t bytes) {
  return static_cast<Numbers*>(numbers)->take<double>((bytes + 7) / 8, 0.0);
}

inline void multiply(void*, Type, const Matrix& a, bool turn_a, const Matrix& b, bool turn_b, const Matrix& c) {
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

// Every site that a cell has; MASKS_ON among them.
inline uint32_t sites_of(Cell cell, bool projected) {
  constexpr uint32_t SITES = FLAG_MASKS_ON | FLAG_HIDDEN | FLAG_WEIGHT_HH | FLAG_WEIGHT_IH | FLAG_UPDATE | FLAG_CELL |
                             FLAG_CELL_SEQUENCE | FLAG_ZONEOUT_H;
  const CellInfo& info = CELLS[cell];
  return (info.carries ? SITES : SITES & ~FLAG_CELL) | (info.has_c ? FLAG_ZONEOUT_C : 0) |
         (projected ? FLAG_WEIGHT_HR : 0);
}

class Layer {
 public:
  // `again`: gates are not kept.
  Layer(Cell cell, const Sizes& z, uint32_t flags, bool projected, bool again) : info_(CELLS[cell]) {
    const int64_t N = z.T * z.B, P = projected ? z.P : z.H, GH = info_.gates * z.H;
    LayerInputs<float> inputs;
    inputs.cell = cell;
    inputs.sequence = {z.T, z.B, N, nullptr, nullptr, !info_.has_c}, inputs.random = random_of(flags);
    inputs.inputs = z.I, inputs.units = z.H, inputs.projected = P;
    inputs.x = n_.floats(N * z.I);
    inputs.w_ih = weight_of(GH, z.I, FLAG_WEIGHT_IH, KIND_WEIGHT_IH);
    inputs.w_hh = weight_of(GH, P, FLAG_WEIGHT_HH, KIND_WEIGHT_HH);
    if (projected) inputs.w_hr = weight_of(P, z.H, FLAG_WEIGHT_HR, KIND_WEIGHT_HR);
    inputs.b_ih = n_.floats(GH), inputs.b_hh = n_.floats(GH), inputs.h0 = n_.floats(z.B * P);
    if (info_.has_c) inputs.c0 = n_.floats(z.B * z.H);

    forward = {inputs};
    if (!again) forward.gates = n_.floats(N * GH);
    if (info_.has_c) forward.cells = n_.floats(N * z.H), forward.c_n = n_.floats(z.B * z.H);
    if (info_.apart && !again) forward.apart = n_.floats(N * z.H);
    forward.states = n_.floats(N * P);
    forward.out = n_.floats(N * P), forward.h_n = n_.floats(z.B * P);

    backward = {inputs};
    backward.gates = forward.gates, backward.cells = forward.cells, backward.apart = forward.apart;
    backward.states = forward.states;
    backward.dout = n_.floats(N * P), backward.dh_n = n_.floats(z.B * P);
    backward.dx = n_.floats(N * z.I), backward.dw_ih = n_.floats(GH * z.I), backward.dw_hh = n_.floats(GH * P);
    if (projected) backward.dw_hr = n_.floats(z.P * z.H);
    backward.db_ih = n_.floats(GH), backward.dh0 = n_.floats(z.B * P);
    if (info_.apart) backward.db_hh = n_.floats(GH);
    if (info_.has_c) backward.dc_n = n_.floats(z.B * z.H), backward.dc0 = n_.floats(z.B * z.H);
  }

  Surroundings around() { return {nullptr, &n_, allocate, multiply}; }

  LayerForward<float> forward;
  LayerBackward<float> backward;

 private:
  Random random_of(uint32_t flags) {
    int64_t* rng = n_.take<int64_t>(2, 7);
    const bool on = flags & FLAG_MASKS_ON;
    const WriteSite written{on, true, false, stream_of(KIND_OUTPUT, 2, 0), SITE_OUTPUT_DROPOUT, 3};
    return {flags, 1, 0, 0, nullptr, rng, rng, rng, rng, n_.take<int64_t>(NUM_SITES, int64_t{1} << 30), written};
  }
  Weight weight_of(int64_t rows, int64_t columns, uint32_t flag, uint32_t kind) {
    return {n_.floats(rows * columns), Type::F32, rows, columns, flag, kind};
  }

  const CellInfo& info_;
  Numbers n_;
};

}  // namespace frd::cuda::plain
