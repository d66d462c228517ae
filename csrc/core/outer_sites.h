// The sites on what a layer reads and writes, for host and device, apart from those inside a step, which are compiled
// for each instruction set: core/sites.h.
#pragma once

#include <cstdint>

#include "core/counters.h"
#include "core/flags.h"

namespace frd {

// A row for each; a test compares the table with fused_rnn_dropout/sites.py. They draw in the name of the layer that
// reads the masked row, and of no direction. A layer has one of them at most on either side.
struct OuterSite {
  uint32_t flag, sequence_flag, shared_flag;  // the last: that all examples have one mask
  uint32_t kind;
  int threshold, group;
  bool writes;  // whether it masks what a layer writes whatever the flags are
};

inline constexpr OuterSite OUTER_SITES[] = {
    {FLAG_DROPOUT, 0, 0, KIND_INTER_LAYER, SITE_DROPOUT, GROUP_INTER_LAYER, false},
    {FLAG_INPUT, FLAG_INPUT_SEQUENCE, FLAG_INPUT_BATCH_SHARED, KIND_INPUT, SITE_INPUT_DROPOUT, GROUP_INPUT, false},
    {FLAG_INTER_LAYER, FLAG_INTER_LAYER_SEQUENCE, FLAG_INTER_LAYER_BATCH_SHARED, KIND_INTER_LAYER,
     SITE_INTER_LAYER_DROPOUT, GROUP_INTER_LAYER, false},
    {FLAG_OUTPUT, FLAG_OUTPUT_SEQUENCE, FLAG_OUTPUT_BATCH_SHARED, KIND_OUTPUT, SITE_OUTPUT_DROPOUT, GROUP_OUTPUT, true},
};

// How often a site draws under `flags`, which are 0 where no masks are drawn.
template <class Site>
FRD_INLINE constexpr bool per_step(Site site, uint32_t flags) {
  return (flags & site.flag) && !(flags & site.sequence_flag);
}
template <class Site>
FRD_INLINE constexpr bool per_sequence(Site site, uint32_t flags) {
  return (flags & site.flag) && (flags & site.sequence_flag);
}

// Whether a site masks what a layer writes, or what it reads, under `flags`.
inline constexpr bool writes_under(const OuterSite& site, uint32_t flags) {
  return site.writes || (site.group == GROUP_INTER_LAYER && (flags & FLAG_WRITES_BETWEEN));
}

// Those of `flags` by which a site on what a layer writes is configured, or one on what it reads.
inline constexpr uint32_t outer_flags(uint32_t flags, bool writes) {
  uint32_t found = 0;
  for (const OuterSite& site : OUTER_SITES) found |= writes_under(site, flags) == writes ? flags & site.flag : 0;
  return found;
}

// The bits by which they are configured.
inline constexpr uint32_t OUTER_FLAGS = outer_flags(~FLAG_MASKS_ON, false) | outer_flags(~FLAG_MASKS_ON, true);

// What is left of `flags` for the inside of a layer; 0 where nothing is on there.
inline constexpr uint32_t inner_flags(uint32_t flags) {
  for (const OuterSite& site : OUTER_SITES) flags &= ~(site.flag | site.sequence_flag | site.shared_flag);
  flags &= ~FLAG_WRITES_BETWEEN;
  return flags == FLAG_MASKS_ON ? 0 : flags;
}

// The site that masks what a layer reads or writes under `flags`; null where none does.
inline const OuterSite* outer_site(uint32_t flags, bool writes) {
  for (const OuterSite& site : OUTER_SITES)
    if ((flags & FLAG_MASKS_ON) && (flags & site.flag) && writes_under(site, flags) == writes) return &site;
  return nullptr;
}

}  // namespace frd
