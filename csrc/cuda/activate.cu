// Gates of all steps at once, for a backward whose forward kept only the states.
#include "cuda/cells.h"
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <class Equations, class D>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) activate_kernel(Activate<D> p) {
  using S = State<D>;
  constexpr CellInfo INFO = CELLS[Equations::CELL];
  constexpr int G = INFO.gates;
  const int64_t H = p.units, u = FRD_UNIT_GROUP;
  if (u >= H) return;
  FRD_EACH_ROW(row, 0, p.rows) {
    D* const gates = p.gates + row * G * H + u;
    const D* const recurrent = p.recurrent + row * G * H + u;
    S a[G]{}, apart{};
    FRD_UNROLL
    for (int k = 0; k < G; ++k) {
      const S of_input = widen<S>(gates[k * H]), of_state = widen<S>(recurrent[k * H]);
      if (INFO.apart && k + 1 == G) {
        a[k] = of_input;
        apart = of_state + (p.bias ? p.bias_apart[u] : S(0));
      } else {
        a[k] = of_input + of_state;
      }
      if (p.bias) a[k] += p.bias[k * H + u];
      // Nothing but what is apart ties a gate to another: elsewhere each is activated by itself, which leaves its
      // registers to the next.
      if (INFO.apart) continue;
      S alone[G]{};
      alone[k] = a[k];
      Equations::activate(alone, apart);
      gates[k * H] = narrow<D>(alone[k]);
    }
    if constexpr (INFO.apart) {
      Equations::activate(a, apart);
      FRD_UNROLL
      for (int k = 0; k < G; ++k) gates[k * H] = narrow<D>(a[k]);
      p.apart[row * H + u] = narrow<D>(apart);
    }
  }
}

}  // namespace

template <class D>
cudaError_t activate(const Activate<D>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  return EveryCell::with<State<D>>(p.cell, [&](auto equations) {
    return FRD_LAUNCH(activate_kernel<decltype(equations), D>, grid_of_rows(p.units, p.rows), block_of_rows(), 0,
                      stream, p);
  });
}

#define FRD_INSTANTIATE(D) template cudaError_t activate(const Activate<D>&, cudaStream_t)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
