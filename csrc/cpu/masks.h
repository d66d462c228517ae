// Random words, a register at a time, and the masks made of them. See core/counters.h for the counter table.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "core/counters.h"
#include "core/flags.h"
#include "core/sites.h"
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
#pragma GCC unroll 10
  for (int round = 2; round < PHILOX_ROUNDS; ++round) {
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
#else
FRD_INLINE VecWords philox(VecU a, uint32_t b, uint32_t c, uint32_t stream, const RoundKeys& keys) {
  VecU x0 = a, x1 = VecU{} + b, x2 = VecU{} + c, x3 = VecU{} + stream;
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
#endif

// Kinds whose counter is a unit: the four words of units unit .. unit + LANES.
FRD_INLINE VecWords unit_words(uint32_t unit, uint32_t b, uint32_t c, uint32_t stream, const RoundKeys& keys) {
  return philox(lane_numbers() + unit, b, c, stream, keys);
}

template <int J, int... L>
FRD_INLINE VecU quarter(const VecWords& quads, std::integer_sequence<int, L...>) {
  const VecU w01 = pick<(LANES / 4 * J + L / 4 + LANES * (L % 2))...>(quads.w[0], quads.w[1]);
  const VecU w23 = pick<(LANES / 4 * J + L / 4 + LANES * (L % 2))...>(quads.w[2], quads.w[3]);
  return pick<(L % 4 < 2 ? L : LANES + L)...>(w01, w23);
}
// Kinds whose counter is a unit over 4: the words of units first .. first + 4 LANES, first % 4 == 0.
FRD_INLINE VecWords quad_words(uint32_t first, uint32_t b, uint32_t c, uint32_t stream, const RoundKeys& keys) {
  const VecWords quads = philox(lane_numbers() + first / 4, b, c, stream, keys);
  return {
      {quarter<0>(quads, Lanes{}), quarter<1>(quads, Lanes{}), quarter<2>(quads, Lanes{}), quarter<3>(quads, Lanes{})}};
}

// Whether each word is below the threshold, which may be 2^32.
FRD_INLINE VecI below(VecU words, uint64_t threshold) {
  const VecI all = VecI{} - static_cast<int32_t>(threshold >> 32);
  return (VecI)(words < static_cast<uint32_t>(threshold)) | all;
}

// The masks of the state sites and of hidden dropout for one layer and direction. Those that are drawn once per
// sequence are kept as bits for the length of the call.
template <class T>
class StateMasks {
 public:
  // width: how many units have masks (H; unit indices of a projected h start at 0 too).
  StateMasks(const Parallel& parallel, const Masks& masks, int64_t batch, int64_t width)
      : masks_(masks), state_keys_(masks.state), padded_((width + LANES - 1) / LANES * LANES) {
    const uint32_t flags = (masks.flags & FLAG_MASKS_ON) ? masks.flags : 0;
    const auto source = [flags](uint32_t on, bool sequence) {
      return !(flags & on) ? OFF : sequence ? SEQUENCE : STEP;
    };
    zone_c_ = source(FLAG_ZONEOUT_C, flags & FLAG_ZONEOUT_C_SEQUENCE);
    zone_h_ = source(FLAG_ZONEOUT_H, flags & FLAG_ZONEOUT_H_SEQUENCE);
    update_ = source(FLAG_UPDATE, flags & FLAG_UPDATE_SEQUENCE);
    memory_ = source(FLAG_CELL, !(flags & FLAG_CELL_STEP));
    hidden_ = flags & FLAG_HIDDEN;
    hidden_scale_ = hidden_ ? T(keep_scale(masks.thresholds[SITE_HIDDEN_DROPOUT])) : T(1);
    word_h_ = (flags & FLAG_ZONEOUT_H_SHARED) ? WORD_ZONEOUT_C : WORD_ZONEOUT_H;
    stream_step_ = stream_of(KIND_STATE, masks.layer, masks.direction);
    any_step_ = zone_c_ == STEP || zone_h_ == STEP || update_ == STEP || memory_ == STEP;
    any_state_sequence_ = zone_c_ == SEQUENCE || zone_h_ == SEQUENCE || update_ == SEQUENCE || memory_ == SEQUENCE;
    if (any_state_sequence_ || hidden_) {
      bits_.reset(new int8_t[batch * padded_]);
      parallel.each(batch, padded_, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) draw_sequence(b);
      });
    }
  }

  bool dead_units() const { return memory_ == SEQUENCE; }

  // Units unit .. unit + LANES of batch row b at absolute time t. unit % LANES == 0.
  FRD_MEMBER Drops<SimdMath<T>> drops(int64_t b, int64_t unit, int64_t t) const {
    VecI update{}, memory{}, zone_c{}, zone_h{};
    if (any_step_) {
      const VecWords words = unit_words(static_cast<uint32_t>(unit), masks_.example(b),
                                        masks_.step_offset + static_cast<uint32_t>(t), stream_step_, state_keys_);
      if (zone_c_ == STEP) zone_c = below(words.w[WORD_ZONEOUT_C], masks_.thresholds[SITE_ZONEOUT_C]);
      if (zone_h_ == STEP) zone_h = below(words.w[word_h_], masks_.thresholds[SITE_ZONEOUT_H]);
      if (update_ == STEP) update = below(words.w[WORD_UPDATE], masks_.thresholds[SITE_UPDATE_DROPOUT]);
      if (memory_ == STEP) memory = below(words.w[WORD_CELL], masks_.thresholds[SITE_CELL_DROPOUT]);
    }
    if (any_state_sequence_) {
      const VecI drawn = bits(b, unit);
      if (zone_c_ == SEQUENCE) zone_c = (drawn & ZONE_C) != 0;
      if (zone_h_ == SEQUENCE) zone_h = (drawn & ZONE_H) != 0;
      if (update_ == SEQUENCE) update = (drawn & UPDATE) != 0;
      if (memory_ == SEQUENCE) memory = (drawn & MEMORY) != 0;
    }
    return {Simd<T>::mask_of(update), Simd<T>::mask_of(memory), Simd<T>::mask_of(zone_c), Simd<T>::mask_of(zone_h)};
  }

  // Which units enter the call dead; only meaningful with dead_units().
  FRD_MEMBER Mask<T> dead(int64_t b, int64_t unit) const {
    return dead_units() ? Simd<T>::mask_of((bits(b, unit) & MEMORY) != 0) : Mask<T>{};
  }

  // Hidden dropout of h, or of the gradient that comes back through it.
  FRD_MEMBER Vec<T> hidden(int64_t b, int64_t unit, Vec<T> value) const {
    if (!hidden_) return value;
    return select(Simd<T>::mask_of((bits(b, unit) & HIDDEN) != 0), Vec<T>{}, hidden_scale_ * value);
  }

 private:
  enum Source : uint8_t { OFF, STEP, SEQUENCE };
  static constexpr int32_t ZONE_C = 1, ZONE_H = 2, UPDATE = 4, MEMORY = 8, HIDDEN = 16;

  FRD_MEMBER VecI bits(int64_t b, int64_t unit) const {
    VecB bytes;
    __builtin_memcpy(&bytes, &bits_[b * padded_ + unit], sizeof bytes);
    return widen(bytes);
  }

  void draw_sequence(int64_t b) {
    const uint32_t example = masks_.example(b);
    const uint32_t hidden_example = (masks_.flags & FLAG_HIDDEN_BATCH_SHARED) ? SEQ : example;
    const uint32_t state_stream = stream_of(KIND_STATE_SEQUENCE, masks_.layer, masks_.direction);
    const RoundKeys hidden_keys(masks_.hidden);
    const uint32_t hidden_stream = stream_of(KIND_HIDDEN, masks_.layer, masks_.direction);
    for (int64_t unit = 0; unit < padded_; unit += LANES) {
      VecI found{};
      if (any_state_sequence_) {
        const VecWords words = unit_words(static_cast<uint32_t>(unit), example, SEQ, state_stream, state_keys_);
        found |= below(words.w[WORD_ZONEOUT_C], masks_.thresholds[SITE_ZONEOUT_C]) & ZONE_C;
        found |= below(words.w[word_h_], masks_.thresholds[SITE_ZONEOUT_H]) & ZONE_H;
        found |= below(words.w[WORD_UPDATE], masks_.thresholds[SITE_UPDATE_DROPOUT]) & UPDATE;
        found |= below(words.w[WORD_CELL], masks_.thresholds[SITE_CELL_DROPOUT]) & MEMORY;
      }
      if (hidden_) {
        const VecWords words = unit_words(static_cast<uint32_t>(unit), hidden_example, SEQ, hidden_stream, hidden_keys);
        found |= below(words.w[0], masks_.thresholds[SITE_HIDDEN_DROPOUT]) & HIDDEN;
      }
      store(&bits_[b * padded_ + unit], narrow(found));
    }
  }

  const Masks& masks_;
  const RoundKeys state_keys_;
  const int64_t padded_;
  Source zone_c_, zone_h_, update_, memory_;
  bool hidden_, any_step_, any_state_sequence_;
  T hidden_scale_;
  int word_h_;
  uint32_t stream_step_;
  std::unique_ptr<int8_t[]> bits_;  // [batch, padded]
};

}  // namespace frd::cpu::FRD_ISA
