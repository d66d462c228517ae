// Masks, many elements at a time, as bits: what core/counters.h says of one element. Masks of the state are drawn ahead
// of the steps that read them.
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "core/flags.h"
#include "core/rows.h"
#include "core/sites.h"
#include "cpu/buffer.h"
#include "cpu/chunks.h"
#include "cpu/layer.h"
#include "cpu/simd.h"

namespace frd::cpu::FRD_ISA {

struct VecWords {
  VecU w[4];
};

// The key of each round, in memory: an instruction that reads one broadcasts it for nothing.
struct RoundKeys {
  uint32_t k0[PHILOX_ROUNDS], k1[PHILOX_ROUNDS];

  explicit RoundKeys(Key key) {
    for (int round = 0; round < PHILOX_ROUNDS; ++round) {
      k0[round] = key.k0 + static_cast<uint32_t>(round) * PHILOX_W0;
      k1[round] = key.k1 + static_cast<uint32_t>(round) * PHILOX_W1;
    }
  }
};

FRD_INLINE VecU lane_numbers() {
  VecU lanes{};
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane;
  return lanes;
}

#if defined(__x86_64__) && FRD_LANES >= 8
// The 64-bit product instructions read the even lanes, so that even and odd counters go their own way, each number in
// the low half of 64 bits, whose high half is never read.
#if FRD_LANES == 16
typedef __m512i Wide;
FRD_INLINE Wide wide(VecU x) { return (Wide)x; }
FRD_INLINE Wide wide(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
FRD_INLINE Wide times(Wide x, uint32_t constant) { return _mm512_mul_epu32(x, wide(constant)); }
FRD_INLINE Wide high(Wide x) { return _mm512_srli_epi64(x, 32); }
FRD_INLINE Wide exclusive_or(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
FRD_INLINE VecU together(Wide even, Wide odd) {
  return (VecU)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}
#else
typedef __m256i Wide;
FRD_INLINE Wide wide(VecU x) { return (Wide)x; }
FRD_INLINE Wide wide(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
FRD_INLINE Wide times(Wide x, uint32_t constant) { return _mm256_mul_epu32(x, wide(constant)); }
FRD_INLINE Wide high(Wide x) { return _mm256_srli_epi64(x, 32); }
FRD_INLINE Wide exclusive_or(Wide a, Wide b, Wide c) { return _mm256_xor_si256(a, _mm256_xor_si256(b, c)); }
FRD_INLINE VecU together(Wide even, Wide odd) {
  return (VecU)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}
#endif

// The rounds from `First` on.
template <int First>
FRD_INLINE VecWords rounds(Wide* x0, Wide* x1, Wide* x2, Wide* x3, const RoundKeys& keys) {
#pragma GCC unroll 10
  for (int round = First; round < PHILOX_ROUNDS; ++round) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Wide p0 = times(x0[half], PHILOX_M0), p1 = times(x2[half], PHILOX_M1);
      x0[half] = exclusive_or(high(p1), x1[half], wide(keys.k0[round]));
      x2[half] = exclusive_or(high(p0), x3[half], wide(keys.k1[round]));
      x1[half] = p1;
      x3[half] = p0;
    }
  }
  return {{together(x0[0], x0[1]), together(x1[0], x1[1]), together(x2[0], x2[1]), together(x3[0], x3[1])}};
}

FRD_INLINE VecWords philox(VecU a, uint32_t b, uint32_t c, uint32_t stream, const RoundKeys& keys) {
  // Half of what the first two rounds multiply is the same in all lanes.
  const uint64_t of_c = uint64_t{PHILOX_M1} * c;
  const uint64_t of_b = uint64_t{PHILOX_M0} * (static_cast<uint32_t>(of_c >> 32) ^ b ^ keys.k0[0]);
  const Wide none = wide(0u), first2 = wide(stream ^ keys.k1[0]),
             second0 = wide(static_cast<uint32_t>(of_c) ^ keys.k0[1]),
             second2 = wide(static_cast<uint32_t>(of_b >> 32) ^ keys.k1[1]),
             second3 = wide(static_cast<uint32_t>(of_b));
  const Wide units[2] = {wide(a), high(wide(a))};
  Wide x0[2], x1[2], x2[2], x3[2];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Wide p0 = times(units[half], PHILOX_M0), p1 = times(exclusive_or(high(p0), first2, none), PHILOX_M1);
    x0[half] = exclusive_or(high(p1), second0, none);
    x1[half] = p1;
    x2[half] = exclusive_or(p0, second2, none);
    x3[half] = second3;
  }
  return rounds<2>(x0, x1, x2, x3, keys);
}
// The same where each lane has a row of its own.
FRD_INLINE VecWords philox(VecU a, VecU b, uint32_t c, uint32_t stream, const RoundKeys& keys) {
  Wide x0[2] = {wide(a), high(wide(a))}, x1[2] = {wide(b), high(wide(b))};
  Wide x2[2] = {wide(c), wide(c)}, x3[2] = {wide(stream), wide(stream)};
  return rounds<0>(x0, x1, x2, x3, keys);
}
#else
FRD_INLINE VecWords philox(VecU a, VecU b, uint32_t c, uint32_t stream, const RoundKeys& keys) {
  VecU x0 = a, x1 = b, x2 = VecU{} + c, x3 = VecU{} + stream;
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const VecUL p0 = __builtin_convertvector(x0, VecUL) * static_cast<uint64_t>(PHILOX_M0);
    const VecUL p1 = __builtin_convertvector(x2, VecUL) * static_cast<uint64_t>(PHILOX_M1);
    x0 = __builtin_convertvector(p1 >> 32, VecU) ^ x1 ^ keys.k0[round];
    x2 = __builtin_convertvector(p0 >> 32, VecU) ^ x3 ^ keys.k1[round];
    x1 = __builtin_convertvector(p1, VecU);
    x3 = __builtin_convertvector(p0, VecU);
  }
  return {{x0, x1, x2, x3}};
}
FRD_INLINE VecWords philox(VecU a, uint32_t b, uint32_t c, uint32_t stream, const RoundKeys& keys) {
  return philox(a, VecU{} + b, c, stream, keys);
}
#endif

// Elements whose masks LANES calls draw, and the registers that they fill.
inline constexpr int64_t BLOCK = FIELDS * LANES, BLOCK_VECTORS = BLOCK / LANES;

// The eight fields of each call that `compare` is true of, as the low byte of its lane.
template <class Compare>
FRD_INLINE VecI fields_where(const VecWords& calls, Compare compare) {
  VecH found{};
#pragma GCC unroll 4
  for (int word = 0; word < 4; ++word) {
    // Its low half is field 2 * word, its high half the next.
    const VecU bits = VecU{} + (1u << 2 * word | 1u << (2 * word + 17));
    found |= (VecH)compare((VecH)calls.w[word]) & (VecH)bits;
  }
  const VecU both = (VecU)found;
  return (VecI)((both | both >> 16) & 0xFFu);
}

// Which elements of LANES calls are dropped: a byte for each call. `row`: a number, or one for each call.
template <class RowNumbers>
FRD_INLINE VecB draw(VecU call, RowNumbers row, uint32_t step, uint32_t stream, const RoundKeys& keys,
                     uint64_t threshold) {
  if (threshold >> 32) return ~VecB{};  // no field is as large as the upper half
  const VecH upper = VecH{} + static_cast<uint16_t>(threshold >> 16), lower = VecH{} + static_cast<uint16_t>(threshold);
  const VecWords words = philox(call, row, step, stream, keys);
  VecI found = fields_where(words, [&](VecH field) { return field < upper; });
  if (threshold & 0xFFFF) {
    const VecI ties = fields_where(words, [&](VecH field) { return field == upper; });
    if (any(ties)) {
      const VecWords second = philox(call, row, step, stream | STREAM_LOW, keys);
      found |= ties & fields_where(second, [&](VecH field) { return field < lower; });
    }
  }
  return narrow(found << 24 >> 24);  // as numbers that fit a byte
}

// LANES bits of a row of masks, from `element` on, as a mask. element % LANES == 0.
FRD_INLINE VecI spread(const uint8_t* bits, int64_t element) {
  const uint8_t* from = bits + element / 8;
#if FRD_LANES == 16
  const int word = from[0] | from[1] << 8;
#if defined(__x86_64__)
  return (VecI)_mm512_movm_epi32(static_cast<__mmask16>(word));
#endif
#elif FRD_LANES == 8
  const int word = *from;
#else
  const int word = *from >> element % 8;
#endif
  VecI powers{};
  for (int lane = 0; lane < LANES; ++lane) powers[lane] = 1 << lane;
  return ((VecI{} + word) & powers) != 0;
}

// The masks of one site at one step: elements first .. first + width of rows. first % FIELDS == 0.
struct SiteMasks {
  uint32_t stream, step;
  uint64_t threshold;
  int64_t width, first = 0;

  // Of one row.
  FRD_MEMBER void draw(const RoundKeys& keys, uint32_t row, uint8_t* bits) const {
    for (int64_t i = 0; i < width; i += BLOCK)
      store(bits + i / 8, FRD_ISA::draw(lane_numbers() + static_cast<uint32_t>((first + i) / FIELDS), row, step, stream,
                                        keys, threshold));
  }
  // Of rows begin .. end, whose numbers and bits are row(b) and bits(b): as many at once as have their calls in a
  // register.
  template <class RowOf, class BitsOf>
  FRD_MEMBER void draw(const RoundKeys& keys, int64_t begin, int64_t end, RowOf&& row, BitsOf&& bits) const {
    const int64_t calls = tiles_of(width, FIELDS), together = calls ? LANES / calls : 0;
    if (together < 2) {
      for (int64_t b = begin; b < end; ++b) draw(keys, row(b), bits(b));
      return;
    }
    VecU call{}, of_lane{};
    for (int64_t lane = 0; lane < LANES; ++lane) call[lane] = static_cast<uint32_t>(first / FIELDS + lane % calls);
    for (int64_t b = begin; b < end; b += together) {
      const int64_t n = least(together, end - b);
      for (int64_t lane = 0; lane < n * calls; ++lane) of_lane[lane] = row(b + lane / calls);
      uint8_t drawn[2 * LANES] = {};  // a row's bytes and as many behind them as it has room for
      store(drawn, FRD_ISA::draw(call, of_lane, step, stream, keys, threshold));
      for (int64_t i = 0; i < n; ++i) std::memcpy(bits(b + i), drawn + i * calls, LANES);
    }
  }
};
// Calls body(t, begin, end, row) for rows begin .. end of the batch at time t, for all rows of a chunk; `row` is the
// first one's number among them, `work` the numbers that a row touches.
template <class Body>
void each_step(const Parallel& parallel, const Sequence& sequence, const Chunk& chunk, int64_t work, Body&& body) {
  parallel.each(chunk.rows, work, [&](int64_t begin, int64_t end) {
    for (int64_t s = chunk.begin; s < chunk.end; ++s) {
      const int64_t t = sequence.time(s), row = sequence.row(t) - chunk.row;
      const int64_t first = begin > row ? begin - row : 0, last = least(sequence.active(t), end - row);
      if (first < last) body(t, first, last, row + first);
    }
  });
}

// Bytes that a row of `width` elements takes.
inline int64_t bytes_of(int64_t width) { return tiles_of(width, BLOCK) * LANES; }

// The masks of the state sites and of hidden dropout for one layer and direction. Those that are drawn once per
// sequence are there for the length of the call, those of a step from draw(its chunk) on.
template <class T>
class StateMasks {
 public:
  // width: how many units have masks (H; unit indices of a projected h start at 0 too). most: rows of a chunk.
  StateMasks(const Parallel& parallel, const Masks& masks, const Sequence& sequence, int64_t width, int64_t most)
      : parallel_(parallel), masks_(masks), sequence_(sequence), keys_(masks.keys[GROUP_STATE]), width_(width) {
    const uint32_t flags = (masks.flags & FLAG_MASKS_ON) ? masks.flags : 0;
    int64_t of_step = 0, of_sequence = 0;
    for (int s = 0; s < NUM_STATE_SITES; ++s) {
      const StateSite& row = STATE_SITES[s];
      Site& site = sites_[s];
      site.per_step = per_step(row, flags);
      site.on = site.per_step || per_sequence(row, flags);
      site.stream = stream_of(kind_of(row, flags), masks.layer, masks.direction);
      site.threshold = masks.thresholds[row.threshold];
      if (site.on) site.place = (site.per_step ? of_step : of_sequence)++ * bytes_of(width);
    }
    hidden_.on = flags & FLAG_HIDDEN;
    hidden_.stream = stream_of(KIND_HIDDEN, masks.layer, masks.direction);
    hidden_.threshold = masks.thresholds[SITE_HIDDEN_DROPOUT];
    if (hidden_.on) hidden_.place = of_sequence++ * bytes_of(width);
    hidden_scale_ = hidden_.on ? T(keep_scale(hidden_.threshold)) : T(1);
    step_bytes_ = of_step * bytes_of(width);
    sequence_bytes_ = of_sequence * bytes_of(width);
    step_bits_ = scratch<uint8_t>(most * step_bytes_);
    sequence_bits_ = scratch<uint8_t>(sequence.batch * sequence_bytes_);
    if (of_sequence)
      parallel.each(sequence.batch, of_sequence * width,
                    [&](int64_t begin, int64_t end) { draw_sequence(begin, end); });
  }

  // Draws the masks of the steps of a chunk, which take the place of those of the chunk before.
  void draw(const Chunk& chunk) {
    first_row_ = chunk.row;
    if (!step_bytes_) return;
    each_step(parallel_, sequence_, chunk, step_bytes_ * 8,
              [&](int64_t t, int64_t begin, int64_t end, int64_t) { draw_step(t, begin, end); });
  }

  bool dead_units() const { return sites_[STATE_MEMORY].on && !sites_[STATE_MEMORY].per_step; }

  // Units unit .. unit + LANES of batch row b at time t of the chunk. unit % LANES == 0.
  FRD_MEMBER Drops<SimdMath<T>> drops(int64_t t, int64_t b, int64_t unit) const {
    const uint8_t* const of_step = &step_bits_[(sequence_.row(t) + b - first_row_) * step_bytes_];
    const uint8_t* const of_sequence = &sequence_bits_[b * sequence_bytes_];
    Drops<SimdMath<T>> found{};
#pragma GCC unroll 8
    for (int s = 0; s < NUM_STATE_SITES; ++s) {
      const Site& site = sites_[s];
      if (site.on) found.of[s] = mask_at((site.per_step ? of_step : of_sequence) + site.place, unit);
    }
    return found;
  }

  // Which units enter the call dead; only meaningful with dead_units().
  FRD_MEMBER Mask<T> dead(int64_t b, int64_t unit) const {
    return dead_units() ? mask_at(&sequence_bits_[b * sequence_bytes_ + sites_[STATE_MEMORY].place], unit) : Mask<T>{};
  }

  // Hidden dropout of h, or of the gradient that comes back through it.
  FRD_MEMBER Vec<T> hidden(int64_t b, int64_t unit, Vec<T> value) const {
    if (!hidden_.on) return value;
    return select(mask_at(&sequence_bits_[b * sequence_bytes_ + hidden_.place], unit), Vec<T>{}, hidden_scale_ * value);
  }

 private:
  struct Site {
    bool on = false, per_step = false;
    uint32_t stream = 0;
    uint64_t threshold = 0;
    int64_t place = 0;  // of its bits among those of a row
  };

  FRD_INLINE Mask<T> mask_at(const uint8_t* bits, int64_t unit) { return Simd<T>::mask_of(spread(bits, unit)); }

  void draw_step(int64_t t, int64_t begin, int64_t end) {
    const uint32_t step = masks_.step_offset + static_cast<uint32_t>(t);
    uint8_t* const bits = &step_bits_[(sequence_.row(t) - first_row_) * step_bytes_];
    for (const Site& site : sites_)
      if (site.on && site.per_step)
        SiteMasks{site.stream, step, site.threshold, width_}.draw(
            keys_, begin, end, [&](int64_t b) { return masks_.example(b); },
            [&](int64_t b) { return bits + b * step_bytes_ + site.place; });
  }

  void draw_sequence(int64_t begin, int64_t end) {
    const auto draw = [&](const Site& site, const RoundKeys& keys, bool shared) {
      SiteMasks{site.stream, SEQ, site.threshold, width_}.draw(
          keys, begin, end, [&](int64_t b) { return shared ? SEQ : masks_.example(b); },
          [&](int64_t b) { return &sequence_bits_[b * sequence_bytes_ + site.place]; });
    };
    for (const Site& site : sites_)
      if (site.on && !site.per_step) draw(site, keys_, false);
    if (hidden_.on) draw(hidden_, RoundKeys(masks_.keys[GROUP_HIDDEN]), masks_.flags & FLAG_HIDDEN_BATCH_SHARED);
  }

  const Parallel& parallel_;
  const Masks& masks_;
  const Sequence& sequence_;
  const RoundKeys keys_;
  const int64_t width_;
  Site sites_[NUM_STATE_SITES], hidden_;
  T hidden_scale_;
  int64_t step_bytes_, sequence_bytes_;  // of a row: the sites' bits one after the other
  int64_t first_row_ = 0;                // of the chunk
  Buffer<uint8_t> step_bits_{nullptr, nullptr}, sequence_bits_{nullptr, nullptr};  // [rows of a chunk], [batch]
};

}  // namespace frd::cpu::FRD_ISA
