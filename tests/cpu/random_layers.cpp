// Random layers of every cell through the CPU kernels, forward and backward, without torch: what came out, as a number
// of 64 bits a layer. Equal numbers are equal bits.
//
//     random_layers ISA FIRST COUNT THREADS [FILE]
//
// ISA is the number of an instruction set. Layers FIRST .. FIRST + COUNT are computed, each in float, in double and,
// where FRD_CPU_BF16 or the processor lets them be, in BFloat16, on THREADS threads; FILE gets all their results as
// doubles. tests/kernels/test_cpu_standalone.py asks whether threads matter. A change that should change no bit is
// checked by building this against both trees and comparing what they print.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/cells.h"
#include "core/flags.h"
#include "core/rows.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"

namespace {

using namespace frd;

// As many threads as `parallel` says, each with its share.
int threads = 1;
void run_in_threads(int64_t n, void* context, void (*body)(void*, int64_t, int64_t)) {
  std::vector<std::thread> running;
  for (int i = 1; i < threads; ++i) {
    const int64_t begin = n * i / threads, end = n * (i + 1) / threads;
    if (begin < end) running.emplace_back(body, context, begin, end);
  }
  if (n / threads > 0) body(context, 0, n / threads);
  for (std::thread& thread : running) thread.join();
}

// Everything that is drawn for a layer. The generator's numbers are used as they come, since distributions differ from
// one standard library to the next.
class Draw {
 public:
  explicit Draw(uint64_t seed) : generator_(seed) {}

  uint64_t bits() { return generator_(); }
  bool one_in(uint64_t n) { return bits() % n == 0; }
  int64_t between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(bits() % static_cast<uint64_t>(most - least + 1));
  }
  template <class T>
  std::vector<T> numbers(int64_t n) {
    std::vector<T> found(static_cast<size_t>(n));
    for (T& x : found)
      x = T(static_cast<cpu::Arithmetic<T>>(static_cast<double>(bits() >> 11) / double(1ull << 52) - 1));  // [-1, 1)
    return found;
  }

 private:
  std::mt19937_64 generator_;
};

// What a layer is, but for its numbers.
struct Configuration {
  Cell cell;
  int64_t inputs, units, projected, batch, steps, rows = 0;
  bool projects, packed, bias, reverse;
  Keep keep;  // all, or the states alone
  std::vector<int64_t> sizes, offsets, examples;
  cpu::Masks masks{};

  explicit Configuration(Draw& draw, int64_t number) : cell(static_cast<Cell>(draw.bits() % NUM_CELLS)) {
    const CellInfo& info = CELLS[cell];
    const bool large = number % 10 == 0;  // several chunks, weights packed in turn, rows cut for threads
    projects = info.projects && draw.one_in(3);
    packed = draw.one_in(2), bias = !draw.one_in(4), reverse = draw.one_in(2);
    keep = draw.one_in(2) ? KEEP_ALL : KEEP_STATES;
    units = draw.one_in(50) ? 0 : draw.between(1, large ? 70 : 40);
    inputs = draw.one_in(50) ? 0 : draw.between(1, large ? 150 : 30);
    projected = projects && units ? draw.between(1, units) : units;
    batch = draw.between(1, 7);
    steps = large ? draw.between(100, 260) : draw.between(1, 9);
    int64_t active = batch;
    for (int64_t t = 0; t < steps; ++t) {
      if (packed && active > 1 && draw.one_in(3)) active -= draw.between(0, active - 1);
      sizes.push_back(active);
      offsets.push_back(rows);
      rows += active;
    }
    for (int64_t b = 0; draw.one_in(2) && b < batch; ++b) examples.push_back(draw.between(0, 1 << 20));
    if (static_cast<int64_t>(examples.size()) < batch) examples.clear();
    masks.flags = draw.one_in(6) ? 0 : static_cast<uint32_t>(draw.bits()) & (2 * FLAG_MASKS_ON - 1);
    if (!info.has_c) masks.flags &= ~(FLAG_ZONEOUT_C | FLAG_ZONEOUT_C_SEQUENCE);
    masks.layer = static_cast<uint32_t>(draw.between(0, 3));
    masks.direction = reverse;
    masks.step_offset = static_cast<uint32_t>(draw.between(0, 1000));
    masks.example_ids = examples.empty() ? nullptr : examples.data();
    for (Key& key : masks.keys) key = {static_cast<uint32_t>(draw.bits()), static_cast<uint32_t>(draw.bits())};
    for (uint64_t& threshold : masks.thresholds) threshold = draw.one_in(9) ? uint64_t{1} << 32 : draw.bits() >> 33;
  }
  Configuration(const Configuration&) = delete;  // `masks` points into a vector

  Sequence sequence() const {
    return {steps, batch, rows, packed ? sizes.data() : nullptr, packed ? offsets.data() : nullptr, reverse};
  }
};

// Results, in the order in which they were asked for.
class Results {
 public:
  // n numbers for a kernel to write, or null where they are not wanted.
  template <class T>
  T* room(bool wanted, int64_t n) {
    if (!wanted) return nullptr;
    arrays_.push_back({std::vector<unsigned char>(static_cast<size_t>(n) * sizeof(T)), as_doubles<T>});
    T* const found = reinterpret_cast<T*>(arrays_.back().bytes.data());
    for (int64_t i = 0; i < n; ++i) found[i] = T(-77);
    return found;
  }
  uint64_t hash() const {
    uint64_t found = 14695981039346656037ull;  // FNV-1a
    for (const Array& array : arrays_)
      for (const unsigned char byte : array.bytes) found = (found ^ byte) * 1099511628211ull;
    return found;
  }
  void write(std::FILE* file) const {
    for (const Array& array : arrays_) {
      const std::vector<double> values = array.values(array.bytes);
      std::fwrite(values.data(), sizeof(double), values.size(), file);
    }
  }

 private:
  struct Array {
    std::vector<unsigned char> bytes;
    std::vector<double> (*values)(const std::vector<unsigned char>&);
  };
  template <class T>
  static std::vector<double> as_doubles(const std::vector<unsigned char>& bytes) {
    std::vector<double> found;
    for (size_t i = 0; i < bytes.size(); i += sizeof(T)) {
      T x;
      std::memcpy(&x, &bytes[i], sizeof x);
      found.push_back(x);
    }
    return found;
  }

  std::vector<Array> arrays_;
};

template <class D>
Results run(int64_t number) {
  using S = cpu::Arithmetic<D>;
  Draw draw(static_cast<uint64_t>(number));
  const Configuration c(draw, number);
  const CellInfo& info = CELLS[c.cell];
  const int64_t I = c.inputs, H = c.units, P = c.projected, B = c.batch, N = c.rows, GH = info.gates * H;
  const auto x = draw.numbers<D>(N * I), w_ih = draw.numbers<D>(GH * I), w_hh = draw.numbers<D>(GH * P);
  const auto w_hr = draw.numbers<D>(P * H);
  const auto b_ih = draw.numbers<S>(GH), b_hh = draw.numbers<S>(GH);
  const auto h0 = draw.numbers<S>(B * P), c0 = draw.numbers<S>(B * H);
  const auto dout = draw.numbers<D>(N * P);
  const auto dh_n = draw.numbers<S>(B * P), dc_n = draw.numbers<S>(B * H);
  const auto given = [](bool wanted, const auto& numbers) { return wanted ? numbers.data() : nullptr; };

  cpu::LayerInputs<D> layer;
  layer.parallel = {threads, run_in_threads};
  layer.sequence = c.sequence();
  layer.masks = c.masks;
  layer.inputs = I, layer.units = H, layer.projected = P;
  layer.x = x.data(), layer.w_ih = w_ih.data(), layer.w_hh = w_hh.data(), layer.w_hr = given(c.projects, w_hr);
  layer.b_ih = given(c.bias, b_ih), layer.b_hh = given(c.bias, b_hh);
  layer.h0 = h0.data(), layer.c0 = given(info.has_c, c0);

  Results results;
  cpu::LayerForward<D> f{layer};
  f.keep = c.keep;
  f.out_stride = P;
  f.gates = results.room<D>(c.keep == KEEP_ALL, N * GH);
  f.c = results.room<S>(info.has_c && info.keeps_beside(c.keep), N * H);
  f.apart = results.room<D>(!info.has_c && info.keeps_beside(c.keep), N * H);
  f.states = results.room<D>(true, N * P);
  f.out = results.room<D>(true, N * P);
  f.h_n = results.room<S>(true, B * P);
  f.c_n = results.room<S>(info.has_c, B * H);
  const cpu::TypedKernels<D>& kernels = cpu::typed_kernels<D>();
  kernels.forward[c.cell](f);

  cpu::LayerBackward<D> g{layer};
  g.gates = f.gates, g.c = f.c, g.apart = f.apart, g.states = f.states;
  g.states_stride = g.dout_stride = P;
  g.dout = given(!draw.one_in(8), dout), g.dh_n = given(!draw.one_in(8), dh_n);
  g.dc_n = given(info.has_c && !draw.one_in(8), dc_n);
  g.dx = results.room<D>(!draw.one_in(8), N * I);
  g.dw_ih = results.room<S>(!draw.one_in(8), GH * I);
  g.dw_hh = results.room<S>(!draw.one_in(8), GH * P);
  g.dw_hr = results.room<S>(c.projects && !draw.one_in(8), P * H);
  const bool bias = !draw.one_in(8);
  g.db_ih = results.room<S>(bias, GH);
  g.db_hh = results.room<S>(bias && info.apart, GH);
  g.dh0 = results.room<S>(true, B * P);
  g.dc0 = results.room<S>(info.has_c, B * H);
  kernels.backward[c.cell](g);
  return results;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5 || count > 6) return std::fputs("random_layers ISA FIRST COUNT THREADS [FILE]\n", stderr), 2;
  if (!cpu::use_isa(std::atoi(arguments[1]))) return std::fputs("this instruction set cannot run here\n", stderr), 2;
  const cpu::Bf16 how = cpu::bf16_in_use();
  if (how == cpu::Bf16::UNKNOWN) return std::fputs("FRD_CPU_BF16 names nothing that runs here\n", stderr), 2;
  const bool bf16 = how != cpu::Bf16::EXACT;
  const int64_t first = std::atoll(arguments[2]), layers = std::atoll(arguments[3]);
  threads = std::atoi(arguments[4]);
  std::FILE* const file = count == 6 ? std::fopen(arguments[5], "wb") : nullptr;
  if (count == 6 && !file) return std::perror(arguments[5]), 2;
  for (int64_t number = first; number < first + layers; ++number) {
    std::vector<Results> found;
    found.push_back(run<float>(number));
    found.push_back(run<double>(number));
    if (bf16) found.push_back(run<cpu::BFloat16>(number));
    std::printf("%ld", number);
    for (const Results& results : found) {
      std::printf(" %016lx", results.hash());
      if (file) results.write(file);
    }
    std::printf("\n");
  }
  return file ? std::fclose(file) : 0;
}
