// A step of a cell, backward: the gradients at the pre-activations, and at the memory before. Without a projection the
// gradient at h is gathered here too. A thread takes N neighbouring units of a row.
#include "cuda/cells.h"
#include "cuda/kernels.h"
#include "cuda/step.h"

namespace frd::cuda {
namespace {

template <class Equations, int N, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, LEAST_BLOCKS) backward_step_kernel(LayerBackwardStep<D> p) {
  using S = State<D>;
  constexpr CellInfo INFO = CELLS[Equations::CELL];
  constexpr int G = INFO.gates;
  const int64_t H = p.units, u = FRD_UNIT_GROUP * N;
  if (u >= H) return;
  FRD_EACH_ROW(b, 0, p.step.active) {
    const int64_t at = b * H + u;
    const Pack<uint8_t, N> bits = bits_of<N>(p.masks, b, u);
    const bool projects = INFO.projects && p.doutputs;  // zoneout of h is unproject_step's then
    const Drawn drawn = drawn_at(p.masks, b, u, p.step.t, 0, projects ? STATE_ZONE_H : NUM_STATE_SITES);
    const StateSites<Math<S>> sites = sites_of(p.masks);
    Drops<Math<S>> drops[N];
    Pack<bool, N> keep_h;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      drops[i] = drops_of<S>(drawn, i, bits.at[i]);
      keep_h.at[i] = drops[i].of[STATE_ZONE_H];
    }
    Pack<S, N> dh_new, to_old{};
    if (projects) {
      dh_new = load_as<N, S>(p.doutputs + at);
    } else {
      dh_new = at_h<SCALED<Equations>>(p, sites, b, u, bits, keep_h, to_old);
      if (INFO.has_c && p.dh) store<N>(p.dh + at, to_old);
    }

    Pack<S, N> a[G], apart{}, before, dmemory{}, outputs;
    FRD_UNROLL
    for (int k = 0; k < G; ++k) a[k] = load_as<N, S>(p.gates + (b * G + k) * H + u);
    if constexpr (INFO.apart) apart = load_as<N, S>(p.apart + at);
    const bool enters = b >= p.step.continued, ends = b >= p.step.continuing;
    if constexpr (INFO.has_c) {
      before = load<N>((enters ? p.c0 : p.c_before) + at);
      if (!ends) {
        dmemory = load<N>(p.dc + at);
      } else if (p.dc_n) {
        dmemory = load_as<N, S>(p.dc_n + at);
      }
    } else {
      before = enters ? load<N>(p.h0 + at) : load_as<N, S>(p.states_before + at);
    }
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      if (enters) before.at[i] = enter_of(p.masks, sites, SCALED<Equations>, bits.at[i], before.at[i]);
      S g[G];
      FRD_UNROLL
      for (int k = 0; k < G; ++k) g[k] = a[k].at[i];
      if constexpr (INFO.projects)
        if (p.outputs) outputs.at[i] = Equations::output(sites, drops[i], g, before.at[i]);
      dmemory.at[i] = Equations::backward(sites, drops[i], g, apart.at[i], before.at[i], dh_new.at[i], dmemory.at[i]);
      FRD_UNROLL
      for (int k = 0; k < G; ++k) a[k].at[i] = g[k];
    }
    if constexpr (INFO.has_c) {
      store<N>(p.dc + at, dmemory);
    } else {
      add<N>(to_old, dmemory);
      store<N>(p.dh + at, to_old);
    }
    if (INFO.projects && p.outputs) store<N>(p.outputs + at, outputs);
    // The order of a row of gradients: layer.h.
    D* const to = p.dgates + b * GRADIENTS<Equations> * H + u;
    if constexpr (INFO.apart) {
      store<N>(to, a[G - 1]);
      store<N>(to + G * H, apart);
    }
    FRD_UNROLL
    for (int k = 0; k < G - INFO.apart; ++k) store<N>(to + (INFO.apart + k) * H, a[k]);
  }
}

}  // namespace

template <class D>
cudaError_t backward_step(const LayerBackwardStep<D>& p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  constexpr int N = WIDE<D>;
  const bool wide = wide_enough<N>(p.units, p.through, p.dout, p.dh_n, p.dc_n, p.dh, p.dc, p.gates, p.apart, p.c0,
                                   p.c_before, p.h0, p.states_before, p.dgates, p.doutputs, p.outputs, p.masks.bits);
  return EveryCell::with<State<D>>(p.cell, [&](auto equations) {
    using Equations = decltype(equations);
    const auto run = [&](auto kernel, int64_t units) {
      return FRD_LAUNCH(kernel, grid_of_rows((p.units + units - 1) / units, p.step.active), block_of_rows(), 0, stream,
                        p);
    };
    return wide ? run(backward_step_kernel<Equations, N, D>, N) : run(backward_step_kernel<Equations, 1, D>, 1);
  });
}

#define FRD_INSTANTIATE(D) template cudaError_t backward_step(const LayerBackwardStep<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);

}  // namespace frd::cuda
