// All steps of a layer forward, of both directions, in one cooperative launch. U stays on the chip, h of a step goes
// from block to block as exchange.h has it, and what a step needs beside it is loaded and drawn while that is on its
// way.
#pragma once

#include "cuda/persistent_block.h"

namespace frd::cuda {

template <class Equations>
inline constexpr int GATES = CELLS[Equations::CELL].gates;

template <class Equations, class D, class Word, class Tiles>
class ForwardBlock : PersistentBlock<D, Word, Tiles, Tiles::M * 16 / GATES<Equations>> {
  using Base = PersistentBlock<D, Word, Tiles, Tiles::M * 16 / GATES<Equations>>;
  static constexpr CellInfo INFO = CELLS[Equations::CELL];
  static constexpr int G = INFO.gates, V = Base::V, EACH = Base::EACH;
  using Bits = typename Base::Bits;
  using Base::s_, Base::place_, Base::steps_, Base::order_;

  // What is carried from step to step, and what is the same for all.
  struct Cluster : Base::Place {
    float bias[V][G], bias_apart[V];
    float memory[V], h[V];
    uint8_t bits[V];
  };

 public:
  __device__ __forceinline__ ForwardBlock(const PersistentForward<D>& p, unsigned char* shared)
      : Base(p, shared, p.direction[0].reverse, p.direction[1].reverse), p_(p), l_(p.direction[place_.direction]) {}

  __device__ __forceinline__ void run() {
    if (place_.rows == 0) return;
    steps_.fill(order_, place_, s_.batch_tiles * TILE_ROWS);
    factors_ = factors_of(l_.masks);
    hidden_scale_ = draws(l_.masks.flags, FLAG_HIDDEN) ? factors_.hidden : 1.0f;
    FRD_UNROLL
    for (int e = 0; e < EACH; ++e) begin(clusters_[e], e);
    ResidentProduct<D, Word, Tiles> product(s_, this->u_, [this](int row, int slot) { return element(row, slot); });
    const PersistentForm x = this->exchange(p_.signals, s_.steps, p_.zero);
    const Bits* const first = static_cast<const Bits*>(p_.first_words) + int64_t{this->group_} * slot_size(s_);
    __syncthreads();
    FRD_ROLLED
    for (int step = 1; step <= s_.steps; ++step) {
      const int64_t t = order_.time(step), row = order_.row(t);
      draw_step(s_, l_.masks, place_, t, this->drawn_of(step));
      D of_input[EACH][V][G]{};
      FRD_UNROLL
      for (int e = 0; e < EACH; ++e) load_input(clusters_[e], step, row, of_input[e]);
      if (step > 1) x.begin_read(step - 1);
      uint32_t seen = 0;
      product.multiply(x, this->ring_, first, steps_, step, 0, this->sums_of(step), seen);
      x.begin_write(step);
      __syncthreads();
      if (step > 1) x.end_read(step - 1);
      FRD_UNROLL
      for (int e = 0; e < EACH; ++e) finish(x, clusters_[e], step, row, of_input[e], seen);
      this->fill(x, step, seen);
      x.end_write(step);
      this->leave_sums();
    }
  }

 private:
  // U as the product reads it: a row for each gate of each unit of the block, gates of a unit side by side.
  __device__ __forceinline__ D element(int row, int number) const {
    const typename Base::Slot slot = this->slot(number);
    if (row / G >= place_.units || slot.unit < 0) return narrow<D>(0.0f);
    return l_.w_hh[(row % G * s_.hidden + place_.first_unit + row / G) * s_.hidden + slot.unit];
  }

  __device__ __forceinline__ void begin(Cluster& c, int e) const {
    static_cast<typename Base::Place&>(c) = this->cluster(e);
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      const bool there = this->has(c, v);
      const int64_t unit = this->unit_of(c, v);
      c.bits[v] = there ? bits_of<1>(l_.masks, this->batch_row(c), unit).at[0] : 0;
      c.bias_apart[v] = c.memory[v] = c.h[v] = 0;
      FRD_UNROLL
      for (int k = 0; k < G; ++k) {
        c.bias[v][k] = 0;
        if (!there || !l_.b_ih) continue;
        const int64_t at = k * s_.hidden + unit;
        const bool apart = INFO.apart && k + 1 == G;
        c.bias[v][k] = apart ? l_.b_ih[at] : l_.b_ih[at] + l_.b_hh[at];
        if (apart) c.bias_apart[v] = l_.b_hh[at];
      }
    }
  }

  // W x of a step, which nobody needs before the words of the step before are there.
  __device__ __forceinline__ void load_input(const Cluster& c, int step, int64_t row, D (&a)[V][G]) const {
    if (!this->active(c, step)) return;
    const D* const from = l_.gates + (row + this->batch_row(c)) * G * s_.hidden;
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      FRD_UNROLL
      for (int k = 0; k < G; ++k)
        if (this->has(c, v)) a[v][k] = from[k * s_.hidden + this->unit_of(c, v)];
    }
  }

  // The states that a row begins with.
  __device__ __forceinline__ void enter(Cluster& c) const {
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!this->has(c, v)) continue;
      const int64_t at = this->batch_row(c) * s_.hidden + this->unit_of(c, v);
      c.memory[v] = enter_of(l_.masks, factors_, SCALED<Equations>, c.bits[v], INFO.has_c ? l_.c0[at] : l_.h0[at]);
      if (!SCALED<Equations> && factors_.state.zone_h.on) c.h[v] = l_.h0[at];
    }
  }

  __device__ __forceinline__ void finish(const PersistentForm& x, Cluster& c, int step, int64_t row,
                                         const D (&of_input)[V][G], uint32_t seen) const {
    if (!this->active(c, step)) return;
    if (step == steps_.first[c.row]) enter(c);
    const float* const sums = this->sums_of(step);
    const Drawn* const drawn = this->drawn_of(step);
    float a[V][G]{}, apart[V]{}, h_new[V]{};
    D sent[V]{};
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!this->has(c, v)) continue;
      FRD_UNROLL
      for (int k = 0; k < G; ++k) {
        const float recurrent = hidden_scale_ * sum_of_warps(s_, sums, (c.cluster * V + v) * G + k, c.row);
        a[v][k] = widen<float>(of_input[v][k]) + c.bias[v][k];
        if (INFO.apart && k + 1 == G) {
          apart[v] = recurrent + c.bias_apart[v];
        } else {
          a[v][k] += recurrent;
        }
      }
      const Drops<Math<float>> drops = drops_in(s_, place_, drawn, c.row, this->unit_of(c, v), c.bits[v]);
      const float before = SCALED<Equations> ? c.memory[v] : c.h[v];
      h_new[v] = Equations::forward(factors_.state, drops, a[v], apart[v], c.memory[v]);
      c.h[v] = Zone<Math<float>>::mix(factors_.state.zone_h, drops.of[STATE_ZONE_H], before, h_new[v]);
      if (SCALED<Equations>) c.memory[v] = c.h[v];
      // The scale of hidden dropout is that of the sums: it would make a word larger.
      const bool dropped = draws(l_.masks.flags, FLAG_HIDDEN) && (c.bits[v] & BIT_HIDDEN);
      sent[v] = narrow<D>(dropped ? 0.0f : seen_of(factors_, SCALED<Equations>, c.h[v]));
    }
    this->publish(x, c, 0, step, sent, seen);
    store(c, step, row, a, apart, h_new);
  }

  // What others see after the launch.
  __device__ __forceinline__ void store(const Cluster& c, int step, int64_t row, const float (&a)[V][G],
                                        const float (&apart)[V], const float (&h_new)[V]) const {
    const int64_t b = this->batch_row(c);
    const bool ends = step == steps_.last[c.row];
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!this->has(c, v)) continue;
      const int64_t unit = this->unit_of(c, v), at = (row + b) * s_.hidden + unit, last = b * s_.hidden + unit;
      const float seen = seen_of(factors_, SCALED<Equations>, c.h[v]);
      const float shown = factors_.state.unzoned ? seen_of(factors_, SCALED<Equations>, h_new[v]) : seen;
      const bool drop = written_bit(l_.written, l_.written_per_step ? row + b : b, unit, s_.hidden);
      l_.out[at] = narrow<D>(written_of(l_.written, factors_, drop, shown));
      if (l_.states) l_.states[at] = narrow<D>(c.h[v]);
      if (l_.cells) l_.cells[at] = c.memory[v];
      if (l_.keep_gates) {
        FRD_UNROLL
        for (int k = 0; k < G; ++k) l_.gates[(row + b) * G * s_.hidden + k * s_.hidden + unit] = narrow<D>(a[v][k]);
        if (INFO.apart) l_.apart[at] = narrow<D>(apart[v]);
      }
      if (!ends) continue;
      l_.h_n[last] = narrow<D>(seen);
      if (INFO.has_c) l_.c_n[last] = narrow<D>(c.memory[v]);
    }
  }

  const PersistentForward<D>& p_;
  const PersistentForwardDirection<D>& l_;
  Factors<float> factors_;
  float hidden_scale_;
  Cluster clusters_[EACH];
};

template <class Equations, class D, class Word, class Tiles>
__global__ void __launch_bounds__(PERSISTENT_THREADS, 1)
    persistent_forward_kernel(const __grid_constant__ PersistentForward<D> p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // older ones have no such products
  FRD_DYNAMIC_SHARED(unsigned char, shared);
  ForwardBlock<Equations, D, Word, Tiles>(p, shared).run();
#endif
}

template <class D>
cudaError_t persistent_forward(Cell cell, const PersistentPlan& plan, const PersistentForward<D>& p,
                               cudaStream_t stream) {
  return EveryCell::with<float>(cell, [&](auto equations) {
    using Equations = decltype(equations);
    return with_word<D, Equations::CELL>(plan.words, [&](auto word) {
      using Word = decltype(word);
      constexpr bool NARROW = sizeof(typename Word::Bits) == 4, FLOAT32 = sizeof(D) == 4;
      return launch_persistent(plan.kernel == 0
                                   ? persistent_forward_kernel<Equations, D, Word, TilesOf<false, NARROW, FLOAT32, 0>>
                                   : persistent_forward_kernel<Equations, D, Word, TilesOf<false, NARROW, FLOAT32, 1>>,
                               plan, p, stream);
    });
  });
}

}  // namespace frd::cuda
