// The masks of a step, drawn by the lanes of a warp together. A call of Philox serves eight neighbouring units of one
// site, and a warp has a row's 32 N of them: each lane makes another call, of another site where there are fewer calls
// than lanes, and then they tell each other. All 32 lanes must come, those beyond the end of a row too.
#pragma once

#include "cuda/masks.h"
#include "cuda/units.h"

namespace frd::cuda {

// The bytes of masks per sequence of a thread's units.
template <int N, bool TOGETHER, class S>
FRD_INLINE Pack<uint8_t, N> bits_of(const StateMasks<S>& masks, const Units<N, TOGETHER>& units, int64_t b) {
  return masks.bits ? load(units, masks.bits + b * masks.width + units.first) : Pack<uint8_t, N>{};
}

inline constexpr unsigned WHOLE_WARP = 0xFFFFFFFFu;

// What the sites that draw at a step drop, or keep the old value of, in batch row b.
template <int N, bool TOGETHER, class S>
__device__ __forceinline__ static Drawn drawn_at(const StateMasks<S>& masks, const Units<N, TOGETHER>&, int64_t b) {
  constexpr int LANES = BLOCK_UNITS, CALLS = Units<N, TOGETHER>::OF_WARP / FIELDS;     // the latter of a site
  constexpr int SITES = LANES / CALLS, TURNS = (NUM_STATE_SITES + SITES - 1) / SITES;  // the former in a turn
  static_assert(LANES % CALLS == 0 && Units<N, TOGETHER>::OF_WARP % FIELDS == 0);
  if (!masks.count) return 0;
  const int lane = static_cast<int>(threadIdx.x);
  const Key key = masks.call->state;
  const Words begun =
      philox_begin(blockIdx.x * CALLS + lane % CALLS, example_of(masks.example_ids, b), masks.step_product, key);
  Drawn found = 0;
  FRD_ROLLED
  for (int turn = 0; turn < TURNS; ++turn) {
    const int number = turn * SITES + lane / CALLS;
    if (number >= masks.count) break;
    const StepDraw draw = load_whole(&masks.call->draws[masks.first + number]);
    const auto words_of = [&](uint32_t stream) { return philox_of_stream(begun, stream, key); };
    found |= Drawn{dropped_of_words(words_of, draw.stream, draw.upper, draw.lower)} << FIELDS * draw.site;
  }
  // The lanes of a call have all of its sites, then every lane the calls of its units.
  FRD_UNROLL
  for (int apart = CALLS; apart < LANES; apart *= 2) found |= __shfl_xor_sync(WHOLE_WARP, found, apart);
  if constexpr (TOGETHER) {
    const int unit = lane * N;
    return __shfl_sync(WHOLE_WARP, found, unit / FIELDS) >> unit % FIELDS;
  } else {
    constexpr Drawn OF_EACH_SITE = ~Drawn{0} / 0xFF;
    Drawn mine = 0;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      const int unit = lane + i * LANES;
      mine |= (__shfl_sync(WHOLE_WARP, found, unit / FIELDS) >> unit % FIELDS & OF_EACH_SITE) << i;
    }
    return mine;
  }
}

// Which of a thread's units the site on what is written drops, bit i for the i-th, from the masks of a step's rows
// (WrittenMasks, kernels.h).
template <int N, bool TOGETHER>
FRD_INLINE uint32_t written_bits(const uint8_t* masks, const Units<N, TOGETHER>& units, int64_t b, int64_t width) {
  if (!masks) return 0;
  const uint8_t* const row = masks + b * bytes_of_bits(width);
  if constexpr (TOGETHER) {
    return row[units.first / FIELDS] >> units.first % FIELDS;
  } else {
    uint32_t found = 0;
    FRD_UNROLL
    for (int i = 0; i < N; ++i) {
      const int64_t unit = units.first + units.away(i);
      if (unit < width) found |= (row[unit / FIELDS] >> unit % FIELDS & 1u) << i;
    }
    return found;
  }
}

// What a layer writes as the site on it leaves it, or its gradient.
template <class S>
FRD_INLINE S written_of(const uint8_t* masks, const Factors<S>& factors, bool drop, S value) {
  if (!masks) return value;
  return drop ? S(0) : factors.written * value;
}

}  // namespace frd::cuda
