// Weight dropout: a weight, or the gradient of one, times its mask and scale, rounded once to the type that the matrix
// products or the parameter have. Where vectors divide the rows, a thread takes the eight neighbouring columns that one
// Philox call serves, or half of them where they are float64; elsewhere a warp takes a span of spans.h.
#include "cuda/kernels.h"
#include "cuda/spans.h"

namespace frd::cuda {
namespace {

template <class From, class To>
inline constexpr int COLUMNS = std::is_same_v<From, double> || std::is_same_v<To, double> ? 4 : FIELDS;

// The bits of the columns of call number `call` of a row.
FRD_INLINE uint32_t dropped_columns(const MaskedWeight& p, int64_t row, int64_t call, Key key, uint64_t threshold) {
  if (!p.on) return 0;
  const uint32_t r = static_cast<uint32_t>(row), c = static_cast<uint32_t>(call);
  const uint32_t drawn = dropped_of_call(p.by_row ? r / FIELDS : c, p.by_row ? 0 : r, SEQ, p.stream, key, threshold);
  return p.by_row ? 0u - (drawn >> r % FIELDS & 1) : drawn;
}

FRD_INLINE int64_t target_row(const MaskedWeight& p, int64_t row) {
  const int64_t moved = row + p.rotation;
  return moved < p.rows ? moved : moved - p.rows;
}

template <bool WIDE_LOADS, class From, class To>
__global__ void __launch_bounds__(BLOCK_UNITS* BLOCK_ROWS) masked_weight_kernel(MaskedWeight p) {
  using S = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  const Key key = p.on ? *p.key : Key{0, 0};
  const uint64_t threshold = p.on ? *p.threshold : 0;
  const S scale = p.on ? S(*p.scale) : S(1);
  const From* const source = static_cast<const From*>(p.source);
  To* const target = static_cast<To*>(p.target);
  if constexpr (WIDE_LOADS) {
    constexpr int N = COLUMNS<From, To>;
    const int64_t column = FRD_UNIT_GROUP * N;
    if (column >= p.columns) return;
    FRD_EACH_ROW(row, 0, p.rows) {
      Pack<S, N> values = load_as<N, S>(source + row * p.source_stride + column);
      const uint32_t drop = dropped_columns(p, row, column / FIELDS, key, threshold) >> column % FIELDS;
      FRD_UNROLL
      for (int i = 0; i < N; ++i) values.at[i] = (drop >> i & 1) ? S(0) : scale * values.at[i];
      store<N>(target + target_row(p, row) * p.target_stride + column, values);
    }
  } else {
    const auto draw = [&](int64_t row, int64_t call) { return dropped_columns(p, row, call, key, threshold); };
    FRD_EACH_ROW(span, 0, spans_of(p.rows, p.columns)) {
      each_of_span(span, p.rows, p.columns, draw, [&](int64_t row, int64_t column, bool drop) {
        const S value = widen<S>(source[row * p.source_stride + column]);
        target[target_row(p, row) * p.target_stride + column] = narrow<To>(drop ? S(0) : scale * value);
      });
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
      if (wide)
        return FRD_LAUNCH((masked_weight_kernel<true, From, To>), grid_of_rows(p.columns / N, p.rows), block_of_rows(),
                          0, stream, p);
      return FRD_LAUNCH((masked_weight_kernel<false, From, To>), grid_of_spans(p.rows, p.columns), block_of_rows(), 0,
                        stream, p);
    });
  });
}

}  // namespace frd::cuda
