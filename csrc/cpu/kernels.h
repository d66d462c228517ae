// All kernels for one instruction set. Include after `namespace FRD_ISA` is chosen: defines kernels() of that set.
// No include guard on purpose.

namespace frd::cpu::FRD_ISA {

#include "cpu/simd.h"
#include "cpu/words.h"

#include "cpu/gemm.h"

#include "cpu/pack.h"

#include "cpu/products.h"

#include "cpu/elementwise.h"

#include "cpu/operand.h"

#include "cpu/gates_again.h"

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
template <class T>
void lstm_backward_pass(const LstmBackward<T>& p) {
  LstmBackwardPass<T>(p).run();
}
template <class T>
void gru_backward_pass(const GruBackward<T>& p) {
  GruBackwardPass<T>(p).run();
}

template <class T>
constexpr TypedKernels<T> typed_kernels() {
  return {lstm_forward_pass<T>, lstm_backward_pass<T>, gru_forward_pass<T>, gru_backward_pass<T>, drop_rows<T>};
}

inline const Kernels table{FRD_ISA_NAME, typed_kernels<float>(), typed_kernels<double>(), read_words};

}  // namespace frd::cpu::FRD_ISA
