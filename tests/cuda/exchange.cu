// See exchange.h. tests/kernels/test_exchange.py has the same recurrence in Python.
#include "exchange.h"

#include "cuda/exchange.h"

#include <stdexcept>

namespace frd::cuda::exchange {

struct Row {
  int first, last;
};
inline constexpr int MOST_ROWS = 8;

template <class Word>
inline constexpr int VECTOR = 16 / sizeof(typename Word::Bits);  // words that a block publishes of a row

template <class Word>
struct Launch {
  typename Word::Bits* words;  // [slots, rows, blocks, VECTOR]
  uint32_t* signals;
  uint64_t* out;  // [steps + 1, rows, blocks, VECTOR], or null
  uint32_t zero;
  uint32_t salt;  // so that two calls have different words
  int steps, rows, fault;
  Row row[MOST_ROWS];
};

FRD_INLINE uint32_t mix(uint32_t a, uint32_t b) {
  const uint32_t x = (a ^ (a >> 15)) * 0x2C1B3C6Du + b * 0x9E3779B1u;
  return (x ^ (x >> 13)) * 0x297A2D39u;
}
// Whether the words of two producers, told by the first, drop out of the next step's sum; whether a word keeps the
// value of the step before.
FRD_INLINE bool dropped(int step, int word) { return mix(static_cast<uint32_t>(step), 77u + word) % 4 == 0; }
FRD_INLINE bool kept(int step, int word) { return mix(static_cast<uint32_t>(step), 55u + word) % 4 == 0; }

template <class Word>
FRD_INLINE typename Word::Bits data_of(uint32_t sum, int step, int word) {
  const uint32_t low = mix(sum, static_cast<uint32_t>(step * 1000 + word));
  return (static_cast<typename Word::Bits>(low) * 0x100000001u) & ~Word::MASK;
}

// FAULT: looks at the first word of each vector alone.
template <class Form, class Word, int N>
__device__ __forceinline__ void first_valid(const typename Word::Bits* at, int step,
                                            typename Word::Bits (&words)[2][N]) {
  if constexpr (Word::MASK != 0) {
    for (int m = 0; m < 2; ++m) {
      do {
        load_relaxed(at + m * N, words[m]);
      } while ((words[m][0] & Word::MASK) != Word::template stamp<Form::SLOTS>(step));
      for (int n = 0; n < N; ++n) words[m][n] &= ~Word::MASK;
    }
  }
}

template <class Form, class Word>
__global__ void exchange_kernel(Launch<Word> p) {
  using Bits = typename Word::Bits;
  constexpr int N = VECTOR<Word>;
  FRD_SHARED(uint32_t, sums, 3 * MOST_ROWS);  // of three steps in turn
  FRD_SHARED(Bits, before, MOST_ROWS * N);
  const int blocks = static_cast<int>(gridDim.x), threads = static_cast<int>(blockDim.x),
            thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const Form x(Group{p.signals, blockIdx.x, gridDim.x, p.zero});
  const auto own = [&](int row, int step) { return p.fault == GROUP_STEPS ? step : step - p.row[row].first + 1; };
  const auto active = [&](int row, int step) { return p.row[row].first <= step && step <= p.row[row].last; };
  const auto at = [&](int row, int step, int producer) {
    return p.words + ((int64_t{RingSteps<Form::SLOTS>::slot(own(row, step))} * p.rows + row) * blocks + producer) * N;
  };
  const bool alone = p.fault == ALONE && block == 0;
  for (int i = thread; i < 3 * MOST_ROWS; i += threads) sums[i] = 0;
  for (int i = thread; i < MOST_ROWS * N; i += threads) before[i] = 0;
  __syncthreads();
  for (int step = 1; step <= p.steps + 1; ++step) {
    uint32_t* const sum = sums + step % 3 * MOST_ROWS;
    uint32_t seen = 0;
    const auto write = [&](int i, Bits data) {
      const int row = i / N, n = i % N;
      if (p.out) p.out[((int64_t{step - 1} * p.rows + row) * blocks + block) * N + n] = data;
      before[i] = data;
      if (p.fault == TWO_WIDTHS) {
        store_relaxed(reinterpret_cast<uint64_t*>(at(row, step, block)) + n / 2, static_cast<uint64_t>(data));
      } else {
        x.template write<Word>(at(row, step, block) + n, own(row, step), data, seen);
      }
    };
    const auto writes = [&](int i) { return step <= p.steps && active(i / N, step); };
    const auto early = [&](int i) { return p.fault == EARLY && kept(step, block * N + i % N); };
    for (int i = thread; i < p.rows * N; i += threads)
      if (writes(i) && early(i)) write(i, before[i]);
    if (step > 1) x.begin_read(step - 1);
    for (int i = thread; i < p.rows * blocks / 2; i += threads) {  // of a row, two producers
      const int row = i / (blocks / 2), producer = i % (blocks / 2) * 2;
      if (step == 1 || !active(row, step - 1) || alone) continue;
      const bool skip = dropped(step, producer * N);
      Bits words[2][N] = {};
      if (p.fault == PASSED_OVER && skip) {
        // nothing is read
      } else if (p.fault == FIRST_VALID) {
        first_valid<Form, Word>(at(row, step - 1, producer), own(row, step - 1), words);
      } else {
        x.template read<Word>(at(row, step - 1, producer), N, own(row, step - 1), words, seen);
      }
      for (int m = 0; m < 2; ++m)
        for (int n = 0; n < N; ++n) {
          const Bits word = skip ? 0 : words[m][n];
          const uint32_t folded = static_cast<uint32_t>(word) ^ static_cast<uint32_t>(uint64_t{word} >> 32);
          atomicAdd(sum + row, mix(folded, static_cast<uint32_t>((producer + m) * N + n)));
        }
    }
    if (step <= p.steps) x.begin_write(step);
    __syncthreads();
    if (step > 1) x.end_read(step - 1);
    if (thread < MOST_ROWS) sums[(step + 2) % 3 * MOST_ROWS + thread] = 0;  // read before this barrier
    if (p.fault == FLAG_FIRST && step <= p.steps) x.end_write(step);
    for (int i = thread; i < p.rows * N; i += threads) {
      const int word = block * N + i % N;
      if (writes(i) && !early(i))
        write(i, kept(step, word) && !alone ? before[i] : data_of<Word>(sum[i / N] + p.salt, step, word));
      if (p.out && step > p.steps)
        p.out[((int64_t{p.steps} * p.rows + i / N) * blocks + block) * N + i % N] = sum[i / N];
    }
    if (p.fault != FLAG_FIRST && step <= p.steps) x.end_write(step);
  }
}

// in [n], out [n, 2]
template <class D>
__global__ void round_trip_kernel(const uint32_t* in, uint32_t* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  out[2 * i] = AtMostOne<D>::bits(*reinterpret_cast<const D*>(in + i));
  out[2 * i + 1] = 0;
  *reinterpret_cast<D*>(out + 2 * i + 1) = AtMostOne<D>::value(out[2 * i]);
}

// ---- Running them

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) { check(cudaMalloc(&data_, bytes_)); }
  ~Buffer() { static_cast<void>(cudaFree(data_)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  void zero() const { check(cudaMemsetAsync(data_, 0, bytes_, nullptr)); }
  std::vector<T> read() const {
    check(cudaDeviceSynchronize());
    std::vector<T> found(bytes_ / sizeof(T));
    check(cudaMemcpy(found.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return found;
  }

 private:
  T* data_ = nullptr;
  size_t bytes_;
};

template <class Form, class Word>
std::vector<uint64_t> run_as(const Call& call) {
  const auto blocks = static_cast<unsigned>(call.blocks);
  const auto rows = static_cast<int>(call.first.size());
  const int64_t of_step = int64_t{rows} * call.blocks * VECTOR<Word>;
  const int most = call.steps > call.steps_before ? call.steps : call.steps_before;
  const Buffer<typename Word::Bits> words(Form::SLOTS * of_step);
  const Buffer<uint32_t> signals(Form::signals(most, blocks) + 1);
  const Buffer<uint64_t> out(call.out ? (most + 1) * of_step : 1);
  out.zero();
  words.zero();
  signals.zero();
  Launch<Word> p{words.get(), signals.get(), call.out ? out.get() : nullptr, 0, 0, call.steps, rows, call.fault, {}};
  for (size_t i = 0; i < call.first.size(); ++i) p.row[i] = {call.first[i], call.last[i]};
  const auto launch = [&](int steps) {
    p.steps = steps;
    check(FRD_LAUNCH_COOPERATIVE((exchange_kernel<Form, Word>), blocks, static_cast<unsigned>(call.threads), 0, nullptr,
                                 p));
  };
  p.salt = 1;
  if (call.steps_before) launch(call.steps_before);
  p.salt = 0;
  launch(call.steps);
  std::vector<uint64_t> found = out.read();
  if (!call.out) return {};
  found.resize(static_cast<size_t>((call.steps + 1) * of_step));
  return found;
}

template <class D>
std::vector<uint32_t> round_trip_of(const std::vector<uint32_t>& patterns) {
  const auto n = static_cast<int>(patterns.size());
  const Buffer<uint32_t> in(n), out(int64_t{2} * n);
  check(cudaMemcpy(in.get(), patterns.data(), patterns.size() * sizeof(uint32_t), cudaMemcpyHostToDevice));
  const uint32_t* from = in.get();
  check(FRD_LAUNCH(round_trip_kernel<D>, static_cast<unsigned>((n + 255) / 256), 256, 0, nullptr, from, out.get(), n));
  return out.read();
}

template <class Form>
std::vector<uint64_t> with_word(const Call& call) {
  if (call.word == "phased") return run_as<Form, PhasedPair>(call);
  if (call.word == "tagged") return run_as<Form, Tagged>(call);
  throw std::invalid_argument("no stamped word " + call.word);
}

}  // namespace

std::vector<uint64_t> run(const Call& call) {
  if (call.first.size() > MOST_ROWS || call.last.size() != call.first.size() || call.blocks % 2)
    throw std::invalid_argument("rows or blocks that the kernel does not take");
  if (call.form == "strict4") return with_word<Ring<4, true>>(call);
  if (call.form == "strict8") return with_word<Ring<8, true>>(call);
  if (call.form == "dependence") return with_word<Ring<2, false>>(call);
  if (call.form == "flags" && call.word == "plain") return run_as<Flags, Plain>(call);
  throw std::invalid_argument("no form " + call.form + " with words " + call.word);
}

std::vector<uint32_t> round_trip(const std::string& type, const std::vector<uint32_t>& patterns) {
  if (type == "bfloat16") return round_trip_of<__nv_bfloat16>(patterns);
  if (type == "float16") return round_trip_of<__half>(patterns);
  if (type == "float32") return round_trip_of<float>(patterns);
  throw std::invalid_argument("no type " + type);
}

}  // namespace frd::cuda::exchange
