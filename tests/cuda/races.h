// A program of kernels for ThreadSanitizer, as tools/check_races.sh builds and runs it:
//   PROGRAM          prints a line for every case: its name, and "right" or "racy"
//   PROGRAM NAME     runs that case, under a few seeds; ThreadSanitizer says what it thinks of it
#pragma once

#include "host/shim.h"

#include <cstdio>
#include <exception>
#include <functional>
#include <initializer_list>
#include <string>

namespace frd::cuda::races {

struct Case {
  const char* name;
  bool racy;                  // on purpose: a fault that must be reported
  std::function<void()> run;  // launches kernels; throws where an answer is wrong that must be right
};

inline int main(int count, char** arguments, std::initializer_list<Case> cases) {
  constexpr int SEEDS = 3;
  if (count == 1) {
    for (const Case& one : cases) std::printf("%s %s\n", one.name, one.racy ? "racy" : "right");
    return 0;
  }
  for (const Case& one : cases) {
    if (one.name != std::string(arguments[1])) continue;
    try {
      for (int seed = 0; seed < SEEDS; ++seed) {
        host::Runtime::get().set_seed(static_cast<uint64_t>(seed));
        one.run();
      }
      return 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", one.name, error.what());
      return 1;
    }
  }
  std::fprintf(stderr, "no case %s\n", arguments[1]);
  return 2;
}

}  // namespace frd::cuda::races
