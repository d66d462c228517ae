// A cell as the passes over time use it: the equations of core/cells/<cell>.h with one layer's sites, masks and biases.
#pragma once

#include <cstdint>

#include "core/cells.h"
#include "core/sites.h"
#include "cpu/chunks.h"
#include "cpu/layer.h"
#include "cpu/masks.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

template <class D, template <class Math> class Cells>
class LayerCell {
  using S = Arithmetic<D>;
  using V = Vec<D>;

 public:
  using Math = SimdMath<S>;
  using Equations = Cells<Math>;
  static constexpr CellInfo INFO = CELLS[Equations::CELL];
  static constexpr int G = INFO.gates;
  static constexpr int SUMMED = G - INFO.apart;  // gates whose two halves, and so whose two biases, are added at once

  // most: rows of the largest chunk of steps.
  LayerCell(const LayerInputs<D>& p, int64_t most)
      : sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, p.sequence, p.units, most),
        bias_apart_(INFO.apart && p.b_hh ? p.b_hh + SUMMED * p.units : nullptr),
        has_bias_(p.b_ih),
        bias_(scratch<S>(p.b_ih ? G * p.units : 0)) {
    for (int64_t i = 0; p.b_ih && i < G * p.units; ++i)
      bias_[i] = i < SUMMED * p.units ? p.b_ih[i] + p.b_hh[i] : p.b_ih[i];
  }

  const StateSites<Math>& sites() const { return sites_; }
  // Draws the masks of the steps of a chunk, which are there until the next.
  void draw(const Chunk& chunk) { masks_.draw(chunk); }
  FRD_MEMBER Drops<Math> drops(int64_t t, int64_t b, int64_t u) const { return masks_.drops(t, b, u); }

  // What is added to W x, [GH] or null, and what to the part of U h that the last gate takes apart.
  const S* bias() const { return has_bias_ ? bias_.get() : nullptr; }
  FRD_MEMBER V bias_apart(int64_t u, int64_t n) const { return bias_apart_ ? load(bias_apart_ + u, n) : V{}; }

  // The state as others see it: the recurrent product, the output and the caller. It is its own gradient.
  FRD_MEMBER V seen(V h) const { return INFO.has_c ? h : sites_.read_scale * h; }
  // The state as the recurrent product reads it, and the gradient that comes back from there.
  FRD_MEMBER V read(int64_t b, int64_t u, V h) const { return masks_.hidden(b, u, seen(h)); }
  FRD_MEMBER V through(int64_t b, int64_t u, V grad) const { return seen(masks_.hidden(b, u, grad)); }
  // A caller's h_0 and c_0 as the recurrence carries them, and the gradients that leave for them.
  FRD_MEMBER V enter_h(int64_t b, int64_t u, V h) const {
    return INFO.has_c ? h : enter<Math>(masks_.dead_units(), sites_.entry_scale, masks_.dead(b, u), h);
  }
  FRD_MEMBER V enter_c(int64_t b, int64_t u, V c) const {
    return enter<Math>(masks_.dead_units(), S(1), masks_.dead(b, u), c);
  }

  // The loops over gates, here and in the passes, are unrolled by name: an array that is read at a place which the
  // compiler does not know lies in memory.

  // What the cell is given at n units: of each gate W x + b, H apart from `gates` on, and the sums of U h; `bias` is
  // bias_apart(...) of the units. Returns what the last gate takes apart.
  FRD_INLINE V preactivations(const S* gates, int64_t H, int64_t n, const V* sums, V bias, V* a) {
#pragma GCC unroll 8
    for (int v = 0; v < G; ++v) {
      a[v] = load(gates + v * H, n);
      if (v < SUMMED) a[v] += sums[v];
    }
    return INFO.apart ? sums[G - 1] + bias : V{};
  }

 private:
  const StateSites<Math> sites_;
  StateMasks<S> masks_;
  const S* const bias_apart_;
  const bool has_bias_;
  const Buffer<S> bias_;
};

}  // namespace frd::cpu::FRD_ISA
