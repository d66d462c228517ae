// exchange.cu in a program without Python:
//
//     exchange_program FORM WORD BLOCKS THREADS STEPS FIRST LAST [FIRST LAST ...]
// writes the words of a call to standard output, as 64-bit numbers, a FIRST and a LAST step for each row;
//
//     exchange_program time STEPS
// prints for each form how long a step takes, one row, 2 to 64 blocks of a warp, as many as the device has
// multiprocessors: little more than the way of a word from a block to all others.
//
// tests/kernels/test_exchange.py builds and runs it, with nvcc on a GPU, and on the host.
#include "exchange.h"

#include "cuda/platform.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>

using namespace frd::cuda;

namespace {

double microseconds(const exchange::Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  exchange::run(call);
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

void time_forms(int steps) {
  constexpr const char* FORMS[][2] = {{"strict8", "phased"},
                                      {"strict8", "tagged"},
                                      {"dependence", "phased"},
                                      {"dependence", "tagged"},
                                      {"flags", "plain"}};
  int most = 0;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMultiProcessorCount, 0) != cudaSuccess)
    throw std::runtime_error("no GPU");
  for (const auto& [form, word] : FORMS) {
    for (int blocks = 2; blocks <= 64 && blocks <= most; blocks *= 2) {
      exchange::Call call{form, word, blocks, 32, steps, {1}, {steps}};
      call.out = false;
      microseconds(call);
      const double whole = microseconds(call);
      call.steps = call.last[0] = steps / 2;  // what a call costs beside its steps goes out of the difference
      std::printf("%s %s %d blocks: %.3f us a step\n", form, word, blocks,
                  (whole - microseconds(call)) / (steps - steps / 2));
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count == 3 && std::strcmp(arguments[1], "time") == 0) {
      time_forms(std::atoi(arguments[2]));
      return 0;
    }
    if (count < 8 || count % 2) {
      std::fprintf(stderr, "usage: see exchange_program.cu\n");
      return 2;
    }
    exchange::Call call{
        arguments[1], arguments[2], std::atoi(arguments[3]), std::atoi(arguments[4]), std::atoi(arguments[5]), {}, {}};
    for (int i = 6; i + 1 < count; i += 2) {
      call.first.push_back(std::atoi(arguments[i]));
      call.last.push_back(std::atoi(arguments[i + 1]));
    }
    const auto words = exchange::run(call);
    return std::fwrite(words.data(), sizeof(words[0]), words.size(), stdout) == words.size() ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
