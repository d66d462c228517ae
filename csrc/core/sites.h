// The sites that act on the state inside a step, shared by every cell and schedule, for host and device.
//
// `Math` is what a schedule computes with: Scalar (float or double), Vec (a number, or a vector of them), Mask (the
// type of their comparison) and the functions select(Mask, Vec, Vec), sigmoid(Vec) and tanh(Vec).
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "core/flags.h"
#include "core/outer_sites.h"

namespace frd {

template <class Math>
using Vec = typename Math::Vec;

// One zoneout: masks in training, the expectation otherwise.
template <class Math>
struct Zone {
  using T = typename Math::Scalar;
  using Vec = typename Math::Vec;
  using Mask = typename Math::Mask;
  bool on, sampled;
  T keep;  // z, the probability to keep the old value

  FRD_INLINE Vec mix(const Zone& zone, Mask keep_old, Vec old_value, Vec new_value) {
    if (!zone.on) return new_value;
    if (zone.sampled) return Math::select(keep_old, old_value, new_value);
    return zone.keep * old_value + (T(1) - zone.keep) * new_value;
  }
  // The share of a gradient at the mixed value that goes to the old value ...
  FRD_INLINE Vec to_old(const Zone& zone, Mask keep_old, Vec grad) {
    if (!zone.on) return Vec{};
    return zone.sampled ? Math::select(keep_old, grad, Vec{}) : zone.keep * grad;
  }
  // ... and to the new one.
  FRD_INLINE Vec to_new(const Zone& zone, Mask keep_old, Vec grad) {
    if (!zone.on) return grad;
    return zone.sampled ? Math::select(keep_old, Vec{}, grad) : (T(1) - zone.keep) * grad;
  }
};

// A linear site: zero where dropped, times a scale elsewhere. It is its own gradient.
template <class Math>
struct Drop {
  using Vec = typename Math::Vec;
  bool on;
  typename Math::Scalar scale;

  FRD_INLINE Vec apply(const Drop& site, typename Math::Mask drop, Vec value) {
    return site.on ? Math::select(drop, Vec{}, site.scale * value) : value;
  }
};

// What the state sites of one call multiply with; the same for every unit, example and step.
template <class Math>
struct StateSites {
  Drop<Math> update;  // of the candidate
  Drop<Math> memory;  // of the new memory, c or h: binary in training
  Zone<Math> zone_c, zone_h;
  typename Math::Scalar read_scale;   // what reads the memory sees it times this: 1/q in training
  typename Math::Scalar entry_scale;  // where h is the memory: a caller's h, which is scaled, times this
  bool unzoned;                       // the output is the new h, not the zoned one
};

// The sites whose masks may change at each step: a row for each. A test compares it with fused_rnn_dropout/sites.py.
// Zoneout of h is the last, as it acts behind a projection.
struct StateSite {
  uint32_t flag, sequence_flag;  // that it is configured; that its mask is drawn once per sequence
  uint32_t kind;
  int threshold;
};

enum StateSiteNumber : int { STATE_UPDATE, STATE_MEMORY, STATE_ZONE_C, STATE_ZONE_H, NUM_STATE_SITES };
inline constexpr StateSite STATE_SITES[NUM_STATE_SITES] = {
    {FLAG_UPDATE, FLAG_UPDATE_SEQUENCE, KIND_UPDATE, SITE_UPDATE_DROPOUT},
    {FLAG_CELL, FLAG_CELL_SEQUENCE, KIND_CELL, SITE_CELL_DROPOUT},
    {FLAG_ZONEOUT_C, FLAG_ZONEOUT_C_SEQUENCE, KIND_ZONEOUT_C, SITE_ZONEOUT_C},
    {FLAG_ZONEOUT_H, FLAG_ZONEOUT_H_SEQUENCE, KIND_ZONEOUT_H, SITE_ZONEOUT_H},
};
static_assert(STATE_ZONE_H == NUM_STATE_SITES - 1);

// The kind of its masks: zoneout of h may read those of zoneout of c.
FRD_INLINE constexpr uint32_t kind_of(StateSite site, uint32_t flags) {
  return site.kind == KIND_ZONEOUT_H && (flags & FLAG_ZONEOUT_H_SHARED) ? KIND_ZONEOUT_C : site.kind;
}

// The bits by which a state site is configured.
inline constexpr uint32_t STATE_FLAGS = [] {
  uint32_t found = 0;
  for (const StateSite& site : STATE_SITES) found |= site.flag;
  return found;
}();

// Which elements of a step are dropped, or with zoneout keep their old value: a mask for each row of STATE_SITES.
template <class Math>
struct Drops {
  typename Math::Mask of[NUM_STATE_SITES];
};

// All of them but the numbers.
template <class Math>
FRD_INLINE void switch_on(StateSites<Math>& sites, uint32_t flags) {
  sites.update.on = flags & FLAG_UPDATE;
  sites.memory.on = flags & FLAG_CELL;
  sites.zone_c.on = flags & FLAG_ZONEOUT_C;
  sites.zone_h.on = flags & FLAG_ZONEOUT_H;
  sites.zone_c.sampled = sites.zone_h.sampled = flags & FLAG_MASKS_ON;
  sites.unzoned = flags & FLAG_UNZONED;
}

template <class Math>
FRD_INLINE StateSites<Math> state_sites(uint32_t flags, const uint64_t* thresholds) {
  using T = typename Math::Scalar;
  const bool sampled = flags & FLAG_MASKS_ON;
  StateSites<Math> sites{};
  sites.update.scale = sites.memory.scale = sites.read_scale = sites.entry_scale = T(1);
  switch_on(sites, flags);
  if (sites.update.on) {
    const uint64_t p = thresholds[SITE_UPDATE_DROPOUT];
    if (!(flags & FLAG_UPDATE_PAPER) && sampled) sites.update.scale = T(keep_scale(p));
    if ((flags & FLAG_UPDATE_PAPER) && !sampled) sites.update.scale = T(keep_rate(p));
  }
  if (sites.memory.on) {
    const uint64_t p = thresholds[SITE_CELL_DROPOUT];
    if (!(flags & FLAG_CELL_PAPER) && sampled) {
      sites.read_scale = T(keep_scale(p));
      sites.entry_scale = T(keep_rate(p));
    }
    if ((flags & FLAG_CELL_PAPER) && !sampled) sites.memory.scale = T(keep_rate(p));
  }
  if (sites.zone_c.on) sites.zone_c.keep = T(static_cast<double>(thresholds[SITE_ZONEOUT_C]) / 4294967296.0);
  if (sites.zone_h.on) sites.zone_h.keep = T(static_cast<double>(thresholds[SITE_ZONEOUT_H]) / 4294967296.0);
  return sites;
}

// A state that enters a call: with one memory mask per sequence a dropped unit enters dead. Its own gradient.
template <class Math>
FRD_INLINE typename Math::Vec enter(bool dead_units, typename Math::Scalar scale, typename Math::Mask dead,
                                    typename Math::Vec value) {
  const typename Math::Vec scaled = scale * value;
  return dead_units ? Math::select(dead, typename Math::Vec{}, scaled) : scaled;
}

}  // namespace frd
