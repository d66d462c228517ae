// What rows multiply with in their first step, in the order of exchanged words.
#include "cuda/operand_words.h"
#include "cuda/persistent_kernels.h"

namespace frd::cuda {
namespace {

// A thread makes a word, of row blockIdx.y of a group and direction.
template <class D, class Word>
__global__ void first_words_kernel(FirstWords<D> p) {
  using Words = OperandWords<D, Word>;
  using S = State<D>;
  const PersistentShape& s = p.shape;
  const int64_t word = FRD_UNIT_GROUP, count = int64_t{s.chunks} * CHUNK_WORDS;
  if (word >= count) return;
  const int rows = s.batch_tiles * TILE_ROWS;
  const int block = static_cast<int>(word / s.clusters), cluster = static_cast<int>(word % s.clusters);
  const auto make = [&](const typename FirstWords<D>::Direction& d, int64_t group, int64_t of_direction, int row) {
    const int64_t b = of_direction * s.rows + row;
    const bool has_row = row < s.rows && b < s.batch;
    const Factors<S> factors = factors_of(d.masks);
    D values[Words::VALUES];
    FRD_UNROLL
    for (int v = 0; v < Words::VALUES; ++v) {
      values[v] = narrow<D>(S(0));
      const int of_block = cluster * Words::VALUES + v;
      const int64_t unit = int64_t{block} * s.units + of_block;
      if (!has_row || block >= s.unit_groups || of_block >= s.units || unit >= s.hidden) continue;
      const uint8_t bits = bits_of<1>(d.masks, b, unit).at[0];
      S h = d.h0[b * s.hidden + unit];
      if (d.scaled) h = seen_of(factors, true, enter_of(d.masks, factors, true, bits, h));
      const bool dropped = draws(d.masks.flags, FLAG_HIDDEN) && (bits & BIT_HIDDEN);
      values[v] = narrow<D>(dropped ? S(0) : h);
    }
    static_cast<typename Word::Bits*>(
        p.words)[group * slot_size(s) + Words::place(s.chunks, row, static_cast<int>(word))] =
        Words::pack(values, false);
  };
  for (int64_t i = blockIdx.y; i < int64_t{rows} * s.batch_groups; i += gridDim.y) {
    const int64_t group = i / rows;
    const int row = static_cast<int>(i % rows);
    if (blockIdx.z == 0) {
      make(p.direction[0], group, group, row);
    } else {
      make(p.direction[1], s.batch_groups + group, group, row);
    }
  }
}

}  // namespace

template <class D>
cudaError_t first_words(const FirstWords<D>& p, int directions, cudaStream_t stream) {
  const int64_t rows = int64_t{p.shape.batch_tiles} * TILE_ROWS * p.shape.batch_groups;
  const dim3 grid(blocks_in_line(int64_t{p.shape.chunks} * CHUNK_WORDS),
                  static_cast<unsigned>(rows < MOST_BLOCKS ? rows : MOST_BLOCKS), static_cast<unsigned>(directions));
  using Narrow = std::conditional_t<sizeof(D) == 2, PhasedPair, PhasedFloat>;
  return p.narrow ? FRD_LAUNCH((first_words_kernel<D, Narrow>), grid, block_in_line(), 0, stream, p)
                  : FRD_LAUNCH((first_words_kernel<D, Tagged>), grid, block_in_line(), 0, stream, p);
}

template cudaError_t first_words(const FirstWords<float>&, int, cudaStream_t);
template cudaError_t first_words(const FirstWords<__half>&, int, cudaStream_t);
template cudaError_t first_words(const FirstWords<__nv_bfloat16>&, int, cudaStream_t);

}  // namespace frd::cuda
