// The randomness of one layer call on the device: what it is given by the caller, what prepare.cu makes of that in
// device memory, and the masks that the step kernels read or draw.
#pragma once

#include <type_traits>

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
  // The flags of the sites that draw.
  uint32_t drawing() const { return (flags & FLAG_MASKS_ON) ? flags : 0; }
  // Whether some mask of the state or of h is drawn once per sequence.
  bool per_sequence() const {
    for (const StateSite& site : STATE_SITES)
      if (frd::per_sequence(site, drawing())) return true;
    return sampled(FLAG_HIDDEN);
  }
};

// How the masks of one state site are drawn, as a kernel is told.
struct SiteDraw {
  uint32_t stream;
  int threshold;  // its row, or -1 where the site does not draw

  // Those of all state sites, of masks once per sequence or at each step.
  static void all(const Random& random, bool once, SiteDraw* to) {
    for (const StateSite& site : STATE_SITES) {
      const uint32_t flags = random.drawing();
      const bool draws = once ? frd::per_sequence(site, flags) : frd::per_step(site, flags);
      *to++ = {stream_of(kind_of(site, flags), random.layer, random.direction), draws ? site.threshold : -1};
    }
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
// reads a byte where it would have to call Philox. Bit s is that of state site s.
inline constexpr uint8_t BIT_MEMORY = 1 << STATE_MEMORY, BIT_HIDDEN = 1 << NUM_STATE_SITES;

// How a kernel finds the masks of the state sites and of hidden dropout.
template <class S>
struct StateMasks {
  uint32_t flags;  // only those that draw: 0 with masks off
  SiteDraw per_step[NUM_STATE_SITES];
  uint32_t step_offset;        // of the call
  const int64_t* example_ids;  // [batch], or null
  const Prepared<S>* call;     // null where no site is configured
  const uint8_t* bits;         // [batch, width], or null where none is drawn once per sequence
  int64_t width;

  static StateMasks of(const Random& random, const Prepared<S>* call, const uint8_t* bits, int64_t width) {
    StateMasks masks{random.drawing(), {}, random.step_offset, random.example_ids, call, bits, width};
    SiteDraw::all(random, false, masks.per_step);
    return masks;
  }
};

FRD_INLINE uint32_t example_of(const int64_t* example_ids, int64_t b) {
  return static_cast<uint32_t>(example_ids ? example_ids[b] : b);
}

// A step that draws loads them after its draws: held beside the rounds of Philox, they take registers of which some
// kernels then have too few.
template <class S>
FRD_INLINE StateSites<Math<S>> sites_of(const StateMasks<S>& masks) {
  return masks.call ? masks.call->sites : state_sites<Math<S>>(0, nullptr);
}

// With one memory mask per sequence, a dropped unit enters the call dead.
template <class S>
FRD_INLINE bool dead_units(const StateMasks<S>& masks) {
  constexpr StateSite memory = STATE_SITES[STATE_MEMORY];
  return per_sequence(memory, masks.flags);
}

template <int N, class S>
FRD_INLINE Pack<uint8_t, N> bits_of(const StateMasks<S>& masks, int64_t b, int64_t unit) {
  return masks.bits ? load<N>(masks.bits + b * masks.width + unit) : Pack<uint8_t, N>{};
}

// Masks of units that share a call: bit i of byte s is that of the i-th of them at state site s.
using Drawn = std::conditional_t<NUM_STATE_SITES * FIELDS <= 32, uint32_t, uint64_t>;
static_assert(NUM_STATE_SITES * FIELDS <= 8 * sizeof(Drawn), "a Drawn has a byte for each state site");

// What the sites [first, last) that draw at each step drop, or keep the old value of, at time t: units from `unit` on
// of batch row b, as many as its call has.
template <class S>
FRD_INLINE Drawn drawn_at(const StateMasks<S>& masks, int64_t b, int64_t unit, int64_t t, int first = 0,
                          int last = NUM_STATE_SITES) {
  Drawn found = 0;
  FRD_ROLLED
  for (int s = first; s < last; ++s) {
    const SiteDraw site = masks.per_step[s];
    if (site.threshold < 0) continue;
    const uint32_t bits = dropped_of_call(static_cast<uint32_t>(unit / FIELDS), example_of(masks.example_ids, b),
                                          masks.step_offset + static_cast<uint32_t>(t), site.stream, masks.call->state,
                                          masks.call->thresholds[site.threshold]);
    found |= Drawn{bits >> unit % FIELDS} << FIELDS * s;
  }
  return found;
}

// The same of the i-th of them, with what its byte of bits_of() says of the whole sequence.
FRD_INLINE bool drops_at(Drawn drawn, int i, uint8_t bits, int site) {
  return (drawn >> (FIELDS * site + i) | static_cast<Drawn>(bits) >> site) & 1;
}
template <class S>
FRD_INLINE Drops<Math<S>> drops_of(Drawn drawn, int i, uint8_t bits) {
  Drops<Math<S>> drops;
  FRD_UNROLL
  for (int s = 0; s < NUM_STATE_SITES; ++s) drops.of[s] = drops_at(drawn, i, bits, s);
  return drops;
}

// Hidden dropout of h, or of the gradient that comes back through it.
template <class S>
FRD_INLINE S hidden_of(const StateMasks<S>& masks, uint8_t bits, S value) {
  if (!(masks.flags & FLAG_HIDDEN)) return value;
  return bits & BIT_HIDDEN ? S(0) : masks.call->hidden_scale * value;
}

// h as others see it, the recurrent product, the output and the caller: of a cell whose memory it is, scaled. It is its
// own gradient, as is the next.
template <class S>
FRD_INLINE S seen_of(const StateSites<Math<S>>& sites, bool scaled, S h) {
  return scaled ? sites.read_scale * h : h;
}

// A caller's memory as the recurrence carries it.
template <class S>
FRD_INLINE S enter_of(const StateMasks<S>& masks, const StateSites<Math<S>>& sites, bool scaled, uint8_t bits,
                      S value) {
  return enter<Math<S>>(dead_units(masks), scaled ? sites.entry_scale : S(1), bits & BIT_MEMORY, value);
}

}  // namespace frd::cuda
