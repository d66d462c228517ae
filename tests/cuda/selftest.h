// Kernels whose answers are known, to test the host shim with. They are CUDA like any other and run on a GPU as well.
#pragma once

#include "cuda/platform.h"

#include <cstdint>
#include <string>
#include <vector>

namespace frd::cuda::selftest {

struct Shape {
  dim3 grid = 1, block = 32;
  size_t dynamic_shared = 0;
  bool cooperative = false;
};

// Runs the kernel `name` on `input` (uint32 words, whatever they mean) and returns `words` words, which are all bits
// set where it writes none. `variant` chooses what the kernel does; where it is a fault, see selftest.cu.
// Throws std::invalid_argument for an unknown name, and std::runtime_error with CUDA's words for an error.
std::vector<uint32_t> run(const std::string& name, const Shape& shape, const std::vector<uint32_t>& input, size_t words,
                          int variant);

// One stream writes what another reads: with an event between them the answer is 1, without one it may be 0.
int two_streams(bool with_event);

}  // namespace frd::cuda::selftest
