// Weight dropout: a weight, or the gradient of one, times its mask and scale, rounded once to the type that the matrix
// products or the parameter have. A thread takes four neighbouring columns, the share of one Philox call.
#include "cuda/kernels.h"

namespace frd::cuda {
namespace {

constexpr int QUAD = 4;

template <bool WIDE_LOADS, class From, class To>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) masked_weight_kernel(MaskedWeight p) {
  using S = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  const int64_t column = FRD_UNIT_GROUP * QUAD, columns = p.columns - column;
  if (columns <= 0) return;
  const Key key = p.on ? *p.key : Key{0, 0};
  const uint64_t threshold = p.on ? *p.threshold : 0;
  const S scale = p.on ? S(*p.scale) : S(1);
  FRD_EACH_ROW(row, 0, p.rows) {
    const int64_t moved = row + p.rotation, target_row = moved < p.rows ? moved : moved - p.rows;
    const From* const from = static_cast<const From*>(p.source) + row * p.source_stride + column;
    To* const to = static_cast<To*>(p.target) + target_row * p.target_stride + column;
    Pack<S, QUAD> values{};
    if constexpr (WIDE_LOADS) {
      values = load_as<QUAD, S>(from);
    } else {
      for (int i = 0; i < QUAD && i < columns; ++i) values.at[i] = widen<S>(from[i]);
    }
    if (p.on && p.by_row) {
      const Words words = philox(static_cast<uint32_t>(row / 4), p.kind - KIND_WEIGHT_HH, SEQ, p.stream, key);
      const uint32_t word =
          row % 4 < 2 ? (row % 4 ? words.w[1] : words.w[0]) : (row % 4 == 3 ? words.w[3] : words.w[2]);
      FRD_UNROLL
      for (int i = 0; i < QUAD; ++i) values.at[i] = dropped(word, threshold) ? S(0) : scale * values.at[i];
    } else if (p.on) {
      const Words words = philox(static_cast<uint32_t>(column / 4), static_cast<uint32_t>(row), SEQ, p.stream, key);
      FRD_UNROLL
      for (int i = 0; i < QUAD; ++i) values.at[i] = dropped(words.w[i], threshold) ? S(0) : scale * values.at[i];
    }
    if constexpr (WIDE_LOADS) {
      store<QUAD>(to, values);
    } else {
      for (int i = 0; i < QUAD && i < columns; ++i) to[i] = narrow<To>(values.at[i]);
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
      const bool wide = p.columns % QUAD == 0 &&
                        wide_enough<QUAD>(p.source_stride, static_cast<const From*>(p.source)) &&
                        wide_enough<QUAD>(p.target_stride, static_cast<const To*>(p.target));
      const auto kernel = wide ? masked_weight_kernel<true, From, To> : masked_weight_kernel<false, From, To>;
      return FRD_LAUNCH(kernel, grid_of_rows((p.columns + QUAD - 1) / QUAD, p.rows), block_of_rows(), 0, stream, p);
    });
  });
}

}  // namespace frd::cuda
