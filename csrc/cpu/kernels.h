// All kernels for one instruction set. Include after `namespace FRD_ISA` is chosen: defines kernels() of that set.
// No include guard on purpose.

namespace frd::cpu::FRD_ISA {

#include "cpu/simd.h"
#include "cpu/words.h"

#include "cpu/gemm.h"

#include "cpu/elementwise.h"

#include "cpu/lstm_forward.h"

#include "cpu/lstm_backward.h"

#include "cpu/gru_forward.h"

#include "cpu/gru_backward.h"

template <class T>
void lstm_forward_pass(const LstmForward<T>& p) {
  LstmForwardPass<T>(p).run();
}
template <class T>
void gru_forward_pass(const GruForward<T>& p) {
  GruForwardPass<T>(p).run();
}
// Wide tiles read fewer operands; narrow ones leave enough of them to share among threads.
template <class T>
void lstm_backward_pass(const LstmBackward<T>& p) {
  if (p.projected >= 16 * LANES) return LstmBackwardPass<T, 4>(p).run();
  LstmBackwardPass<T, 1>(p).run();
}
template <class T>
void gru_backward_pass(const GruBackward<T>& p) {
  if (p.units >= 16 * LANES) return GruBackwardPass<T, 4>(p).run();
  GruBackwardPass<T, 1>(p).run();
}

template <class T>
constexpr TypedKernels<T> typed_kernels() {
  return {mask_weight<T>,      read_operand<T>,      lstm_forward_pass<T>, lstm_backward_pass<T>, lstm_activate<T>,
          gru_forward_pass<T>, gru_backward_pass<T>, gru_activate<T>,      column_sums<T>};
}

inline const Kernels table{FRD_ISA_NAME,     typed_kernels<float>(), typed_kernels<double>(),
                           drop_rows<float>, drop_rows<double>,      read_words};

}  // namespace frd::cpu::FRD_ISA
