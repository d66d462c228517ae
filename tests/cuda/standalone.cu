// Runs the kernels on data from a file and writes what they computed to a file: by nvcc on a machine with a GPU, or by
// a C++ compiler through the host shim. No torch, no Python.
//
//   nvcc -std=c++20 -Icsrc -Itests/cuda tests/cuda/standalone.cu csrc/cuda/*.cu -o standalone
//   c++ -std=c++20 -DFRD_CUDA_ON_HOST -Icsrc -Itests/cuda -x c++ tests/cuda/standalone.cu csrc/cuda/*.cu -o standalone
//   ./standalone INPUT OUTPUT
//
// A file is a sequence of records: a line "name type count", and count numbers of that type ("f32" or "i64") in the
// machine's byte order. INPUT has a record `kernel` whose name begins with "kernel=" for each kernel to run, in order,
// after the records that it reads; tests/kernels/test_cuda_standalone.py shows what each reads and writes.
#include "cuda/kernels.h"

#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace frd::cuda;
using frd::Cell;
using frd::CellInfo;
using frd::CELLS;
using frd::Sequence;

void check(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess) throw std::runtime_error(what + ": " + cudaGetErrorString(error));
}

// Numbers in device memory.
class Array {
 public:
  Array() = default;
  Array(std::string type, int64_t count) : type_(std::move(type)), count_(count) {
    void* made = nullptr;
    check(cudaMalloc(&made, bytes() ? bytes() : 1), "cudaMalloc");
    data_ = std::shared_ptr<void>(made, [](void* p) { static_cast<void>(cudaFree(p)); });
  }

  const std::string& type() const { return type_; }
  int64_t count() const { return count_; }
  size_t bytes() const { return static_cast<size_t>(count_) * (type_ == "i64" ? 8 : 4); }
  void* raw() const { return data_.get(); }
  float* f32() const { return static_cast<float*>(raw()); }
  int64_t* i64() const { return static_cast<int64_t*>(raw()); }

 private:
  std::string type_ = "f32";
  int64_t count_ = 0;
  std::shared_ptr<void> data_;
};

class Program {
 public:
  Program(const std::string& input, const std::string& output)
      : in_(input, std::ios::binary), out_(output, std::ios::binary) {
    if (!in_ || !out_) throw std::runtime_error("cannot open the files");
  }

  void run() {
    std::string name, type;
    int64_t count = 0;
    while (in_ >> name >> type >> count) {
      in_.get();  // the end of the line
      if (name.starts_with("kernel=")) {
        call(name.substr(7));
        continue;
      }
      std::vector<char> bytes(static_cast<size_t>(count) * (type == "i64" ? 8 : 4));
      in_.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      if (!in_) throw std::runtime_error(name + " is cut short");
      const Array array(type, count);
      check(cudaMemcpy(array.raw(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), name);
      arrays_[name] = array;
      if (type == "i64" && count) integers_[name] = *reinterpret_cast<int64_t*>(bytes.data());
    }
  }

 private:
  const Array& in(const std::string& name) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) throw std::runtime_error("there is no record " + name);
    return found->second;
  }
  int64_t number(const std::string& name) const {
    static_cast<void>(in(name));
    return integers_.at(name);
  }
  Array made(const std::string& name, int64_t count, const std::string& type = "f32") {
    return arrays_[name] = Array(type, count);
  }
  void write(const std::string& name) {
    const Array& array = in(name);
    std::vector<char> bytes(array.bytes());
    check(cudaMemcpy(bytes.data(), array.raw(), bytes.size(), cudaMemcpyDeviceToHost), name);
    out_ << name << ' ' << array.type() << ' ' << array.count() << '\n';
    out_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  void call(const std::string& kernel) {
    if (kernel == "read_words") {
      const int64_t rows = in("row").count(), steps = in("step").count(), n = number("units");
      const Array target = made("words", rows * steps * n, "i64");
      const auto stream = static_cast<uint32_t>(number("stream"));
      const int64_t *row = in("row").i64(), *step = in("step").i64();
      check(read_words({in("rng").i64(), stream, row, step, rows, steps, n, target.i64()}, nullptr), kernel);
      return write("words");
    }
    if (kernel == "drop_rows") {
      const Sequence sequence = padded();
      const int64_t width = in("x").count() / sequence.rows;
      DropRows p{};
      p.type = Type::F32;
      p.source = in("x").raw();
      p.target = made("dropped", in("x").count()).raw();
      p.width = width;
      p.per_step = number("per_step") != 0;
      p.stream = static_cast<uint32_t>(number("stream"));
      p.rng = in("rng").i64();
      p.threshold = in("thresholds").i64() + number("site");
      check(drop_rows(p, sequence, nullptr), kernel);
      return write("dropped");
    }
    if (kernel == "column_sums") {
      const int64_t columns = number("columns"), rows = in("x").count() / columns;
      const Array partial = made("partial", column_sum_blocks(rows) * columns), sums = made("sums", columns);
      check(column_sums(ColumnSums<float>{in("x").f32(), rows, columns, columns, partial.f32(), sums.f32()}, nullptr),
            kernel);
      return write("sums");
    }
    if (kernel == "prepare") {
      random_ = {};
      random_.flags = static_cast<uint32_t>(number("flags"));
      random_.rng_state = random_.rng_hidden = random_.rng_weight = in("rng").i64();
      random_.thresholds = in("thresholds").i64();
      prepared_ = made("prepared", sizeof(Prepared<float>) / 4 + 1);
      return check(prepare(random_, call_data(), nullptr), kernel);
    }
    if (kernel == "sequence_masks") {
      const int64_t batch = number("batch"), units = number("units");
      bits_ = made("bits", batch * units);
      const auto p = SequenceMasks<float>::of(random_, call_data(), batch, units, static_cast<uint8_t*>(bits_.raw()));
      return check(sequence_masks(p, nullptr), kernel);
    }
    if (kernel == "masked_weight") {
      const int64_t rows = number("rows"), columns = in("weight").count() / rows;
      MaskedWeight p{};
      p.source = in("weight").raw();
      p.target = made("masked", in("weight").count()).raw();
      p.source_type = p.target_type = Type::F32;
      p.rows = rows;
      p.columns = p.source_stride = p.target_stride = columns;
      p.on = true;
      p.stream = frd::stream_of(frd::KIND_WEIGHT_HH, 0, 0);
      p.key = &call_data()->weight;
      p.scale = &call_data()->weight_scale;
      p.threshold = &call_data()->thresholds[frd::SITE_WEIGHT_DROPOUT];
      check(masked_weight(p, nullptr), kernel);
      return write("masked");
    }
    if (kernel == "operand") {
      const Sequence sequence = padded();
      const Operand<float> p{masks(),         false,
                             number("units"), in("states").f32(),
                             in("h0").f32(),  made("operand", in("states").count()).f32()};
      check(operand(p, sequence, nullptr), kernel);
      return write("operand");
    }
    if (kernel == "forward_step") return forward_step();
    if (kernel == "backward_step") return backward_step();
    throw std::runtime_error("there is no kernel " + kernel);
  }

  // One step of rows that begin and end in it.
  void forward_step() {
    const int64_t B = number("batch"), H = number("units");
    const CellInfo& info = CELLS[cell()];
    LayerForwardStep<float> p{};
    p.cell = cell();
    p.masks = masks().at(0);
    p.step = alone(B);
    p.units = p.projected = H;
    p.gates = in("gates").f32();
    p.recurrent = in("recurrent").f32();
    p.keep_gates = true;
    if (info.apart) p.apart = made("apart", B * H).f32();
    if (info.has_c) {
      p.c0 = in("c0").f32();
      p.c_after = made("c", B * H).f32();
      p.c_n = made("c_n", B * H).f32();
    }
    p.h0 = in("h0").f32();
    p.h = made("h", B * H).f32();
    p.read = made("read", B * H).f32();
    p.out = made("out", B * H).f32();
    p.h_n = made("h_n", B * H).f32();
    check(frd::cuda::forward_step(p, nullptr), "forward_step");
    for (const char* name : {"gates", "out", "h_n"}) write(name);
    if (info.apart) write("apart");
    if (info.has_c) write("c_n");
  }

  // Of gates that forward_step() activated.
  void backward_step() {
    const int64_t B = number("batch"), H = number("units");
    const CellInfo& info = CELLS[cell()];
    LayerBackwardStep<float> p{};
    p.cell = cell();
    p.masks = masks().at(0);
    p.step = alone(B);
    p.units = p.projected = H;
    p.dout = in("dout").f32();
    p.dh = made("dh", B * H).f32();
    p.gates = in("gates").f32();
    if (info.apart) p.apart = in("apart").f32();
    if (info.has_c) {
      p.dc = made("dc", B * H).f32();
      p.c0 = in("c0").f32();
    } else {
      p.h0 = in("h0").f32();
    }
    p.dgates = made("dgates", info.gradients() * B * H).f32();
    check(frd::cuda::backward_step(p, nullptr), "backward_step");
    write("dgates");
    if (!info.has_c) return;
    const Leave<float> leave_c{.masks = masks(),
                               .memory = true,
                               .scaled = false,
                               .begin = 0,
                               .end = B,
                               .width = H,
                               .carried = p.dc,
                               .through = nullptr,
                               .gradient = made("dc0", B * H).f32()};
    check(leave(leave_c, nullptr), "leave");
    write("dc0");
  }

  Cell cell() const { return static_cast<Cell>(number("cell")); }
  static Step alone(int64_t rows) { return {0, 0, rows, 0, 0, 0}; }
  Sequence padded() const {
    const int64_t steps = number("steps"), batch = number("batch");
    return {steps, batch, steps * batch, nullptr, nullptr, false};
  }
  Prepared<float>* call_data() const { return static_cast<Prepared<float>*>(prepared_.raw()); }
  StateMasks<float> masks() const {
    return StateMasks<float>::of(random_, call_data(), static_cast<uint8_t*>(bits_.raw()), number("units"));
  }

  std::ifstream in_;
  std::ofstream out_;
  std::map<std::string, Array> arrays_;
  std::map<std::string, int64_t> integers_;  // the first number of each record of integers
  Random random_{};
  Array prepared_, bits_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: standalone INPUT OUTPUT\n";
    return 2;
  }
  try {
    Program(arguments[1], arguments[2]).run();
    check(cudaDeviceSynchronize(), "the device");
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
