// The persistent schedule: all steps of a layer in one cooperative launch, of both directions if there are two. Before
// it come what the alternating schedule has before its steps, and memory that is zeroed for the exchange.
#include <memory>
#include <string>
#include <vector>

#include "cuda/layer.h"
#include "cuda/persistent_kernels.h"
#include "cuda/schedules/backward_pass.h"

namespace frd::cuda {

DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device));
  const auto ask = [device](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  return {.capability = ask(cudaDevAttrComputeCapabilityMajor),
          .revision = ask(cudaDevAttrComputeCapabilityMinor),
          .multiprocessors = ask(cudaDevAttrMultiProcessorCount),
          .shared_memory = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

namespace {

// What the launch of a pass needs beside the layer: where blocks exchange words.
template <class D>
class Exchange {
 public:
  Exchange(const LayerInputs<D>& p, int directions, bool backward, const Surroundings& around)
      : around_(around), plan_(plan_of(p, directions, backward)) {
    const Sequence& sequence = p.sequence;
    // Backward rows have a step more, which leads to h_0.
    shape_ = shape_of(plan_, sequence.batch, p.units, sequence.steps);
    const int64_t groups = int64_t{directions} * plan_.batch_groups;
    const int64_t signals = groups * PersistentSteps::counters(sequence.steps + backward);
    const int64_t bytes = plan_.workspace + signals * static_cast<int64_t>(sizeof(uint32_t));
    ring_ = around.buffer<uint8_t>(bytes);
    signals_ = reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(ring_) + plan_.workspace);
    check(cudaMemsetAsync(ring_, 0, static_cast<size_t>(bytes), around.stream));
    if (!sequence.batch_sizes) return;
    offsets_ = around.buffer<int64_t>(sequence.steps + 1);
    check(step_offsets(sequence, offsets_, around.stream));
  }

  // Everything that the parameters of both kernels have.
  template <class Parameters>
  void fill(Parameters& p) const {
    p.shape = shape_;
    p.offsets = offsets_;
    p.ring = ring_;
    p.signals = signals_;
    p.zero = 0;
  }
  int64_t first_words_bytes() const { return plan_.workspace / PersistentSteps::SLOTS; }
  const PersistentPlan& plan() const { return plan_; }
  const PersistentShape& shape() const { return shape_; }

  void check_launch(cudaError_t error) const {
    if (error == cudaErrorCooperativeLaunchTooLarge)
      throw std::runtime_error(
          "the persistent schedule needs its " + std::to_string(plan_.blocks) +
          " blocks on the device at once, and it takes fewer now: another process shares it (MPS), or its "
          "multiprocessors are partitioned. FRD_CUDA_SCHEDULE=alternating runs without that");
    check(error);
  }

 private:
  static PersistentPlan plan_of(const LayerInputs<D>& p, int directions, bool backward) {
    PersistentPlan plan = persistent_plan(device_limits(), {.cell = p.cell,
                                                            .type = type_of<D>,
                                                            .batch = p.sequence.batch,
                                                            .units = p.units,
                                                            .projected = p.projected,
                                                            .directions = directions,
                                                            .flags = p.random.flags,
                                                            .given_h0 = true,
                                                            .backward = backward});
    if (!plan.obstacle.empty()) throw std::runtime_error("schedule asks for the persistent schedule: " + plan.obstacle);
    return plan;
  }

  const Surroundings& around_;
  const PersistentPlan plan_;
  PersistentShape shape_{};
  void* ring_ = nullptr;
  uint32_t* signals_ = nullptr;
  int64_t* offsets_ = nullptr;
};

}  // namespace

template <class D>
void persistent(const std::vector<LayerForward<D>>& layers, const Surroundings& around) {
  const LayerForward<D>& one = layers.front();
  const CellInfo& info = CELLS[one.cell];
  const int64_t H = one.units, GH = info.gates * H, B = one.sequence.batch, N = one.sequence.rows;
  if (N == 0) return;
  const Exchange<D> exchange(one, static_cast<int>(layers.size()), false, around);
  if constexpr (!std::is_same_v<D, double>) {  // for which there is no plan
    PersistentForward<D> p{};
    exchange.fill(p);
    FirstWords<D> first{.shape = exchange.shape(),
                        .narrow = exchange.plan().words == WordKind::PHASED,
                        .words = around.buffer<uint8_t>(exchange.first_words_bytes()),
                        .direction = {}};
    p.first_words = first.words;
    for (size_t i = 0; i < layers.size(); ++i) {
      const LayerForward<D>& l = layers[i];
      const Call<D> call(around, l.random, B, H);
      D* const gates = l.gates ? l.gates : around.buffer<D>(N * GH);
      call.multiply(call.matrix(l.x, N, l.inputs), false, call.weight(l.w_ih), true, call.matrix(gates, N, GH));
      first.direction[i] = {.masks = call.masks(), .scaled = info.scaled(), .h0 = l.h0};
      p.direction[i] = {.masks = call.masks(),
                        .w_hh = static_cast<const D*>(call.weight(l.w_hh).data),
                        .b_ih = l.b_ih,
                        .b_hh = l.b_hh,
                        .gates = gates,
                        .keep_gates = l.gates != nullptr,
                        .apart = l.apart,
                        .cells = l.cells,
                        .h0 = l.h0,
                        .c0 = l.c0,
                        .h_n = l.h_n,
                        .c_n = l.c_n,
                        .out = l.out,
                        .states = l.states,
                        .written = call.written(l.sequence, H),
                        .written_per_step = l.random.written.per_step,
                        .reverse = l.sequence.reverse};
    }
    check(first_words(first, static_cast<int>(layers.size()), around.stream));
    exchange.check_launch(persistent_forward(one.cell, exchange.plan(), p, around.stream));
  }
}

namespace {

template <class D>
class PersistentPass : public BackwardPass<D> {
 public:
  using BackwardPass<D>::BackwardPass;

  PersistentBackwardDirection<D> direction() const {
    const LayerBackward<D>& l = this->p_;
    return {.masks = this->call_.masks(),
            .w_hh = static_cast<const D*>(this->w_hh_.data),
            .gates = this->gates_,
            .apart = this->apart_,
            .cells = l.cells,
            .states = l.states,
            .h0 = l.h0,
            .c0 = l.c0,
            .dout = l.dout,
            .written = l.dout ? this->call_.written(l.sequence, l.units) : nullptr,
            .written_per_step = l.random.written.per_step,
            .dh_n = l.dh_n,
            .dc_n = l.dc_n,
            .dgates = this->dgates_,
            .dh0 = l.dh0,
            .dc0 = l.dc0,
            .reverse = l.sequence.reverse};
  }
};

}  // namespace

template <class D>
void persistent(const std::vector<LayerBackward<D>>& layers, const Surroundings& around) {
  const LayerBackward<D>& one = layers.front();
  std::vector<std::unique_ptr<PersistentPass<D>>> passes;
  for (const LayerBackward<D>& layer : layers) {
    passes.push_back(std::make_unique<PersistentPass<D>>(layer, around));
    passes.back()->begin();
  }
  if (one.sequence.rows) {
    const Exchange<D> exchange(one, static_cast<int>(layers.size()), true, around);
    if constexpr (!std::is_same_v<D, double>) {  // for which there is no plan
      PersistentBackward<D> p{};
      exchange.fill(p);
      for (size_t i = 0; i < layers.size(); ++i) p.direction[i] = passes[i]->direction();
      exchange.check_launch(persistent_backward(one.cell, exchange.plan(), p, around.stream));
    }
  }
  for (const auto& pass : passes) pass->gradients();
}

#define FRD_INSTANTIATE(D)                                                                                             \
  template void persistent(const std::vector<LayerForward<D>>&, const Surroundings&);                                  \
  template void persistent(const std::vector<LayerBackward<D>>&, const Surroundings&)
FRD_FOR_EACH_TYPE(FRD_INSTANTIATE);
#undef FRD_INSTANTIATE

}  // namespace frd::cuda
