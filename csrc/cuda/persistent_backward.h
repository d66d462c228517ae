// All steps of a layer backward, of both directions, in one cooperative launch. What blocks exchange are the gradients
// at the pre-activations of a step, of which the step before in time needs all: dh = U^T da. Rows have a step more than
// the sequence, which leads from their first gates to h_0.
#pragma once

#include "cuda/persistent_block.h"

namespace frd::cuda {

template <class Equations, class D, class Word, class Tiles>
class BackwardBlock : PersistentBlock<D, Word, Tiles, Tiles::M * 16> {
  using Base = PersistentBlock<D, Word, Tiles, Tiles::M * 16>;
  static constexpr CellInfo INFO = CELLS[Equations::CELL];
  static constexpr int G = INFO.gates, V = Base::V, EACH = Base::EACH;
  using Bits = typename Base::Bits;
  using Base::s_, Base::place_, Base::steps_, Base::order_;

  struct Cluster : Base::Place {
    float dh[V], dc[V];  // carried to the step before in time, but for what comes through U
    uint8_t bits[V];
  };
  // What a forward kept of a step, and the gradient at its output.
  struct Kept {
    D gates[V][G], apart[V], dout[V];
    float before[V];  // the memory before the step
  };

 public:
  __device__ __forceinline__ BackwardBlock(const PersistentBackward<D>& p, unsigned char* shared)
      : Base(p, shared, !p.direction[0].reverse, !p.direction[1].reverse), p_(p), l_(p.direction[place_.direction]) {}

  __device__ __forceinline__ void run() {
    if (place_.rows == 0) return;
    steps_.fill(order_, place_, s_.batch_tiles * TILE_ROWS);
    factors_ = factors_of(l_.masks);
    FRD_UNROLL
    for (int e = 0; e < EACH; ++e) begin(clusters_[e], e);
    ResidentProduct<D, Word, Tiles> product(s_, this->u_, [this](int row, int slot) { return element(row, slot); });
    const PersistentForm x = this->exchange(p_.signals, s_.steps + 1, p_.zero);
    __syncthreads();
    FRD_ROLLED
    for (int step = 1; step <= s_.steps + 1; ++step) {
      const bool any = step <= s_.steps;
      const int64_t t = any ? order_.time(step) : 0, row = any ? order_.row(t) : 0;
      Kept kept[EACH]{};
      if (any) {
        draw_step(s_, l_.masks, place_, t, this->drawn_of(step));
        const int64_t before = order_.descending ? t - 1 : t + 1;
        const int64_t row_before = before >= 0 && before < s_.steps ? order_.row(before) : 0;
        FRD_UNROLL
        for (int e = 0; e < EACH; ++e) load_kept(clusters_[e], step, row, row_before, kept[e]);
      }
      if (step > 1) x.begin_read(step - 1);
      uint32_t seen = 0;
      product.multiply(x, this->ring_, nullptr, steps_, step, 1, this->sums_of(step), seen);
      if (any) x.begin_write(step);
      __syncthreads();
      if (step > 1) x.end_read(step - 1);
      FRD_UNROLL
      for (int e = 0; e < EACH; ++e) {
        if (this->active(clusters_[e], step))
          finish(x, clusters_[e], step, row, kept[e], seen);
        else if (clusters_[e].mine && step == steps_.last[clusters_[e].row] + 1)
          leave(clusters_[e], step);
      }
      if (!any) break;
      this->fill(x, step, seen);
      x.end_write(step);
      this->leave_sums();
    }
  }

 private:
  // The transpose of U: a row for each unit of the block, a column for each gate of each unit.
  __device__ __forceinline__ D element(int row, int number) const {
    const typename Base::Slot slot = this->slot(number);
    if (row >= place_.units || slot.unit < 0) return narrow<D>(0.0f);
    return l_.w_hh[(slot.item * s_.hidden + slot.unit) * s_.hidden + place_.first_unit + row];
  }

  __device__ __forceinline__ void begin(Cluster& c, int e) const {
    static_cast<typename Base::Place&>(c) = this->cluster(e);
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      c.dh[v] = c.dc[v] = 0;
      c.bits[v] = this->has(c, v) ? bits_of<1>(l_.masks, this->batch_row(c), this->unit_of(c, v)).at[0] : 0;
    }
  }

  __device__ __forceinline__ void load_kept(const Cluster& c, int step, int64_t row, int64_t row_before,
                                            Kept& kept) const {
    if (!this->active(c, step)) return;
    const int64_t b = this->batch_row(c), H = s_.hidden;
    const bool enters = step == steps_.last[c.row];
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!this->has(c, v)) continue;
      const int64_t unit = this->unit_of(c, v), at = (row + b) * H + unit;
      FRD_UNROLL
      for (int k = 0; k < G; ++k) kept.gates[v][k] = l_.gates[((row + b) * G + k) * H + unit];
      if (INFO.apart) kept.apart[v] = l_.apart[at];
      if (l_.dout) kept.dout[v] = l_.dout[at];
      const int64_t before = enters ? b * H + unit : (row_before + b) * H + unit;
      if (INFO.has_c) {
        kept.before[v] = (enters ? l_.c0 : l_.cells)[before];
      } else {
        kept.before[v] = enters ? l_.h0[before] : widen<float>(l_.states[before]);
      }
    }
  }

  // The gradient at what this unit of the step after read of h, through U.
  __device__ __forceinline__ float through(const Cluster& c, int v, const float* sums) const {
    const float sum = sum_of_warps(s_, sums, c.cluster * V + v, c.row);
    return seen_of(factors_, SCALED<Equations>, hidden_of(l_.masks, factors_, c.bits[v], sum));
  }

  __device__ __forceinline__ void finish(const PersistentForm& x, Cluster& c, int step, int64_t row, const Kept& kept,
                                         uint32_t seen) const {
    const bool ends = step == steps_.first[c.row], enters = step == steps_.last[c.row];
    const float* const sums = this->sums_of(step);
    const Drawn* const drawn = this->drawn_of(step);
    const int64_t b = this->batch_row(c);
    float a[V][G]{}, apart[V]{};
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!this->has(c, v)) continue;
      const int64_t last = b * s_.hidden + this->unit_of(c, v);
      float dh, dmemory = c.dc[v];
      if (ends) {
        dh = l_.dh_n ? seen_of(factors_, SCALED<Equations>, widen<float>(l_.dh_n[last])) : 0.0f;
        if (INFO.has_c && l_.dc_n) dmemory = widen<float>(l_.dc_n[last]);
      } else {
        dh = c.dh[v] + through(c, v, sums);
      }
      const Drops<Math<float>> drops = drops_in(s_, place_, drawn, c.row, this->unit_of(c, v), c.bits[v]);
      const bool drop = written_bit(l_.written, l_.written_per_step ? row + b : b, this->unit_of(c, v), s_.hidden);
      const float shown = l_.dout ? written_of(l_.written, factors_, drop, widen<float>(kept.dout[v])) : 0.0f;
      const float at_out = seen_of(factors_, SCALED<Equations>, shown);
      const float all = factors_.state.unzoned ? dh : dh + at_out;
      const bool keep = drops.of[STATE_ZONE_H];
      float to_new = Zone<Math<float>>::to_new(factors_.state.zone_h, keep, all);
      const float to_old = Zone<Math<float>>::to_old(factors_.state.zone_h, keep, all);
      if (factors_.state.unzoned) to_new += at_out;
      float before = kept.before[v];
      if (enters) before = enter_of(l_.masks, factors_, SCALED<Equations>, c.bits[v], before);
      FRD_UNROLL
      for (int k = 0; k < G; ++k) a[v][k] = widen<float>(kept.gates[v][k]);
      if (INFO.apart) apart[v] = widen<float>(kept.apart[v]);
      dmemory = Equations::backward(factors_.state, drops, a[v], apart[v], before, to_new, dmemory);
      c.dh[v] = INFO.has_c ? to_old : to_old + dmemory;
      c.dc[v] = dmemory;
    }
    FRD_UNROLL
    for (int k = 0; k < G; ++k) {
      D sent[V]{};
      FRD_UNROLL
      for (int v = 0; v < V; ++v) sent[v] = narrow<D>(INFO.apart && k + 1 == G ? apart[v] : a[v][k]);
      this->publish(x, c, k, step, sent, seen);
    }
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!this->has(c, v)) continue;
      // The order of a row of gradients: layer.h.
      const int64_t H = s_.hidden;
      D* const to = l_.dgates + (row + b) * GRADIENTS<Equations> * H + this->unit_of(c, v);
      if (INFO.apart) {
        to[0] = narrow<D>(a[v][G - 1]);
        to[G * H] = narrow<D>(apart[v]);
      }
      FRD_UNROLL
      for (int k = 0; k < G - INFO.apart; ++k) to[(INFO.apart + k) * H] = narrow<D>(a[v][k]);
    }
  }

  // To what a row began with.
  __device__ __forceinline__ void leave(const Cluster& c, int step) const {
    FRD_UNROLL
    for (int v = 0; v < V; ++v) {
      if (!this->has(c, v)) continue;
      const int64_t at = this->batch_row(c) * s_.hidden + this->unit_of(c, v);
      const float dh = c.dh[v] + through(c, v, this->sums_of(step));
      l_.dh0[at] = INFO.has_c ? dh : enter_of(l_.masks, factors_, true, c.bits[v], dh);
      if (INFO.has_c) l_.dc0[at] = enter_of(l_.masks, factors_, false, c.bits[v], c.dc[v]);
    }
  }

  const PersistentBackward<D>& p_;
  const PersistentBackwardDirection<D>& l_;
  Factors<float> factors_;
  Cluster clusters_[EACH];
};

template <class Equations, class D, class Tiles>
__global__ void __launch_bounds__(PERSISTENT_THREADS, 1)
    persistent_backward_kernel(const __grid_constant__ PersistentBackward<D> p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // older ones have no such products
  FRD_DYNAMIC_SHARED(unsigned char, shared);
  BackwardBlock<Equations, D, Tagged, Tiles>(p, shared).run();
#endif
}

template <class D>
cudaError_t persistent_backward(Cell cell, const PersistentPlan& plan, const PersistentBackward<D>& p,
                                cudaStream_t stream) {
  return EveryCell::with<float>(cell, [&](auto equations) {
    using Equations = decltype(equations);
    constexpr bool FLOAT32 = sizeof(D) == 4;
    return launch_persistent(plan.kernel == 0
                                 ? persistent_backward_kernel<Equations, D, TilesOf<true, false, FLOAT32, 0>>
                                 : persistent_backward_kernel<Equations, D, TilesOf<true, false, FLOAT32, 1>>,
                             plan, p, stream);
  });
}

}  // namespace frd::cuda
