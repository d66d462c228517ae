// Which N units of a row a thread of a step kernel takes: neighbours, which move together, or units that are a warp
// apart, each by itself, in rows of any width at any address. Either way a warp takes 32 N neighbouring units, so that
// whole calls of Philox are its own and what it reads and writes lies together.
#pragma once

#include "cuda/numbers.h"
#include "cuda/rows.h"

namespace frd::cuda {

// How many a thread takes that are apart: the sites of two units fill the lanes of a warp with calls.
inline constexpr int APART = 2;

template <int N, bool TOGETHER>
struct Units {
  static constexpr int OF_WARP = BLOCK_UNITS * N;
  int64_t first;
  int64_t left;  // of the row, from `first` on

  // Of a row of `width` units, in a grid of grid_of_rows().
  __device__ __forceinline__ static Units of(int64_t width) {
    // With blockDim.x, which is BLOCK_UNITS: of a sum whose parts cannot carry nvcc makes an `or`, and no longer sees
    // that N stores are neighbours.
    const int64_t first = TOGETHER ? FRD_UNIT_GROUP * N : static_cast<int64_t>(blockIdx.x) * OF_WARP + threadIdx.x;
    return {first, width - first};
  }
  // How far the i-th lies from the first.
  FRD_INLINE constexpr int64_t away(int i) { return TOGETHER ? i : i * static_cast<int64_t>(BLOCK_UNITS); }
};

// N numbers of an array of which `p` is that of a thread's first unit; 0 for units beyond the row.
template <int N, bool TOGETHER, class T>
FRD_INLINE Pack<T, N> load(const Units<N, TOGETHER>& units, const T* p) {
  if constexpr (TOGETHER) {
    return load<N>(p);
  } else {
    Pack<T, N> found{};
    FRD_UNROLL
    for (int i = 0; i < N; ++i)
      if (units.away(i) < units.left) found.at[i] = p[units.away(i)];
    return found;
  }
}
// The same in the type that is computed with.
template <class S, int N, bool TOGETHER, class D>
FRD_INLINE Pack<S, N> load_as(const Units<N, TOGETHER>& units, const D* p) {
  const Pack<D, N> loaded = load(units, p);
  Pack<S, N> wide;
  FRD_UNROLL
  for (int i = 0; i < N; ++i) wide.at[i] = widen<S>(loaded.at[i]);
  return wide;
}
template <int N, bool TOGETHER, class D, class S>
FRD_INLINE void store(const Units<N, TOGETHER>& units, D* p, const Pack<S, N>& values) {
  if constexpr (TOGETHER) {
    store<N>(p, values);
  } else {
    FRD_UNROLL
    for (int i = 0; i < N; ++i)
      if (units.away(i) < units.left) p[units.away(i)] = narrow<D>(values.at[i]);
  }
}

}  // namespace frd::cuda
