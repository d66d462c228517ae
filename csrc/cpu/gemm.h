// The product of a few rows with a tile of packed weights, and the packing.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.
//
// A tile holds NV * LANES columns of B [K, N], row after row: [K][NV][LANES], so that a step reads it front to back.

// Rows that share one reading of a tile: as many accumulators as the registers hold.
#if FRD_LANES == 16
inline constexpr int ROWS = 6;  // 32 registers: 6 x 4 accumulators, 4 of weights, 1 broadcast
#else
inline constexpr int ROWS = 3;  // 16 registers: 3 x 4 accumulators, the weights from memory, 1 broadcast
#endif

template <int MR, int NV, class T>
FRD_INLINE void multiply_rows(const T* const* a, const T* tile, int64_t k, Vec<T> (*sums)[NV]) {
  Vec<T> acc[MR][NV] = {};
  for (int64_t kk = 0; kk < k; ++kk) {
    Vec<T> weights[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) weights[v] = load(tile + (kk * NV + v) * LANES);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const T value = a[m][kk];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += value * weights[v];
    }
  }
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) sums[m][v] = acc[m][v];
}

// sums[m] = a[m][0..k) * tile for m < rows <= ROWS. The order of the sum over k is the same whatever `rows` is, so a
// result does not depend on how a batch is split.
template <int NV, class T>
__attribute__((noinline)) static void multiply_tile(int64_t rows, const T* const* a, const T* tile, int64_t k,
                                                    Vec<T> (*sums)[NV]) {
  switch (rows) {
  case 1:
    return multiply_rows<1, NV, T>(a, tile, k, sums);
  case 2:
    return multiply_rows<2, NV, T>(a, tile, k, sums);
  case 3:
    return multiply_rows<3, NV, T>(a, tile, k, sums);
#if FRD_LANES == 16
  case 4:
    return multiply_rows<4, NV, T>(a, tile, k, sums);
  case 5:
    return multiply_rows<5, NV, T>(a, tile, k, sums);
  case 6:
    return multiply_rows<6, NV, T>(a, tile, k, sums);
#endif
  }
}

// Rows [begin, end) of a product with one tile, `each(row, sums)` called with each row's NV registers. `row(b)` points
// to the k numbers of row b.
template <int NV, class T, class Row, class Each>
FRD_INLINE void product(int64_t begin, int64_t end, Row&& row, const T* tile, int64_t k, Each&& each) {
  for (int64_t first = begin; first < end; first += ROWS) {
    const int64_t rows = end - first < ROWS ? end - first : ROWS;
    const T* a[ROWS];
    for (int64_t m = 0; m < rows; ++m) a[m] = row(first + m);
    Vec<T> sums[ROWS][NV];
    multiply_tile<NV, T>(rows, a, tile, k, sums);
    for (int64_t m = 0; m < rows; ++m) each(first + m, sums[m]);
  }
}

inline int64_t tiles_of(int64_t columns, int64_t width) { return (columns + width - 1) / width; }

template <class T>
using Buffer = std::unique_ptr<T[], void (*)(T*)>;

// Cache-line aligned scratch, not initialised.
template <class T>
Buffer<T> scratch(int64_t n) {
  const size_t bytes = static_cast<size_t>(n > 0 ? n : 1) * sizeof(T);
  void* p = ::operator new(bytes, std::align_val_t{64});
  return Buffer<T>(static_cast<T*>(p), [](T* q) { ::operator delete(q, std::align_val_t{64}); });
}

// Forward: the columns of a tile are LANES units of each gate. w is [NV * units, k]; tile [unit / LANES][k][NV][LANES].
template <int NV, class T>
Buffer<T> pack_gates(const Parallel& parallel, const T* w, int64_t units, int64_t k) {
  const int64_t tiles = tiles_of(units, LANES);
  Buffer<T> packed = scratch<T>(tiles * k * NV * LANES);
  T* const target = packed.get();
  parallel.each(tiles, k * NV * LANES, [=](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile)
      for (int v = 0; v < NV; ++v)
        for (int lane = 0; lane < LANES; ++lane) {
          const int64_t unit = tile * LANES + lane;
          T* to = target + (tile * k * NV + v) * LANES + lane;
          const T* from = unit < units ? w + (v * units + unit) * k : nullptr;
          for (int64_t kk = 0; kk < k; ++kk) to[kk * NV * LANES] = from ? from[kk] : T(0);
        }
  });
  return packed;
}

// Backward, and projections: the columns of a tile are NV * LANES neighbours. w is [k, columns].
template <int NV, class T>
Buffer<T> pack_columns(const Parallel& parallel, const T* w, int64_t k, int64_t columns) {
  constexpr int64_t width = NV * LANES;
  const int64_t tiles = tiles_of(columns, width);
  Buffer<T> packed = scratch<T>(tiles * k * width);
  T* const target = packed.get();
  parallel.each(tiles, k * width, [=](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * width, n = columns - first < width ? columns - first : width;
      for (int64_t kk = 0; kk < k; ++kk) {
        T* to = target + (tile * k + kk) * width;
        for (int64_t j = 0; j < width; ++j) to[j] = j < n ? w[kk * columns + first + j] : T(0);
      }
    }
  });
  return packed;
}

// The transpose of [rows, columns], so that a projection packs like any other product.
template <class T>
Buffer<T> transposed(const Parallel& parallel, const T* w, int64_t rows, int64_t columns) {
  Buffer<T> out = scratch<T>(rows * columns);
  T* const target = out.get();
  parallel.each(columns, rows, [=](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      for (int64_t r = 0; r < rows; ++r) target[c * rows + r] = w[r * columns + c];
  });
  return out;
}

// Into how many groups a step's tiles are cut: one per thread, fewer where a step is too small to share.
inline int groups_for(const Parallel& parallel, int64_t tiles, double step_flops) {
  constexpr double worth_sharing = 2e4;  // below about a microsecond, meeting costs more than it saves
  const int64_t threads = step_flops < worth_sharing ? 1 : parallel.threads;
  return static_cast<int>(threads < tiles ? threads : (tiles > 0 ? tiles : 1));
}

// The share of [0, n) that belongs to `group`.
inline int64_t share(int64_t n, int group, int groups) { return n * group / groups; }
