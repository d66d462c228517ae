// Defines the operators. fused_rnn_dropout/ops.py adds fakes and gradients. `draw` is defined there too: the stable ABI
// has no tags before torch 2.12.
#include <torch/csrc/stable/library.h>

#include "bind/schemas.h"

STABLE_TORCH_LIBRARY(fused_rnn_dropout, m) {
  for (const char* schema : frd::bind::SCHEMAS) m.def(schema);
  for (const char* schema : frd::bind::GPU_SCHEMAS) m.def(schema);
  m.def("cpu_isa(int choice) -> int[]");
  m.def("cpu_bf16() -> int");
  m.def("cpu_multiply_adds(ScalarType dtype, int rounds) -> int[]");
  m.def("cpu_profile(bool on) -> int[]");
  m.def("snapshot(Tensor x) -> Tensor");
}
