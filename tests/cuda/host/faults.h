// What a wrong kernel is answered with: an exception from the launch, or from what waits for the launch.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

#include "numbers.h"

namespace frd::cuda::host {

// A kernel that would hang, or that does what CUDA leaves undefined.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in a kernel's source a thread is. The last parameter of CUDA's functions, which no kernel gives.
using Where = std::source_location;
#define FRD_WHERE ::frd::cuda::host::Where where = ::frd::cuda::host::Where::current()

inline std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

inline std::string text(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

inline std::string text(const char* what, const Where& where) { return std::string(what) + " (" + text(where) + ")"; }

}  // namespace frd::cuda::host
