// A step of a cell, backward: the gradients at the pre-activations, and at the memory before. Without a projection the
// gradient at h is gathered here too. A thread takes N units of a row: units.h.
#include "cuda/cells.h"
#include "cuda/drawn.h"
#include "cuda/kernels.h"
#include "cuda/step.h"

namespace frd::cuda {
namespace {

// As many blocks as fit without a spill: left alone, the compiler takes registers of which one or two blocks fewer fit.
template <class Equations, class D>
inline constexpr unsigned BACKWARD_BOUND = sizeof(State<D>) == 8               ? LEAST_BLOCKS
                                           : CELLS[Equations::CELL].gates == 4 ? 6
                                           : CELLS[Equations::CELL].gates == 3 ? 8
                                                                               : LEAST_BLOCKS;

template <class Equations, int N, bool TOGETHER, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, BACKWARD_BOUND<Equations, D>)
    backward_step_kernel(LayerBackwardStep<D> p) {
  using S = State<D>;
  constexpr CellInfo INFO = CELLS[Equations::CELL];
  constexpr int G = INFO.gates;
  const int64_t H = p.units;
  const auto units = Units<N, TOGETHER>::of(H);
  const int64_t u = units.first;
  FRD_EACH_ROW(b, 0, p.step.active) {
    const Drawn drawn = drawn_at(p.masks, units, b);
    if (units.left <= 0) continue;
    const int64_t at = b * H + u;
    const Pack<uint8_t, N> bits = bits_of(p.masks, units, b);
    const Factors<S> factors = factors_of(p.masks);
    Drops<Math<S>> drops[N];
    Pack<bool, N> keep_h;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      drops[i] = drops_of<S>(drawn, i, bits.at[i]);
      keep_h.at[i] = drops[i].of[STATE_ZONE_H];
    }
    Pack<S, N> dh_new, to_old{};
    if (INFO.projects && p.doutputs) {
      dh_new = load_as<S>(units, p.doutputs + at);
    } else {
      dh_new = at_h<SCALED<Equations>>(p, factors, units, b, bits, keep_h, to_old);
      if (INFO.has_c && p.dh) store(units, p.dh + at, to_old);
    }

    Pack<S, N> a[G], apart{}, before, dmemory{}, outputs;
    FRD_UNROLL
    for (int k = 0; k < G; ++k) a[k] = load_as<S>(units, p.gates + (b * G + k) * H + u);
    if constexpr (INFO.apart) apart = load_as<S>(units, p.apart + at);
    const bool enters = b >= p.step.continued, ends = b >= p.step.continuing;
    if constexpr (INFO.has_c) {
      before = load(units, (enters ? p.c0 : p.c_before) + at);
      if (!ends) {
        dmemory = load(units, p.dc + at);
      } else if (p.dc_n) {
        dmemory = load_as<S>(units, p.dc_n + at);
      }
    } else {
      before = enters ? load(units, p.h0 + at) : load_as<S>(units, p.states_before + at);
    }
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      if (enters) before.at[i] = enter_of(p.masks, factors, SCALED<Equations>, bits.at[i], before.at[i]);
      S g[G];
      FRD_UNROLL
      for (int k = 0; k < G; ++k) g[k] = a[k].at[i];
      if constexpr (INFO.projects)
        if (p.outputs) outputs.at[i] = Equations::output(factors.state, drops[i], g, before.at[i]);
      dmemory.at[i] =
          Equations::backward(factors.state, drops[i], g, apart.at[i], before.at[i], dh_new.at[i], dmemory.at[i]);
      FRD_UNROLL
      for (int k = 0; k < G; ++k) a[k].at[i] = g[k];
    }
    if constexpr (INFO.has_c) {
      store(units, p.dc + at, dmemory);
    } else {
      add<N>(to_old, dmemory);
      store(units, p.dh + at, to_old);
    }
    if (INFO.projects && p.outputs) store(units, p.outputs + at, outputs);
    // The order of a row of gradients: layer.h.
    D* const to = p.dgates + b * GRADIENTS<Equations> * H + u;
    if constexpr (INFO.apart) {
      store(units, to, a[G - 1]);
      store(units, to + G * H, apart);
    }
    FRD_UNROLL
    for (int k = 0; k < G - INFO.apart; ++k) store(units, to + (INFO.apart + k) * H, a[k]);
  }
}

}  // namespace

template <class D>
cudaError_t backward_step(LayerBackwardStep<D> p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  constexpr int N = WIDE<D>;
  if (CELLS[p.cell].projects && p.doutputs) p.masks = p.masks.before_h();  // zoneout of h is unproject_step's then
  const bool wide = wide_enough<N>(p.units, p.through, p.dout, p.dh_n, p.dc_n, p.dh, p.dc, p.gates, p.apart, p.c0,
                                   p.c_before, p.h0, p.states_before, p.dgates, p.doutputs, p.outputs, p.masks.bits);
  return EveryCell::with<State<D>>(p.cell, [&](auto equations) {
    using Equations = decltype(equations);
    const auto run = [&](auto kernel, int64_t units) {
      return FRD_LAUNCH(kernel, grid_of_rows((p.units + units - 1) / units, p.step.active), block_of_rows(), 0, stream,
                        p);
    };
    return wide ? run(backward_step_kernel<Equations, N, true, D>, N)
                : run(backward_step_kernel<Equations, APART, false, D>, APART);
  });
}

#define FRD_INSTANTIATE(D) template cudaError_t backward_step(LayerBackwardStep<D>, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
