// The kernels of selftest.cu, right and with their faults, for ThreadSanitizer. See races.h.
#include "races.h"
#include "selftest.cu"

#include <functional>

using namespace frd::cuda;

namespace {

std::function<void()> kernel(const char* name, selftest::Shape shape, size_t input, size_t words, int variant = 0) {
  return [=] { selftest::run(name, shape, std::vector<uint32_t>(input, 3), words, variant); };
}

}  // namespace

int main(int count, char** arguments) {
  const selftest::Shape warp{}, blocks{.grid = 3, .block = 128}, warps{.grid = 1, .block = 128};
  const selftest::Shape grid{.grid = 4, .block = 64, .cooperative = true},
      pair{.grid = 3, .block = 1, .cooperative = true};
  return races::main(count, arguments,
                     {
                         {"syncwarp", false, kernel("through_shared_memory", warp, 0, 32)},
                         {"syncwarp left out", true, kernel("through_shared_memory", warp, 0, 32, 1)},
                         {"syncthreads", false, kernel("block_sum", blocks, 3 * 128, 3)},
                         {"syncthreads left out", true, kernel("block_sum", blocks, 3 * 128, 3, 1)},
                         {"named barriers", false, kernel("hand_over", warps, 0, 64 * 5, 5)},
                         {"named barrier not waited at", true, kernel("hand_over", warps, 0, 64, -1)},
                         {"cp.async", false, kernel("copy", warp, 256, 256)},
                         {"cp.async, one group of two", false, kernel("copy", warp, 256, 256, 1)},
                         {"cp.async without a wait", true, kernel("copy", warp, 256, 256, 2)},
                         {"cp.async without a barrier after the wait", true, kernel("copy", warp, 256, 256, 4)},
                         {"cp.async into what is being read", true, kernel("copy", warp, 256, 256, 5)},
                         {"ldmatrix", false, kernel("load_matrix", warp, 128, 128)},
                         {"product", false, kernel("product", warp, 320, 128)},
                         {"two blocks write a word", true, kernel("same_word", {.grid = 3, .block = 1}, 0, 1)},
                         {"grid barrier", false, kernel("pass_on", grid, 1, 8)},
                         {"grid barrier left out", true, kernel("pass_on", grid, 1, 8, 1)},
                         {"the last block", false, kernel("last_block", blocks, 3, 5)},
                         {"the last block without fences", true, kernel("last_block", blocks, 3, 5, 1)},
                         {"atomics", false, kernel("atomics", grid, 0, 18)},
                         {"waiting for a flag", false, kernel("wait_for_flag", pair, 0, 2)},
                         {"shuffles and votes", false, kernel("vote", warp, 33, 320)},
                     });
}
