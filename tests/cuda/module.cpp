// The tests' Python module: CUDA's sources, run by the host shim. Built and loaded by build.py.
//
// Each part of it is a function that adds to the module; its kernels and launchers are in csrc/cuda.
#include "exchange.h"
#include "host/shim.h"
#include "selftest.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <utility>

namespace py = pybind11;
using namespace py::literals;

namespace {

using frd::cuda::host::Runtime;
using Numbers = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;
using Size = std::array<unsigned, 3>;

void add_shim(py::module_& m) {
  py::register_exception<frd::cuda::host::Fault>(m, "Fault", PyExc_RuntimeError);
  m.def(
      "set_seed", [](uint64_t seed) { Runtime::get().set_seed(seed); }, "seed"_a,
      "Seeds the order in which threads, blocks and streams take turns; 0: in order.");
  m.def(
      "set_multiprocessors", [](int count) { Runtime::get().device.multiprocessors = count; }, "count"_a,
      "How many blocks a cooperative launch may have (16 to begin with).");
  m.def(
      "set_capability",
      [](int major, int minor) {
        Runtime::get().device.capability_major = major;
        Runtime::get().device.capability_minor = minor;
      },
      "major"_a, "minor"_a, "The compute capability that the shim says it has (8.0 to begin with).");
  m.def(
      "set_blocks_per_multiprocessor", [](int count) { Runtime::get().device.blocks_per_multiprocessor = count; },
      "count"_a, "How many blocks of a cooperative launch a multiprocessor takes (1 to begin with).");
  m.def(
      "take_launches", [] { return std::exchange(Runtime::get().launches, {}); },
      "How often each kernel, by its name in the source, was launched since the last call.");
}

void add_selftest(py::module_& m) {
  namespace selftest = frd::cuda::selftest;
  m.def(
      "selftest",
      [](const std::string& name, Size grid, Size block, const Numbers& input, size_t words, int variant,
         bool cooperative, size_t dynamic_shared) {
        const std::vector<uint32_t> in(input.data(), input.data() + input.size());
        const selftest::Shape shape{
            {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, dynamic_shared, cooperative};
        const auto out = selftest::run(name, shape, in, words, variant);
        return Numbers(static_cast<py::ssize_t>(out.size()), out.data());
      },
      "name"_a, "grid"_a, "block"_a, "input"_a, "words"_a, "variant"_a, "cooperative"_a, "dynamic_shared"_a,
      "Runs a kernel of selftest.cu.");
  m.def("two_streams", &selftest::two_streams, "with_event"_a);
}

void add_exchange(py::module_& m) {
  namespace exchange = frd::cuda::exchange;
  m.def(
      "exchange",
      [](const std::string& form, const std::string& word, int blocks, int threads, int steps,
         const std::vector<int>& first, const std::vector<int>& last, int fault, int steps_before) {
        const auto out = exchange::run({form, word, blocks, threads, steps, first, last, fault, steps_before});
        return py::array_t<uint64_t>(static_cast<py::ssize_t>(out.size()), out.data());
      },
      "form"_a, "word"_a, "blocks"_a, "threads"_a, "steps"_a, "first"_a, "last"_a, "fault"_a = 0, "steps_before"_a = 0,
      "Runs the kernel of exchange.cu.");
  m.def(
      "round_trip",
      [](const std::string& type, const Numbers& patterns) {
        const auto out = exchange::round_trip(type, {patterns.data(), patterns.data() + patterns.size()});
        return Numbers(static_cast<py::ssize_t>(out.size()), out.data());
      },
      "type"_a, "patterns"_a);
}

}  // namespace

PYBIND11_MODULE(frd_cuda_host, m) {
  m.doc() = "CUDA kernels and launchers, run on the host.";
  add_shim(m);
  add_selftest(m);
  add_exchange(m);
}
