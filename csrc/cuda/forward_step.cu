// A step of a cell, forward: gates, memory, and, without a projection, all that becomes of h. A thread takes N
// units of a row: units.h.
#include "cuda/cells.h"
#include "cuda/drawn.h"
#include "cuda/kernels.h"
#include "cuda/step.h"

namespace frd::cuda {
namespace {

// As many blocks as fit without a spill: left alone, the compiler takes so few registers that some spill, or so many
// that a block fewer fits.
template <class Equations, class D>
inline constexpr unsigned FORWARD_BOUND = CELLS[Equations::CELL].gates != 3 ? LEAST_BLOCKS
                                          : sizeof(State<D>) == 8           ? 6
                                                                            : 7;

template <class Equations, int N, bool TOGETHER, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS, FORWARD_BOUND<Equations, D>)
    forward_step_kernel(LayerForwardStep<D> p) {
  using S = State<D>;
  constexpr CellInfo INFO = CELLS[Equations::CELL];
  constexpr int G = INFO.gates;
  const int64_t H = p.units;
  const auto units = Units<N, TOGETHER>::of(H);
  const int64_t u = units.first;
  // Offsets are written out where they are used: one that is held for all of the body costs the registers that spill.
  FRD_EACH_ROW(b, 0, p.step.active) {
    const Drawn drawn = drawn_at(p.masks, units, b);
    if (units.left <= 0) continue;
    const Factors<S> factors = factors_of(p.masks);
    D* const gates = p.gates + b * G * H + u;
    Pack<S, N> a[G], apart{};
    FRD_UNROLL
    for (int k = 0; k < G; ++k) {
      a[k] = load_as<S>(units, gates + k * H);
      const Pack<S, N> recurrent = load_as<S>(units, p.recurrent + (b * G + k) * H + u);
      const bool takes_apart = INFO.apart && k + 1 == G;
      if (takes_apart) apart = recurrent;
      if (!takes_apart) add<N>(a[k], recurrent);
      if (p.bias) add<N>(a[k], load(units, p.bias + k * H + u));
      if (takes_apart && p.bias) add<N>(apart, load(units, p.bias_apart + u));
    }
    const Pack<uint8_t, N> bits = bits_of(p.masks, units, b);
    const bool enters = b >= p.step.continued, ends = b >= p.step.continuing;
    Pack<S, N> memory, h_new;
    if constexpr (INFO.has_c) {
      memory = load(units, enters ? p.c0 + b * H + u : p.c_before + b * H + u);
    } else {
      memory = load(units, enters ? p.h0 + b * H + u : p.h + b * H + u);
    }
    Pack<bool, N> keep_h;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      if (enters) memory.at[i] = enter_of(p.masks, factors, SCALED<Equations>, bits.at[i], memory.at[i]);
      const Drops<Math<S>> drops = drops_of<S>(drawn, i, bits.at[i]);
      S g[G];
      FRD_UNROLL
      for (int k = 0; k < G; ++k) g[k] = a[k].at[i];
      h_new.at[i] = Equations::forward(factors.state, drops, g, apart.at[i], memory.at[i]);
      FRD_UNROLL
      for (int k = 0; k < G; ++k) a[k].at[i] = g[k];
      keep_h.at[i] = drops.of[STATE_ZONE_H];
    }
    if constexpr (INFO.has_c) {
      store(units, p.c_after + b * H + u, memory);
      if (ends) store(units, p.c_n + b * H + u, memory);
    }
    FRD_UNROLL
    for (int k = 0; k < G; ++k)
      if (p.keep_gates) store(units, gates + k * H, a[k]);
    if constexpr (INFO.apart)
      if (p.keep_gates) store(units, p.apart + b * H + u, apart);
    if (INFO.projects && p.outputs) {
      store(units, p.outputs + b * H + u, h_new);
    } else {
      finish_h<SCALED<Equations>>(p, factors, units, b, bits, keep_h, memory, h_new);
    }
  }
}

}  // namespace

template <class D>
cudaError_t forward_step(LayerForwardStep<D> p, cudaStream_t stream) {
  if (p.step.active == 0) return cudaSuccess;
  constexpr int N = WIDE<D>;
  if (CELLS[p.cell].projects && p.outputs) p.masks = p.masks.before_h();  // zoneout of h is project_step's then
  const bool wide =
      wide_enough<N>(p.units, p.bias, p.bias_apart, p.gates, p.recurrent, p.apart, p.c0, p.c_before, p.c_after, p.c_n,
                     p.outputs, p.h0, p.h, p.read, p.out, p.states, p.h_n, p.masks.bits);
  return EveryCell::with<State<D>>(p.cell, [&](auto equations) {
    using Equations = decltype(equations);
    const auto run = [&](auto kernel, int64_t units) {
      return FRD_LAUNCH(kernel, grid_of_rows((p.units + units - 1) / units, p.step.active), block_of_rows(), 0, stream,
                        p);
    };
    return wide ? run(forward_step_kernel<Equations, N, true, D>, N)
                : run(forward_step_kernel<Equations, APART, false, D>, APART);
  });
}

#define FRD_INSTANTIATE(D) template cudaError_t forward_step(LayerForwardStep<D>, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
