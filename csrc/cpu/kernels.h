// All kernels for one instruction set, `table`.
#pragma once

#include "core/cells.h"
#include "core/cells/gru.h"
#include "core/cells/lstm.h"
#include "core/cells/rnn.h"
#include "cpu/dropout.h"
#include "cpu/layer.h"
#include "cpu/layer_backward.h"
#include "cpu/layer_forward.h"
#include "cpu/peak.h"
#include "cpu/profile.h"

namespace frd::cpu::FRD_ISA {

template <class Pass, class Arguments>
void run_pass(const Arguments& p) {
  Stopwatch watch;
  Pass pass(p);
  watch.lap(PACK);
  pass.run();
}

template <class D, template <class Math> class... Cells>
constexpr TypedKernels<D> all_cells() {
  static_assert(sizeof...(Cells) == NUM_CELLS);
  TypedKernels<D> found{};
  using Math = SimdMath<Arithmetic<D>>;
  ((found.forward[Cells<Math>::CELL] = run_pass<ForwardPass<D, Cells>, LayerForward<D>>), ...);
  ((found.backward[Cells<Math>::CELL] = run_pass<BackwardPass<D, Cells>, LayerBackward<D>>), ...);
  found.drop_rows = drop_rows<D>;
  if constexpr (sizeof(D) <= 4) found.multiply_adds = multiply_adds<D>;
  return found;
}

template <class D>
inline constexpr TypedKernels<D> KERNELS = all_cells<D, Lstm, Gru, RnnTanh, RnnRelu>();

}  // namespace frd::cpu::FRD_ISA
