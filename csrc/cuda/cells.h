// The cells that there are kernels for: core/cells/<cell>.h in the numbers of a device.
#pragma once

#include "core/cells.h"
#include "core/cells/gru.h"
#include "core/cells/lstm.h"
#include "core/cells/rnn.h"
#include "cuda/numbers.h"

namespace frd::cuda {

template <template <class Math> class... Cells>
struct CellList {
  static_assert(sizeof...(Cells) == NUM_CELLS);

  // Calls f with a value of the type that has the equations of `cell`, computed in S.
  template <class S, class F>
  static cudaError_t with(Cell cell, F&& f) {
    cudaError_t result = cudaErrorInvalidValue;
    ((Cells<Math<S>>::CELL == cell ? void(result = f(Cells<Math<S>>{})) : void()), ...);
    return result;
  }
};

using EveryCell = CellList<Lstm, Gru, RnnTanh, RnnRelu>;

// What a kernel asks of a row of CELLS: not its functions, which run on the host.
template <class Equations>
inline constexpr bool SCALED = CELLS[Equations::CELL].scaled();
template <class Equations>
inline constexpr int GRADIENTS = CELLS[Equations::CELL].gradients();

}  // namespace frd::cuda
