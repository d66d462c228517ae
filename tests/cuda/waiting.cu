// Counts, in the host shim, what a step of the persistent schedule asks of the exchange, and what its threads draw
// where other blocks wait for them: between the last word that a thread reads of a step and the last that it publishes
// then.
//
//   waiting        prints a line for each case:
//                  case, blocks, steps that are read, words that a block reads in each, calls of Philox in all,
//                  calls of Philox between
//
// A thread that reads no words is met by those that do at the barrier after them. Functions of Philox and of the
// exchange are counted where they are called: behind their headers their names are macros.
#include "core/philox.h"
#include "cuda/order.h"

#include <cstdio>
#include <exception>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace frd::cuda::waiting {

class Counts {
 public:
  int64_t drawn = 0, between = 0;

  void draw() {
    ++drawn;
    if (host::Scheduler::any()) ++threads_[&host::Scheduler::current()].drawn;
  }
  void read(const void* at) {
    threads_[&host::Scheduler::current()] = {0, true};
    const uint3 block = host::Scheduler::current().block->index;
    words_.insert({block.x, at});
  }
  void publish() {
    State& thread = threads_[&host::Scheduler::current()];
    between += thread.drawn;
    thread = {0, false};
  }
  void barrier() {
    State& thread = threads_[&host::Scheduler::current()];
    if (!thread.reads) thread.drawn = 0;
  }
  // Of all blocks. No slot is used twice, as there are fewer steps than slots.
  int64_t words() const { return static_cast<int64_t>(words_.size()); }

 private:
  struct State {
    int64_t drawn;  // since it read a word, or met those that did
    bool reads;     // since it published
  };
  std::map<const host::Thread*, State> threads_;
  std::set<std::pair<unsigned, const void*>> words_;
};

inline Counts counts;

template <class T, size_t N>
void read(const T* at, T (&r)[N]) {
  load_relaxed(at, r);
  for (size_t i = 0; i < N; ++i) counts.read(at + i);
}
template <class T>
void publish(T* at, std::type_identity_t<T> value) {
  counts.publish();
  store_relaxed(at, value);
}
inline void barrier() {
  __syncthreads();
  counts.barrier();
}
inline Words draw(uint32_t a, uint32_t b, uint32_t c, uint32_t stream, Key key) {
  counts.draw();
  return philox(a, b, c, stream, key);
}
inline Words begin(uint32_t a, uint32_t b, uint64_t product_of_c, Key key) {
  counts.draw();
  return philox_begin(a, b, product_of_c, key);
}
inline Words of_stream(Words begun, uint32_t stream, Key key) {
  counts.draw();
  return philox_of_stream(begun, stream, key);
}

}  // namespace frd::cuda::waiting

#define load_relaxed ::frd::cuda::waiting::read
#define store_relaxed ::frd::cuda::waiting::publish
#define __syncthreads ::frd::cuda::waiting::barrier
#define philox ::frd::cuda::waiting::draw
#define philox_begin ::frd::cuda::waiting::begin
#define philox_of_stream ::frd::cuda::waiting::of_stream

#include "float32_kernels.h"
#include "plain_layers.h"

using namespace frd;
using namespace frd::cuda;

namespace {

constexpr plain::Sizes SIZES{6, 16, 5, 40, 0};
static_assert(SIZES.T < PersistentForm::SLOTS);

void tell(const char* cell, const char* pass, const char* sites, int64_t reads, int64_t directions_blocks) {
  const waiting::Counts& found = waiting::counts;
  std::printf("%s %s %s, %lld, %lld, %lld, %lld, %lld\n", cell, pass, sites, static_cast<long long>(directions_blocks),
              static_cast<long long>(reads), static_cast<long long>(found.words() / (directions_blocks * reads)),
              static_cast<long long>(found.drawn), static_cast<long long>(found.between));
  waiting::counts = {};
}

int64_t blocks_of(const LayerInputs<float>& p, bool backward) {
  return persistent_plan(device_limits(), {.cell = p.cell,
                                           .type = Type::F32,
                                           .batch = p.sequence.batch,
                                           .units = p.units,
                                           .projected = p.projected,
                                           .directions = 1,
                                           .flags = p.random.flags,
                                           .given_h0 = true,
                                           .backward = backward})
      .blocks;
}

void count(const char* name, Cell cell, const char* sites, uint32_t flags) {
  plain::Layer layer(cell, SIZES, flags, false, false);
  persistent(std::vector{layer.forward}, layer.around());
  tell(name, "forward", sites, SIZES.T - 1, blocks_of(layer.forward, false));
  persistent(std::vector{layer.backward}, layer.around());
  tell(name, "backward", sites, SIZES.T, blocks_of(layer.backward, true));  // once more, on the way to h_0
}

}  // namespace

int main() {
  try {
    constexpr std::pair<const char*, Cell> CELLS_HERE[] = {{"LSTM", LSTM}, {"GRU", GRU}, {"RNN_TANH", RNN_TANH}};
    for (const auto& [name, cell] : CELLS_HERE) {
      count(name, cell, "without sites", 0);
      count(name, cell, "with sites", plain::sites_of(cell, false));
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
