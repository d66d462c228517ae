// The operators of csrc/bind/cuda_*.cpp in a namespace of their own, for CPU tensors: see tests/host_run.py.
#include <torch/csrc/stable/library.h>

#include "bind/schemas.h"

STABLE_TORCH_LIBRARY(frd_on_host, m) {
  for (const char* schema : frd::bind::SCHEMAS) m.def(schema);
  for (const char* schema : frd::bind::GPU_SCHEMAS) m.def(schema);
}
