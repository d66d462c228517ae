// The randomness of one layer call on the device: what it is given by the caller, what prepare.cu makes of that in
// device memory, and the masks that the step kernels read or draw.
#pragma once

#include "core/counters.h"
#include "core/flags.h"
#include "core/sites.h"
#include "cuda/numbers.h"

namespace frd::cuda {

// What a call gives. The pointers are to device memory and are never read on the host, so a captured graph that is
// replayed sees new numbers and new rates.
struct Random {
  uint32_t flags;  // core/flags.h
  uint32_t layer, direction;
  uint32_t step_offset;
  const int64_t* example_ids;  // [batch], or null for 0, 1, ...
  const int64_t* rng_state;    // [2], or null where no site draws from it, as the next two
  const int64_t* rng_hidden;   // [2]
  const int64_t* rng_weight;   // [2]
  const int64_t* thresholds;   // [NUM_SITES], or null where no site is configured

  bool sampled(uint32_t flag) const { return (flags & FLAG_MASKS_ON) && (flags & flag); }
  // Whether some mask of the state or of h is drawn once per sequence.
  bool per_sequence() const {
    return sampled(FLAG_HIDDEN) || (sampled(FLAG_UPDATE) && (flags & FLAG_UPDATE_SEQUENCE)) ||
           (sampled(FLAG_CELL) && !(flags & FLAG_CELL_STEP)) ||
           (sampled(FLAG_ZONEOUT_C) && (flags & FLAG_ZONEOUT_C_SEQUENCE)) ||
           (sampled(FLAG_ZONEOUT_H) && (flags & FLAG_ZONEOUT_H_SEQUENCE));
  }
};

// What all kernels of a call read, in device memory: prepare.cu writes it.
template <class S>
struct Prepared {
  Key state, hidden, weight;
  uint64_t thresholds[NUM_SITES];
  StateSites<Math<S>> sites;
  S hidden_scale;
  double weight_scale;
};

// Masks that are drawn once per sequence: a byte for each unit of each example, drawn once per call, so that a step
// reads a byte where it would have to call Philox twice.
inline constexpr uint8_t BIT_ZONE_C = 1, BIT_ZONE_H = 2, BIT_UPDATE = 4, BIT_MEMORY = 8, BIT_HIDDEN = 16;

// How a kernel finds the masks of the state sites and of hidden dropout.
template <class S>
struct StateMasks {
  uint32_t flags;              // only those that draw: 0 with masks off
  uint32_t stream;             // of masks per step
  uint32_t step_offset;        // of the call
  const int64_t* example_ids;  // [batch], or null
  const Prepared<S>* call;     // null where no site is configured
  const uint8_t* bits;         // [batch, width], or null where none is drawn once per sequence
  int64_t width;

  static StateMasks of(const Random& random, const Prepared<S>* call, const uint8_t* bits, int64_t width) {
    return {(random.flags & FLAG_MASKS_ON) ? random.flags : 0,
            stream_of(KIND_STATE, random.layer, random.direction),
            random.step_offset,
            random.example_ids,
            call,
            bits,
            width};
  }
};

FRD_INLINE uint32_t example_of(const int64_t* example_ids, int64_t b) {
  return static_cast<uint32_t>(example_ids ? example_ids[b] : b);
}

template <class S>
FRD_INLINE StateSites<Math<S>> sites_of(const StateMasks<S>& masks) {
  return masks.call ? masks.call->sites : state_sites<Math<S>>(0, nullptr);
}

// With one memory mask per sequence, a dropped unit enters the call dead.
template <class S>
FRD_INLINE bool dead_units(const StateMasks<S>& masks) {
  return (masks.flags & FLAG_CELL) && !(masks.flags & FLAG_CELL_STEP);
}

template <int N, class S>
FRD_INLINE Pack<uint8_t, N> bits_of(const StateMasks<S>& masks, int64_t b, int64_t unit) {
  return masks.bits ? load<N>(masks.bits + b * masks.width + unit) : Pack<uint8_t, N>{};
}

// Which masks drop, or keep the old value of, one unit of batch row b at time t. `bits`: its byte of bits_of().
template <class S>
FRD_INLINE Drops<Math<S>> drops_of(const StateMasks<S>& masks, int64_t b, int64_t unit, int64_t t, uint8_t bits) {
  const uint32_t flags = masks.flags;
  const bool zone_c = flags & FLAG_ZONEOUT_C, zone_c_step = zone_c && !(flags & FLAG_ZONEOUT_C_SEQUENCE);
  const bool zone_h = flags & FLAG_ZONEOUT_H, zone_h_step = zone_h && !(flags & FLAG_ZONEOUT_H_SEQUENCE);
  const bool update = flags & FLAG_UPDATE, update_step = update && !(flags & FLAG_UPDATE_SEQUENCE);
  const bool memory = flags & FLAG_CELL, memory_step = memory && (flags & FLAG_CELL_STEP);
  Drops<Math<S>> drops{};
  if (zone_c_step || zone_h_step || update_step || memory_step) {
    const Prepared<S>& call = *masks.call;
    const Words words = philox(static_cast<uint32_t>(unit), example_of(masks.example_ids, b),
                               masks.step_offset + static_cast<uint32_t>(t), masks.stream, call.state);
    const uint32_t word_h = (flags & FLAG_ZONEOUT_H_SHARED) ? words.w[WORD_ZONEOUT_C] : words.w[WORD_ZONEOUT_H];
    drops.zone_c = zone_c_step && dropped(words.w[WORD_ZONEOUT_C], call.thresholds[SITE_ZONEOUT_C]);
    drops.zone_h = zone_h_step && dropped(word_h, call.thresholds[SITE_ZONEOUT_H]);
    drops.update = update_step && dropped(words.w[WORD_UPDATE], call.thresholds[SITE_UPDATE_DROPOUT]);
    drops.memory = memory_step && dropped(words.w[WORD_CELL], call.thresholds[SITE_CELL_DROPOUT]);
  }
  if (zone_c && !zone_c_step) drops.zone_c = bits & BIT_ZONE_C;
  if (zone_h && !zone_h_step) drops.zone_h = bits & BIT_ZONE_H;
  if (update && !update_step) drops.update = bits & BIT_UPDATE;
  if (memory && !memory_step) drops.memory = bits & BIT_MEMORY;
  return drops;
}

// Hidden dropout of h, or of the gradient that comes back through it.
template <class S>
FRD_INLINE S hidden_of(const StateMasks<S>& masks, uint8_t bits, S value) {
  if (!(masks.flags & FLAG_HIDDEN)) return value;
  return bits & BIT_HIDDEN ? S(0) : masks.call->hidden_scale * value;
}

// A state that enters the call, or the gradient that leaves it on the same way.
template <class S>
FRD_INLINE S enter_of(const StateMasks<S>& masks, uint8_t bits, S scale, S value) {
  return enter<Math<S>>(dead_units(masks), scale, bits & BIT_MEMORY, value);
}

}  // namespace frd::cuda
