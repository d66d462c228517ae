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
#include "cpu/profile.h"

namespace frd::cpu::FRD_ISA {

template <class Pass, class Arguments>
void run_pass(const Arguments& p) {
  Stopwatch watch;
  Pass pass(p);
  watch.lap(PACK);
  pass.run();
}

template <class T, template <class Math> class... Cells>
constexpr TypedKernels<T> typed_kernels() {
  static_assert(sizeof...(Cells) == NUM_CELLS);
  TypedKernels<T> found{};
  ((found.forward[Cells<SimdMath<T>>::CELL] = run_pass<ForwardPass<T, Cells>, LayerForward<T>>), ...);
  ((found.backward[Cells<SimdMath<T>>::CELL] = run_pass<BackwardPass<T, Cells>, LayerBackward<T>>), ...);
  found.drop_rows = drop_rows<T>;
  return found;
}

template <class T>
inline constexpr TypedKernels<T> KERNELS = typed_kernels<T, Lstm, Gru, RnnTanh, RnnRelu>();

inline const Kernels table{FRD_ISA_NAME, KERNELS<float>, KERNELS<double>, read_words};

}  // namespace frd::cpu::FRD_ISA
