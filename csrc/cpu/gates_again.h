// The gates of a chunk of steps computed once more, for a backward whose forward kept only the states.
#pragma once

#include <cstdint>

#include "cpu/chunks.h"
#include "cpu/layer.h"
#include "cpu/pack.h"
#include "cpu/products.h"
#include "cpu/simd.h"
#include "cpu/tiles.h"

namespace frd::cpu::FRD_ISA {

template <class T, class Cell>
class GatesAgain {
  using V = Vec<T>;
  static constexpr int G = Cell::G;

 public:
  // largest: the rows of the largest chunk.
  GatesAgain(const LayerBackward<T>& p, const Cell& cell, const MaskedWeight<T>& w_ih, const MaskedWeight<T>& w_hh,
             int64_t largest)
      : p_(p),
        cell_(cell),
        w_ih_(p.parallel, w_ih, sparing_packing(p, w_ih)),
        w_hh_(p.parallel, w_hh, sparing_packing(p, w_hh)),
        gates_(scratch<T>(largest * G * p.units)),
        apart_(scratch<T>(Cell::INFO.apart ? largest * p.units : 0)) {}

  // x [chunk.rows, I], operand [chunk.rows, P]: what the products read.
  void run(const Chunk& chunk, const T* x, const T* operand) {
    const int64_t H = p_.units;
    input_product<G>(p_.parallel, x, chunk.rows, w_ih_, cell_.bias(), gates_.get());
    gate_products<G>(p_.parallel, operand, chunk.rows, w_hh_, [&](int64_t row, int64_t u, const V* sums) {
      const int64_t n = H - u;
      T* gates = &gates_[row * G * H + u];
      V a[G];
      const V apart = Cell::preactivations(gates, H, n, sums, cell_.bias_apart(u, n), a);
      Cell::Equations::activate(a, apart);
#pragma GCC unroll 8
      for (int v = 0; v < G; ++v) store(gates + v * H, a[v], n);
      if (Cell::INFO.apart) store(&apart_[row * H + u], apart, n);
    });
  }

  // Of the chunk, [rows, GH] and [rows, H]: activated gates, which the caller may write over, and what the last gate
  // takes apart.
  T* gates() { return gates_.get(); }
  const T* apart() const { return apart_.get(); }

 private:
  const LayerBackward<T>& p_;
  const Cell& cell_;
  const GateTiles<G, T> w_ih_, w_hh_;
  Buffer<T> gates_, apart_;
};

}  // namespace frd::cpu::FRD_ISA
