// Counts what kernels ask of memory, in the host shim: the requests of their warps, and the sectors that these touch.
//
//   g++ -std=c++20 -O1 -fno-tree-sra -fsanitize=kernel-address --param asan-instrumentation-with-call-threshold=0
//       --param asan-stack=0 --param asan-globals=0 -DFRD_CUDA_ON_HOST -Icsrc -Itests/cuda -x c++ tests/cuda/traffic.cu
//   ./a.out            prints a line for every array of every case:
//                      case, array, "load" or "store", requests, sectors, bytes asked for, those that differ, all there
//                      are
//
// The compiler puts a call before every access of memory; the functions that it calls are here. Lanes of a warp that
// come to the same access the same number of times make one request, and a request touches sectors of 32 bytes, as on a
// GPU. What a GPU's compiler would keep in a register between two accesses is counted twice.
#undef __SANITIZE_ADDRESS__  // there is no sanitizer, only its calls
#include "cuda/kernels.h"

#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "../../csrc/cuda/dropout.cu"
#include "../../csrc/cuda/weights.cu"

using namespace frd;
using namespace frd::cuda;

namespace {

constexpr uintptr_t SECTOR = 32;

struct Array {
  std::string name;
  uintptr_t begin, end;
};

// Of an access in the program, by one warp, for the n-th time.
using Request = std::tuple<unsigned, unsigned, unsigned, unsigned, uintptr_t, int64_t>;

struct Traffic {
  std::map<Request, std::set<uintptr_t>> sectors;
  std::set<uintptr_t> bytes;
  int64_t asked = 0, all = 0;  // bytes: as often as a thread asks for them; of the array
};

class Recorder {
 public:
  void add(const std::string& name, const void* at, int64_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(at);
    arrays_.push_back({name, begin, begin + static_cast<uintptr_t>(bytes)});
  }

  void note(uintptr_t at, uintptr_t bytes, bool stores, uintptr_t place) {
    if (busy_ || arrays_.empty() || !host::Scheduler::any()) return;
    busy_ = true;  // the recorder's own accesses are announced too
    for (const Array& array : arrays_)
      if (at >= array.begin && at < array.end) count(array, at, bytes, stores, place);
    busy_ = false;
  }

  void report(const std::string& title) {
    for (const auto& [key, found] : traffic_) {
      int64_t sectors = 0;
      for (const auto& [request, touched] : found.sectors) sectors += static_cast<int64_t>(touched.size());
      std::printf("%s, %s, %s, %zu, %lld, %lld, %zu, %lld\n", title.c_str(), key.first.c_str(),
                  key.second ? "store" : "load", found.sectors.size(), static_cast<long long>(sectors),
                  static_cast<long long>(found.asked), found.bytes.size(), static_cast<long long>(found.all));
    }
    arrays_.clear();
    traffic_.clear();
    turns_.clear();
  }

 private:
  void count(const Array& array, uintptr_t at, uintptr_t bytes, bool stores, uintptr_t place) {
    const host::Thread& thread = host::Scheduler::current();
    const uint3 block = thread.block->index;
    const dim3 size = host::Scheduler::running().launch().block;
    const unsigned number = (thread.index.z * size.y + thread.index.y) * size.x + thread.index.x;
    const int64_t turn = turns_[{block.x, block.y, block.z, number, place, 0}]++;
    Traffic& traffic = traffic_[{array.name, stores}];
    std::set<uintptr_t>& sectors = traffic.sectors[{block.x, block.y, block.z, number / 32, place, turn}];
    for (uintptr_t sector = at / SECTOR; sector <= (at + bytes - 1) / SECTOR; ++sector) sectors.insert(sector);
    for (uintptr_t byte = at; byte < at + bytes; ++byte) traffic.bytes.insert(byte);
    traffic.all = static_cast<int64_t>(array.end - array.begin);
    traffic.asked += static_cast<int64_t>(bytes);
  }

  std::vector<Array> arrays_;
  std::map<std::pair<std::string, bool>, Traffic> traffic_;
  std::map<Request, int64_t> turns_;  // by thread
  bool busy_ = false;
};

Recorder recorder;

}  // namespace

#define FRD_NOTE(bytes)                                                                                                \
  void __asan_load##bytes##_noabort(uintptr_t at) {                                                                    \
    recorder.note(at, bytes, false, reinterpret_cast<uintptr_t>(__builtin_return_address(0)));                         \
  }                                                                                                                    \
  void __asan_store##bytes##_noabort(uintptr_t at) {                                                                   \
    recorder.note(at, bytes, true, reinterpret_cast<uintptr_t>(__builtin_return_address(0)));                          \
  }

extern "C" {
FRD_NOTE(1)
FRD_NOTE(2)
FRD_NOTE(4)
FRD_NOTE(8)
FRD_NOTE(16)
void __asan_loadN_noabort(uintptr_t at, size_t bytes) {
  recorder.note(at, bytes, false, reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}
void __asan_storeN_noabort(uintptr_t at, size_t bytes) {
  recorder.note(at, bytes, true, reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}
void __asan_handle_no_return() {}
void __asan_before_dynamic_init(const char*) {}
void __asan_after_dynamic_init() {}
}

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Device memory of n values, zeros, that the recorder knows by its name.
template <class D>
D* values(const std::string& name, int64_t n) {
  void* const made = host::Memory::allocate(static_cast<size_t>(n) * sizeof(D));
  std::memset(made, 0, static_cast<size_t>(n) * sizeof(D));
  if (!name.empty()) recorder.add(name, made, n * static_cast<int64_t>(sizeof(D)));
  return static_cast<D*>(made);
}

int64_t* numbers(std::vector<int64_t> of) {
  int64_t* const made = values<int64_t>("", static_cast<int64_t>(of.size()));
  std::copy(of.begin(), of.end(), made);
  return made;
}

constexpr int64_t HALF = int64_t{1} << 31;

template <class D>
void dropout(const char* type, int64_t width, bool per_step) {
  constexpr int64_t steps = 2, batch = 20;
  DropRows p{};
  p.type = type_of<D>;
  p.source = values<D>("source", steps * batch * width), p.target = values<D>("target", steps * batch * width);
  p.width = width;
  p.per_step = per_step;
  p.rng = numbers({7, 1}), p.threshold = numbers({HALF});
  p.stream = stream_of(KIND_INPUT, 0, 0);
  check(drop_rows(p, Sequence{steps, batch, steps * batch, nullptr, nullptr, false}, nullptr));
  recorder.report("drop_rows " + std::string(per_step ? "per step " : "") + std::to_string(width) + " " + type);
}

template <class From, class To>
void weight(const char* types, int64_t rows, int64_t columns) {
  MaskedWeight p{};
  p.source = values<From>("source", rows * columns), p.target = values<To>("target", rows * columns);
  p.source_type = type_of<From>, p.target_type = type_of<To>;
  p.rows = rows, p.columns = columns, p.source_stride = columns, p.target_stride = columns;
  p.on = true;
  p.stream = stream_of(KIND_WEIGHT_HH, 0, 0);
  Key* const key = values<Key>("", 1);
  double* const scale = values<double>("", 1);
  uint64_t* const threshold = values<uint64_t>("", 1);
  *key = derive_key(7, 1), *scale = 2, *threshold = HALF;
  p.key = key, p.scale = scale, p.threshold = threshold;
  check(masked_weight(p, nullptr));
  recorder.report("masked_weight " + std::to_string(rows) + " x " + std::to_string(columns) + " " + types);
}

}  // namespace

int main() {
  for (const bool per_step : {true, false}) {
    for (const int64_t width : {1, 3, 9, 33, 100, 400, 650, 1150}) {
      dropout<float>("float32", width, per_step);
      dropout<__nv_bfloat16>("bfloat16", width, per_step);
    }
    dropout<double>("float64", 33, per_step);
  }
  for (const int64_t columns : {1, 3, 9, 33, 100, 400, 650, 1150}) {
    weight<float, float>("float32", 130, columns);
    weight<float, __nv_bfloat16>("float32 to bfloat16", 130, columns);
    weight<__nv_bfloat16, __nv_bfloat16>("bfloat16", 130, columns);
  }
  weight<double, double>("float64", 130, 33);
  return 0;
}
