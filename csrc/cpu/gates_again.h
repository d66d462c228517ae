// The gates of a chunk of steps computed once more, for a backward whose forward kept only the states.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/chunks.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"
#include "cpu/products.h"
#include "cpu/simd.h"
#include "cpu/tiles.h"

namespace frd::cpu::FRD_ISA {

template <class D, class Cell>
class GatesAgain {
  using S = Arithmetic<D>;
  using V = Vec<D>;
  static constexpr int G = Cell::G;
  static constexpr bool IN_PLACE = std::is_same_v<D, S>;  // W x + b lies where the gates will

 public:
  // largest: the rows of the largest chunk.
  GatesAgain(const LayerBackward<D>& p, const Cell& cell, const MaskedWeight<D>& w_ih, const MaskedWeight<D>& w_hh,
             int64_t largest)
      : p_(p),
        cell_(cell),
        w_ih_(p.parallel, w_ih, sparing_packing(p, w_ih)),
        w_hh_(p.parallel, w_hh, sparing_packing(p, w_hh)),
        inputs_(scratch<S>(IN_PLACE ? 0 : largest * G * p.units)),
        gates_(scratch<D>(largest * G * p.units)),
        apart_(scratch<D>(Cell::INFO.apart ? largest * p.units : 0)) {}

  // x [chunk.rows, I], operand [chunk.rows, P]: what the products read.
  void run(const Chunk& chunk, const D* x, const D* operand) {
    const int64_t H = p_.units;
    S* inputs = inputs_.get();
    if constexpr (IN_PLACE) inputs = gates_.get();
    input_product<G>(p_.parallel, x, chunk.rows, w_ih_, cell_.bias(), inputs);
    gate_products<G>(p_.parallel, operand, chunk.rows, w_hh_, [&](int64_t row, int64_t u, const V* sums) {
      const int64_t n = H - u;
      D* gates = &gates_[row * G * H + u];
      V a[G];
      const V apart = Cell::preactivations(inputs + row * G * H + u, H, n, sums, cell_.bias_apart(u, n), a);
      Cell::Equations::activate(a, apart);
#pragma GCC unroll 8
      for (int v = 0; v < G; ++v) store(gates + v * H, a[v], n);
      if (Cell::INFO.apart) store(&apart_[row * H + u], apart, n);
    });
  }

  // Of the chunk, [rows, GH] and [rows, H]: activated gates, which the caller may write over, and what the last gate
  // takes apart.
  D* gates() { return gates_.get(); }
  const D* apart() const { return apart_.get(); }

 private:
  const LayerBackward<D>& p_;
  const Cell& cell_;
  const GateTiles<G, D> w_ih_, w_hh_;
  Buffer<S> inputs_;  // [rows of a chunk, GH]: W x + b
  Buffer<D> gates_, apart_;
};

}  // namespace frd::cpu::FRD_ISA
