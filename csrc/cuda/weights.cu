// Weight dropout: a weight, or the gradient of one, times its mask and scale, rounded once to the type that the matrix
// products or the parameter have. A thread takes the eight neighbouring columns that one Philox call serves, or half of
// them where they are float64.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

template <class From, class To>
inline constexpr int COLUMNS = std::is_same_v<From, double> || std::is_same_v<To, double> ? 4 : FIELDS;

template <bool WIDE_LOADS, class From, class To>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) masked_weight_kernel(MaskedWeight p) {
  using S = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  constexpr int N = COLUMNS<From, To>;
  const int64_t column = FRD_UNIT_GROUP * N, columns = p.columns - column;
  if (columns <= 0) return;
  const Key key = p.on ? *p.key : Key{0, 0};
  const uint64_t threshold = p.on ? *p.threshold : 0;
  const S scale = p.on ? S(*p.scale) : S(1);
  FRD_EACH_ROW(row, 0, p.rows) {
    const int64_t moved = row + p.rotation, target_row = moved < p.rows ? moved : moved - p.rows;
    const From* const from = static_cast<const From*>(p.source) + row * p.source_stride + column;
    To* const to = static_cast<To*>(p.target) + target_row * p.target_stride + column;
    Pack<S, N> values{};
    if constexpr (WIDE_LOADS) {
      values = load_as<N, S>(from);
    } else {
      for (int i = 0; i < N && i < columns; ++i) values.at[i] = widen<S>(from[i]);
    }
    if (p.on) {
      const uint32_t r = static_cast<uint32_t>(row), call = static_cast<uint32_t>(column / FIELDS);
      const uint32_t drawn =
          dropped_of_call(p.by_row ? r / FIELDS : call, p.by_row ? 0 : r, SEQ, p.stream, key, threshold);
      const uint32_t drop = p.by_row ? 0u - (drawn >> r % FIELDS & 1) : drawn >> column % FIELDS;
      FRD_UNROLL
      for (int i = 0; i < N; ++i) values.at[i] = (drop >> i & 1) ? S(0) : scale * values.at[i];
    }
    if constexpr (WIDE_LOADS) {
      store<N>(to, values);
    } else {
      for (int i = 0; i < N && i < columns; ++i) to[i] = narrow<To>(values.at[i]);
    }
  }
}

}  // namespace

cudaError_t masked_weight(const MaskedWeight& p, cudaStream_t stream) {
  if (p.rows == 0 || p.columns == 0) return cudaSuccess;
  return with_type(p.source_type, [&](auto from) {
    return with_type(p.target_type, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      constexpr int N = COLUMNS<From, To>;
      const bool wide = p.columns % N == 0 && wide_enough<N>(p.source_stride, static_cast<const From*>(p.source)) &&
                        wide_enough<N>(p.target_stride, static_cast<const To*>(p.target));
      const auto kernel = wide ? masked_weight_kernel<true, From, To> : masked_weight_kernel<false, From, To>;
      return FRD_LAUNCH(kernel, grid_of_rows((p.columns + N - 1) / N, p.rows), block_of_rows(), 0, stream, p);
    });
  });
}

}  // namespace frd::cuda
