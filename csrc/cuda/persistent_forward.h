// All steps of a layer forward, of both directions, in one cooperative launch. U stays on the chip, h of a step goes
// from block to block as exchange.h has it, and what a step needs beside it is loaded and drawn while that is on its way.
//
// A thread has whole clusters: neighbouring units of a row, with all their gates, whose h is one word.
#pragma once

#include "cuda/cells.h"
#include "cuda/kernels.h"
#include "cuda/persistent.h"
#include "cuda/persistent_kernels.h"

namespace frd::cuda {

// What a thread keeps of one cluster from step to step.
template <class Equations, int V>
struct ForwardCluster {
  static constexpr int G = CELLS[Equations::CELL].gates;
  bool mine;         // a thread may have fewer clusters than others
  int row, cluster;  // of the block
  float bias[V][G], bias_apart[V];
  float memory[V], h[V];
  uint8_t bits[V];
};

template <class Equations, class D, class Word, class Tiles>
class ForwardBlock {
  static constexpr CellInfo INFO = CELLS[Equations::CELL];
  static constexpr int G = INFO.gates;
  using Words = OperandWords<D, Word>;
  using Bits = typename Word::Bits;
  static constexpr int V = Words::VALUES;
  static constexpr int MOST_UNITS = Tiles::M * 16 / G, MOST_CLUSTERS = (MOST_UNITS + V - 1) / V;
  static constexpr int EACH = (MOST_CLUSTERS * Tiles::N * TILE_ROWS + PERSISTENT_THREADS - 1) / PERSISTENT_THREADS;
  using Cluster = ForwardCluster<Equations, V>;

 public:
  __device__ __forceinline__ ForwardBlock(const PersistentForward<D>& p, unsigned char* shared)
      : p_(p), s_(p.shape), place_(BlockPlace::of(p.shape)), l_(p.direction[place_.direction]) {
    const SharedLayout layout = SharedLayout::of(s_, Tiles::HELD, Words::TILES);
    u_ = reinterpret_cast<uint4*>(shared);
    sums_ = reinterpret_cast<float*>(shared + layout.u);
    drawn_ = reinterpret_cast<Drawn*>(shared + layout.u + layout.sums);
    steps_.first = reinterpret_cast<int*>(shared + layout.u + layout.sums + layout.drawn);
    steps_.last = steps_.first + s_.batch_tiles * TILE_ROWS;
    order_ = {p.offsets, s_.steps, s_.batch, l_.reverse};
    group_ = place_.direction * s_.batch_groups + place_.group;
    ring_ = static_cast<Bits*>(p.ring) + int64_t{group_} * PersistentForm::SLOTS * slot_size(s_);
  }

  __device__ __forceinline__ void run() {
    if (place_.rows == 0) return;
    steps_.fill(order_, place_, s_.batch_tiles * TILE_ROWS);
    sites_ = sites_of(l_.masks);
    hidden_scale_ = l_.masks.flags & FLAG_HIDDEN ? l_.masks.call->hidden_scale : 1.0f;
    FRD_UNROLL
    for (int e = 0; e < EACH; ++e) begin(clusters_[e], e);
    ResidentProduct<D, Word, Tiles> product(s_, u_, [this](int row, int slot) { return element(row, slot); });
    const PersistentForm x(Group{p_.signals + group_ * PersistentForm::signals(s_.steps, s_.unit_groups),
                                 static_cast<unsigned>(place_.unit_group), static_cast<unsigned>(s_.unit_groups),
                                 p_.zero});
    const Bits* const first = static_cast<const Bits*>(p_.first_words) + int64_t{group_} * slot_size(s_);
    __syncthreads();
    FRD_ROLLED
    for (int step = 1; step <= s_.steps; ++step) {
      const int64_t t = order_.time(step), row = order_.row(t);
      Drawn* const drawn = drawn_ + step % 2 * drawn_size(s_);
      float* const sums = sums_ + step % 2 * sums_size(s_);
      draw_step(s_, l_.masks, place_, t, drawn);
      D of_input[EACH][V][G];
      FRD_UNROLL
      for (int e = 0; e < EACH; ++e) load_input(clusters_[e], step, row, of_input[e]);
      if (step > 1) x.begin_read(step - 1);
      uint32_t seen = 0;
      product.multiply(x, ring_, first, steps_, step, 0, sums, seen);
      x.begin_write(step);
      __syncthreads();
      if (step > 1) x.end_read(step - 1);
      FRD_UNROLL
      for (int e = 0; e < EACH; ++e) finish(x, clusters_[e], step, row, of_input[e], sums, drawn, seen);
      fill(x, step, seen);
      x.end_write(step);
    }
  }

 private:
  // U as the product reads it: a row for each gate of each unit of the block, gates of a unit side by side.
  __device__ __forceinline__ D element(int row, int slot) const {
    const int unit = row / G, word = slot / V, block = word / s_.clusters;
    const int of_block = word % s_.clusters * V + slot % V;
    const int64_t column = int64_t{block} * s_.units + of_block;
    if (unit >= place_.units || block >= s_.unit_groups || of_block >= s_.units || column >= s_.hidden)
      return narrow<D>(0.0f);
    return l_.w_hh[(row % G * s_.hidden + place_.first_unit + unit) * s_.hidden + column];
  }

  __device__ __forceinline__ int64_t unit_of(const Cluster& c, int v) const {
    return place_.first_unit + c.cluster * V + v;
  }
  __device__ __forceinline__ bool has(const Cluster& c, int v) const { return c.cluster * V + v < place_.units; }
  __device__ __forceinline__ int64_t batch_row(const Cluster& c) const { return place_.first_row + c.row; }

  __device__ __forceinline__ void begin(Cluster& c, int e) const {
    const int i = static_cast<int>(threadIdx.x) + e * PERSISTENT_THREADS;
    c.row = i / s_.clusters, c.cluster = i % s_.clusters;
    c.mine = c.row < place_.rows;
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      const bool there = c.mine && has(c, v);
      const int64_t unit = unit_of(c, v);
      c.bits[v] = there ? bits_of<1>(l_.masks, batch_row(c), unit).at[0] : 0;
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
    if (!c.mine || !steps_.active(c.row, step)) return;
    const D* const from = l_.gates + (row + batch_row(c)) * G * s_.hidden;
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      FRD_UNROLL
      for (int k = 0; k < G; ++k)
        if (has(c, v)) a[v][k] = from[k * s_.hidden + unit_of(c, v)];
    }
  }

  // What enters a row in its first step.
  __device__ __forceinline__ void enter(Cluster& c) const {
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!has(c, v)) continue;
      const int64_t at = batch_row(c) * s_.hidden + unit_of(c, v);
      c.memory[v] = enter_of(l_.masks, sites_, SCALED<Equations>, c.bits[v], INFO.has_c ? l_.c0[at] : l_.h0[at]);
      if (!SCALED<Equations> && sites_.zone_h.on) c.h[v] = l_.h0[at];
    }
  }

  __device__ __forceinline__ void finish(const PersistentForm& x, Cluster& c, int step, int64_t row,
                                         const D (&of_input)[V][G], const float* sums, const Drawn* drawn,
                                         uint32_t seen) const {
    if (!c.mine || !steps_.active(c.row, step)) return;
    if (step == steps_.first[c.row]) enter(c);
    float a[V][G], apart[V], h_new[V];
    D sent[V];
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      sent[v] = narrow<D>(0.0f);
      apart[v] = h_new[v] = 0;
      if (!has(c, v)) continue;
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
      const Drops<Math<float>> drops = drops_in(s_, place_, drawn, c.row, unit_of(c, v), c.bits[v]);
      const float before = SCALED<Equations> ? c.memory[v] : c.h[v];
      h_new[v] = Equations::forward(sites_, drops, a[v], apart[v], c.memory[v]);
      c.h[v] = Zone<Math<float>>::mix(sites_.zone_h, drops.of[STATE_ZONE_H], before, h_new[v]);
      if (SCALED<Equations>) c.memory[v] = c.h[v];
      // The scale of hidden dropout is that of the sums: it would make a word larger.
      const bool dropped = (l_.masks.flags & FLAG_HIDDEN) && (c.bits[v] & BIT_HIDDEN);
      sent[v] = narrow<D>(dropped ? 0.0f : seen_of(sites_, SCALED<Equations>, c.h[v]));
    }
    publish(x, c.row, place_.unit_group * s_.clusters + c.cluster, step, Words::pack(sent, true), seen);
    store(c, step, row, a, apart, h_new);
  }

  __device__ __forceinline__ void publish(const PersistentForm& x, int row, int word, int step, Bits data,
                                          uint32_t seen) const {
    const int64_t own = step - steps_.first[row] + 1;
    Bits* const slot = ring_ + RingSteps<PersistentForm::SLOTS>::slot(own) * slot_size(s_);
    x.template write<Word>(slot + Words::place(s_.chunks, row, word), own, data, seen);
  }

  // The words behind the last unit's, up to a whole chunk, which are read as all others are.
  __device__ __forceinline__ void fill(const PersistentForm& x, int step, uint32_t seen) const {
    if (place_.unit_group + 1 != s_.unit_groups) return;
    const int first = s_.unit_groups * words_of_block(s_), count = s_.chunks * CHUNK_WORDS - first;
    for (int i = static_cast<int>(threadIdx.x); i < count * place_.rows; i += PERSISTENT_THREADS) {
      const int row = i / count;
      if (steps_.active(row, step)) publish(x, row, first + i % count, step, Bits{0}, seen);
    }
  }

  // What others see after the launch.
  __device__ __forceinline__ void store(const Cluster& c, int step, int64_t row, const float (&a)[V][G],
                                        const float (&apart)[V], const float (&h_new)[V]) const {
    const int64_t b = batch_row(c);
    const bool ends = step == steps_.last[c.row];
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!has(c, v)) continue;
      const int64_t unit = unit_of(c, v), at = (row + b) * s_.hidden + unit, last = b * s_.hidden + unit;
      const float seen = seen_of(sites_, SCALED<Equations>, c.h[v]);
      const float out = sites_.unzoned ? seen_of(sites_, SCALED<Equations>, h_new[v]) : seen;
      l_.out[at] = narrow<D>(out);
      if (l_.states) l_.states[at] = narrow<D>(c.h[v]);
      if (l_.cells) l_.cells[at] = c.memory[v];
      if (l_.keep_gates) {
        FRD_UNROLL
        for (int k = 0; k < G; ++k)
          l_.gates[(row + b) * G * s_.hidden + k * s_.hidden + unit] = narrow<D>(a[v][k]);
        if (INFO.apart) l_.apart[at] = narrow<D>(apart[v]);
      }
      if (!ends) continue;
      l_.h_n[last] = narrow<D>(seen);
      if (INFO.has_c) l_.c_n[last] = narrow<D>(c.memory[v]);
    }
  }

  const PersistentForward<D>& p_;
  const PersistentShape& s_;
  const BlockPlace place_;
  const PersistentForwardDirection<D>& l_;
  uint4* u_;
  float* sums_;
  Drawn* drawn_;
  RowSteps steps_;
  TimeOrder order_;
  int group_;  // of all directions
  Bits* ring_;
  StateSites<Math<float>> sites_;
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
      constexpr bool NARROW = sizeof(typename Word::Bits) == 4;
      return launch_persistent(plan.kernel == 0
                                   ? persistent_forward_kernel<Equations, D, Word, TilesOf<false, NARROW, 0>>
                                   : persistent_forward_kernel<Equations, D, Word, TilesOf<false, NARROW, 1>>,
                               plan, p, stream);
    });
  });
}

}  // namespace frd::cuda
