// All kernels for one instruction set. Include after `namespace FRD_ISA` is chosen: defines kernels() of that set.
// No include guard on purpose.

namespace frd::cpu::FRD_ISA {

#include "cpu/simd.h"
#include "cpu/words.h"

#include "cpu/gemm.h"

#include "cpu/pack.h"

#include "cpu/tiles.h"

#include "cpu/products.h"

#include "cpu/elementwise.h"

#include "cpu/operand.h"

#include "cpu/gates_again.h"

#include "cpu/lstm_forward.h"

#include "cpu/lstm_backward.h"

#include "cpu/gru_forward.h"

#include "cpu/gru_backward.h"

template <class Pass, class Arguments>
void run_pass(const Arguments& p) {
  Stopwatch watch;
  Pass pass(p);
  watch.lap(PACK);
  pass.run();
}

template <class T>
constexpr TypedKernels<T> typed_kernels() {
  return {run_pass<LstmForwardPass<T>, LstmForward<T>>, run_pass<LstmBackwardPass<T>, LstmBackward<T>>,
          run_pass<GruForwardPass<T>, GruForward<T>>, run_pass<GruBackwardPass<T>, GruBackward<T>>, drop_rows<T>};
}

inline const Kernels table{FRD_ISA_NAME, typed_kernels<float>(), typed_kernels<double>(), read_words};

}  // namespace frd::cpu::FRD_ISA
