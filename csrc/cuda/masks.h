// The randomness of one layer call on the device: what it is given by the caller, what prepare.cu makes of that in
// device memory, and the masks that the step kernels read or draw.
#pragma once

#include <type_traits>

#include "core/counters.h"
#include "core/flags.h"
#include "core/sites.h"
#include "cuda/numbers.h"

namespace frd::cuda {

// The site on what a layer writes, of which it has one at most.
struct WriteSite {
  bool on, per_step, shared;  // shared: by all examples
  uint32_t stream;
  int threshold;    // its row
  uint32_t column;  // of the layer's output, of both directions, which is the direction's first
};

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
  const int64_t* rng_written;  // [2]
  const int64_t* thresholds;   // [NUM_SITES], or null where no site is configured
  WriteSite written;           // which has no bits in `flags`

  bool configured() const { return flags || written.on; }
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

// The state sites that draw, of masks once per sequence or at each step: how a kernel is told, in the order of their
// table.
struct SiteDraw {
  uint32_t stream;
  int threshold;  // its row
  int site;
};
struct SiteDraws {
  SiteDraw at[NUM_STATE_SITES];
  int count;

  static SiteDraws of(const Random& random, bool once) {
    SiteDraws draws{};
    const uint32_t flags = random.drawing();
    for (int s = 0; s < NUM_STATE_SITES; ++s) {
      const StateSite& site = STATE_SITES[s];
      if (once ? frd::per_sequence(site, flags) : frd::per_step(site, flags))
        draws.at[draws.count++] = {stream_of(kind_of(site, flags), random.layer, random.direction), site.threshold, s};
    }
    return draws;
  }
};

// What the sites of a call multiply with.
template <class S>
struct alignas(16) Factors {
  StateSites<Math<S>> state;
  S hidden, written;
};

// Of a row of masks with a bit for each of `width` elements.
FRD_INLINE int64_t bytes_of_bits(int64_t width) { return (width + FIELDS - 1) / FIELDS; }

// A site that draws at each step, as the lanes of a warp read it.
struct alignas(16) StepDraw {
  uint32_t stream, upper, lower;  // the last two: halves of its threshold
  int site;
};

// What all kernels of a call read, in device memory: prepare.cu writes it. A thread reads few of its parts, each at
// once.
template <class S>
struct Prepared {
  StepDraw draws[NUM_STATE_SITES];  // as many as there are
  Factors<S> factors;
  alignas(8) Key written;
  alignas(8) Key state;
  alignas(8) Key hidden;
  alignas(8) Key weight;
  uint64_t thresholds[NUM_SITES];
  double weight_scale;
};

// Masks that are drawn once per sequence: a byte for each unit of each example, drawn once per call, so that a step
// reads a byte where it would have to call Philox. Bit s is that of state site s.
inline constexpr uint8_t BIT_MEMORY = 1 << STATE_MEMORY, BIT_HIDDEN = 1 << NUM_STATE_SITES;

// How a kernel finds the masks of the state sites and of hidden dropout.
template <class S>
struct StateMasks {
  uint32_t flags;
  int first, count;            // of Prepared::draws, which a step draws
  int of_h;                    // how many of them, at the end, are of zoneout of h: 0 or 1
  uint32_t step_offset;        // of the call
  uint64_t step_product;       // philox_product() of a step: of at()
  const int64_t* example_ids;  // [batch], or null
  const Prepared<S>* call;     // null where no site is configured
  const uint8_t* bits;         // [batch, width], or null where none is drawn once per sequence
  int64_t width;

  static StateMasks of(const Random& random, const Prepared<S>* call, const uint8_t* bits, int64_t width) {
    const SiteDraws draws = SiteDraws::of(random, false);
    const bool of_h = draws.count && draws.at[draws.count - 1].site == STATE_ZONE_H;
    return {random.flags, 0, draws.count, of_h, random.step_offset, 0, random.example_ids, call, bits, width};
  }
  // Those of a step.
  StateMasks at(int64_t t) const {
    StateMasks masks = *this;
    masks.step_product = philox_product(step_offset + static_cast<uint32_t>(t));
    return masks;
  }
  // With a projection, zoneout of h is another kernel's than the other sites: those of the one, and of the other.
  StateMasks before_h() const {
    StateMasks masks = *this;
    masks.count -= of_h;
    return masks;
  }
  StateMasks of_h_alone() const {
    StateMasks masks = *this;
    masks.first = count - of_h;
    masks.count = of_h;
    return masks;
  }
};

FRD_INLINE uint32_t example_of(const int64_t* example_ids, int64_t b) {
  return static_cast<uint32_t>(example_ids ? example_ids[b] : b);
}

// A step that draws loads them after its draws: held beside the rounds of Philox, they take registers of which some
// kernels then have too few. What is on is known without a look at memory.
template <class S>
FRD_INLINE Factors<S> factors_of(const StateMasks<S>& masks) {
  if (!masks.call) return {state_sites<Math<S>>(0, nullptr), S(1), S(1)};
  Factors<S> factors = load_whole(&masks.call->factors);
  switch_on(factors.state, masks.flags);
  return factors;
}

FRD_INLINE bool draws(uint32_t flags, uint32_t flag) { return (flags & FLAG_MASKS_ON) && (flags & flag); }

// With one memory mask per sequence, a dropped unit enters the call dead.
template <class S>
FRD_INLINE bool dead_units(const StateMasks<S>& masks) {
  constexpr StateSite memory = STATE_SITES[STATE_MEMORY];
  return draws(masks.flags, memory.flag) && per_sequence(memory, masks.flags);
}

// The bytes of neighbouring units; drawn.h has those of a thread's.
template <int N, class S>
FRD_INLINE Pack<uint8_t, N> bits_of(const StateMasks<S>& masks, int64_t b, int64_t unit) {
  return masks.bits ? load<N>(masks.bits + b * masks.width + unit) : Pack<uint8_t, N>{};
}

// Masks of the units of a thread at a step: bit i of byte s is that of the i-th at state site s. drawn.h draws them.
using Drawn = std::conditional_t<NUM_STATE_SITES * FIELDS <= 32, uint32_t, uint64_t>;
static_assert(NUM_STATE_SITES * FIELDS <= 8 * sizeof(Drawn), "a Drawn has a byte for each state site");

// That of the i-th of them, with what its byte of bits_of() says of the whole sequence.
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
FRD_INLINE S hidden_of(const StateMasks<S>& masks, const Factors<S>& factors, uint8_t bits, S value) {
  if (!draws(masks.flags, FLAG_HIDDEN)) return value;
  return bits & BIT_HIDDEN ? S(0) : factors.hidden * value;
}

// h as others see it, the recurrent product, the output and the caller: of a cell whose memory it is, scaled. It is its
// own gradient, as is the next.
template <class S>
FRD_INLINE S seen_of(const Factors<S>& factors, bool scaled, S h) {
  return scaled ? factors.state.read_scale * h : h;
}

// A caller's memory as the recurrence carries it.
template <class S>
FRD_INLINE S enter_of(const StateMasks<S>& masks, const Factors<S>& factors, bool scaled, uint8_t bits, S value) {
  return enter<Math<S>>(dead_units(masks), scaled ? factors.state.entry_scale : S(1), bits & BIT_MEMORY, value);
}

}  // namespace frd::cuda
